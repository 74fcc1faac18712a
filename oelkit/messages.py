"""Messages in the form that chat templates take: of a chat log with a role that they know, text as
content, tool calls with their arguments as objects; of a prompt as text, or in parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from .records import Fields, Message
from .text import content_text, well_formed

MAX_TEXT = 2_000_000  # characters of one message; no model reads as much
_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"developer": "system", "function": "tool", "human": "user", "gpt": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function_response": "tool"},
}
_KEPT = ("name", "tool_call_id", "tool_calls", "reasoning_content")  # of a message


def message(raw: Any, place: int) -> Message:
    """A message in the form of chat templates; ValueError says what is wrong with it."""
    where = f"message {place + 1}"
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is a {type(raw).__name__}, not an object")
    given = {k: v for k, v in cast(Fields, raw).items() if v is not None}  # Parquet fills up so
    said = given.get("role", given.get("from"))
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise ValueError(f"{where} has the unknown role {said!r}: known are {', '.join(_ROLES)}")
    content = given.get("content", given.get("value"))
    try:
        text = content_text(content)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(text) > MAX_TEXT:
        raise ValueError(f"{where} has {len(text):,} characters; more than {MAX_TEXT:,} are no log")
    if said == "function_call":
        text, given = "", {"tool_calls": [_json(text, where)]}
    given = {"reasoning_content": given.get("reasoning")} | given
    found: Message = {"role": role, "content": text}
    found |= {k: given[k] for k in _KEPT if given.get(k)}
    if "tool_calls" in found:
        if role != "assistant" or not isinstance(found["tool_calls"], list):
            raise ValueError(f"{where}: tool_calls must be a list, of the assistant")
        found["tool_calls"] = [_call(call, where) for call in found["tool_calls"]]
    if role == "assistant" and not text and "tool_calls" not in found:
        raise ValueError(f"{where} is of the assistant and says nothing")
    if not isinstance(found.get("reasoning_content", ""), str):
        raise ValueError(f"{where}: reasoning_content is no text")
    return found


def plain(messages: Sequence[Message]) -> list[Message]:
    """Messages with text as content, and U+FFFD for half an emoji wherever it stands.

    Raises:
        ValueError: one is no message, or its content is no text.
    """
    if isinstance(messages, str) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str)
        for m in cast(Sequence[Any], messages)
    ):
        raise ValueError("a message has no role, such as user or assistant")
    texts = [{**m, "content": content_text(m.get("content"))} for m in messages]
    return cast(list[Message], _well_formed(texts))


def _well_formed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_well_formed(k): _well_formed(v) for k, v in cast(Fields, value).items()}
    if isinstance(value, list):
        return [_well_formed(v) for v in cast(list[Any], value)]
    return well_formed(value) if isinstance(value, str) else value


MARK = "xyzzy"  # a word that is in no template


def behind_mark(text: str) -> str:
    """What a template wrote behind the last `MARK`, in whichever case it shows it."""
    return re.split(MARK, text, flags=re.IGNORECASE)[-1]


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """The same with the text of each as its only part."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def wants_parts(render: Callable[[list[Message]], str]) -> bool:
    """Whether a chat template reads content in parts alone, as some of models with pictures do.

    Raises:
        ValueError: it shows nothing of what a user says.
    """
    asked, silent = [{"role": "user", "content": MARK}], False
    for messages in (asked, in_parts(asked)):
        try:
            text = render(messages)
        except Exception:  # whatever a template does with what it does not take
            continue
        if MARK in text.lower():
            return messages is not asked
        silent = True
    if silent:
        raise ValueError("its chat template shows nothing of what a user says; take another")
    return False


def _call(call: Any, where: str) -> Fields:
    """A tool call with its arguments as an object, which is what chat templates write."""
    function: Any = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call has no name")
    given: Any = cast(Fields, function).get("arguments") or {}
    arguments = _json(given, where) if isinstance(given, str) else given
    about = {k: call[k] for k in ("id",) if isinstance(call.get(k), str)}
    call = {"name": function["name"], "arguments": arguments}
    return {**about, "type": "function", "function": call}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: the arguments of a tool call are not JSON") from None


def tools(given: Any) -> list[Fields]:
    """Tool definitions as templates take them; ShareGPT keeps them as a text."""
    found: Any = _json(given, "tools") if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in cast(list[Any], found)):
        raise ValueError("tools is no list of objects")
    plain = cast(list[Fields], found)
    return [t if "function" in t else {"type": "function", "function": t} for t in plain]


def reply_text(message: Message) -> str:
    """An assistant message as the text that a model writes: thought, answer, tool calls."""
    thought = message.get("reasoning_content")
    parts = [f"<think>\n{thought}\n</think>\n"] if thought else []
    parts += [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        said = json.dumps(call["function"], ensure_ascii=False)
        parts.append(f"<tool_call>\n{said}\n</tool_call>")
    return "\n".join(parts)


def written_calls(reply: str) -> tuple[str, list[str]]:
    """What a model wrote without its tool calls, and what stands in each of these."""
    before, *parts = reply.split("<tool_call>")
    rest, calls = [before], list[str]()
    for part in parts:
        call, end, after = part.partition("</tool_call>")
        rest.append(after if end else f"<tool_call>{part}")  # cut off: text
        calls += [call.strip()] if end else []
    return "".join(rest).strip() if calls else reply, calls


def spoken(reply: str) -> Message:
    """What a model wrote as a message of the assistant, the other way round from `reply_text`.

    Where what it calls cannot be read, the whole is text.
    """
    text, written = written_calls(reply)
    try:
        calls = [_call(_json(call, "the reply"), "the reply") for call in written]
    except ValueError:
        text, calls = reply, []
    return {"role": "assistant", "content": text.strip()} | ({"tool_calls": calls} if calls else {})
