"""Replace what should not be kept of a log: e-mail addresses, phone numbers and secret keys.

Patterns find what looks like one and do not find everything: names and addresses stay. A hook of
your own is any function from text to text.
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
# Every repetition is bounded and starts at the start of a word, so long texts are not slow.
_PATTERNS = {
    "key": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    r"(?:[^-]|-(?!----)){0,10000}-----END [A-Z ]{0,30}KEY-----"
    r"|(?<![\w-])(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|hf|xox[abprs]|npm|pypi)[-_]"
    r"[\w-]{12,300}"
    r"|(?<!\w)(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)|(?<!\w)AIza[\w-]{30,50}"
    r"|(?<!\w)eyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]{8,4000}"
    r"|(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{16,4000}"
    # a long word of digits and letters of both cases, not an id of words and hyphens
    r"|(?<![\w/+-])(?=\w{0,40}[0-9])(?=\w{0,40}[a-z])(?=\w{0,40}[A-Z])\w{32,300}(?![\w-])",
    "e-mail": r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "phone": r"(?<![\w+])\+\d[\d ()./-]{5,18}\d(?![\w-])"
    r"|(?<![\w./-])(?!\d\d[-/. ]\d\d[-/. ]\d)"
    r"(?:\(0\d{1,5}\)|0\d{1,5}[ /-])[ ]?\d[\d -]{3,12}\d(?![\w-])"
    r"|(?<![\w./-])\(?[2-9]\d\d\)?[ .-][2-9]\d\d[ .-]\d{4}(?![\w-])",
}
_LABELLED = re.compile(
    r"((?<!\w)(?:api[_-]?key|secret|token|password|passwd|passphrase)[\"']?\s{0,3}[:=]\s{0,3}"
    r"[\"']?)[^\s\"',;&]{5,299}[^\s\"',;&}\])]",
    re.IGNORECASE,
)
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
        return {k: redacted(v, hook, counts, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v, hook, counts, name) for v in value]
    if not isinstance(value, str) or (name in _NO_TEXT and value.isidentifier()):
        return value
    text = well_formed(value)
    if hook is None:
        return text
    text = _inside(text, hook, counts)
    new = hook(text)
    if not isinstance(new, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the redact hook returned a {type(new).__name__}, not text")
    if new != text:
        gained = {k: new.count(f"[{k}]") - text.count(f"[{k}]") for k in _KINDS}
        # for a hook with its own placeholders, count the texts it changed
        counts.update({k: n for k, n in gained.items() if n > 0} or {"text": 1})
    return new


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
