import json
import os
import threading
import tracemalloc

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oelkit.records import (
    ConflictError,
    Evidence,
    ExperienceItem,
    Outcome,
    RecordError,
    State,
    Trajectory,
    Turn,
    append_jsonl,
    from_dict,
    read_jsonl,
    to_dict,
    write_jsonl,
    write_text,
)

# Includes U+2028, controls and lone low surrogates. A high one before a low one would correctly
# become one character.
characters = st.characters(exclude_categories=[]).filter(lambda c: not "\ud800" <= c < "\udc00")
text = st.text(alphabet=characters, max_size=20)
extra = st.dictionaries(
    st.sampled_from(["arm", "extra", "ünknown"]), st.integers() | text | st.lists(st.booleans())
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": text}),
    max_size=2,
)
counts = st.integers(0, 9999)
turns = st.builds(
    Turn, text, messages, text, st.none() | text, text, counts, counts, st.booleans(), extra
)
trajectories = st.builds(
    Trajectory,
    text,
    text,
    st.none() | st.integers(),
    text,
    counts,
    st.lists(turns, max_size=3).map(tuple),
    st.sampled_from(Outcome),
    text,
    extra,
)
evidence = st.builds(Evidence, text, counts, extra)
items = st.builds(
    ExperienceItem,
    text,
    text,
    st.lists(evidence, max_size=3).map(tuple),
    text,
    counts,
    counts,
    extra,
)

GOOD = ExperienceItem("i1", "H is a hole.", (Evidence("t1", 0),), "micro", 1, 0)


def test_what_is_nested_too_deep_to_be_written_again_is_a_bad_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    for deep in ("[" * 400 + "]" * 400, '{"a":' * 400 + "1" + "}" * 400):
        path.write_text('{"schema": 1, "x": [[1], {"b": []}]}\n{"schema": 1, "x": ' + deep + "}\n")
        with pytest.raises(RecordError, match="line 2: .*more than 200 deep"):
            read_jsonl(path)


@pytest.mark.slow
@given(st.lists(trajectories, max_size=3), st.lists(items, max_size=3))
@settings(deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory, games, learned):
    folder = tmp_path_factory.mktemp("r")
    for records, cls in ((games, Trajectory), (learned, ExperienceItem)):
        write_jsonl(folder / "a.jsonl", records)
        assert read_jsonl(folder / "a.jsonl", cls) == records
        for record in records:
            append_jsonl(folder / "b.jsonl", record)
        if records:
            assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
            (folder / "b.jsonl").unlink()


def test_unknown_fields_at_every_depth_are_written_back():
    line = {"schema": 1, **to_dict(GOOD), "colour": "red"}
    line["evidence"] = [{"trajectory_id": "t1", "turn": 0, "span": [1, 2]}]
    item = from_dict(ExperienceItem, line)
    assert item.extra == {"colour": "red"} and item.evidence[0].extra == {"span": [1, 2]}
    assert to_dict(item) == line


def test_a_known_field_wins_over_one_in_extra():
    item = ExperienceItem("i1", "true", (), "m", 1, 0, {"text": "false", "schema": 7})
    assert to_dict(item)["text"] == "true" and to_dict(item)["schema"] == 1


def test_records_are_hashable_and_frozen():
    assert len({Evidence("t", 1), Evidence("t", 1), Evidence("t", 2)}) == 2
    with pytest.raises(AttributeError):
        GOOD.text = "other"


@pytest.mark.parametrize(
    "change, field",
    [
        ({"text": 5}, "text"),
        ({"round": "1"}, "round"),
        ({"round": True}, "round"),
        ({"evidence": "t1"}, "evidence"),
        ({"evidence": [{"turn": 1}]}, "evidence[0].trajectory_id"),
        ({"evidence": [{"trajectory_id": "t", "turn": None}]}, "evidence[0].turn"),
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
    ],
)
def test_a_bad_line_names_file_line_and_field_and_keeps_the_good_ones(tmp_path, change, field):
    path = tmp_path / "items.jsonl"
    lines = [json.dumps(d) for d in (to_dict(GOOD), {**to_dict(GOOD), **change}, to_dict(GOOD))]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError) as e:
        read_jsonl(path, ExperienceItem)
    assert f"{path}, line 2" in str(e.value) and repr(field) in str(e.value)
    assert e.value.records == [GOOD, GOOD] and e.value.bad[0][:2] == (2, field)


@pytest.mark.parametrize("line", [b'{"schema": 1, "id"', b"\xff\xfe", b"\0\0\0", b"[" * 100_000])
def test_a_line_that_is_no_json(tmp_path, line):
    path = tmp_path / "items.jsonl"
    write_jsonl(path, [GOOD])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(RecordError, match="line 2: not JSON") as e:
        read_jsonl(path, ExperienceItem)
    assert e.value.records == [GOOD] and e.value.bad[0][1] is None


def test_a_missing_field_an_outcome_and_a_deep_field():
    turn = Turn("o", [{"role": "user", "content": "c"}], "r", None, "f", 1, 2, False)
    line = to_dict(Trajectory("t", "e", None, "m", 1, (turn,), Outcome.SUCCESS, ""))
    assert line["outcome"] == "success"
    with pytest.raises(RecordError, match=r"'outcome'.*'won' is none of success"):
        from_dict(Trajectory, {**line, "outcome": "won"})
    with pytest.raises(RecordError, match=r"'turns\[0\].reply'.*missing"):
        from_dict(
            Trajectory,
            {**line, "turns": [{k: v for k, v in line["turns"][0].items() if k != "reply"}]},
        )
    with pytest.raises(RecordError, match=r"'prompt\[0\]'"):
        from_dict(
            State, {"schema": 1, "id": "s", "trajectory_id": "t", "turn": 0, "prompt": ["hello"]}
        )


def test_plain_dicts_and_scalars_of_numpy(tmp_path):
    append_jsonl(
        tmp_path / "new" / "metrics.jsonl", {"kl": numpy.float32(0.5), "step": numpy.int64(3)}
    )
    assert read_jsonl(tmp_path / "new" / "metrics.jsonl") == [{"kl": 0.5, "step": 3}]
    assert json.loads((tmp_path / "new" / "metrics.jsonl").read_text())["schema"] == 1
    with pytest.raises(TypeError, match="set"):
        append_jsonl(tmp_path / "new" / "metrics.jsonl", {"kl": {1, 2}})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [GOOD])

    def broken():
        yield GOOD
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(tmp_path / "a.jsonl", broken())
    assert read_jsonl(tmp_path / "a.jsonl", ExperienceItem) == [GOOD]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_text_is_written_as_a_whole_and_is_on_disk(tmp_path, monkeypatch):
    """First the bytes, then the name are on disk when `write_text` returns."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: done.append(os.fstat(f).st_ino) or fsync(f))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("name") or replace(a, b))
    path = tmp_path / "new" / "metrics.json"
    write_text(path, json.dumps({"text": "half \ud83d ü\n"}, ensure_ascii=False))
    assert done == [path.stat().st_ino, "name", path.parent.stat().st_ino]
    assert json.loads(path.read_text("utf-8")) == {"text": "half \ud83d ü\n"}
    write_jsonl(path, [GOOD])
    assert done[3:] == [path.stat().st_ino, "name", path.parent.stat().st_ino]
    with monkeypatch.context() as m, pytest.raises(OSError, match="no space"):
        m.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        write_text(path, "half")
    assert read_jsonl(path, ExperienceItem) == [GOOD]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    resource = pytest.importorskip("resource")  # a limit on the file size imitates a full disk
    path = tmp_path / "log.jsonl"
    size = append_jsonl(path, {"a": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (size + 10, limits[1])
    )  # ten bytes of the line still fit
    try:
        with pytest.raises(OSError):
            append_jsonl(path, {"b": "x" * 100}, expected_size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    append_jsonl(path, {"b": 2}, expected_size=size)
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}]


def test_an_append_does_not_glue_onto_a_broken_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    size = append_jsonl(path, {"c": 3})
    assert size == path.stat().st_size
    with pytest.raises(RecordError, match="line 2") as e:
        read_jsonl(path)
    assert e.value.records == [{"a": 1}, {"c": 3}]


def test_the_second_of_two_writers_is_told(tmp_path):
    path = tmp_path / "log.jsonl"
    size = append_jsonl(path, {"a": 1}, expected_size=0)
    append_jsonl(path, {"b": 2}, expected_size=size)
    with pytest.raises(ConflictError, match="log.jsonl"):
        append_jsonl(path, {"c": 3}, expected_size=size)
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}]


def test_of_many_writers_at_once_exactly_one_wins(tmp_path):
    path, won, gate = tmp_path / "log.jsonl", [], threading.Barrier(4)
    append_jsonl(path, {"turn": -1})

    def write():
        for turn in range(100):
            size = path.stat().st_size
            gate.wait()
            try:
                append_jsonl(path, {"turn": turn}, expected_size=size)
                won.append(turn)
            except ConflictError:
                pass
            gate.wait()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert won == list(range(100)) == [r["turn"] for r in read_jsonl(path)][1:]


def test_files_are_written_and_read_line_by_line(tmp_path):
    """Memory does not grow with a file, as it is never in memory as a whole."""
    path, written = tmp_path / "a.jsonl", []

    def rows():
        for n in range(2000):
            written.append(sum(p.stat().st_size for p in tmp_path.iterdir()))
            yield {"n": n, "text": "x" * 5000}

    write_jsonl(path, rows())
    assert written[1000] > 4_000_000, "the first lines are on their way before the last is made"
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="2000 more|1999 more"):  # bad lines are not kept
            read_jsonl(path, ExperienceItem)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path):
    """From an editor that saves one, and in files that were joined."""
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"a": 1})
    path.write_bytes(2 * (b"\xef\xbb\xbf" + path.read_bytes()))
    assert read_jsonl(path) == [{"a": 1}, {"a": 1}]
