"""The work of the stages.

Each reads its inputs from files, uses the weights that `Run` has loaded, writes into a folder of
its own, and returns additional entries for its manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import given
from ..auto_curation import auto_curate
from ..config import DistillConfig, part
from ..curation import Curation, replay
from ..model.policy import Policy
from ..records import (
    ExperienceItem,
    RecordError,
    State,
    Trajectory,
    append_jsonl,
    read_jsonl,
    to_dict,
    write_jsonl,
    write_text,
)
from ..statements import for_every_draw, items_for_draw
from ..steps import distillation, extraction, rollouts
from ..text import by_draw, join_experience, parse_items, truncate_to_budget, well_formed
from .context import RunContext
from .files import append_bytes, keep_aside, read_experience, read_json, sha256, stamp, write_json
from .settings import Settings
from .table import REHEARSAL


def rollout(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Play the games that experience is extracted from."""
    s = run.settings
    games, notes = _play(run, k, 0, [""] * s.extract_games, s.seed * 100 + k)
    write_jsonl(folder / "trajectories.jsonl", games)
    return notes


def collect(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Play other games; their prompts without experience are the states."""
    s = run.settings
    texts = known_texts(run, k) if s.states_with_experience else [""]
    dealt = [texts[i % len(texts)] for i in range(s.state_games)]
    games, notes = _play(run, k, 5_000, dealt, s.seed * 100 + k + 50)
    write_jsonl(folder / "states.jsonl", rollouts.states(games, dealt, run.prompts))
    return notes


def _play(
    run: RunContext, k: int, first: int, texts: Sequence[str], seed: int
) -> tuple[list[Trajectory], dict]:
    s, n = run.settings, len(texts)
    # unique per seed and round; rounds from 100 on use a range above all others
    start = k // 100 * 1_000_000_000 + s.seed * 1_000_000 + k % 100 * 10_000 + first
    games = rollouts.rollout(
        run.policy,
        s.env,
        range(start, start + n),
        texts,
        seed=seed,
        round=k,
        sampling=s.play_sampling,
        prompt_set=run.prompts,
        progress=run.progress,
    )
    return games, {"seeds": {"maps": [start, start + n], "sampling": seed}}


def extract(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Let the policy extract items from its games."""
    s, counts, items = run.settings, Counter(), folder / "items.jsonl"
    games = read_jsonl(run.folder / f"round_{k}/trajectories.jsonl", Trajectory)
    found = extraction.extract(
        run.policy,
        games,
        known_before(run, k),
        num_draws=s.num_draws,
        budget_tokens=s.budget_tokens,
        sampling=s.extract_sampling,
        show_previous=s.show_previous,
        strict=s.strict,
        prompt_set=run.prompts,
        seed=s.seed * 100 + k,
        round=k,
        on_step=counts.update,
        progress=run.progress,
    )
    write_jsonl(items, found)
    log, there = run.folder / f"round_{k}/curation.jsonl", f"round_{k}/items.jsonl"
    curated = run.stages.manifest(k, "curate") or {"inputs": {}}
    of = sha256(run.folder / there) or curated["inputs"].get(there)
    if log.exists() and of != sha256(items):  # it belongs to other items
        lines = log.read_bytes().splitlines()
        kept = keep_aside(log)
        if not all(b'"author": "auto"' in line for line in lines):  # a person's decisions
            run.tell(f"{log} is about other items than the new ones: it is kept as {kept.name}")
    return {"seeds": {"sampling": s.seed * 100 + k}, "counts": dict(counts)}


def curate(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Decide on what no person has, and write what the teacher reads."""
    s, log = run.settings, f"round_{k}/curation.jsonl"
    paths, before = (run.folder / f"round_{k}/items.jsonl", run.folder / log), known_before(run, k)
    known = list(dict.fromkeys(item for text in before for item in parse_items(text)))
    _decide(
        *paths, s.num_draws if any(before) else None, known, folder.with_name(".curate.decided")
    )
    inputs = {log: sha256(run.folder / log)}
    # a line that a person adds meanwhile is not hashed, so the stage becomes stale
    kept = Curation.open(*paths).kept()
    if lost := [i for i in kept if not (for_every_draw(i) or 0 <= i.draw < s.num_draws)]:
        raise ValueError(
            f"{paths[0]}: item {lost[0].id!r} is of draw {lost[0].draw}, but this run has draws 0 "
            f"to {s.num_draws - 1}, so no text would have it; correct its draw, or accept it for "
            f"every draw with key a in `oelkit curate {run.folder.name}`"
        )
    texts = [join_experience(old, items_for_draw(kept, d, old)) for d, old in enumerate(before)]
    cut = [truncate_to_budget(text, s.budget_tokens, run.policy.tokenizer) for text in texts]
    write_text(folder / "experience.md", as_draws(cut))
    return {"inputs": inputs}


def _decide(items: Path, log: Path, draws: int | None, known: Sequence[str], decided: Path) -> None:
    """Let `auto_curate` decide on what no person has, all or nothing even if killed midway.

    Its decisions depend on what is undecided, so half of them would change the rest. All are
    written to `decided` first."""
    left, size = read_json(decided), log.stat().st_size if log.exists() else 0
    curation, of = Curation.open(items, log), sha256(items)
    if left is None or left["items"] != of or left["n"] > len(curation.log):
        plan = auto_curate(replay(read_jsonl(items, ExperienceItem), curation.log), draws, known)
        n = len(curation.log)
        left = {"items": of, "n": n, "operations": [to_dict(op) for op in plan.log[n:]]}
        write_json(decided, left)
    done = [to_dict(operation) for operation in curation.log[left["n"] :]]
    if done == left["operations"][: len(done)]:  # otherwise a person has continued from there
        for operation in left["operations"][len(done) :]:
            size = append_jsonl(log, operation, expected_size=size)
    decided.unlink()


def distill(run: RunContext, k: int, folder: Path) -> dict[str, Any]:
    """Train the adapter and save the experience used in training beside it."""
    source = run.folder / f"round_{k}"
    text = given.text_file(source / "experience.md")  # a person can edit it during the training
    states, texts = read_jsonl(source / "states.jsonl", State), known_texts(run, k)
    if run.settings.carry_experience and k < run.settings.rounds:
        _one_per_draw(run, k, k + 1)  # the next round would fail, hours later
    seed = train(run, k, f"round {k}", states, texts, run.settings.loss, checkpoint(folder))
    run.policy.save_adapter(folder / "adapter")
    write_text(folder / "adapter/experience.md", text)
    return {"seeds": {"training": seed}}


def read_rehearsal(settings: Settings, policy: Policy) -> list[State]:
    """Return the prompts that training rehearses, from a file here or in the model's folder;
    ValueError if it has none.
    """
    if not settings.rehearsal:
        return []
    beside = Path(policy.source, settings.rehearsal)
    path = beside if beside.is_file() else Path(settings.rehearsal)
    if states := read_jsonl(path, State):
        return states
    raise ValueError(f"{path}: no prompts in it to rehearse")


def checkpoint(folder: Path) -> Path:
    """Return the training checkpoint path of a stage that works in `folder`."""
    return folder.with_suffix(".checkpoint")


# why: an arm differs from a round in its name, texts, loss and checkpoint
def train(
    run: RunContext,
    k: int,
    arm: str,
    states: list[State],
    texts: list[str],
    loss: str,
    checkpoint: Path,
) -> int:
    """Distill, logging the steps under `arm` in metrics.jsonl; return the seed."""
    s, lines, seed = run.settings, run.folder / "metrics.jsonl", run.settings.seed * 100 + k
    about, (left, arms), told = {"arm": arm, "round": k}, run.steps_left, []
    if arm in arms or left != stamp(lines):  # otherwise it has no steps of this arm
        others = [row for row in _read_lines(lines) if row.get("arm") != arm]
        write_jsonl(lines, others)  # drop the steps of an interrupted try
        arms = {row.get("arm", "") for row in others}

    def log(row: dict[str, Any]) -> None:
        run.check_ours()
        append_jsonl(lines, about | row)
        told.append(row)
        if run.on_step:
            run.on_step(about | row)

    history = distillation.distill(
        run.policy,
        states,
        texts,
        replace(part(DistillConfig, s), loss=loss),
        rehearsal=read_jsonl(run.folder / REHEARSAL, State) if s.rehearsal else (),
        prompt_set=run.prompts,
        seed=seed,
        checkpoint=checkpoint,
        progress=run.progress,
        on_step=log,
    )
    if len(told) < len(history):  # resumed: the steps before the checkpoint were dropped above
        others = [row for row in read_jsonl(lines) if row.get("arm") != arm]
        write_jsonl(lines, [*others, *(about | row for row in history)])
    run.steps_left = stamp(lines), {*arms, arm}
    return seed


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read training steps; damaged lines are kept in metrics.damaged.jsonl."""
    try:
        return read_jsonl(path) if path.exists() else []
    except RecordError as error:
        lines = path.read_bytes().split(b"\n")
        bad = b"".join(lines[number - 1] + b"\n" for number, *_ in error.bad)
        append_bytes(path.with_name("metrics.damaged.jsonl"), bad)
        return error.records


def known_texts(run: RunContext, k: int) -> list[str]:
    """Return the non-empty texts in experience.md; ValueError if there are none."""
    folder = run.folder / f"round_{k}"
    if texts := [text for text in read_texts(run, folder / "experience.md") if text]:
        return texts
    said, s = f"nothing to distill in round {k}:", run.settings
    if run.stages.by_hand(k, "curate"):
        path = folder / "experience.md"
        raise ValueError(f"{said} {path}, put there by hand, has no text; write one, or delete it")
    paths = folder / "items.jsonl", folder / "curation.jsonl"
    items, counts = read_jsonl(paths[0], ExperienceItem), run.stages.manifest(k, "extract") or {}
    written = 0 if items else counts.get("counts", {}).get("items", 0)
    if written or Curation.open(*paths).kept():
        raise ValueError(
            f"{said} no item fits into budget_tokens={s.budget_tokens}; start a run with more"
        )
    how = f"add your own with key i in `oelkit curate {run.folder.name}`, or in Python with "
    how += f"Curation.open({str(paths[0])!r}, {str(paths[1])!r}).add(TEXT)"
    if items:
        raise ValueError(f"{said} all {len(items)} items were rejected; restore some, or {how}")
    raise ValueError(
        f"{said} {run.policy.name} wrote no item about {s.extract_games} games (draws: "
        f"{s.num_draws}); start a run with more games or a higher temperature, or {how}"
    )


def read_texts(run: RunContext, path: Path) -> list[str]:
    """Return the text of each draw in an experience.md; a person's file can lack headings."""
    return read_experience(path, run.settings.num_draws)


def as_draws(texts: Sequence[str]) -> str:
    """Join texts, one per draw, into an experience.md.

    ValueError for a text that contains a draw heading."""
    for text in texts:
        if draws := by_draw(text)[1]:
            raise ValueError(f"a text contains a line like a draw heading, '## Draw {draws[0][0]}'")
    texts = [well_formed(text) for text in texts]
    return "".join(f"## Draw {d}\n{text}\n\n" for d, text in enumerate(texts))


def known_before(run: RunContext, k: int) -> list[str]:
    """Return what each draw of round k already knows; ValueError if a draw was removed."""
    draws, carry = run.settings.num_draws, run.settings.carry_experience
    if not (start := run.stages.start(k) if carry else 0):
        return [""] * draws
    return _one_per_draw(run, start, k)


def _one_per_draw(run: RunContext, start: int, k: int) -> list[str]:
    """The text of each draw of round `start`, which round k continues."""
    texts = read_texts(run, path := run.folder / f"round_{start}/experience.md")
    if len(texts) != (draws := run.settings.num_draws):
        raise ValueError(
            f"{path} has {len(texts)} headings `## Draw N`, but round {k} continues with {draws} "
            "draws: give each draw its heading, and leave its text empty if it should know nothing"
        )
    return texts
