"""The site builds without warnings, and works from a folder without a network; outdated copies of
notebooks are named.
"""

import base64
import io
import re
import shutil

import nbformat
import pytest
from helpers import load_script
from PIL import Image

import oelkit

from .pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    assert load_script("docs/site/build.py").build(folder) == 0
    return folder / "site"


def test_every_page_is_there_and_nothing_is_fetched_from_elsewhere(site):
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {"index.html", "docs/reference.html", "docs/command_line.html"} <= pages
    assert {f"notebooks/{p.stem}.html" for p in (ROOT / "notebooks").glob("*.ipynb")} <= pages
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        fetched = r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href|srcset)="(\w+:[^"]+)'
        asked = re.findall(fetched, text)
        assert not [url for url in asked if not url.startswith("data:")], (path, asked)
        for to in re.findall(r'<(?:img|source)\b[^>]*(?:src|srcset)="([^":]+)"', text):
            assert (path.parent / to.split("#")[0]).exists(), (path, to)


@pytest.mark.parametrize("name", ["index", "docs/reference", "docs/descent", "notebooks/04_curate"])
def test_a_page_opens_from_a_folder(site, new_page, name):
    """`new_page` fails a page that asks for anything outside this machine, or has an error."""
    page = new_page()
    page.goto((site / f"{name}.html").as_uri(), wait_until="load")
    assert page.locator("h1").first.is_visible()
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth)"
    )


def test_the_search_finds_a_page_without_a_network(site, new_page):
    page = new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q=contradictions", wait_until="load")
    page.locator("#search-results a", has_text="Curating experience").first.wait_for()
    # summaries of the results are there only if a server, as `python -m http.server`, gives them;
    # closed first, as a summary that is not there is said late on a busy machine
    page.context.close()
    new_page.wrong[:] = [said for said in new_page.wrong if "Failed to fetch" not in said]


def test_a_public_name_and_a_command_are_on_their_pages(site):
    reference = (site / "docs/reference.html").read_text("utf-8")
    api = " ".join(load_script("docs/site/conf.py").API.values()).split()
    for name in {*oelkit.__all__, *api}:
        assert f'id="oelkit.{name}"' in reference, name
    assert "ExperienceEditor" in reference, "experience_editor is its other name"
    assert "oelkit loop" in (site / "docs/command_line.html").read_text("utf-8")
    assert "notebooks/00_tour.html" in (site / "llms.txt").read_text("utf-8")


def test_a_copy_that_is_older_than_its_source_is_named(tmp_path):
    stale = load_script("docs/site/gallery.py").stale
    sources, copies = tmp_path / "notebooks", tmp_path / "gallery"
    for folder in (sources, copies):
        folder.mkdir()
        shutil.copy(ROOT / "notebooks/00_tour.ipynb", folder)
    assert stale(sources, copies) == []
    notebook = nbformat.read(sources / "00_tour.ipynb", as_version=4)
    notebook.cells[-1].source += " Changed."
    nbformat.write(notebook, sources / "00_tour.ipynb")
    shutil.copy(ROOT / "notebooks/01_rollout.ipynb", sources)
    assert stale(sources, copies) == ["00_tour.ipynb", "01_rollout.ipynb"]


def test_a_copy_has_no_injected_cell_and_its_thumbnail_no_ground(tmp_path):
    """The thumbnail is transparent like its figure, so faint lines look right on any page."""
    faint = Image.new("RGBA", (900, 300), (118, 118, 118, 64))
    png = io.BytesIO()
    faint.save(png, "PNG")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figure")])
    shown = {"image/png": base64.b64encode(png.getvalue()).decode()}
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", shown)]
    injected = {"tags": ["injected-parameters"]}  # added by papermill
    notebook.cells.insert(0, nbformat.v4.new_code_cell("run = 'demo'", metadata=injected))
    nbformat.write(notebook, tmp_path / "one.ipynb")
    (tmp_path / "gallery").mkdir()
    load_script("docs/site/gallery.py").publish(tmp_path / "one.ipynb", tmp_path / "gallery")
    assert "demo" not in (tmp_path / "gallery/one.ipynb").read_text("utf-8")
    with Image.open(tmp_path / "gallery/one.png") as thumbnail:
        assert (thumbnail.width, thumbnail.mode) == (320, "RGBA")
        assert 50 < thumbnail.getpixel((9, 9))[3] < 80
