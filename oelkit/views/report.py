"""The report of a finished run: one HTML file that needs nothing else, with what came out in plain
sentences.

The sentences follow from the metrics alone and also say what did not come out. All that a model
wrote is escaped, and the page may load nothing from anywhere."""

from __future__ import annotations

import base64
import io
import json
import os
from html import escape
from pathlib import Path
from typing import Any

from ..envs import describe
from ..records import Outcome, Trajectory, read_jsonl
from ..stats import wilson
from . import plots

MISSED = "Did not come out: "
STYLE = """:root{color-scheme:light dark}body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;
padding:0 1rem;background:#fff;color:#1d1d1f}table{border-collapse:collapse;margin:1rem 0}h2{margin-top:2.2rem}
th,td{padding:.3rem .6rem;white-space:nowrap;text-align:right;border-bottom:1px solid #8885}th:first-child,td:first-child{text-align:left}
div{overflow-x:auto}small,figcaption{font-size:.85rem;opacity:.8}figure{margin:1.4rem 0}img{max-width:100%;height:auto;
border-radius:6px}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#8881;padding:.8rem;border-radius:6px;
font-size:.85rem;max-height:28rem;overflow:auto}li{margin:.35rem 0}.no{color:#b3401c}
@media(prefers-color-scheme:dark){body{background:#17181a;color:#e6e6e6}.no{color:#ff9d7a}}"""


def _rate(row: dict) -> str:
    return f"{row['pass_rate']:.1%} [{row['low']:.0%}, {row['high']:.0%}]"


def findings(metrics: dict) -> list[str]:
    """What a run shows, a sentence each; what was hoped for and is not there begins with "Did not
    come out".
    """
    rounds, bounds = metrics["rounds"], metrics["bounds"]
    first, last, final = rounds[0]["pass_rate"], rounds[-1]["pass_rate"], rounds[-1]["round"]
    base, told, learned = first["base"], first["in_context"], first["consolidated"]
    known = describe(bounds)
    said = [
        f"Without notes the base model passes {_rate(base)} of {base['n']} held-out maps{known and '; '}{known}."
    ]
    floor = max(
        (bounds[key] for key in ("random", "fixed_plan") if bounds[key] is not None), default=1.0
    )
    said += [f"{MISSED}the base is better than a player who guesses."] * (base["low"] > floor)

    def compare(what: str, row: dict, than: str, other: dict) -> None:
        above, below = row["low"] > other["high"], row["high"] < other["low"]
        is_ = "above" if above else "below" if below else "not told apart from"
        said.append(
            f"{'' if above else MISSED}{what}, {_rate(row)}, is {is_} {than}, {_rate(other)}: the intervals "
            f"{'do not touch' if above or below else 'meet'}."
        )

    compare("The base with its own notes in context", told, "the base without", base)
    compare("The model that absorbed them, without notes", learned, "the base", base)
    share = learned["pass_rate"] / max(told["pass_rate"], 1e-9)
    said.append(
        f"{'' if share >= 0.8 else MISSED}Consolidated is {share:.2f} of in context after round 1 (goal: 0.8)."
    )
    if len(rounds) > 1:
        end, kept = last["consolidated"], last["consolidated"]["pass_rate"] >= learned["low"]
        how = "stays within the interval of" if kept else "falls below"
        how = "gains on" if end["pass_rate"] > learned["high"] else how
        said.append(
            f"{'' if kept else MISSED}Round {final} {how} round 1: {_rate(end)} after {_rate(learned)}."
        )
    tokens, long = last["consolidated"]["reply_tokens"], base["reply_tokens"]
    said.append(
        f"{'' if tokens < 0.95 * long else MISSED}Replies get shorter: {tokens:.1f} tokens after round {final}, "
        f"{long:.1f} before, {last['consolidated']['truncated']:.1%} cut off ({base['truncated']:.1%})."
    )
    before, after = rounds[0]["ood"]["base"], rounds[-1]["ood"]["consolidated"]
    if before and after:
        low, high = wilson(round(before["all"] * before["n"]), before["n"])
        lost, kinds = after["all"] < low, [k for k in before if k not in ("all", "n")]
        said.append(
            f"{MISSED if lost else ''}Other abilities are {'partly lost' if lost else 'kept'}: "
            f"{after['all']:.1%} of {before['n']} OOD answers right after round {final}, {before['all']:.1%} "
            f"[{low:.0%}, {high:.0%}] before."
        )
        if lost and kinds:
            worst = min(kinds, key=lambda k: after[k] - before[k])
            said.append(
                f"The largest loss is in {worst!r}: {before[worst]:.0%} before, {after[worst]:.0%} after."
            )
    for arm, row in (metrics.get("arms") or {}).items():
        compare(
            "On-policy distillation of notes",
            learned,
            plots.NAMES.get(arm, arm),
            row["consolidated"],
        )
        if "in_context" in row:
            compare("The notes in context", told, f"{arm} games in context", row["in_context"])
    return said


def _table(rows: list[list[Any]]) -> str:
    lines = "</tr><tr>".join(
        "".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows
    )
    return f"<div><table><tr>{lines.replace('td>', 'th>', 2 * len(rows[0]))}</tr></table></div>"


def _tables(metrics: dict) -> str:
    rows = [
        [
            "round",
            "base",
            "in context",
            "consolidated",
            "tokens a reply",
            "OOD",
            "items kept",
            "seconds",
        ]
    ]
    for r in metrics["rounds"]:
        passed, ood = r["pass_rate"], r["ood"]["consolidated"]
        rows.append(
            [
                r["round"],
                *(_rate(passed[arm]) for arm in ("base", "in_context", "consolidated")),
                f"{passed['consolidated']['reply_tokens']:.1f}",
                f"{ood['all']:.1%}" if ood else "–",
                f"{r['kept']} of {r['items']}",
                f"{sum(r['seconds'].values()):.0f}",
            ]
        )
    others = [["arm beside round 1", "in context", "consolidated", "OOD"]]
    for arm, row in (metrics.get("arms") or {}).items():
        others.append(
            [
                plots.NAMES.get(arm, arm),
                _rate(row["in_context"]) if "in_context" in row else "–",
                _rate(row["consolidated"]),
                f"{row['ood']['all']:.1%}" if row.get("ood") else "–",
            ]
        )
    return _table(rows) + (_table(others) if others[1:] else "")


def write_report(run_folder: str | Path) -> Path:
    """Write report.html (self-contained) and figures/*.png into the folder of a finished run;
    returns the former.

    Raises FileNotFoundError where the run is not finished, RecordError for a damaged record file.
    """
    folder = Path(run_folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished run (no metrics.json): go on with "
            f"`python -m oelkit loop --run {folder.name} --resume`"
        )
    metrics, run = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("metrics", "run")
    )
    (folder / "figures").mkdir(exist_ok=True)

    def figure(name: str, drawn: Any, caption: str) -> str:
        png, caption = io.BytesIO(), escape(caption)
        drawn.savefig(png, format="png", dpi=160)
        (folder / "figures" / f"{name}.png").write_bytes(png.getvalue())
        data, width = base64.b64encode(png.getvalue()).decode(), drawn.get_figwidth() * 115
        return (
            f'<figure><img alt="{caption}" width={width:.0f} src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    drawn = {
        plots.pass_rates: metrics,
        plots.arms: metrics,
        plots.training: read_jsonl(folder / "metrics.jsonl"),
        plots.reply_tokens: metrics,
        plots.ood: metrics,
    }
    figures = [
        figure(draw.__name__, draw(data), draw.__doc__.split("\n")[0])
        for draw, data in drawn.items()
    ]
    games, notes, last = [], [], metrics["rounds"][-1]["round"]
    for k in range(1, last + 1):
        played = read_jsonl(folder / f"round_{k}" / "trajectories.jsonl", Trajectory)
        won, lost = [
            [t for t in played if (t.outcome is Outcome.SUCCESS) == good] for good in (True, False)
        ]
        if k in (1, last):
            shown = (lost + won if k == 1 else won + lost)[0]
            says = (
                f"Trained {k - 1} round{'s' * (k != 2)}, without notes: {len(won)} of {len(played)} games won. "
                f"Here: the first that ended in {shown.outcome.replace('_', ' ')}."
            )
            games.append(figure(f"game_{k}", plots.strip(shown), says))
        text = escape((folder / f"round_{k}" / "experience.md").read_text(encoding="utf-8").strip())
        notes.append(
            f"<details{' open' if k == 1 else ''}><summary>Round {k}</summary><pre>{text}</pre></details>"
        )
    said = [
        f"<li{' class=no' if line.startswith(MISSED) else ''}>{escape(line)}</li>"
        for line in findings(metrics)
    ]
    about = [
        f"{k} {v}"
        for group in ("settings", "versions")
        for k, v in run[group].items()
        if v is not None
    ]
    title = escape(f"oelkit run {metrics['run']}")
    page = f"""<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{title}</title>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name=viewport content="width=device-width"><style>{STYLE}</style><h1>{title}</h1>
<p><b>{escape(metrics["model"])}</b> played <b>{escape(metrics["env"])}</b> in rounds, wrote down what it learned,
absorbed that, and was measured on held-out maps of {escape(metrics["eval_env"])}. No reward took part in training.</p>
<p><small>{escape(", ".join(about))}</small></p>
<h2>What came out</h2><ul>{"".join(said)}</ul>{_tables(metrics)}<small>In brackets: 95 % Wilson intervals.</small>
<h2>Figures</h2>{"".join(figures)}<h2>A game before, and one after</h2>{"".join(games)}
<h2>What the model wrote down and the teacher read</h2>{"".join(notes)}</html>
"""
    path, partial = folder / "report.html", folder / "report.html.partial"
    partial.write_text(
        page, encoding="utf-8", errors="replace"
    )  # a lone surrogate of a broken reply has no UTF-8
    os.replace(partial, path)
    return path
