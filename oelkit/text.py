"""Model replies as text: the answer and the items in a reply, the items as the teacher reads them,
whether two say the same, and where they differ.

No torch and no files. Model text is untrusted: every repetition in a pattern is bounded, so no
reply takes long to parse.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, cast

from . import given
from .records import ExperienceItem

MARKER = "- EXPERIENCE ITEM:"
DIFFED = 250_000  # words of one text times those of the other
# marks around a thought; the last pair is gpt-oss's, where every channel except one is a thought
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<reasoning>", "</reasoning>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>", "<unused95>"),
    ("<|channel>", "<channel|>"),
    ("<|channel|>", "<|channel|>final<|message|>"),
)
MARKS = "\n".join(begin + end for begin, end in THOUGHTS)
# Granite 3 uses words instead of marks
_IN_WORDS = re.compile(r"\bhere(?: is|['\u2019]s) my (thought process|response):", re.IGNORECASE)
_AROUND = re.compile(  # in Marco-o1's words and, with bars, Kimi K3's
    r"^(?:<(?:answer|response|output)>|<\|open\|>response<\|sep\|>)|"
    r"(?:</(?:answer|response|output)>|<\|close\|>response<\|sep\|>.{0,99})$",
    re.IGNORECASE,
)
_BEGIN, _END = (re.compile("|".join(map(re.escape, x)), re.IGNORECASE) for x in zip(*THOUGHTS))
_MARK = re.compile(
    r"experience[ _-]{0,3}items?[ \t]{0,3}[#(]?\d{0,4}\)?[ \t]{0,3}"
    r"[*_`]{0,3}[ \t]{0,3}[:\uff1a][*_`]{0,3}",
    re.IGNORECASE,
)
_NOTHING_NEW = re.compile(
    r"\W{0,9}(?:there is |i learned |it teaches )?(?:nothing new|none|n/a|no new \w{1,20})"
    r"(?: to (?:add|learn|note|report|say))?(?: (?:here|from this \w{1,20}))?\W{0,9}",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-+*•>#]+|\d{1,3}[.)])\s+")
# a heading in the forms that people and editors write
_DRAW = re.compile(
    r"^(?:[^\S\n]|\ufeff){0,9}(?:#{1,6}[^\S\n]{0,9}|\*\*)draws?[^\S\n]{0,9}(\d+)"
    r"(?:[^\w\n]*|[^\S\n]{0,9}[(\[:,;–—-][^\n]*)$",
    re.MULTILINE | re.IGNORECASE,
)
_SURROGATE = re.compile("[\ud800-\udfff]")
# stars around words; a single one can be a sign, as in A* and *args
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[\"'`“‘(\[]?\w)([^*]{1,300})(?<!\s)\1(?![\w*])")
_MARKED = re.compile(r"(?:\d[\d.,]{0,30}|\w)[!?'\u2019]{1,9}")  # such as n!, f'
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def answer_text(text: str) -> str:
    """Return the answer in a thinking model's reply: what follows its thought, up to any next one.

    It is "" if the thought never ended.
    """
    _, answer, _ = _thoughts(text)
    return answer if answer == text else _AROUND.sub("", answer.strip()).strip()


def thought_text(text: str) -> str:
    """Return the thoughts in a thinking model's reply: all but its answer, without their marks."""
    before, _, after = _thoughts(text)
    thoughts = (_BEGIN.sub("", thought).strip() for thought in (*before, after))
    return "\n\n".join(filter(None, thoughts))


def _thoughts(text: str) -> tuple[list[str], str, str]:
    """Split a reply into its thoughts, its answer, and a last thought that never ended.

    What a tool call says is no mark of a thought.
    """
    first, *parts = text.split("<tool_call>")
    for n, part in enumerate(parts):
        call, end, after = part.partition("</tool_call>")
        if end:
            parts[n] = "\0" * len(call) + end + after
    masked = "<tool_call>".join([first, *parts])  # as long as the text
    ends = [mark.span() for mark in _END.finditer(masked)]
    starts = [0, *(end for _, end in ends)]
    begin = _BEGIN.search(masked, starts[-1])
    answer, rest = (begin.start(), begin.end()) if begin else (len(text), len(text))
    before = [text[a:b] for a, (b, _) in zip(starts, ends)]
    return before, text[starts[-1] : answer], text[rest:]


def begun_thought(opening: str) -> str:
    """Return the mark of a thought that a template's opening of a reply leaves open, or ""."""
    rest = _END.split(in_marks(opening))[-1]
    return next((begin for begin, _ in THOUGHTS if begin.lower() in rest.lower()), "")


def in_marks(text: str) -> str:
    """Put marks in place of the words that some models are asked to write around a thought."""
    marks = THOUGHTS[0]
    return _IN_WORDS.sub(lambda found: marks[found[1].lower() == "response"], text)


def parse_items(text: str, strict: bool = False) -> list[str]:
    """Return the items of a reply, one line each, in order.

    strict: accept only lines that start with exactly `- EXPERIENCE ITEM:`. Otherwise also accept
    `### EXPERIENCE ITEM:`, `- Experience Item:`, no dash, a number, bold, several items on a line,
    and a text or list below the marker. Lines that say there is nothing new are not items.
    """
    lines, found = given.one("text", text, str).split("\n"), list[str]()
    if strict:
        found = [line[len(MARKER) :] for line in lines if line.startswith(MARKER)]
    else:
        for i, line in enumerate(lines):
            marks = list(_MARK.finditer(line))
            for k, mark in enumerate(marks[:-1]):  # without what leads into the next marker
                part = line[mark.end() : marks[k + 1].start()]
                found.append(_without_emphasis(part.rstrip(" \t-+*•>#_`")))
            if marks:
                last = line[marks[-1].end() :]
                found += [_without_emphasis(last)] if last.strip() else _below(lines, i + 1)
    return [item for item in map(one_line, found) if item and not says_nothing_new(item)]


def says_nothing_new(text: str) -> bool:
    """Whether an answer or an item says only that there is nothing new."""
    return bool(_NOTHING_NEW.fullmatch(text.replace(MARKER, "").strip()))


def _below(lines: list[str], start: int) -> list[str]:
    """Return the text below a marker alone on its line: one line, or all lines of a list."""
    found: list[str] = []
    for line in lines[start:]:
        bullet = _BULLET.match(line)
        if _MARK.search(line) or (found and not bullet):
            break
        if line.strip():
            found.append(_without_emphasis(line[bullet.end() :] if bullet else line))
            if not bullet:
                break
    return found


def _without_emphasis(text: str) -> str:
    """Remove emphasis around the whole text, and the end of emphasis opened before the marker."""
    text = text.strip()
    for sign in ("**", "__", "*", "`"):
        if text.endswith(sign) and text.count(sign) % 2:
            text = text[: -len(sign)].rstrip()
        elif text.startswith(sign) and text.endswith(sign) and text.count(sign) == 2:
            text = text[len(sign) : -len(sign)].strip()
    return text


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 reply", "2,000 replies"; plural: if it is not noun + s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def one_line(text: str) -> str:
    """Return the text without any line break: model text must not start a new line."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def experience_text(items: Iterable[ExperienceItem]) -> str:
    """Return the items as the teacher reads them, one line each."""
    return well_formed("\n".join(f"{MARKER} {one_line(item.text)}" for item in items))


def join_experience(previous: str, items: Sequence[ExperienceItem]) -> str:
    """Return earlier experience followed by new items, as the teacher reads it."""
    return "\n".join(filter(None, (previous, experience_text(items))))


def by_draw(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Split an experience.md into the text before its `## Draw N` headings, and each (N, text)."""
    head, *parts = _DRAW.split(text)
    return head.strip(), [(n, said.strip()) for n, said in zip(parts[::2], parts[1::2])]


def well_formed(text: str) -> str:
    """Replace half emojis in broken model output by U+FFFD, because no tokenizer reads them."""
    return _SURROGATE.sub("\ufffd", text)


def content_text(content: Any) -> str:
    """Return the text of a message's content, which is a string, a list of text parts or None.

    Raises:
        ValueError: it is something else, such as a picture.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"a message's content is a {type(content).__name__}, not text")
    texts: list[str] = []
    for part in cast(list[Any], content):
        part = part if hasattr(part, "get") else {"text": part}
        text, kind = part.get("text"), part.get("type")
        if not isinstance(text, str) or kind not in (None, "text", "input_text", "output_text"):
            kind = kind or type(text).__name__
            raise ValueError(f"a message's content has a part of the kind {kind!r}, not text")
        texts.append(text)
    return "".join(texts)


def count_tokens(text: str, tokenizer: Any) -> int:
    """Count tokens with a Transformers or tokenizers tokenizer, or with a counting function."""
    if not hasattr(tokenizer, "encode"):
        return tokenizer(text)
    ids = tokenizer.encode(well_formed(text), add_special_tokens=False)
    return len(getattr(ids, "ids", ids))


def over_budget(lines: Sequence[str], budget_tokens: int, tokenizer: Any) -> int:
    """Return how many of the first (oldest) lines must go so that the rest fits the budget."""

    def fits(first: int) -> bool:
        return count_tokens("\n".join(lines[first:]), tokenizer) <= budget_tokens

    return 0 if fits(0) else bisect_left(range(len(lines)), True, key=fits)


def truncate_to_budget(text: str, budget_tokens: int | None, tokenizer: Any) -> str:
    """Return the last lines of an experience text that fit the budget (None: all of them)."""
    if budget_tokens is None:
        return text
    lines = text.split("\n")
    return "\n".join(lines[over_budget(lines, budget_tokens, tokenizer) :])


def wording(text: str) -> tuple[str, ...]:
    """Return the words to compare texts by, without case, quotes, emphasis or outer punctuation.

    Numbers, signs and operators count: "-1" differs from "1", "row < 2" from "row > 2", "C*" from
    "C" and "5!" from "5". A sign on its own is a word.
    """
    return tuple(_word(word) for word in _EMPHASIS.sub(r"\2", text).split())


def _word(word: str) -> str:
    """Remove case, except of a small letter in quotes: a world's sign "s" differs from "S"."""
    small = _bare(word)
    if small != word and re.fullmatch("[a-z]", small) and not word[0].isalpha():
        return f'"{small}"'
    return _bare(word.lower()) or word.lower()  # casefold would take "Maße" for "Masse"


def _bare(word: str) -> str:
    if len(word) > 99:  # not a word of any language
        return word
    before = None
    while word != before:
        before = word
        word = word.rstrip(".,;:…")
        if not _MARKED.fullmatch(word):
            word = word.rstrip("!?").strip("\"'`“”„«»‹›「」‘’")
        first, last = word[:1], word[-1:]
        if first in _BRACKETS and word.find(_BRACKETS[first]) in (-1, len(word) - 1):
            word = word[1:]
        elif any(last == close and start not in word for start, close in _BRACKETS.items()):
            word = word[:-1]
    return word


def word_diff(old: str, new: str) -> list[tuple[str, str]]:
    """Return runs of words from old to new: ("=", kept), ("-", removed) or ("+", added).

    Texts of thousands of words are not compared, but returned as one removed and one added run.
    """
    a, b, runs = old.split(), new.split(), list[tuple[str, list[str]]]()
    if len(a) * len(b) > DIFFED:  # the time grows faster than this number
        return [("-", " ".join(a)), ("+", " ".join(b))]
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        runs += [("=", a[i:j])] if tag == "equal" else [("-", a[i:j]), ("+", b[k:m])]
    return [(sign, " ".join(words)) for sign, words in runs if words]


def outcome_text(outcome: str) -> str:
    """Say an outcome as a reader does: won, lost, turn limit."""
    return {"success": "won", "failure": "lost"}.get(outcome, outcome.replace("_", " "))
