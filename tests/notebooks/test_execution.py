"""Every notebook executes alone, through the strict runner, in its own run at the default scale.

Those that train or extract use smaller settings (`make run` uses the full ones).
"""

import json
import shutil
import uuid
from pathlib import Path

import nbformat
import pytest
from helpers import short_prompts

from oelkit import Curation, Run, Settings
from oelkit.notebooks import NotebookError, run_notebooks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HANGS = 1500  # seconds, against hangs only: over ten times the slowest notebook
OF_THE_GAME = "Warning: a second invalid move in a row loses."
FEWER = {  # all in `make run`
    "00": {"maps": 4, "steps": 2},
    "07": {"rounds": 2},
    "08": {"maps": 16},
    "09": {"steps": 2, "world": "oelkit/FrozenLake3x3Unseen-v0"},
    "10": {"longest": 256},
}
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def run():
    """Return the name of a new run. Its folder is deleted afterwards, unless the test fails."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)


@pytest.fixture
def short_model(micro_folder, tmp_path):
    """Folder of the embedded model with a prompt set of its own, for short replies."""
    shutil.copytree(micro_folder, tmp_path / "short")
    notes = {"prompts": short_prompts(tmp_path)}
    (tmp_path / "short/oelkit.json").write_text(json.dumps(notes))
    return str(tmp_path / "short")


@pytest.fixture
def short_log(tmp_path):
    """The first conversations of the log that notebook 09 reads."""
    lines = (ROOT / "data/logs/lake_chats.jsonl").read_text("utf-8").splitlines(True)
    (tmp_path / "chats.jsonl").write_text("".join(lines[:16]), "utf-8")
    return str(tmp_path / "chats.jsonl")


def check(copy, folder):
    """Assert that a notebook has outputs, figures and metrics."""
    name, number = copy.stem, copy.stem[:2]
    notebook = nbformat.read(copy, as_version=4)
    saved = sum(cell.source.count("savefig(") for cell in notebook.cells)
    pictures = [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= saved > 0, "a figure is saved but not shown"
    assert [f for f in (folder / "figures").glob(f"{number}_*.png") if f.stat().st_size > 5_000]
    assert json.loads((folder / "notebooks" / f"{name}.metrics.json").read_text())
    assert copy.with_suffix(".html").stat().st_size > 100_000
    assert not [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "Warning" in o.get("text", "").replace(OF_THE_GAME, "")
    ]


@pytest.mark.parametrize("name", NAMES[:1] + NAMES[2:])  # 01 begins the shared run below
def test_runs_alone(name, run, request):
    fewer = dict(FEWER.get(name[:2], {}))
    if name[:2] in ("03", "05", "06", "07", "08", "10"):
        request.getfixturevalue("smaller")
    if name[:2] in ("06", "07", "08"):
        fewer["model"] = str(request.getfixturevalue("micro_folder"))
    if name[:2] == "00":
        fewer["model"] = request.getfixturevalue("short_model")
    if name[:2] == "09":
        fewer["chats"] = request.getfixturevalue("short_log")
    (copy,) = run_notebooks([name], fewer, run=run, timeout=HANGS)
    check(copy, ROOT / "runs" / run)


def test_the_first_notebooks_share_one_run(run, fewer):
    fewer(max_new_tokens=24)
    names = [n for n in NAMES if n[:2] in ("01", "02", "03", "04")]
    folder = ROOT / "runs" / run
    assert names[0] == NAMES[1]
    for copy in run_notebooks(names, {"seed": 5}, run=run, timeout=HANGS):
        check(copy, folder)
    metrics = {
        n[:2]: json.loads((folder / "notebooks" / f"{n}.metrics.json").read_text()) for n in names
    }
    assert sum(metrics["02"]["round_1"].values()) == metrics["01"]["n"] == metrics["03"]["games"]
    assert metrics["04"]["items"] == metrics["03"]["items"] > 0


def test_a_recorded_session_is_replayed_on_a_run(run):
    folder = ROOT / "runs" / run / "round_1"
    folder.mkdir(parents=True)
    for name in ("trajectories", "items"):
        shutil.copy(ROOT / "data" / "sample" / f"{name}.jsonl", folder)
    session = ROOT / "data" / "sample" / "curation.jsonl"
    (copy,) = run_notebooks(["04_curate"], {"session": str(session)}, run=run, timeout=HANGS)
    assert (
        folder / "curation.jsonl"
    ).read_bytes() == session.read_bytes()  # the remaining decisions are made on a copy
    assert (
        "widget-view" not in copy.read_text()
        and "What the teacher reads" in copy.with_suffix(".html").read_text()
    )


def test_inspect_plays_the_same_maps_before_and_after_distillation(run):
    folder = ROOT / "runs" / run
    loop = Run(folder, Settings(state_games=2, steps=1, batch_size=2), progress=False)
    for name in ("trajectories", "items"):
        shutil.copy(ROOT / "data" / "sample" / f"{name}.jsonl", loop.round_folder(1))
    loop.distill(1)
    (copy,) = run_notebooks(["02_inspect"], {"maps": 2}, run=run, timeout=HANGS)
    check(copy, folder)
    metrics = json.loads((folder / "notebooks" / "02_inspect.metrics.json").read_text())
    assert [sum(metrics[f"same maps, {arm}"].values()) for arm in ("base", "distilled")] == [2, 2]


def test_an_edit_after_training_is_refused_or_done_again(run, smaller):
    folder = ROOT / "runs" / run
    loop = Run(folder, Settings.of("tiny"), progress=False)
    one = loop.round_folder(1)
    for name in ("trajectories", "items"):
        shutil.copy(ROOT / "data" / "sample" / f"{name}.jsonl", one)
    loop.distill(1)
    weights, read = one / "adapter" / "adapter_model.safetensors", one / "adapter" / "experience.md"
    before = weights.read_bytes()
    Curation.open(one / "items.jsonl", one / "curation.jsonl").add("Walls cost a turn.")

    (copy,) = run_notebooks(["04_curate"], run=run, timeout=HANGS)
    assert "curate of round 1 is stale" in copy.read_text("utf-8")
    with pytest.raises(NotebookError, match=r"05_distill.*cell.*curation\.jsonl has changed since"):
        run_notebooks(["05_distill"], run=run, timeout=HANGS)
    assert weights.read_bytes() == before and "Walls cost" not in read.read_text("utf-8")

    run_notebooks(["05_distill"], {"redo": True}, run=run, timeout=HANGS)
    assert weights.read_bytes() != before and "Walls cost" in read.read_text("utf-8")
