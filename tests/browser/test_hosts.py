"""The editor in its real hosts: Voila on the real notebook, JupyterLab and Notebook 7, whose keys
must not fire.
"""

import json
import shutil

import nbformat
import pytest

from oelkit.records import read_jsonl

from .pages import JUPYTER, PICTURES, ROOT, SLOW, open_notebook, press, until


def test_voila_is_the_curation_app(serve, place, new_page):
    shutil.copy(ROOT / "notebooks" / "04_curate.ipynb", place / "notebooks")
    url = serve("voila", "notebooks/04_curate.ipynb", "--no-browser")
    log = place / "runs" / "demo" / "sample_curation.jsonl"

    def open_app():
        page = new_page()
        page.goto(url, timeout=SLOW, wait_until="commit")
        page.locator(".oel-row").first.click(timeout=SLOW)
        return page

    page = open_app()
    assert not log.exists()  # the recorded session was not requested
    first = page.locator("[aria-current] .oel-text").inner_text()
    press(page, "x", "e")
    page.keyboard.type("mine ")
    press(page, "Control+Enter")
    until(page, lambda: log.exists() and len(read_jsonl(log)) == 2)
    assert [(op["op"], op["author"]) for op in read_jsonl(log)] == [
        ("reject", "user"),
        ("edit", "user"),
    ]
    page.locator(
        ".oel-side pre", has_text="<|im_start|>"
    ).wait_for()  # the prompt, with the chat template
    page.get_by_role(
        "button", name="Whole game"
    ).first.click()  # jump to the turn that an item came from
    until(page, lambda: page.evaluate("Boolean(document.activeElement.closest('.oel-viewer'))"))
    page.close()
    again = open_app()  # a new kernel, which knows only the files on disk
    again.get_by_role("button", name="Rejected").click()
    assert again.locator(".oel-rejected .oel-text").all_inner_texts() == [first]
    again.get_by_role("button", name="Edited").click()
    assert "mine" in again.locator(".oel-row .oel-text").first.inner_text()
    assert len(read_jsonl(log)) == 2


LAB = """from pathlib import Path
from IPython.display import display
from oelkit import Curation
from oelkit.records import ExperienceItem
from oelkit.views.widgets import experience_editor
items = [ExperienceItem(f"i{n}", f"note {n}", (), "m", 1, 0) for n in range(6)]
display(experience_editor(Curation(items, Path("../log.jsonl"))))"""


@pytest.mark.parametrize(
    "host, folder, app",
    [("jupyterlab", "lab/tree", "LabApp"), ("notebook", "notebooks", "JupyterNotebookApp")],
)
def test_the_notebook_sees_none_of_the_keys(serve, place, new_page, host, folder, app):
    cells = [
        nbformat.v4.new_code_cell("1"),
        nbformat.v4.new_code_cell(LAB),
        nbformat.v4.new_code_cell("2"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), place / "notebooks" / "lab.ipynb"
    )
    url = serve(host, *JUPYTER, f"--{app}.expose_app_in_browser=True")
    page = new_page()
    open_notebook(page, f"{url}/{folder}/notebooks/lab.ipynb")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator(".oel-row").first.click(timeout=SLOW)
    new_page.wrong[:] = [
        w for w in new_page.wrong if "(reading 'schema')" not in w
    ]  # Notebook 7.6's own, as it opens

    def notebook():
        return page.evaluate("""() => { const { content } = jupyterapp.shell.currentWidget;
            const cells = content.model.sharedModel.cells.map((cell) => [cell.cell_type, cell.source]);
            return [content.mode, content.activeCellIndex, cells]; }""")

    before = notebook()
    assert before[2] == [["code", cell.source] for cell in cells]
    bound = [
        "j",
        "k",
        "ArrowDown",
        "ArrowUp",
        "a",
        "x",
        "s",
        "e",
        "Escape",
        "Space",
        "j",
        "Space",
        "m",
        "Control+Enter",
        "Alt+ArrowDown",
        "Alt+ArrowUp",
        "u",
        "U",
        "/",
        "Escape",
        "n",
        "N",
        "g",
        "g",
        "?",
        "Escape",
    ]
    unbound = list("bbccddhilopqrtvwyz") + [
        "A",
        "B",
        "D",
        "M",
        "Y",
        "Z",
        "Enter",
        "Shift+Enter",
        "Home",
        "0",
        "0",
    ]
    for key in bound + unbound:
        page.keyboard.press(key)
        if key == "Control+Enter":  # the form is open until the merge is saved
            until(page, lambda: page.locator(".oel textarea").count() == 0)
        assert notebook() == before, key
    until(page, lambda: "redo" in [op["op"] for op in read_jsonl(place / "log.jsonl")])
    done = [op["op"] for op in read_jsonl(place / "log.jsonl")]
    assert done[:4] == ["accept", "reject", "skip", "merge"] and done[-2:] == ["undo", "redo"]
    page.locator(
        ".jp-Notebook .jp-InputPrompt"
    ).first.click()  # outside the editor, the keys belong to the notebook
    page.keyboard.press("b")
    until(page, lambda: len(notebook()[2]) == len(cells) + 1)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    until(
        page,
        lambda: (
            "What the teacher reads"
            in json.dumps(nbformat.read(place / "notebooks" / "lab.ipynb", 4))
        ),
    )


def test_after_a_reload_without_the_kernel_the_table_stands_in_its_place(serve, place, new_page):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LAB)], metadata=kernel)
    nbformat.write(notebook, place / "notebooks" / "lab.ipynb")
    url = serve("jupyterlab", *JUPYTER, "--LabApp.expose_app_in_browser=True")
    page = new_page()
    open_notebook(page, f"{url}/lab/tree/notebooks/lab.ipynb")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator(".oel-row").first.click(timeout=SLOW)
    assert not page.locator(".oel-static").is_visible()
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    saved = place / "notebooks" / "lab.ipynb"
    until(page, lambda: "oel-static" in saved.read_text("utf-8"))
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.reload(timeout=SLOW, wait_until="commit")
    page.locator(".oel-static table").wait_for(timeout=SLOW)
    until(page, lambda: page.get_by_text("note 3").first.is_visible())
    until(page, lambda: page.get_by_text("Loading widget").count() == 0)
    page.wait_for_timeout(3000)
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/editor_without_kernel.png")
    assert page.locator(".oel-static table").is_visible()
    assert not page.get_by_text("Error displaying widget").is_visible()
