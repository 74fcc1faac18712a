"""Viewer of games turn by turn and of conversations as transcripts.

It lists, filters, searches, replays and compares two games on one map. It changes no game; tags and
comments are stored as the items of a `Curation`.

The page gets a light index of all games and the full text only of opened ones; the search runs
here. So 2,000 games open at once, and a saved notebook holds only a short table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from os.path import commonprefix
from typing import Any

import traitlets

from ... import given
from ...curation import Curation
from ...envs import parse_action, parse_board
from ...logs import Chats
from ...messages import content_or_json
from ...records import ConflictError, Evidence, ExperienceItem, Fields, Trajectory, Turn, to_dict
from ...text import answer_text, one_line, outcome_text, thought_text
from .base import LiveView, board_of, source
from .transcript import after_turn, before_turns, is_chat, parts

TABLE_ROWS = 40  # games in the table of a saved notebook


class TrajectoryViewer(LiveView):
    """Widget to filter, sort, search and replay games, and to compare two on the same map.

    Args:
        trajectories: A sequence, or one per arm ({"base": [...], "consolidated": [...]}). In a
            plain sequence a record's field `arm` names its arm. The page says which lines
            `read_chats` left out.
        items: A curation, or items; a turn shows the items that it is evidence for.
        on_item: Called with the id of a clicked item.
        kinds: Meaning of renamed symbols, as in `envs.picture.draw_board`.
        comments: A curation that stores tags (#word) and comments as items whose evidence is the
            turn, such as `Curation([], path)` to log them. None: they are not kept.

    Raises:
        ValueError: No trajectory has a turn.
    """

    _esm = source("board.js", "game.js", "chat.js", "notes.js", "filters.js", "viewer.js")
    _css = source("viewer.css", "chat.css")
    at = traitlets.Dict({"game": 0, "turn": 0, "other": None}).tag(sync=True)
    """What is open: index of the game among those with a turn, its turn, and the game beside it,
    all from 0.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory] | Mapping[str, Sequence[Trajectory]],
        *,
        items: Curation | Sequence[ExperienceItem] = (),
        on_item: Callable[[str], Any] | None = None,
        kinds: dict[str, str] | None = None,
        comments: Curation | None = None,
    ):
        arms = trajectories if isinstance(trajectories, Mapping) else {"": trajectories}
        self._games = [
            (arm or str(game.extra.get("arm") or ""), game)
            for arm, games in arms.items()
            for game in given.records("trajectories", games, Trajectory)
            if game.turns
        ]
        logs = [games for games in arms.values() if isinstance(games, Chats)]
        self._bad = [(line, said) for log in logs for line, _, said in log.bad]
        if not self._games:
            raise ValueError("nothing to view: there is no trajectory with a turn")
        self._curation, self._on_item, self._symbols = items, on_item, kinds
        self.comments = comments if comments is not None else Curation([])
        self._places: dict[str, list[int]] = {}
        for i, (_, game) in enumerate(self._games):
            self._places.setdefault(game.id, []).append(i)
        super().__init__()
        self.on_msg(lambda _, message, buffers: self._answer(message))
        self.static_html = _table([game for _, game in self._games])

    def show(self, trajectory_id: str, turn: int = 0, arm: str | None = None) -> None:
        """Show a turn, as an item's evidence names it.

        Args:
            trajectory_id: Id of the game.
            turn: Turn, from 0.
            arm: Arm of the game, if arms have different games with this id.

        Raises:
            ValueError: There is no such game or turn, or there are several that differ.
        """
        found = [
            i
            for i, (name, game) in enumerate(self._games)
            if game.id == trajectory_id and arm in (None, name) and 0 <= turn < len(game.turns)
        ]
        if not found:
            games = f"the {len(self._games)} games of the viewer"
            raise ValueError(f"turn {turn} of {trajectory_id!r} is not among {games}")
        first = self._games[found[0]][1]
        if any(self._games[i][1] != first for i in found):
            arms = ", ".join(dict.fromkeys(repr(self._games[i][0]) for i in found))
            raise ValueError(
                f"{trajectory_id!r} names {len(found)} games: pass arm=, one of {arms}"
            )
        self.at = {"game": found[0], "turn": turn, "other": None}
        self.send_json(kind="reveal")

    @property
    def _items(self) -> Sequence[ExperienceItem]:  # a curation is read as it is now
        return self._curation.items if isinstance(self._curation, Curation) else self._curation

    def _answer(self, message: dict) -> None:
        match message:
            case {"kind": "index"}:
                items = self._on_item is not None
                self.send_json(kind="index", rows=self._index(), items=items, bad=self._bad)
                self._send_notes()
            case {"kind": "game", "game": int(i)} if 0 <= i < len(self._games):
                self.send_json(kind="game", game=i, **self._game(self._games[i][1]))
            case {"kind": "search", "text": str(text)}:
                self.send_json(kind="hits", text=text, hits=self._search(text))
            case {"kind": "export", "games": list(games)}:
                known = range(len(self._games))
                lines = self._lines([i for i in games if isinstance(i, int) and i in known])
                text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
                self.send_json(kind="file", name="trajectories.jsonl", text=text)
            case {"kind": "item", "id": str(id)} if self._on_item:
                self._try(partial(self._on_item, id))
            case {"kind": "note", "game": int(i), "turn": int(k), "texts": list(texts)} if (
                0 <= i < len(self._games) and 0 <= k < len(self._games[i][1].turns)
            ):
                arm, game = self._games[i]
                about = Evidence(game.id, k, {"arm": arm} if arm else {})
                has = {text for j, _, _, text, *_ in self._noted() if j == i and text[0] == "#"}
                new = [text for text in dict.fromkeys(map(str, texts)) if text not in has]
                self._try(*(partial(self.comments.add, text, [about]) for text in new))
            case {"kind": "unnote", "id": str(id)}:
                self._try(partial(self.comments.reject, id))
            case {"kind": "undo"}:
                self._try(self.comments.undo)

    def _try(self, *todo: Callable[[], Any]) -> None:
        """Do something and send the notes, with what went wrong."""
        wrong = ""
        try:
            try:
                for do in todo:
                    do()
            except ConflictError:
                self.comments.reload()
                raise
        # nothing to undo, a concurrent write, a damaged log, a full disk
        except (ValueError, RuntimeError, OSError) as error:
            wrong = str(error)
        self._send_notes(wrong)

    def _send_notes(self, wrong: str = "") -> None:
        path = self.comments.log_path
        self.send_json(kind="notes", notes=self._noted(), wrong=wrong, path=path and str(path))

    def _noted(self) -> list[list[Any]]:
        """[game, id, turn, text, author, time] of each note that was not removed."""
        found, done = list[list[Any]](), self.comments.histories()
        for note in self.comments.items:
            for e in note.evidence if note.status == "accepted" else ():
                made = done[note.id][0]
                about = note.id, e.turn, note.text, made.author, made.time[:16]
                arm = e.extra.get("arm")
                games = self._places.get(e.trajectory_id, ())
                found += [[i, *about] for i in games if arm in (None, self._games[i][0])]
        return found

    def _lines(self, games: Sequence[int]) -> list[Fields]:
        """Games with their notes, as exported."""
        names, notes = ("turn", "text", "author", "time"), dict[int, list[Fields]]()
        for i, _, *about in self._noted():
            notes.setdefault(i, []).append(dict(zip(names, about, strict=True)))
        more: list[Fields] = [{"notes": notes[i]} if i in notes else {} for i in games]
        return [to_dict(self._games[i][1]) | m for i, m in zip(games, more, strict=True)]

    def _index(self) -> list[list]:
        """For each game the COLUMNS of viewer.js."""
        maps: dict[Any, int] = {}
        rows, words = [], _first_words([g for _, g in self._games])
        cited = {e.trajectory_id for item in self._items for e in item.evidence}
        for (arm, g), said in zip(self._games, words, strict=True):
            cut, tokens = any(t.truncated for t in g.turns), sum(t.reply_tokens for t in g.turns)
            row = [g.id, g.outcome, g.round, arm, g.seed, len(g.turns), cut, tokens]
            row += [maps.setdefault(_map(g), len(maps)), g.id in cited, is_chat(g), said]
            rows.append(row)
        return rows

    def _search(self, text: str) -> list[list[int]]:
        """[game, turn] of turns with the text in observation, reply or feedback, ignoring case."""
        text = text.lower()
        return [
            [i, k]
            for i, (_, game) in enumerate(self._games if text else ())
            for k, t in enumerate(game.turns)
            if any(text in part.lower() for part in (t.observation, t.reply, t.feedback))
        ]

    def _game(self, game: Trajectory) -> dict:
        cited: dict[int, list[list[str]]] = {}
        for item in self._items:
            for turn in {e.turn for e in item.evidence if e.trajectory_id == game.id}:
                cited.setdefault(turn, []).append([item.id, item.text, getattr(item, "status", "")])
        turns = [{**self._turn(t), "items": cited.get(k, [])} for k, t in enumerate(game.turns)]
        if chat := is_chat(game):
            before = [*before_turns(game), []]
            for k, turn in enumerate(turns):
                answer, calls = parts("".join(turn["reply"]))
                after = after_turn(game.turns[k], before[k + 1])
                turn |= {"before": before[k], "calls": calls, "feedback": after}
                turn |= {"prompt": [], "reply": _mark(answer, game.turns[k].action)}
        about = {"model": game.model, "env": game.env_id, "feedback": game.feedback}
        return {**about, "chat": chat, "turns": turns}

    def _turn(self, turn: Turn) -> dict:
        same = "observation action feedback truncated prompt_tokens reply_tokens"
        return {
            **{name: getattr(turn, name) for name in same.split()},
            **board_of(turn.observation, self._symbols),
            "prompt": [
                [str(m.get("role", "")), content_or_json(m.get("content"))] for m in turn.prompt
            ],
            "thinking": thought_text(turn.reply),
            "reply": _mark(answer_text(turn.reply), turn.action),
            "level": level if isinstance(level := turn.extra.get("level"), int) else None,
        }


def _map(game: Trajectory) -> Any:
    """Key shared by games on one map: the first board, else world and seed, else a unique id."""
    cells = parse_board(game.turns[0].observation)
    return str(cells) if cells else id(game) if game.seed is None else (game.env_id, game.seed)


def _first_words(games: Sequence[Trajectory]) -> list[str]:
    """What the user of each conversation says first, without a beginning that all share; "" for a
    game.
    """
    users = [[m for m in g.turns[0].prompt if m.get("role") == "user"][:1] for g in games]
    said = [one_line(" ".join(content_or_json(m.get("content")) for m in u)) for u in users]
    said = [text if is_chat(g) else "" for text, g in zip(said, games, strict=True)]
    same = commonprefix([text for text in said if text])
    same = same[: same.rfind(" ") + 1] if len(same) > 12 and len({*said}) > 1 else ""
    return [text and f"{'… ' * bool(same)}{text[len(same) :]}"[:80] for text in said]


def _mark(answer: str, action: str | None) -> list[str]:
    """Split the answer in three; the middle part holds the action (empty: not found)."""
    found = re.finditer(r"\[\s*\w+\s*\]", answer) if action else ()
    places = [m.span() for m in found if parse_action(m[0]) == action]
    if action and not places and (at := answer.rfind(action)) >= 0:
        places = [(at, at + len(action))]  # a log's action in its own words
    start, end = places[-1] if places else (len(answer), len(answer))
    return [answer[:start], answer[start:end], answer[end:]]


def _table(games: list[Trajectory]) -> str:
    chats = all(map(is_chat, games[:TABLE_ROWS]))
    names = ("outcome", "round", "map seed", "moves", "final feedback", "game")
    names = ("turns", "first words", "final feedback", "conversation") if chats else names
    rows, words = [], _first_words(games[:TABLE_ROWS])
    for game, said in zip(games, words, strict=False):
        moves, end = " ".join(t.action or "?" for t in game.turns), one_line(game.feedback)
        cells = (outcome_text(game.outcome), game.round, game.seed, moves, end, game.id)
        cells = (len(game.turns), said, end, game.id) if chats else cells
        rows.append("<tr>" + "".join(f"<td>{escape(str(c)[:120])}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    more = len(games) - TABLE_ROWS
    end = f"<p>and {more:,} more {'conversations' if chats else 'games'}</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{end}"
