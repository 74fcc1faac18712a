"""Replace what should not be kept of a log: e-mail addresses, phone numbers and secret keys.

Patterns find what looks like one and do not find everything: names, postal addresses and account
numbers stay. A hook of your own is any function from text to text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from .given import shallow
from .text import well_formed

Hook = Callable[[str], str]
_GAP = r" \u00a0\u2009\u202f\u2010-\u2015-"  # blanks and hyphens between digits
# Every repetition is bounded and starts at the start of a word, so long texts are not slow.
_PATTERNS = {
    "key": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    r"(?:[^-]|-(?!----)){0,10000}-----END [A-Z ]{0,30}KEY-----"
    r"|(?<![\w-])(?:gh[opsu]|github_pat|glpat|xox[abprs]|dckr_pat|shpat|whsec|GOCSPX)[-_]"
    r"[\w-]{12,300}"
    # these also begin names, whose words are short or have no digit and no capital
    r"|(?<![\w-])(?:sk|pk|rk|hf|npm|pypi)[-_](?=[\w-]{0,100}?[^\W_]{14})"
    r"(?=[\w-]{0,100}?[A-Z\d])[\w-]{12,300}"
    r"|(?<!\w)(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)|(?<!\w)AIza[\w-]{30,50}"
    r"|(?<!\w)eyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]{8,4000}"
    r"|(?<!\w)SG\.[\w-]{16,99}\.[\w-]{16,99}"
    # "basic" also precedes words
    r"|(?i:(?<=bearer )|(?<=basic ))(?=[\w.~+/=-]{0,99}?(?:[\d=]|[a-z][A-Z]))[\w.~+/=-]{16,4000}"
    r"|(?<=://)[^\s/:@]{0,64}:[^\s/@]{1,200}(?=@)"  # name and password in an address
    # a long word of digits and letters of both cases, not an id of words and hyphens
    r"|(?<![\w/+-])(?=\w{0,40}[0-9])(?=\w{0,40}[a-z])(?=\w{0,40}[A-Z])\w{32,300}(?![\w-])",
    "e-mail": r"(?<![\w.+-])[\w.+-][\w.+'-]{0,63}(?:[@\uff20]|%40)"
    r"(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{0,62}",  # the last part begins with a letter
    # neither a number with a sign nor a date in a diff
    "phone": rf"(?<![\w+])\+(?!\d{{4}}-\d\d-\d\d)[1-9][\d()./{_GAP}]{{5,18}}\d(?![\w-])"
    # nor the end of a time, nor the groups of a large number
    rf"|(?<![\w./-])(?<!\d:)(?!(?<=\d[{_GAP}])0\d\d(?:[{_GAP}]\d\d\d)+\b)"
    rf"(?!\d\d[-/. ]\d\d[-/. ]\d)"
    rf"(?:\(0\d{{1,5}}\)|0\d{{1,5}}[/{_GAP}])[ ]?\d[\d{_GAP}]{{3,12}}\d(?![\w-])"
    rf"|(?<![\w./-])0[1-9](?:[.{_GAP}]\d\d){{4}}(?![\w-])"  # as in France
    rf"|(?<![\w./-])(?:1[.{_GAP}])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[.{_GAP}])"
    rf"[2-9]\d\d[.{_GAP}]\d{{4}}(?![\w-])",
}
# at the start of a word, behind _ or in camelCase
_LABEL = r"(?=[aspt])(?:(?<![^\W_])|(?-i:(?<=[a-z])(?=[A-Z])))"
_LABEL += (
    r"(?:(?:api|access|secret|private)[_-]?key|secret|token|password|passwd|passphrase|passwort)"
)
# not what is replaced already, nor code such as os.environ["API_KEY"]
_NO_VALUE = r"""(?!\[(?:key|e-mail|phone)\][.:!?]{0,3}(?:[\s"',;&\\}\])]|$))"""
_NO_VALUE += r"(?![^\W\d]{1,40}(?:\.[^\W\d]{1,40}){1,5}[(\[])"
_LABELLED = re.compile(
    rf"({_LABEL}(?:\\?[\"']?\s{{0,3}}[:=]\s{{0,3}}\\?[\"']?|\sist?\s{{1,3}}(?=\S{{0,40}}\d)))"
    rf"{_NO_VALUE}"
    r"[^\s\"',;&\\]{5,299}[^\s\"',;&}\])\\]",
    re.IGNORECASE,
)
_FIELD = re.compile(rf"[\w-]{{0,60}}?{_LABEL}", re.IGNORECASE)
_KINDS = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
_NO_TEXT = {"role", "from", "type"}  # fields whose words belong to a format


def redact(text: str) -> str:
    """Return the text with `[key]`, `[e-mail]` and `[phone]` in place of what looks like one."""
    for kind, pattern in _KINDS.items():
        text = pattern.sub(f"[{kind}]", text)
    return _LABELLED.sub(r"\1[key]", text)  # the label stays: in a tool call it is JSON


def redacted(value: Any, hook: Hook | None, counts: Counter[str], name: str = "") -> Any:
    """Return a JSON value with the hook applied to every text; add its replacements to `counts`.

    Raises:
        ValueError: the hook returned something other than text.
    """
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        for key, v in value.items():
            told = key if _of_format(str(key), hook) else redacted(key, hook, counts)
            found[f"{told} ({len(found)})" if told in found else told] = redacted(
                v, hook, counts, key
            )
        return found
    if isinstance(value, list | tuple):
        return [redacted(v, hook, counts, name) for v in value]
    if not isinstance(value, str) or (name in _NO_TEXT and _of_format(value, hook)):
        return value
    text = well_formed(value)
    if hook is None:
        return text
    text = _inside(text, hook, counts)
    secret = hook is redact and len(text) > 5 and _FIELD.fullmatch(str(name))
    new = "[key]" if secret else hook(text)
    if not isinstance(new, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the redact hook returned a {type(new).__name__}, not text")
    if new != text:
        gained = {k: new.count(f"[{k}]") - text.count(f"[{k}]") for k in _KINDS}
        # for a hook with its own placeholders, count the texts it changed
        counts.update({k: n for k, n in gained.items() if n > 0} or {"text": 1})
    return new


def _of_format(word: str, hook: Hook | None) -> bool:
    """Whether a word can be a format's own: an identifier, and shorter than any secret."""
    return word.isidentifier() and (hook is not redact or len(word) < 15)


def _inside(text: str, hook: Hook, counts: Counter[str]) -> str:
    r"""Redact the texts within JSON, such as a tool call's arguments, where \n is two letters."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        value = shallow(json.loads(text))
    except (ValueError, RecursionError):
        return text
    new = redacted(value, hook, counts)
    return text if new == value else json.dumps(new, ensure_ascii=False)
