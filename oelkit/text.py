"""What a model wrote, as text: the answer in a reply, the items in it, and items as the teacher
reads them.

No torch and no files. Model text is untrusted: every repetition in a pattern is bounded, so that no
reply takes long."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .records import ExperienceItem

MARKER = "- EXPERIENCE ITEM:"
# every repetition is bounded, so that a reply of nothing but blanks or stars takes no time either
_MARK = re.compile(
    r"experience[ _-]{0,3}items?[ \t]{0,3}[#(]?\d{0,4}\)?[ \t]{0,3}[*_`]{0,3}[ \t]{0,3}[:\uff1a][*_`]{0,3}",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-+*•>#]+|\d{1,3}[.)])\s+")


def answer_text(text: str) -> str:
    """The answer in a thinking model's reply: what follows `</think>`; "" where the thinking never
    ended.
    """
    thought, end, answer = text.rpartition("</think>")
    return answer.strip() if end else "" if text.lstrip().startswith("<think>") else text


def parse_items(text: str, strict: bool = False) -> list[str]:
    """The items of a reply, one line each, in order.

    strict: only lines that start with exactly `- EXPERIENCE ITEM:`. Else also `### EXPERIENCE
    ITEM:`, `- Experience Item:`, no dash, a number, bold, several on a line, and the text (or a
    list of them) below the marker."""
    lines, found = text.split("\n"), []
    if strict:
        found = [line[len(MARKER) :] for line in lines if line.startswith(MARKER)]
    else:
        for i, line in enumerate(lines):
            marks = list(_MARK.finditer(line))
            for mark, after in zip(
                marks, marks[1:]
            ):  # what leads in the next marker on the line is no text
                found.append(_plain(line[mark.end() : after.start()].rstrip(" \t-+*•>#_`")))
            if marks:
                found += (
                    [_plain(line[marks[-1].end() :])]
                    if line[marks[-1].end() :].strip()
                    else _below(lines, i + 1)
                )
    return [item for item in map(one_line, found) if item]


def _below(lines: list[str], start: int) -> list[str]:
    """The text under a marker that stands alone on its line: one line, or all lines of a list."""
    found = []
    for i in range(start, len(lines)):
        bullet = _BULLET.match(lines[i])
        if _MARK.search(lines[i]) or (found and not bullet):
            break
        if lines[i].strip():
            found.append(_plain(lines[i][bullet.end() :] if bullet else lines[i]))
            if not bullet:
                break
    return found


def _plain(text: str) -> str:
    """Without emphasis around all of it, or an end of emphasis that began before the marker."""
    text = text.strip()
    for sign in ("**", "__", "*", "`"):
        if text.endswith(sign) and text.count(sign) % 2:
            text = text[: -len(sign)].rstrip()
        elif text.startswith(sign) and text.endswith(sign) and text.count(sign) == 2:
            text = text[len(sign) : -len(sign)].strip()
    return text


def experience_text(items: Iterable[ExperienceItem]) -> str:
    """The items as the teacher reads them, one line each."""
    return "\n".join(f"{MARKER} {one_line(item.text)}" for item in items)


def count_tokens(text: str, tokenizer: Any) -> int:
    """By a Transformers or tokenizers tokenizer, or by a function from a text to its number of
    tokens.
    """
    if not hasattr(tokenizer, "encode"):
        return tokenizer(text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return len(getattr(ids, "ids", ids))


def one_line(text: str) -> str:
    """The text without line breaks of any kind: what a model wrote must not be able to start a line
    of its own.
    """
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def join_experience(previous: str, items: Sequence[ExperienceItem]) -> str:
    """Experience from before with new items behind it, as the teacher reads it."""
    return "\n".join(filter(None, (previous, experience_text(items))))


def truncate_to_budget(text: str, budget_tokens: int | None, tokenizer: Any) -> str:
    """The last lines of an experience text that fit the budget: the oldest go first (None: all of
    it).
    """
    if budget_tokens is None or count_tokens(text, tokenizer) <= budget_tokens:
        return text
    lines = text.split("\n")

    def fits(first: int) -> bool:
        return count_tokens("\n".join(lines[first:]), tokenizer) <= budget_tokens

    return "\n".join(lines[bisect.bisect_left(range(len(lines)), True, key=fits) :])
