"""Questions about a real SQLite database whose schema the model has to find out.

A turn is one query. The feedback is SQLite's message or the first rows, followed by one fact that
the query got wrong or by what a manual says about the question. A game is won if the rows are those
of the gold query, in any order unless the question asks for one.

Queries are untrusted. Each is a single statement on a query-only connection, under an authorizer
that allows nothing but reading, with limits on work, rows and lengths. Half of the held-out
questions combine two conditions that no training question combines. The other half ask about one
condition in the other way: how many, or which.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from ..messages import spoken
from ..records import Outcome
from ..text import wording
from .sql_databases import Database, Thing, clinic, shop

_CALLBACK_EVERY, _MAX_CALLBACKS = 1_000, 2_000  # virtual-machine steps of a query: two million
_MAX_ROWS = 1_000
# columns hold short names; longer values can only cost memory or time (a function reads a value in
# one step, which nothing interrupts)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 2_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 30,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 5_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
_FUNCTIONS = {
    "abs", "avg", "ceil", "coalesce", "count", "date", "floor", "group_concat", "ifnull", "iif",
    "instr", "length", "like", "lower", "max", "min", "nullif", "round", "strftime", "substr",
    "substring", "sum", "total", "trim", "upper",
}  # fmt: skip
_DATABASES = {"shop": shop, "clinic": clinic}
_SQL = {"type": "object", "properties": {"sql": {"type": "string"}}, "required": ["sql"]}
_QUERY = {"name": "query", "description": "Run one SQLite query.", "parameters": _SQL}
TOOL = {"type": "function", "function": _QUERY}


@dataclass(frozen=True)
class Question:
    """A question, its gold query, the facts that the query must get right, and why it is held out:
    "form", "pair" or "" for a training question."""

    text: str
    gold: str
    facts: tuple[str, ...]
    ordered: bool
    unseen: str


def questions(database: Database) -> list[Question]:
    """Return all questions about a database, made from templates.

    For each thing, the last pair of conditions and every second one before it are held out. For
    each single condition, one of the two ways to ask is.
    """
    found: list[Question] = []
    for thing in database.things:
        pairs = list(combinations(thing.filters, 2))
        forms = {(f,): ("", "form") if i % 2 else ("form", "") for i, f in enumerate(thing.filters)}
        unseen = forms | {pair: ("pair", "pair") for pair in pairs[::-2]}
        for chosen in [(), *forms, *pairs]:
            for values in product(*(f.values for f in chosen)):
                found += _of(thing, chosen, values, *unseen.get(chosen, ("", "")))
    return found


def _of(thing: Thing, chosen: Any, values: Any, count: str, name: str) -> list[Question]:
    said = " and ".join(f.words.format(v[0]) for f, v in zip(chosen, values))
    conditions = [f.sql.format(v[1]) for f, v in zip(chosen, values)]
    where = " AND ".join(c for c in (thing.where, *conditions) if c != "1") or "1"
    facts = tuple(dict.fromkeys((*thing.facts, *(name for f in chosen for name in f.facts))))
    source = f"FROM {thing.table} WHERE {where}"
    what = f"{thing.noun} that {said}" if said else thing.noun
    how_many = f"How many {thing.noun} {said or 'are there'}?"
    counted = Question(how_many, f"SELECT count(*) {source}", facts, False, count)
    gold = f"SELECT {thing.name} {source} ORDER BY {thing.name} LIMIT 5"
    names = "numbers" if thing.name in _NUMBERS else "names"
    named = f"Which are the first 5 {what}, in the order of their {names}?"
    return [counted, Question(named, gold, facts, True, name)]


_NUMBERS = ("auf_nr", "vnr")  # rows without a name are named by these


def connect(database: Database) -> sqlite3.Connection:
    """Load a database into memory; return a connection that can only read."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    for table, rows in database.tables:
        connection.execute(f"CREATE TABLE {table}")
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table.split()[0]} VALUES ({marks})", rows)
    connection.commit()
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # large sorts would write files in /var/tmp
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_allow)
    return connection


def _allow(action: int, first: str | None, second: str | None, *_: Any) -> int:
    may = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    may |= action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS
    return sqlite3.SQLITE_OK if may else sqlite3.SQLITE_DENY


def run_query(connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of one query.

    Raises:
        ValueError: SQLite refuses the query, it does too much work, or it gives too many rows.
    """
    calls = 0

    def work() -> bool:
        nonlocal calls
        calls += 1
        return calls > _MAX_CALLBACKS

    connection.set_progress_handler(work, _CALLBACK_EVERY)
    try:
        rows = connection.execute(query).fetchmany(_MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        message = "the query takes too long" if calls > _MAX_CALLBACKS else str(error)
        raise ValueError(message) from None
    if len(rows) > _MAX_ROWS:
        raise ValueError(f"the query gives more than {_MAX_ROWS} rows")
    return rows


def called_query(reply: str) -> str | None:
    """Return the query of the last tool call in a reply, or None."""
    calls = spoken(reply).get("tool_calls", ())
    queries = [call["function"]["arguments"].get("sql") for call in calls]
    return str(queries[-1]).strip() if queries and queries[-1] else None


def query_of(reply: str) -> str | None:
    """Return the query in a reply's last fenced block, the reply itself if it is one, or None."""
    if "```" not in reply:
        return reply.strip() if re.match(r"\s*(?:select|with)\b", reply, re.I) else None
    blocks = reply.split("```")[1:-1:2]
    # what a fence begins with is the name of a language
    named = r"\A(?!select\b|with\b)[\w+-]+[ \t]*\r?\n|\A(?:sqlite|sql)\b"
    text = re.sub(named, "", blocks[-1], flags=re.I) if blocks else ""
    return text.strip() or None


class SqlEnv(gym.Env[str, str]):
    """One question per game.

    Args:
        database: "shop" or "clinic".
        split: "train", "unseen" (two halves, see the module) or None for all.
        helper: who answers a wrong query: "colleague", "manual" or None (SQLite alone).
        by_tool: whether a query is a call of the tool `query` instead of a fenced block.
    """

    observation_space = action_space = spaces.Text(100_000)

    def __init__(
        self,
        database: str = "shop",
        split: str | None = None,
        helper: str | None = "colleague",
        by_tool: bool = False,
    ):
        known = database in _DATABASES and split in (None, "train", "unseen")
        if not known or helper not in (None, "colleague", "manual"):
            raise ValueError(
                f"database={database!r}, split={split!r}, helper={helper!r}: a database is one of "
                f"{', '.join(_DATABASES)}, split is train, unseen or None, helper is colleague, "
                "manual or None"
            )
        self.database, self.helper = _DATABASES[database](), helper
        self.tools = (TOOL,) if by_tool else ()
        self.connection = connect(self.database)
        asked = questions(self.database)
        asked = [  # drop answers of no rows or 0, which any guess can match
            q for q in asked if run_query(self.connection, q.gold) not in ([], [(0,)])
        ]
        kinds = {"train": ("",), "unseen": ("form", "pair"), None: ("", "form", "pair")}[split]
        self.questions = [[q for q in asked if q.unseen == kind] for kind in kinds]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Ask the question of a seed."""
        super().reset(seed=seed)
        drawn = self.questions[int(self.np_random.integers(len(self.questions)))]
        self.question = drawn[int(self.np_random.integers(len(drawn)))]
        return self._text(), {}

    def _text(self) -> str:
        how = "; call the tool query." if self.tools else " in a ```sql block."
        return f"Answer the question with one SQLite query{how}\nQuestion: {self.question.text}"

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the query of a reply; the module describes the feedback."""
        return self._answer((called_query if self.tools else query_of)(action))

    def _answer(self, query: str | None) -> tuple[str, float, bool, bool, dict[str, Any]]:
        rows = None
        if query is None:
            how = "call the tool query" if self.tools else "write one in a ```sql block"
            seen = f"No query found: {how}."
        else:
            try:
                rows = run_query(self.connection, query)
                seen = f"{len(rows)} rows: {', '.join(map(str, rows[:3]))[:300]}"
            except ValueError as error:
                seen = f"SQLite says: {str(error)[:300]}"
        won = rows is not None and self._right(rows)
        told = "" if won or query is None else self._help(query, rows is None)
        feedback = f"{seen} That is right." if won else f"{seen} That is wrong. {told}".strip()
        info = {"action": query, "feedback": feedback}
        info["outcome"] = Outcome.SUCCESS if won else None
        return self._text(), float(won), won, False, info

    def _right(self, rows: list[tuple[Any, ...]]) -> bool:
        gold = run_query(self.connection, self.question.gold)
        return rows == gold if self.question.ordered else Counter(rows) == Counter(gold)

    def _help(self, query: str, refused: bool) -> str:
        """Return the help that follows SQLite's answer to a wrong or refused query."""
        if self.helper == "manual":
            return f"The manual says: {self.manual()}"
        return self.colleague(query, refused) if self.helper else ""

    def manual(self) -> str:
        """Return the two paragraphs whose words are most similar to the question's (Jaccard)."""
        asked, told = set(wording(self.question.text)), self.database.manual()
        words = {text: set(wording(text)) for text in told}
        alike = {text: len(asked & its) / len(asked | its) for text, its in words.items()}
        return " ".join(sorted(told, key=lambda text: -alike[text])[:2])

    def colleague(self, query: str, refused: bool) -> str:
        """Return the first fact that a query got wrong, in words."""
        words = set(re.findall(r"\w+", query.lower()))
        facts = [self.database.facts[name] for name in self.question.facts]
        missing = next((f for f in facts if not words.issuperset(f.needs)), None)
        if missing:
            return f"A colleague says: {missing.says}"
        return "All names that it needs are there." if refused else "The names are right."

    def close(self) -> None:
        """Close the database; the world cannot be played again."""
        self.connection.close()

    def bounds(self, seeds: Sequence[int]) -> dict[str, float]:
        """Return pass rates of two scripted players: one knows every fact, one uses plain names."""
        won = Counter(plain_names=0, ceiling=0)
        for seed in seeds:
            self.reset(seed=seed)
            noun = re.findall(r"(?:How many|the first 5) (\w+)", self.question.text)[0]
            won["plain_names"] += self._answer(f"SELECT count(*) FROM {noun}")[2]
            won["ceiling"] += self._answer(self.question.gold)[2]
        return {name: n / len(seeds) for name, n in won.items()}


_KINDS = {"Sql": {}, "SqlManual": {"helper": "manual"}, "SqlTools": {"by_tool": True}}
_WORLDS = {"SqlOther": {"database": "clinic"}}
for _kind, _how in _KINDS.items():
    _WORLDS |= {_kind: _how | {"split": "train"}, f"{_kind}Unseen": _how | {"split": "unseen"}}
for _name, _kwargs in _WORLDS.items():
    gym.register(
        f"oelkit/{_name}-v0",
        entry_point="oelkit.envs.sql:SqlEnv",
        kwargs=_kwargs,
        max_episode_steps=3,
        disable_env_checker=True,
    )
