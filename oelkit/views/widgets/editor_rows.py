"""The editor's rows and the details of their origin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...curation import CuratedItem, Curation
from ...likeness import contradictions, similar
from ...records import Evidence, Trajectory
from ...statements import Statement, statements
from ...text import MARKER, answer_text, thought_text
from .base import board_of
from .transcript import is_chat, parts

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHOWN = 40  # turns of evidence shown unless all are requested


@lru_cache(8)
def _likeness(texts: tuple[str, ...]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Return the group of each text with near-duplicates, and what contradicts each, by index.

    A text of several sentences, such as that of merged items, is compared sentence by sentence too.
    """
    alike = {i: n for n, group in enumerate(similar(texts)) for i in group}
    against: dict[int, list[int]] = {}
    said = [(i, one) for i, text in enumerate(texts) for one in _SENTENCE.split(text)]
    parts = contradictions([one for _, one in said], claims_only=True)
    pairs = {(said[a][0], said[b][0]) for a, b in parts} | {*contradictions(texts)}
    for a, b in sorted(pair for pair in pairs if pair[0] != pair[1]):
        against.setdefault(a, []).append(b)
        against.setdefault(b, []).append(a)
    return alike, against


def rows_of(
    curation: Curation, items: Sequence[CuratedItem], cut: set[str], count: Callable[[str], int]
) -> tuple[dict[str, dict], dict[str, tuple[str, ...]]]:
    """Return the row and the item ids of each statement, both keyed by its first item's id.

    `cut` has the ids of items over the budget; `count` returns the number of tokens of a text.
    """
    said, by_id, diff = statements(items), {i.id: i for i in items}, curation.diff()
    alike, against = _likeness(tuple(s.text for s in said))
    draws = max((draw for s in said for draw in s.draws), default=-1) + 1
    several = len({i.round for i in items if i.model}) > 1

    def row(n: int, s: Statement) -> dict:
        group = [by_id[id] for id in s.ids]
        return {
            "text": s.text,
            "status": s.status,
            "auto": s.status != "pending" and all(item.author == "auto" for item in group),
            "items": len(group),
            "support": len(s.draws),
            "of": draws,
            "sources": _sources(group, several),
            "tokens": count(f"{MARKER} {s.text}"),  # as the teacher reads it
            "cut": any(id in cut for id in s.ids),
            "alike": alike.get(n),
            "against": [
                [said[k].ids[0], said[k].text, len(said[k].draws)] for k in against.get(n, [])
            ],
            "seen": len(s.evidence),
            "diff": next((diff[id] for id in s.ids if id in diff), None),
        }

    return {s.ids[0]: row(n, s) for n, s in enumerate(said)}, {s.ids[0]: s.ids for s in said}


def _sources(group: Sequence[CuratedItem], several: bool) -> list[str]:
    """Sources of a row's items, for the filter."""
    found: list[str] = []
    for item in group:
        found += ["merged"] if len(item.parents) > 1 else []
        found += ["by hand"] if not item.model else []
        found += [f"round {item.round}, " * several + f"draw {draw}" for draw in item.draws]
    return list(dict.fromkeys(found))


def detail(
    row: str, ids: Sequence[str], c: Curation, games: Mapping[str, Trajectory], *, whole: bool
) -> dict:
    """Return the origin of a row: its evidence, its parent items and its history."""
    items = [c.item(id) for id in ids]
    seen = list(dict.fromkeys(e for item in items for e in item.evidence))
    done = c.histories()
    history = {op.n: op for id in ids for op in done.get(id, ())}
    parents = dict[str, list[str]]()
    for parent in dict.fromkeys(parent for item in items for parent in item.parents):
        parents.setdefault(c.item(parent).text, []).append(parent)
    return {
        "id": row,
        "originals": list(dict.fromkeys(item.original for item in items)),
        "evidence": [_turn(e, games) for e in seen[: None if whole else SHOWN]],
        "more": 0 if whole else max(0, len(seen) - SHOWN),
        "parents": [[same, text] for text, same in parents.items()],
        "history": [[op.op, op.author, op.time, op.reason] for _, op in sorted(history.items())],
    }


def _turn(seen: Evidence, games: Mapping[str, Trajectory]) -> dict[str, Any]:
    game = games.get(seen.trajectory_id)
    if game is None or seen.turn >= len(game.turns):
        return {"game": seen.trajectory_id, "turn": seen.turn + 1}
    t = game.turns[seen.turn]
    place = {"game": game.id, "turn": seen.turn + 1, "of": len(game.turns)}
    board = {**board_of(t.observation), "action": t.action}
    answer, chat = answer_text(t.reply), is_chat(game)
    reply, calls = parts(answer) if chat else (answer, [])
    place |= {"chat": chat, "thinking": thought_text(t.reply), "reply": reply, "calls": calls}
    played = {"move": t.action, "feedback": t.feedback}
    return {**place, "outcome": game.outcome, "text": t.observation, "board": board, **played}
