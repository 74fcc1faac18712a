"""Commands for the first ten minutes; each gets the arguments that `__main__` has parsed."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from ..project import shipped
from ..runs.files import read_experience
from ..runs.settings import Settings, run_folder
from ..tables import visible
from ..text import parse_items

# files that the notebooks read, by path in a clone; the model is not copied
TREE = ("notebooks", "examples", "data/sample", "data/logs", "data/results", "tests/benchmarks")
_KINDS = (".ipynb", ".py", ".toml", ".md", ".jsonl")


def lay_out(parts: Sequence[str], top: Path, folder: Path, then: str) -> None:
    """Copy files that come with oelkit into a folder.

    Args:
        parts: Paths below `top` to copy.
        top: Path as in a clone; paths in the folder are relative to it.
        folder: Target folder, created if missing.
        then: The next command, with {} for the folder.

    Raises:
        ValueError: One of the files already exists and differs. No file is written.
    """
    root = shipped("") / top
    found = [path for part in parts for path in sorted((root / part).rglob("*"))]
    inside = [path.relative_to(root) for path in found if path.suffix in _KINDS]
    pairs = [(root / p, folder / p) for p in inside if not any(n[0] == "." for n in p.parts)]
    for path, to in pairs:
        if to.exists() and to.read_bytes() != path.read_bytes():
            raise ValueError(f"{to} already exists and differs: choose another folder")
    for path, to in pairs:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    print(f"copied: {len(pairs)} files to {folder}", then.format(quote(str(folder))), sep="\n")


def init(args: Namespace) -> None:
    """Create a world, a prompt set and a script of your own."""
    then = "Edit world.py and prompts.toml for your own world, then run: python {}/learn.py"
    lay_out([""], Path("examples/start"), Path(args.folder), then)


def demo(args: Namespace) -> None:
    """Let the embedded model learn while you watch, in a minute."""
    from ..runs.run import Run
    from ..views import plots

    folder = run_folder(args.run)
    # a world that the embedded model learns in one round, at the smallest size that shows it
    few: dict[str, Any] = {"extract_games": 32, "num_draws": 4, "eval_maps": 64, "rounds": 1}
    few |= {"run_ablations": False, "gate": "off", "env": "oelkit/Descent1-v0"}
    few |= {"steps": 20, "lr": 1e-3}
    print("A small model plays a game without knowing its rules. It writes down what it learned,")
    print("is trained until it no longer needs that text, and plays maps that it has never seen.\n")
    metrics = Run(folder, Settings.of("tiny", **few)).run_all()
    wrote = " ".join(parse_items(read_experience(folder / "round_1/experience.md")[0]))
    about = {
        "base": ("before", "untrained, nothing to read"),
        "in_context": ("in context", f"untrained, reads what it wrote: {wrote}"),
        "consolidated": ("after", "trained on that text, reads nothing"),
    }
    rates = metrics["rounds"][0]["pass_rate"]
    print(f"\nGames won on {rates['base']['maps']} maps never seen (95 % intervals):")
    for arm, (name, what) in about.items():
        r = rates[arm]
        rate = f"{r['pass_rate']:4.0%} [{r['low']:.0%}, {r['high']:.0%}]"
        print(f"  {name:<10} {rate}  {visible(what)}")
    picture = Path(os.path.relpath(folder)) / "figures/demo.png"
    picture.parent.mkdir(exist_ok=True)
    names = {arm: name for arm, (name, _) in about.items()}
    plots.styled(_before_and_after)(metrics, names).savefig(picture, dpi=150)
    first = "" if find_spec("voila") else " (after: pip install voila)"
    print(f"\npicture: {picture}")
    print(f"next, edit what it wrote: oelkit curate {args.run}{first}")
    print(f"then train on your edit:  oelkit loop --run {args.run} --redo")


def _before_and_after(metrics: dict, names: dict[str, str]) -> Any:
    from ..views import plots

    figure, axis = plots.new_figure(size=(6.5, 2.4))
    rates = metrics["rounds"][0]["pass_rate"]
    for y, arm in enumerate(names):
        plots.rate_bar(axis, y, plots.pass_interval(rates[arm]), color=plots.COLOURS[arm])
    plots.percent_axis(axis)
    axis.set_yticks(range(len(names)), names.values())
    axis.invert_yaxis()
    before, after = (f"{rates[arm]['pass_rate']:.0%}" for arm in ("base", "consolidated"))
    axis.set_title(f"{before} before, {after} after: {rates['base']['maps']} maps never seen")
    return figure


def curate(args: Namespace) -> int:
    """Open the editor of experience items in the browser."""
    from ..views.app import serve

    return serve("curate", args.run, args.round, args.port, args.browser)


def view(args: Namespace) -> int:
    """Open the viewer of games and conversations in the browser."""
    from ..views.app import serve

    return serve("view", args.run, args.round, args.port, args.browser)
