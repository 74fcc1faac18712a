"""The numbers of a run as text: rates with intervals, episode counts, the printed table."""

from __future__ import annotations

from ..envs import describe
from ..runs.saved import by_round
from ..text import counted

ARMS = ("base", "in_context", "consolidated")


def rate_text(row: dict) -> str:
    """Format a pass rate with its 95% interval: "81.2% [74%, 87%]"."""
    return f"{row['pass_rate']:.1%} [{row['low']:.0%}, {row['high']:.0%}]"


def map_count(row: dict) -> int:
    """Return how many maps a pass rate was measured on (older runs: one episode per map)."""
    return row.get("maps", row["n"])


def episodes_text(metrics: dict) -> str:
    """Say what pass rates were measured on, as in "1,280 episodes on 128 held-out maps".

    Maps of a world without an Unseen variant are held out by their seeds only: layouts can repeat.
    """
    row = metrics["rounds"][0]["pass_rate"]["base"]
    held_out = "held-out " if unseen(metrics) else ""
    maps = counted(map_count(row), f"{held_out}map")
    return maps if map_count(row) == row["n"] else f"{row['n']:,} episodes on {maps}"


def unseen(metrics: dict) -> bool:
    """Return whether a run was evaluated on layouts that its training world does not have."""
    return "Unseen" in metrics["eval_env"]


def headline(metrics: dict) -> str:
    """Sum up a run in one line, as in "4 rounds: untrained 0% → 1% → 16% → 84% → 90% of 128
    held-out maps passed, nothing in the prompt".
    """
    rows = [row for _, row in by_round(metrics["rounds"])]
    steps = " → ".join(f"{row['pass_rate']:.0%}" for row in rows)
    many = counted(len(metrics["rounds"]), "round")
    said = f"{many}: untrained {steps} of {episodes_text(metrics)} passed, nothing in the prompt"
    chain = metrics.get("chain") or [{"round": len(metrics["rounds"])}]
    starts = [*(link["start"] for link in chain[1:]), metrics.get("next_start", chain[-1]["round"])]
    back = [
        str(link["round"]) for link, at in zip(chain, starts, strict=True) if at != link["round"]
    ]
    return f"{said} (rolled back: round {', '.join(back)})" if back else said


def share_text(ood: dict | None) -> str:
    """Format a probe's share of correct answers; "-" without a probe."""
    return f"{ood['all']:.1%}" if ood else "-"


def round_cells(r: dict) -> list[str]:
    """Return a round's number, pass rates, tokens per reply, OOD, items kept and seconds."""
    rates = [rate_text(r["pass_rate"][arm]) for arm in ARMS]
    tokens, seconds = r["reply_tokens"]["consolidated"], sum(r["seconds"].values())
    row = [r["round"], *rates, f"{tokens:.1f}", share_text(r["ood"]["consolidated"])]
    return [str(cell) for cell in (*row, r.get("kept", "-"), f"{seconds:.0f}")]


def summary(metrics: dict) -> str:
    """Return the table of a run: pass rates with intervals, tokens per reply, OOD, items, seconds.

    Args:
        metrics: The result of `Run.run_all`, or metrics.json of the run.
    """
    if not isinstance(metrics, dict) or not metrics.get("rounds"):
        raise TypeError("metrics: expected the result of Run.run_all, or a finished metrics.json")
    arms = [arm.replace("_", " ") for arm in ARMS]
    rows = [["round", *arms, "tokens", "OOD", "items", "s"], *map(round_cells, metrics["rounds"])]
    widths = (5, 18, 18, 18, 6, 9, 5, 5)
    lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    about = [f"{episodes_text(metrics)} of {metrics['eval_env']}"]
    if not unseen(metrics):
        about += ["held-out by their seeds only, because this world has no Unseen maps"]
    about += [known] if (known := describe(metrics["bounds"])) else []
    lines.append("; ".join([*about, "95% intervals"]))
    reached = {name: row.get("levels") for name, row in by_round(metrics["rounds"])}
    if reached := {name: rates for name, rates in reached.items() if rates}:  # several boards
        boards = len(metrics["bounds"].get("known_levels", [])) - 1  # perhaps none got to the last
        full = {name: [*rates, *[0.0] * (boards - len(rates))] for name, rates in reached.items()}
        shares = [f"{name} {', '.join(f'{rate:.1%}' for rate in full[name])}" for name in full]
        lines += [f"passed board 1, 2, ...: {'; '.join(shares)}"]
    lines += [f"gate: {link['lost']}" for link in metrics.get("chain", ()) if link["lost"]]
    counts = [(r["round"], r["extraction"]) for r in metrics["rounds"] if r.get("extraction")]
    empty = ", ".join(f"round {k} {c['empty']} of {c['replies']}" for k, c in counts)
    why = ", normal in later rounds with less that is new" if len(counts) > 1 else ""
    lines += [f"extraction replies without an item: {empty}{why}"] if counts else []
    for name, arm in (metrics.get("arms") or {}).items():
        parts = [f"{key} {row['pass_rate']:.1%}" for key, row in arm.items() if key != "ood"]
        parts += [f"OOD {arm['ood']['all']:.1%}"] if arm.get("ood") else []
        lines.append(f"arm {name}: {', '.join(parts)}")
    return "\n".join(lines)
