"""Write docs/cards.md, what fits which card: `python tests/benchmarks/cards.py`. Runs no model.

Bytes are counted from a model's sizes, as in `oelkit doctor`, and minutes from operations and
bytes."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from oelkit.model.known import KNOWN, SEQUENCE_TOKENS, Sizes
from oelkit.model.scoring import BATCH_TOKENS
from oelkit.runs.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/cards.md"
RESULTS = PAGE.parents[1] / "data/results/h100.jsonl"


class Card(NamedTuple):
    """A card as its maker describes it, with an assumed price."""

    name: str
    usable: float
    """GiB that a process can use."""
    tflops: float
    """Tera-operations per second: 16 bits, dense, tensor cores."""
    bandwidth: float
    """GB per second."""
    euros: float
    """Euros per hour: a rough figure of 2026, for comparison. Put in your own."""


CARDS = [
    Card("T4 16 GB", 14.6, 65, 300, 0.35),
    Card("L4 24 GB", 22.0, 121, 300, 0.70),
    Card("A100 40 GB", 39.0, 312, 1555, 1.50),
    Card("H100 80 GB", 79.0, 989, 3350, 3.00),
]
SHARE = 0.9  # of usable memory, as in `oelkit doctor`
USED = 0.35  # of operations and bandwidth: an assumption
MODELS = ["Qwen2.5-0.5B-Instruct", "Qwen3-1.7B", "Qwen3-4B-Instruct-2507", "Qwen3-8B"]
EXPERIENCE = 2048, 8192
REPLY, STATE, GAMES_AT_ONCE = 512, 512, 64  # tokens of a reply and of a state; games


def weight_bytes(sizes: Sizes, kind: str) -> float:
    return sizes.linear * (0.52 if kind == "nf4" else 2) + sizes.embedding * 2


def sampling_bytes(sizes: Sizes, kind: str, experience: int) -> float:
    """Return the bytes held while sampling as many tokens at once as by default."""
    tokens = BATCH_TOKENS + experience
    return weight_bytes(sizes, kind) + 14 * sizes.lora + 4 * sizes.layers * sizes.keys * tokens


def minutes(sizes: Sizes, kind: str, card: Card, experience: int) -> float:
    """Return the minutes of a round at scale `paper`: play, write, learn; without evaluation."""
    s = Settings.of("paper")
    weights = sizes.linear + sizes.embedding / sizes.heads
    # tokens decoded one after the other: in turns, in extraction, in training steps
    turns = 5 * -(-(s.extract_games + s.state_games) // GAMES_AT_ONCE)
    decoded = REPLY * (turns + s.extract_games + s.steps)
    slow = decoded * weight_bytes(sizes, kind) / (USED * card.bandwidth * 1e9)
    sampled = REPLY * (turns * GAMES_AT_ONCE + s.extract_games * s.num_draws)
    learned = s.steps * s.batch_size * (STATE + REPLY)
    # operations per weight and token: 2 to read; a learned token is sampled (2), scored (2) and
    # trained on with checkpoints (6)
    tokens = 2 * (sampled + s.num_draws * experience) + (2 + 2 + 6) * learned
    return (slow + weights * tokens / (USED * card.tflops * 1e12)) / 60


def cell(sizes: Sizes, kind: str, card: Card, experience: int) -> str:
    most = SHARE * card.usable * 2**30
    if sizes.training_bytes(kind, experience) > most:
        return "no"
    time = minutes(sizes, kind, card, experience)
    star = "\\*" * (sampling_bytes(sizes, kind, experience) > most)
    return f"{time:.0f} min, {time / 60 * card.euros:.2f} €{star}"


def rows() -> list[str]:
    lines = []
    known = {name.partition("/")[2]: sizes for name, sizes in KNOWN.items()}
    for name, kind, tokens in itertools.product(MODELS, ("nf4", "bfloat16"), EXPERIENCE):
        sizes = known[name]
        needs = max(sizes.training_bytes(kind, tokens), sampling_bytes(sizes, kind, tokens))
        first = [name, "QLoRA" if kind == "nf4" else "bf16", f"{tokens:,}", f"{needs / 2**30:.1f}"]
        cells = [*first, *(cell(sizes, kind, card, tokens) for card in CARDS), "planned"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measured() -> list[str]:
    """Return the results in data/results/h100.jsonl as Markdown lines."""
    found = [json.loads(text) for text in RESULTS.read_text("utf-8").splitlines()]
    right = [row for row in found if "test" in row]
    by = {(row["figure"], row["arm"]): row for row in found if row.get("figure") in ("kl", "turns")}
    steps = [row for row in found if row.get("figure") == "step"]

    def row(figure: str, arm: str, name: str) -> str:
        ours, peer = by[figure, "ours"], by[figure, arm]
        times = [statistics.median(x["seconds"]) for x in (ours, peer)]
        less, faster = peer["peak"] / ours["peak"], times[1] / times[0]
        size = f"{ours['peak'] / 2**30:.1f} and {peer['peak'] / 2**30:.1f} GiB"
        cells = [name, f"{faster:.2f}", f"{times[0]:.2f} and {times[1]:.2f} s", f"{less:.1f}", size]
        return f"| {' | '.join(cells)} |"

    def step(row: dict) -> str:
        seconds = f"{min(row['seconds']):.0f} to {max(row['seconds']):.0f} s"
        peak, plan = (f"{row[key] / 2**30:.1f} GiB" for key in ("peak", "planned"))
        return f"{seconds} with {row['experience_tokens']:,} tokens, {peak} held, {plan} planned"

    return [
        "## Measured",
        "",
        f"On one {right[0]['card']}, with Python 3.12, torch 2.11 and Transformers 5.17:",
        "",
        f"- **Correct:** all {len(right)} tests of `pytest -m gpu` pass (float32, bfloat16,",
        "  float16, NF4; embedded model and a random one of 0.2 B): log-probabilities, loss and",
        "  gradient of a step, shared beginnings and greedy replies against a CPU in float32;",
        "  checkpointing, paged 8-bit AdamW, and the memory plan (within 1 %).",
        "- **Found there and fixed since:** a training's checkpoint failed on the states of",
        "  8-bit AdamW, at the fifth step; replies were sampled in more batches than needed.",
        "",
        "| against | time, ratio | ours and theirs | memory, ratio | ours and theirs |",
        "|---|---|---|---|---|",
        row("kl", "naive", "reverse KL, naive autograd"),
        row("kl", "trl", "reverse KL, TRL's chunked kernel"),
        row("kl", "liger", "reverse KL, Liger, not compiled"),
        row("turns", "padded", "64 games of 5 turns, padded `generate`"),
        "",
        "Reverse KL: 8,192 tokens, width 2,560, vocabulary 151,936, float32. Games: a random model",
        "of 1.7 B in bfloat16, 2,000 tokens of experience, replies of 32 tokens; one run. A ratio",
        "above 1 is in our favour.",
        "",
        "A step of 8 states with replies of 32 tokens, the same model in NF4, took",
        *(f"{step(x)}{',' if x is not steps[-1] else '.'}" for x in steps),
        "This was slow: the card waited for Python, another process ran on the same machine, and",
        "replies were not yet sampled in one batch. It has not been measured again, and TRL's",
        "step not at all. So it is not known yet how long a round takes on a card. No real",
        "model has learned on one: the trainings ended at the checkpoint.",
        "",
        "Rows: [h100.jsonl](../data/results/h100.jsonl). Commands: `gpu.py correct`, `figures` and",
        "`loops`, and `gpu_learn.py`, in `tests/benchmarks/`.",
        "",
    ]


def page() -> str:
    """Return the text of docs/cards.md."""
    names = " | ".join(card.name for card in CARDS)
    s = Settings.of("paper")
    prices = ", ".join(f"{card.name} {card.euros:.2f} €" for card in CARDS)
    return "\n".join(
        [
            "# What fits which card",
            "",
            "**This table is planned, not measured**; measurements follow below.",
            "It is made by `python tests/benchmarks/cards.py`. `memory_plan(policy)` measures the",
            "bytes on your card, and `oelkit estimate` the minutes of your settings.",
            "",
            f"| model | weights | tokens of experience | GiB | {names} | |",
            "|---" * (5 + len(CARDS)) + "|",
            *rows(),
            "",
            "- **GiB:** the peak of training (checkpointed, a sequence of",
            f"  {SEQUENCE_TOKENS:,} tokens at a time, an adapter of rank 16) or of sampling",
            f"  ({BATCH_TOKENS:,} tokens at once), counted from sizes. It fits a card if it is",
            f"  at most {SHARE:.0%} of what a process can use; with a star, if fewer tokens",
            "  are sampled at once (`batch_tokens`). A T4 has no bfloat16; float16 takes as much.",
            f"- **Minutes and euros of a round:** {s.extract_games + s.state_games} games,",
            f"  {s.num_draws} draws of items, {s.steps} steps of {s.batch_size} states, replies of",
            f"  {REPLY} tokens; without evaluation. Counted from operations and bytes; a card is",
            f"  assumed to reach {USED:.0%} of its maker's figures, and 4-bit weights are",
            "  assumed to cost no extra time.",
            f"- **Prices per hour** are assumed, to compare cards: {prices}.",
            "",
            *measured(),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
