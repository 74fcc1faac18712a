"""Feed hostile input, as from a model, a log or a stranger's folder, to everything that reads it.

    python tests/fuzz.py --inputs 1000000      # prints the results as JSON

Each target takes one input and accepts only the errors that its readers document. An input can take
LIMIT seconds of CPU time, and must write only to the scratch folder and start no process or
connection. Python's audit hook sees what Python does; that SQLite and other libraries write to no
file and leave none open is seen by a limit on the size of files, and by the open ones. `make test`
tries 60 of each target (tests/test_hostile.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import string
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import oelkit.envs.sql  # registers its worlds
from oelkit import envs, logs, prompts, text
from oelkit.auto_curation import auto_curate
from oelkit.curation import Curation
from oelkit.exchange import bring_in, export
from oelkit.likeness import similar
from oelkit.notebooks import NotebookError, Parameter, convert
from oelkit.operations import Op, Operation, read_log
from oelkit.records import (
    Evidence,
    ExperienceItem,
    Outcome,
    RecordError,
    State,
    Trajectory,
    Turn,
    read_jsonl,
    to_dict,
    write_jsonl,
)
from oelkit.runs.settings import run_folder
from oelkit.runs.stages import FORM, status

LIMIT = 10  # CPU seconds per input, against hangs; the longest recorded takes a fifth of this
SCRATCH = Path(tempfile.mkdtemp(prefix="oelkit-fuzz-"))

# -- inputs

PIECES = """
- EXPERIENCE ITEM:|### Experience Item 3:|**EXPERIENCE ITEM:**|experience_items|<think>|</think>
|<|channel|>|<|channel|>final<|message|>|<|im_start|>|<|im_end|>|<|endoftext|>|[left]|[ UP ]|[a]|[
|]|[[|]]|(|)|{|}|{items}|{0}|{items.__class__}|{items!r:>99}|```|```sql|```sql\nSELECT 1\n```|**|__
|`|#|*|1.|1)|-|nothing new|none|n/a|word|H is a hole.|../|/|\\|~|CON|.|..|%s|$(id)|;|'|"|<b>|</pre>
|<script>alert(1)</script>|=1+1|@|--|/*|sk-abcdefghijklmnop123|a@b.example|+49 151 2345678|true|null
|<tool_call>|</tool_call>|{"name": "query", "arguments": {"sql": "SELECT 1"}}
|NaN|1e999|-0|0x10|99999999999999999999|3x3|H a3|| .... |+-----+|## Draw 0
""".replace("\n", "").split("|")
ODD = [
    "", " ", "\n", "\r", "\r\n", "\t", "\v", "\f", "\0", "\x1b[31m", "\x85", "\xa0", "\u2028",
    "\u2029", "\u200b", "\u202e", "\u202c", "\ufeff", "\ufffd", "\ud800", "\udfff", "\U0001f600",
    "e\u0301", "ß", "İ", "\u0660", "²", "：",
]  # fmt: skip
PIECE = st.one_of(st.sampled_from(PIECES), st.sampled_from(ODD))
# repeated pieces reveal work that grows faster than the input
LONG = st.builds(lambda piece, n: piece * n, PIECE, st.integers(1, 3000))
TEXT = st.one_of(
    st.lists(PIECE, max_size=12).map("".join),
    st.lists(st.one_of(PIECE, st.text(max_size=20)), max_size=8).map(" ".join),
    st.text(st.characters(codec=None), max_size=60),
    LONG,
)
NAME = st.one_of(st.sampled_from([*string.ascii_letters, "demo", "run-1", "a.b"]), PIECE, TEXT)
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**63, -(2**64), 10**30]),
    st.floats(),
    st.lists(PIECE, max_size=3).map("".join),
)


def mixed(leaf: Any, names: list[str]) -> Any:
    """Draw JSON values with these field names and a few others."""
    keys = st.one_of(st.sampled_from(names), st.text(max_size=5))
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=12,
    )


def nearly(fields: dict[str, Any], other: Any) -> Any:
    """Draw an object with these fields, some of them missing, of another type, or unknown."""
    odd = st.dictionaries(st.sampled_from([*fields, "extra", "unknown"]), other, max_size=2)
    gone = st.lists(st.sampled_from(list(fields)), max_size=1)
    return st.builds(
        lambda whole, odd, gone: {k: v for k, v in {**whole, **odd}.items() if k not in gone},
        st.fixed_dictionaries(fields),
        st.one_of(st.just({}), odd),
        st.one_of(st.just([]), gone),
    )


def lines_of(row: Any) -> Any:
    """Draw the bytes of a file of such rows, some of them damaged."""
    line = row.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    escaped = row.map(lambda value: json.dumps(value).encode())
    cut = st.builds(lambda data, n: data[: len(data) * n // 10], line, st.integers(0, 9))
    deep = st.integers(1, 5000).map(lambda n: b"[" * n)
    deeper = st.integers(1, 3000).map(lambda n: b'{"schema":1,"id":' + b"[" * n + b"]" * n + b"}")
    odd = st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"9" * 5000, b"{}", b"[]", b'""'])
    parts = st.one_of(line, line, escaped, escaped, cut, odd, deep, deeper, st.binary(max_size=30))
    end = st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b""])
    return st.lists(st.tuples(parts, end).map(b"".join), max_size=6).map(b"".join)


MESSAGE = nearly(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
        "content": st.one_of(TEXT, st.lists(st.fixed_dictionaries({"text": TEXT}), max_size=2)),
    },
    mixed(SCALAR, ["tool_calls", "text", "type", "name", "arguments", "function"]),
)
TURN = nearly(
    {
        "observation": TEXT,
        "prompt": st.lists(MESSAGE, max_size=2),
        "reply": TEXT,
        "action": st.one_of(st.none(), TEXT),
        "feedback": TEXT,
        "prompt_tokens": st.integers(0, 9),
        "reply_tokens": st.integers(0, 9),
        "truncated": st.booleans(),
    },
    mixed(SCALAR, ["text"]),
)
EVIDENCE = nearly({"trajectory_id": NAME, "turn": st.integers(-1, 9)}, SCALAR)
GAME = nearly(
    {
        "schema": st.just(1),
        "id": NAME,
        "env_id": st.sampled_from(["log", "oelkit/FrozenLake4x4-v0"]),
        "seed": st.one_of(st.none(), st.integers()),
        "model": NAME,
        "round": st.integers(0, 3),
        "turns": st.lists(TURN, max_size=3),
        "outcome": st.sampled_from([*map(str, Outcome), "won"]),
        "feedback": TEXT,
    },
    mixed(SCALAR, ["turns", "prompt"]),
)
ITEM = nearly(
    {
        "schema": st.just(1),
        "id": NAME,
        "text": TEXT,
        "evidence": st.lists(EVIDENCE, max_size=2),
        "model": NAME,
        "round": st.integers(0, 3),
        "draw": st.integers(-1, 3),
    },
    mixed(SCALAR, ["turn"]),
)
STATE = nearly(
    {
        "schema": st.just(1),
        "id": NAME,
        "trajectory_id": NAME,
        "turn": st.integers(0, 9),
        "prompt": st.lists(MESSAGE, max_size=2),
    },
    mixed(SCALAR, ["turn"]),
)
IDS = st.lists(st.sampled_from(["i0", "i1", "i2", "add-1", "merge-2", "split-1.1"]), max_size=3)
OPERATION = nearly(
    {
        "schema": st.just(1),
        "n": st.integers(1, 4),
        "op": st.sampled_from([*map(str, Op), "drop"]),
        "author": NAME,
        "time": st.one_of(NAME, st.just("2026-01-01T00:00:00.000+00:00")),
        "reason": TEXT,
        "ids": IDS,
        "before": st.lists(st.sampled_from(["text 0", "text 1", "text 2"]), max_size=3),
        "new": IDS,
        "texts": st.lists(TEXT, max_size=3),
        "to": st.one_of(st.none(), st.integers(-2, 5)),
        "evidence": st.lists(EVIDENCE, max_size=1),
    },
    mixed(SCALAR, ["n"]),
)
CHAT = st.one_of(
    nearly({"messages": st.lists(MESSAGE, max_size=4), "id": NAME, "tools": SCALAR}, SCALAR),
    nearly(
        {
            "conversations": st.lists(
                st.fixed_dictionaries(
                    {
                        "from": st.sampled_from(["human", "gpt", "function_call", "observation"]),
                        "value": TEXT,
                    }
                ),
                max_size=4,
            ),
            "system": TEXT,
            "feedback": TEXT,
        },
        mixed(SCALAR, ["role", "value", "messages"]),
    ),
    GAME,
    mixed(SCALAR, ["messages", "conversations", "turns", "schema"]),
)
TABLE_ROW = nearly(
    {
        "id": st.sampled_from(["", "i0", "i1", "add-1"]),
        "status": st.sampled_from(["", "accepted", "rejected", "pending", "maybe"]),
        "text": TEXT,
        "why": TEXT,
    },
    mixed(SCALAR, ["text"]),
)
CELL = st.one_of(TEXT, st.sampled_from(["i0", "i1", "accepted", "skipped"]))
TABLE = st.one_of(
    lines_of(TABLE_ROW).map(lambda data: data.decode("utf-8", "replace")),
    st.lists(st.lists(CELL, max_size=5).map(",".join), max_size=4).map(
        lambda rows: "\n".join(["id,status,text,why", *rows])
    ),
    TEXT,
)
SQL = """
SELECT FROM WHERE count(*) * 1 a.* , ( ) UNION ALL WITH RECURSIVE t(x) AS VALUES (1) x+1 ATTACH
DETACH DATABASE '/tmp/x.db' PRAGMA table_info writable_schema=1 sqlite_master INSERT INTO DELETE
UPDATE SET DROP CREATE TABLE VIEW TRIGGER VACUUM INTO load_extension('x') zeroblob(1e9)
randomblob(99999) group_concat(1) hex printf('%.*c',1e9,'x') || LIKE '%a%b%' GLOB instr trim
LIMIT ORDER BY GROUP HAVING DISTINCT JOIN CROSS kunde ware auftrag name bez kd ; -- /* ? :x NULL
"""
SQL_WORD = st.sampled_from(SQL.split())
QUERY = st.one_of(st.lists(SQL_WORD, max_size=14).map(" ".join), TEXT)
TEMPLATE = st.one_of(
    st.lists(PIECE, max_size=5).map("".join),
    st.sampled_from(
        ["{items}", "{game}{previous}", "{items:>999999999}", "{items:{items}}", "{items.upper}"]
    ),
)
PROMPT_SET = nearly(
    {
        **dict.fromkeys(("intro", "history", "turn", "previous", "board"), TEMPLATE),
        "experience": TEMPLATE | TEMPLATE.map("{items}".__add__),
        "act": TEMPLATE | TEMPLATE.map("{observation}".__add__),
        "extract": TEMPLATE | TEMPLATE.map("{game}".__add__),
        "max_new_tokens": st.integers(-1, 9),
    },
    SCALAR,
)
RUN_JSON = st.fixed_dictionaries(
    {
        "form": st.sampled_from([FORM, FORM, FORM, 1, None]),
        "settings": nearly(
            {
                "rounds": st.integers(1, 2),
                "env": NAME,
                "model": NAME,
                "gate": st.sampled_from(["off", "warn", "stop", "rollback", 3]),
                "carry_experience": st.booleans(),
                "run_ablations": st.booleans(),
            },
            mixed(SCALAR, ["rounds"]),
        ),
        "prompts": nearly({"name": NAME, "max_new_tokens": st.integers(0, 9)}, SCALAR),
    }
)
CHAIN = mixed(SCALAR, ["start", "1", "2"])
MANIFEST = nearly(
    {
        "inputs": st.dictionaries(NAME, SCALAR, max_size=2),
        "outputs": st.dictionaries(NAME, SCALAR, max_size=2),
        "settings": st.dictionaries(st.sampled_from(["start", "env", "prompt_set"]), SCALAR),
    },
    mixed(SCALAR, ["outputs"]),
)

# -- targets


def items(reply: str) -> None:
    """Take a reply to the extraction prompt through to the teacher's text."""
    text.answer_text(reply)
    text.thought_text(reply)
    for strict in (True, False):
        found = text.parse_items(reply, strict)
        assert all(item == text.one_line(item) and item for item in found), found
        kept = [ExperienceItem(str(n), item, (), "", 0, 0) for n, item in enumerate(found)]
        told = text.experience_text(kept)
        assert told.count("\n") == max(0, len(found) - 1)
        assert text.parse_items(told, strict=True) == [text.well_formed(item) for item in found]
        assert len(text.truncate_to_budget(told, 40, len)) <= 40
        similar([reply, *found[:20]])
        for item in found[:3]:
            text.word_diff(reply, item)


WORLDS = [
    envs.make(env_id, **({"board": board} if "Sql" not in env_id else {}))
    for env_id in sorted(e for e in gymnasium.registry if e.startswith("oelkit/"))
    for board in ("labelled", "grid")
]


def actions(world: int, replies: list[str]) -> None:
    """Send replies to a world."""
    env = WORLDS[world % len(WORLDS)]
    shown, _ = env.reset(seed=len(replies))
    for reply in replies:
        envs.parse_board(reply), envs.parse_board(shown)
        shown, reward, ended, cut, info = env.step(reply)
        assert isinstance(shown, str) and isinstance(info["feedback"], str)
        assert info["action"] is None or isinstance(info["action"], str)
        assert info["outcome"] is None or isinstance(info["outcome"], Outcome)
        assert (ended or cut) == (info["outcome"] is not None) and reward in (0, 1)
        if ended or cut:
            break


SHOP = oelkit.envs.sql.SqlEnv()


def query(said: str) -> None:
    """Run a query against the database, which must not change."""
    oelkit.envs.sql.query_of(said)
    with suppress(ValueError):
        oelkit.envs.sql.run_query(SHOP.connection, said)
    assert oelkit.envs.sql.run_query(SHOP.connection, "SELECT count(*) FROM kunde")[0][0] > 0


def chats(data: bytes) -> None:
    """Read a chat log. Accepted chats can be written and read again."""
    path = SCRATCH / "chats.jsonl"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = logs.read_chats(path, on_bad="skip")
    except (RecordError, ValueError):
        return
    str(found)
    again(found, Trajectory)
    for game in found:
        prompts.extract_messages(SET, game)


def again(records: list[Any], cls: type) -> None:
    """Write records, read them, compare."""
    path = SCRATCH / "again.jsonl"
    write_jsonl(path, records)
    json_of = [json.dumps(to_dict(r)) for r in records]
    assert [json.dumps(to_dict(r)) for r in read_jsonl(path, cls)] == json_of


def records(data: bytes) -> None:
    """Read a file of records: returns the good ones, or raises an error that carries them."""
    path = SCRATCH / "records.jsonl"
    path.write_bytes(data)
    for cls in (Trajectory, ExperienceItem, State, Turn, Evidence, Operation, dict):
        try:
            found = read_jsonl(path, cls)
        except RecordError as error:
            assert error.bad
            found = error.records
        again(found, cls)


def log(data: bytes) -> None:
    """Replay an operation log: gives a state or an error, and leaves the file as it is."""
    path = SCRATCH / "curation.jsonl"
    path.write_bytes(data)
    source = [ExperienceItem(f"i{n}", f"text {n}", (), "m", 1, n % 2) for n in range(3)]
    with warnings.catch_warnings(action="ignore"):
        try:
            read_log(path)
            curation = Curation(source, path)
        except ValueError:
            assert path.read_bytes() == data
            return
        curation.experience(20, len), curation.diff(), repr(curation)
        assert {i.id for i in source} <= {i.id for i in curation._state.values()}
        assert path.read_bytes() == data
        auto_curate(Curation(source), 2)


def table(given: str) -> None:
    """Import a table of items: all of it or nothing. Accepted changes can be exported again."""
    curation = Curation(ExperienceItem(f"i{n}", f"text {n}", (), "m", 1, n) for n in range(2))
    try:
        bring_in(curation, given)
    except ValueError:
        assert not curation.log
    for format in ("jsonl", "csv"):
        assert bring_in(curation, export(curation, format)) == 0


def names(name: str) -> None:
    """Check a run's name: a folder directly below the root, or an error."""
    with suppress(ValueError):
        assert run_folder(name, SCRATCH).resolve().parent == SCRATCH.resolve()


SET = prompts.load_prompt_set("paper")


def prompt_set(raw: dict[str, Any]) -> None:
    """Load a stranger's prompt set and make prompts from it."""
    path, quoted = SCRATCH / "set.toml", json.dumps
    path.write_text(
        "".join(f"{quoted(k)} = {quoted(v)}\n" for k, v in raw.items() if v is not None)
    )
    try:
        found = prompts.load_prompt_set(path)
    except ValueError:
        return
    turn = Turn("o {items}", [], "r", None, "f", 0, 0, False)
    game = Trajectory("g", "log", None, "m", 0, (turn, turn), Outcome.UNKNOWN, "f")
    asked = prompts.act_messages(found, "{board}", [turn])
    asked = prompts.with_experience(found, asked, "{x}")
    asked += prompts.extract_messages(found, game, "{0}")
    assert sum(len(m["content"]) for m in asked) < 100_000


def run(record: Any, chain: Any, manifest: Any) -> None:
    """Read the JSON of a run folder: gives its state, or an error message."""
    folder = SCRATCH / "run"
    (folder / "round_1/manifests").mkdir(parents=True, exist_ok=True)
    (folder / "round_1/trajectories.jsonl").write_text("")
    for name, value in (
        ("run", record),
        ("chain", chain),
        ("metrics", chain),
        ("round_1/metrics", manifest),
        ("round_1/manifests/rollout", manifest),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    with suppress(ValueError):
        status(folder)


def parameter(value: str, kinds: set[str]) -> None:
    """Parse a notebook parameter from the command line."""
    with suppress(NotebookError):
        convert("x", value, Parameter(kinds, None))


TARGETS: dict[str, tuple[Callable[..., None], list[Any]]] = {
    "items": (items, [TEXT]),
    "actions": (actions, [st.integers(0, 999), st.lists(TEXT, max_size=6)]),
    "query": (query, [QUERY]),
    "chats": (chats, [lines_of(CHAT)]),
    "records": (records, [lines_of(st.one_of(GAME, ITEM, STATE, OPERATION))]),
    "log": (log, [lines_of(OPERATION)]),
    "table": (table, [TABLE]),
    "names": (names, [NAME]),
    "prompt_set": (prompt_set, [PROMPT_SET]),
    "run": (run, [RUN_JSON, CHAIN, MANIFEST]),
    "parameter": (parameter, [TEXT, st.sets(st.sampled_from(["int", "list", "str", "None"]))]),
}


WRITE = ("chats", "records", "log", "prompt_set", "run")  # to the scratch folder

# -- what an input must not do

_watched = False


class Forbidden(BaseException):
    """An input took too long, wrote outside the scratch folder, or started something."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "pickle.find_class"):
        raise Forbidden(f"{event}{args}")
    at: tuple[Any, ...] = ()
    if (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or event in (
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.truncate",
        "os.chmod",
        "shutil.rmtree",
    ):
        at = args[:1]
    elif event in ("os.rename", "os.link", "os.symlink"):
        at = args[:2]
    for path in at:
        if isinstance(path, str | bytes | os.PathLike):
            full = os.path.realpath(os.fsdecode(path))
            if not full.startswith((str(SCRATCH.resolve()), "/dev/null")):
                raise Forbidden(f"{event}: {full}")


sys.addaudithook(_audit)


@contextmanager
def watched(longest: list[float], writes: bool = False) -> Any:
    """Enforce the limits in the module's docstring. `longest` gets the CPU seconds."""
    global _watched

    def stop(number: int, _: Any) -> None:
        slow = f"took more than {LIMIT} s of CPU time"
        raise Forbidden(slow if number == signal.SIGPROF else "wrote to a file")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGXFSZ)}
    room, opened = resource.getrlimit(resource.RLIMIT_FSIZE), {*os.listdir("/dev/fd")}
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    if not writes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, room[1]))
    _watched = True
    try:
        yield
    finally:
        _watched = False
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        longest[0] = max(longest[0], time.process_time() - began)
    if not {*os.listdir("/dev/fd")} <= opened:
        raise Forbidden("left a file open")


def target(name: str, inputs: int, number: int = 0) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return a hypothesis test of a target with so many inputs, and its counters."""
    check, strategies = TARGETS[name]
    counts: dict[str, Any] = {"inputs": 0, "longest": [0.0]}

    def trial(values: tuple[Any, ...]) -> None:
        counts["inputs"] += 1
        with watched(counts["longest"], name in WRITE):
            check(*values)

    limits = settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    return limits(seed(number)(given(st.tuples(*strategies))(trial))), counts


# shares in percent: fast targets get more inputs
SHARES = {"items": 22, "table": 3, "query": 20, "actions": 10, "parameter": 10, "names": 10}
SHARES |= {"prompt_set": 10, "chats": 5, "records": 4, "log": 4, "run": 2}


def fuzz(inputs: int, number: int, only: list[str]) -> dict[str, Any]:
    """Divide the inputs among the targets. Return the results; raise at the first finding."""
    rows: dict[str, Any] = {}
    for name in only or TARGETS:
        began, part, done, longest = time.process_time(), 5_000, 0, 0.0
        share = inputs if only else inputs * SHARES[name] // 100
        while done < share:  # restarted now and then, as hypothesis keeps everything in memory
            test, counts = target(name, min(part, share - done), number + done)
            test()
            done += counts["inputs"]
            longest = max(longest, counts["longest"][0])
        spent = round(time.process_time() - began)
        rows[name] = {"inputs": done, "longest_ms": round(1000 * longest), "cpu_s": spent}
        print(name, rows[name], file=sys.stderr, flush=True)
    return {"inputs": sum(row["inputs"] for row in rows.values()), "findings": 0, "targets": rows}


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description="feed hostile input to everything that reads it")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], choices=list(TARGETS))
    args = parser.parse_args()
    figures = fuzz(args.inputs, args.seed, args.only)
    print(json.dumps({**figures, "command": " ".join(["python", *sys.argv])}, indent=1))


if __name__ == "__main__":
    main()
