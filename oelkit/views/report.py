"""The report of a finished run: one self-contained HTML file with the findings in plain sentences.

What a model wrote is untrusted: the template escapes every value, and the page can neither load
anything nor run scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from matplotlib.figure import Figure

from .. import given
from ..records import Outcome, Trajectory, from_dict, read_jsonl, write_text
from ..runs.files import read_json, refuse_links
from ..runs.settings import as_argument, no_run
from ..runs.stages import stale
from ..text import by_draw, outcome_text, well_formed
from . import plots
from .findings import chain, findings
from .summary import ARMS, episodes_text, headline, rate_text, round_cells, share_text, unseen


def write_report(run_folder: str | Path) -> Path:
    """Write report.html (self-contained) and figures/*.png into the folder of a finished run.

    Returns:
        The path of report.html.

    Raises:
        FileNotFoundError: There is no run, or it is not finished.
        ValueError: A file of the run is damaged, or a link leads out of the folder.
    """
    folder = Path(run_folder)
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(no_run(folder))
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished run (no metrics.json): resume with "
            f"`oelkit loop --run {as_argument(folder)} --resume`"
        )
    metrics, run = (read_json(folder / f"{name}.json") for name in ("metrics", "run"))
    if isinstance(metrics, dict):  # the folder can have been renamed or copied since
        metrics["run"] = folder.resolve().name
    refuse_links(folder)
    (folder / "figures").mkdir(exist_ok=True)
    with damage_told(folder):
        page = _page(folder, metrics, run)
    write_text(folder / "report.html", well_formed(page))
    return folder / "report.html"


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Raise ValueError if a run's files lack what the report needs."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
        TemplateError,
    ) as error:
        if str(error).startswith(str(folder)):  # it names the file
            raise
        what = "metrics.json, base.json or run.json is damaged, or from another version"
        raise ValueError(f"{folder}: its {what} ({error!r})") from error


def _page(folder: Path, metrics: dict, run: dict) -> str:
    known = {**run["settings"], **run["versions"]}
    return _template().render(
        metrics=metrics,
        about=[f"{name} {value}" for name, value in known.items() if value is not None],
        stale=stale(folder),
        run=as_argument(folder),
        headline=headline(metrics),
        findings=findings(metrics),
        chain=chain(metrics),
        tables=_tables(metrics),
        episodes=episodes_text(metrics),
        unseen=unseen(metrics),
        figures=[_picture(folder, *drawn) for drawn in _figures(folder, metrics)],
        games=[_picture(folder, *drawn) for drawn in _games(folder, metrics)],
        experience=[_experience(folder, r["round"]) for r in metrics["rounds"]],
    )


def _template() -> Any:
    """The page template: it escapes every value, and a missing one is an error."""
    loader = FileSystemLoader(Path(__file__).parent)
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    return Environment(loader=loader, autoescape=True, **options).get_template("report.html.j2")


def _tables(metrics: dict) -> list[list[list[str]]]:
    """A table of the rounds, and one of the other arms of round 1 if any; headers first."""
    head = ["round", "base", "in context", "consolidated", "tokens per reply", "OOD"]
    rounds = [[*head, "items kept", "seconds"]]
    for r in metrics["rounds"]:
        *row, _, seconds = round_cells(r)
        rounds.append([*row, f"{r['kept']} of {r['items']}" if "items" in r else "-", seconds])
    arms = [["other arm of round 1", "in context", "consolidated", "OOD"]]
    measured: dict[str, dict] = metrics.get("arms") or {}
    for arm, row in measured.items():
        rates = [rate_text(row[how]) if how in row else "-" for how in ARMS[1:]]
        arms.append([plots.NAMES.get(arm, arm), *rates, share_text(row.get("ood"))])
    return [rounds, arms] if arms[1:] else [rounds]


def _figures(folder: Path, metrics: dict) -> Iterator[tuple[str, Figure, str]]:
    """Yield name, figure and caption of each figure of a run."""
    steps = read_jsonl(path) if (path := folder / "metrics.jsonl").exists() else []
    caption = "Pass rate by round with 95% intervals, and the bounds of the world."
    rates = plots.pass_rates(metrics)
    rates.axes[0].set_title("", loc="left")  # the headline is above it
    yield "pass_rates", rates, caption
    if metrics.get("arms"):
        caption = "Round 1 compared with other ways to learn from the same games."
        yield "arms", plots.arms(metrics), caption
    if steps:
        caption = "Loss and entropy of the student by training step."
        yield "training", plots.training(steps), caption
    yield "reply_tokens", plots.reply_tokens(metrics), "Tokens per reply, and the replies cut off."
    if metrics["rounds"][0]["ood"]["base"]:
        caption = "Correct answers to questions unrelated to the world."
        yield "ood", plots.ood(metrics), caption


def _games(folder: Path, metrics: dict) -> Iterator[tuple[str, Figure, str]]:
    """Yield figures of one map before and after training: if possible one lost before
    and won after. Yields nothing if the run kept no games.
    """
    k = metrics["rounds"][-1]["round"]
    files = (folder / "base.json", folder / f"round_{k}/metrics.json")
    played = [(read_json(file) or {}).get("shown", []) for file in files]
    before, after = ({g["seed"]: from_dict(Trajectory, g) for g in games} for games in played)
    if not (both := [seed for seed in before if seed in after]):
        return
    seed = min(both, key=lambda seed: after[seed].outcome is not Outcome.SUCCESS)
    for name, when, game in (
        ("before", "Before training", before[seed]),
        ("after", f"After round {k}", after[seed]),
    ):
        caption = f"{when}, nothing in the prompt, map {seed}: {outcome_text(game.outcome)}."
        titled = replace(game, id=name)  # an id would be clipped above a short game
        yield f"game_{name}", plots.strip(titled), caption


def _experience(folder: Path, k: int) -> dict[str, Any]:
    """The text that the teacher of round k read, and whether the file has changed since."""
    files = (folder / f"round_{k}" / at for at in ("adapter/experience.md", "experience.md"))
    trained, now = (given.text_file(at).strip() if at.is_file() else None for at in files)
    note = ""
    if trained is None:
        note = "This run did not keep the text read in training. This is the current experience.md."
    elif now != trained:
        note = "experience.md has changed since training. This model has not read the new version."
    text = now if trained is None else trained
    return {"round": k, "text": _equal_once(text or ""), "note": note}


def _equal_once(text: str) -> str:
    """Merge draws with the same text in an experience.md under all their numbers."""
    head, parts = by_draw(text)
    draws: dict[str, list[str]] = {}
    for number, said in parts:
        draws.setdefault(said, []).append(number)
    shown = [f"## Draw {', '.join(numbers)}\n{said}" for said, numbers in draws.items()]
    return "\n\n".join([head, *shown]).strip()


def _picture(folder: Path, name: str, figure: Figure, caption: str) -> dict[str, Any]:
    """Save a figure as figures/NAME.png and return the data that the page embeds."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    (folder / "figures" / f"{name}.png").write_bytes(png.getvalue())
    data = base64.b64encode(png.getvalue()).decode()
    return {"caption": caption, "data": data, "width": round(figure.get_figwidth() * 115)}
