"""Rules for all notebooks, checked on the files without running them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from oelkit.curation import replay
from oelkit.notebooks import parameters_of
from oelkit.records import ExperienceItem, Trajectory, read_jsonl

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED = {"run": "demo", "model": "micro", "scale": "tiny", "seed": 0}
COLAB = "https://colab.research.google.com/github/oelkit/oelkit/blob/main/notebooks/"
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_each_has_its_own_number():
    assert len({path.stem[:3] for path in PATHS}) == len(PATHS) >= 10
    assert all(re.match(r"\d\d_[a-z]", path.stem) for path in PATHS)


def tags(cell):
    return cell.metadata.get("tags", [])


@each
def test_valid_stripped_and_for_any_python3(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in code(path):
        assert not cell.outputs and cell.execution_count is None, "make strip"


@each
def test_begins_with_badge_title_and_three_bullets(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert f"]({COLAB}{path.name})" in first.source.splitlines()[0]
    assert re.search(rf"^# {path.stem[:2]} \S", first.source, re.M)
    told = re.split(r"^You will see$", first.source, flags=re.M)
    assert len(told) == 2 and len(re.findall(r"^- \S", told[1], re.M)) == 3


@each
def test_set_up_comes_first_and_is_the_same_everywhere(path):
    cells = code(path)
    assert len(cells[0].source.splitlines()) <= 12
    assert cells[0].source == code(PATHS[0])[0].source
    assert [i for i, cell in enumerate(cells) if "parameters" in tags(cell)] == [1]


def test_set_up_finds_the_root_from_anywhere_and_twice(tmp_path, monkeypatch):
    source = code(PATHS[0])[0].source
    for folder in (ROOT / "notebooks", ROOT):
        monkeypatch.chdir(folder)
        for _ in range(2):
            exec(compile(source, "set-up", "exec"), {})
        assert Path.cwd() == ROOT
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopIteration):
        exec(compile(source, "set-up", "exec"), {})


@each
def test_parameters_are_typed_literals_with_a_comment(path):
    source = code(path)[1].source
    lines, statements = source.splitlines(), ast.parse(source).body
    for node in statements:
        assert isinstance(node, ast.AnnAssign), ast.unparse(node)
        ast.literal_eval(node.value)
        assert re.search(r"  # \w", lines[node.end_lineno - 1]), (
            f"{ast.unparse(node)} has no comment"
        )
    declared = parameters_of(path)
    assert len(declared) == len(statements)
    assert {name: declared[name].default for name in SHARED} == SHARED
    assert ("rounds" in declared) == path.stem.startswith("07")


@each
def test_cells_are_short_and_every_parameter_is_used(path):
    cells = code(path)
    used = set()
    for cell in cells:
        assert len(cell.source.splitlines()) <= 15, cell.source
        tree = ast.parse(cell.source)  # also fails on magics: code must be plain Python
        if "parameters" not in tags(cell):
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    # notebooks that neither play nor train need no model
    assert set(parameters_of(path)) - used <= {"model", "scale", "seed"}


@each
def test_shows_by_hand_what_the_library_does_and_leaves_a_picture_and_metrics(path):
    source = "\n".join(cell.source for cell in code(path))
    assert re.search(r"^\s*assert ", source, re.M)
    assert "savefig(" in source
    assert f"{path.stem}.metrics.json" in source


@each
def test_figures_drawn_here_are_read_on_dark_pages(path):
    source = "\n".join(cell.source for cell in code(path))
    drawn = source.find(".subplots(")
    assert drawn < 0 or 0 <= source.find("plt.style.use(") < drawn, "a slab, or black on black"
    lines = source[max(drawn, 0) :].splitlines()
    for line in lines:  # error bars are black by default
        if re.search(r"\b(xerr|yerr)=", line):
            assert re.search(r"ecolor=|color=INK", line), line


@each
def test_ends_with_what_comes_next(path):
    last = read(path).cells[-1]
    assert last.cell_type == "markdown" and "## Next" in last.source
    after = last.source.split("## Next")[1]
    position = PATHS.index(path)
    if position + 1 < len(PATHS):
        assert f"({PATHS[position + 1].name})" in after
    for cell in read(path).cells:
        for link in re.findall(
            r"\]\(([^):]+\.ipynb)\)", cell.source if cell.cell_type == "markdown" else ""
        ):
            assert (path.parent / link).exists(), link


@each
def test_never_asks_and_never_looks_whether_it_is_headless(path):
    source = "\n".join(cell.source for cell in code(path)).lower()
    assert not re.search(r"\binput\(|headless|papermill|getpass|isatty", source)


@each
def test_one_word_for_each_thing(path):
    """The glossary's words: experience item, experience text, draw; tokens per reply."""
    text = "\n".join(cell.source for cell in read(path).cells)
    others = (
        r"\bnotes?\b|\btold\b|\b(?:tokens|nats|states|steps|games|lines|texts?|episodes) an? \w+"
    )
    found = re.findall(others, text)
    assert found == []


def test_the_sample_records_fit_together():
    folder = ROOT / "data" / "sample"
    games = {game.id: game for game in read_jsonl(folder / "trajectories.jsonl", Trajectory)}
    items = read_jsonl(folder / "items.jsonl", ExperienceItem)
    assert all(
        seen.turn < len(games[seen.trajectory_id].turns) for item in items for seen in item.evidence
    )
    curation = replay(items, folder / "curation.jsonl")
    assert {item.status for item in curation.items} == {"accepted", "rejected"} and curation.diff()
    assert {"merge", "edit", "undo"} <= {operation.op for operation in curation.log}
