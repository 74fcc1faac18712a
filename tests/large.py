"""Measure long runs and large files: 200 rounds, 100,000 games, 10,000 items, a 32,000-token game.

    python tests/large.py                 # prints the results as JSON
    python tests/large.py --only files    # or rounds, context, browser

Each part runs in its own process. Times are CPU seconds of one thread, and memory is resident. In
the browser, times are wall-clock times, recorded with the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from helpers import make_game, make_model

from oelkit import Run, Settings, load_policy
from oelkit.auto_curation import auto_curate
from oelkit.curation import Curation
from oelkit.records import (
    Evidence,
    ExperienceItem,
    Outcome,
    State,
    Trajectory,
    Turn,
    read_jsonl,
    write_jsonl,
)
from oelkit.runs import driver
from oelkit.runs.stages import status
from oelkit.steps.distillation import distill
from oelkit.steps.evaluation import report_of
from oelkit.steps.extraction import extract
from oelkit.views.widgets.editor import ExperienceEditor
from oelkit.views.widgets.viewer import TrajectoryViewer

GAMES, ITEMS, ROUNDS, TOKENS = 100_000, 10_000, 200, 32_000
ONE_STEP = Settings.of(
    "tiny",
    env="oelkit/FrozenLake3x3-v0",
    extract_games=2,
    state_games=2,
    num_draws=1,
    steps=1,
    batch_size=2,
    lr=1e-12,  # otherwise the model drifts, and longer replies make rounds longer
    eval_maps=1,
    run_ablations=False,
    gate="off",
)


def resident(peak: bool = False) -> int:
    """Return this process's memory in MiB, or its peak since the peak was last asked for."""
    name = "VmHWM" if peak else "VmRSS"
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if peak:
        Path("/proc/self/clear_refs").write_text("5")
    return int(lines[name].split()[0]) // 1024


def rounds(folder: Path, n: int) -> dict[str, Any]:
    """Run rounds of one step. Measure each: its stages and the work around them."""
    rows: list[dict[str, float]] = []
    run = Run(folder / "run", replace(ONE_STEP, rounds=n), load_policy("micro"), progress=False)
    ensure, began, inside, opened = run.ensure, [time.process_time()], [0.0], [0]

    def measured(k: int, stage: str, redo: bool = False) -> None:
        ensure(k, stage, redo)
        if stage == "evaluate":
            seconds, opens = time.process_time() - began[0], opened[0]
            kib = sum(p.stat().st_size for p in (run.folder / f"round_{k}").rglob("*")) / 1024
            row = {"cpu_s": seconds, "cpu_s outside the stages": seconds - inside[0]}
            row |= {"mb": resident(), "files": len(os.listdir("/proc/self/fd")), "opened": opens}
            rows.append(row | {"folder_kib": kib})
            print(k, rows[-1], file=sys.stderr, flush=True)
            began[0], inside[0], opened[0] = time.process_time(), 0.0, 0

    def timed(work: Callable[..., Any], *args: Any) -> Any:
        began = time.process_time()
        result = work(*args)
        inside[0] += time.process_time() - began
        return result

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened[0] += event == "open" and str(args[0]).startswith(str(run.folder))

    driver.WORK.update({name: partial(timed, work) for name, work in driver.WORK.items()})
    sys.addaudithook(hook)
    run.ensure = measured
    run.probe = lambda adapter=None: None  # equal questions each time would hide growth
    run.run_all()
    last = time.process_time()
    stages = status(run.folder)
    assert {s.state for s in stages} == {"done"}, "a round was left behind"
    parts = {f"{k + 1} to {k + 20}": rows[k : k + 20] for k in range(0, n - 20, 60)} | {
        f"{max(1, n - 19)} to {n}": rows[-20:]
    }
    figures = {
        name: {key: round(median(row[key] for row in part), 2) for key in part[0]}
        for name, part in parts.items()
    }
    return {"medians of rounds": figures, "status_cpu_s": round(time.process_time() - last, 2)}


def games(n: int) -> Iterator[Trajectory]:
    """Return games on different maps, each with its own words."""
    played = [make_game(seed=seed) for seed in range(1000)]
    for i in range(n):
        game = played[i % len(played)]
        said = f" I am thinking of game {i}, and of all that I know about it. " * 3
        turns = tuple(replace(t, reply=said + t.reply) for t in game.turns)
        yield replace(game, id=f"g{i}", turns=turns)


def items(n: int) -> list[ExperienceItem]:
    """Return items without numbers, as different numbers would make comparisons too easy."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghiklmnoprstu", k=rng.randint(3, 9))) for _ in range(2000)]
    evidence = (Evidence("g1", 0),)
    texts = [f"The {' '.join(rng.choices(words, k=rng.randint(6, 12)))}." for _ in range(n)]
    return [ExperienceItem(f"i{k}", s, evidence, "m", 1, k % 10) for k, s in enumerate(texts)]


def files(folder: Path, n: int) -> dict[str, Any]:
    """Measure each step with many games and items."""
    rows: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        resident(peak=True)
        began = time.process_time()
        result = work()
        spent = round(time.process_time() - began, 2)
        rows[name] = {"cpu_s": spent, "peak_mb": resident(peak=True)}
        print(name, rows[name], file=sys.stderr, flush=True)
        return result

    paths = [folder / name for name in ("trajectories.jsonl", "items.jsonl", "curation.jsonl")]
    timed("write the games", lambda: write_jsonl(paths[0], games(n)))
    read = timed("load the games", lambda: read_jsonl(paths[0], Trajectory))
    timed("filter them", lambda: [g for g in read if g.outcome is Outcome.SUCCESS])
    timed("evaluate them", lambda: report_of(read))
    viewer = timed("open the viewer", lambda: TrajectoryViewer(read))
    timed("index of the viewer", lambda: json.dumps(viewer._index()))
    timed("search in the viewer", lambda: viewer._search("hole"))
    written = items(n // 10)
    timed("write the items", lambda: write_jsonl(paths[1], written))
    curation = timed("open the curation", lambda: Curation.open(*paths[1:]))
    timed("accept or reject them all by the draws", lambda: auto_curate(curation))
    timed("undo", curation.undo)
    words = "experience of a draw within 8,192 words"
    timed(words, lambda: curation.experience(8192, lambda s: len(s.split()), draw=0))
    timed("open it again", lambda: Curation.open(*paths[1:]))
    timed("find items alike", curation.duplicates)
    editor = ExperienceEditor(curation, games=read)
    editor.send = lambda *_: None
    timed("open the editor", lambda: editor._receive({"op": "hello"}))
    timed("reject one in the editor", lambda: editor._receive({"op": "reject", "ids": ["i7"]}))
    edit = {"op": "edit", "ids": ["i8"], "texts": ["Another text."]}
    timed("edit one in the editor", lambda: editor._receive(edit))
    timed("look at one in the editor", lambda: editor._receive({"op": "look", "ids": ["i9"]}))
    megabytes = paths[0].stat().st_size >> 20
    return {"games": n, "items": n // 10, "megabytes of games": megabytes, "steps": rows}


def context(folder: Path, n: int) -> dict[str, Any]:
    """Take a game of n tokens through extraction and distillation on a random model."""
    policy = load_policy(str(make_model(folder, max_position_embeddings=n + 4096)))
    count = lambda text: len(policy.tokenizer(text)["input_ids"])  # noqa: E731
    words, turns = "The ice is thin here and the wind turns. ", []
    each = words * (n // 8 // count(words))
    turns = [
        Turn(each, [{"role": "user", "content": each}], "[left]", "left", "ok", n // 8, 3, False)
    ]
    game = Trajectory("long", "log", 0, "random", 1, tuple(turns * 8), Outcome.UNKNOWN, "done")
    prompt = [{"role": "user", "content": each * 8}]
    rows, seen = {}, []
    for name, work in {
        "extraction": lambda: extract(
            policy, [game], prompt_set="paper", max_new_tokens=8, on_step=seen.append
        ),
        "distillation": lambda: seen.extend(
            distill(
                policy,
                [State("s", "long", 7, prompt)],
                "- EXPERIENCE ITEM: H is a hole.",
                steps=1,
                batch_size=1,
                max_new_tokens=8,
                prompt_set="paper",
            )
        ),
    }.items():
        resident(peak=True)
        began = time.process_time()
        work()
        spent = round(time.process_time() - began, 1)
        rows[name] = {"cpu_s": spent, "peak_mb": resident(peak=True)}
        print(name, rows[name], seen, file=sys.stderr, flush=True)
    return {"tokens": count(each * 8), "steps": rows}


FRAMES = """async ([selector, step, n]) => {
  const frame = () => new Promise(requestAnimationFrame), gaps = [];
  const list = document.querySelector(selector);
  let last = await frame();
  for (let i = 0; i < n; i++) {
    if (typeof step === "number") list.scrollBy(0, step);
    else list.dispatchEvent(new KeyboardEvent("keydown", { key: step, bubbles: true }));
    const now = await frame();
    gaps.push(now - last);
    last = now;
  }
  return gaps;
}"""
CHOOSE = """async (selector) => {
  const began = performance.now(), field = document.querySelector(selector);
  if (!field.options) field.click();
  else { field.selectedIndex = 1; field.dispatchEvent(new Event("change")); }
  await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
  return performance.now() - began;
}"""
# for each view: its file, a row, its filter (a menu or a button), a word to search for
VIEWS = {
    "view": ("trajectories.jsonl", ".ov-row", "select[data-filter=outcome]", "thinking"),
    "curate": ("items.jsonl", ".oel-row", "[aria-label='Filter by status'] button", "the"),
}


def browser(folder: Path, n: int) -> dict[str, Any]:
    """Measure `oelkit view` and `oelkit curate` with many games and items, in Chromium."""
    from playwright.sync_api import sync_playwright

    if not (chromium := shutil.which("chromium") or shutil.which("chromium-browser")):
        return {"skipped": "no chromium here: apt-get install chromium"}
    write_jsonl(folder / "trajectories.jsonl", games(n))
    write_jsonl(folder / "items.jsonl", items(n // 10))
    rows: dict[str, Any] = {}
    env = {**os.environ, "JUPYTER_TOKEN": "large", "PYTHONPATH": str(Path(__file__).parents[1])}
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(200_000)
        for kind, (name, row, field, word) in VIEWS.items():
            command = [sys.executable, "-m", "oelkit", kind, str(folder / name), "--no-browser"]
            app = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            try:
                rows[kind] = _measured(page, app, row, field, word)
            finally:
                os.killpg(app.pid, signal.SIGKILL)
            print(kind, rows[kind], file=sys.stderr, flush=True)
    load = {"load": [round(x, 1) for x in os.getloadavg()], "cores": os.cpu_count()}
    return {"games": n, "items": n // 10, **rows, **load}


def _measured(page: Any, app: Any, row: str, field: str, word: str) -> dict[str, Any]:
    url = app.stdout.readline().split(": ", 1)[1].split(" (")[0]
    while True:  # the server starts
        try:
            page.goto(url, wait_until="commit")
            break
        except Exception:
            time.sleep(0.5)
    began = time.monotonic()
    page.locator(row).first.wait_for()
    figures = {"open_s": round(time.monotonic() - began, 1)}

    inside = page.context.new_cdp_session(page)
    inside.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:  # CPU seconds of the page's thread, independent of other load
        told = inside.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in told if one["name"] == "TaskDuration")

    def frames(what: str, selector: str, step: float | str) -> None:
        began = busy()
        gaps = page.evaluate(FRAMES, [selector, step, 100])
        figures[f"{what}_cpu_ms"] = round(10 * (busy() - began), 1)
        figures[f"{what}_ms"] = round(median(gaps), 1)
        figures[f"{what}_worst_ms"] = round(max(gaps), 1)

    page.locator(row).first.click()
    page.wait_for_timeout(2000)
    frames("scroll", ".oel-list", 700)
    page.evaluate("document.querySelector('.oel-list').scrollTop = 0")
    frames("next", ".oel", "j")
    began = busy()
    figures["filter_ms"] = round(page.evaluate(CHOOSE, field), 1)
    figures["filter_cpu_ms"] = round(1000 * (busy() - began), 1)
    search = page.locator("input[type=search]")
    began = time.monotonic()
    search.fill(word)
    page.locator("mark").first.wait_for()
    figures["search_s"] = round(time.monotonic() - began, 2)
    return figures


PARTS = {"rounds": (rounds, ROUNDS), "files": (files, GAMES), "context": (context, TOKENS)}
PARTS["browser"] = browser, GAMES


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description="long runs and large files")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--size", type=int, help="rounds, games or tokens")
    args = parser.parse_args()
    if args.only:
        work, size = PARTS[args.only]
        with tempfile.TemporaryDirectory() as folder:
            found = work(Path(folder), args.size or size)
    else:
        runs = {name: [sys.executable, __file__, "--only", name] for name in PARTS}
        found = {n: json.loads(subprocess.check_output(command)) for n, command in runs.items()}
    print(json.dumps(found | {"command": " ".join(["python", *sys.argv])}, indent=1))


if __name__ == "__main__":
    main()
