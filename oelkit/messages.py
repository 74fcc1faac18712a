"""Messages in the form that chat templates take.

Messages of a chat log get a role that templates know, text as content, and tool calls whose
arguments are objects. Messages of a prompt have their content as text or in parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from .given import not_json, shallow
from .records import Fields, Message
from .text import content_text, well_formed

MAX_TEXT = 2_000_000  # characters per message; no model reads that much
_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"developer": "system", "function": "tool", "human": "user", "gpt": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function_response": "tool"},
    **{"tool_call": "assistant", "tool_response": "tool", "chatgpt": "assistant"},
    **{"ai": "assistant", "model": "assistant"},
}
_KEPT = ("name", "tool_call_id", "tool_calls", "reasoning_content")  # of a message


def message(raw: Any, place: int) -> Message:
    """Convert a message to the form of chat templates; ValueError says what is wrong with it."""
    where = f"message {place + 1}"
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is a {type(raw).__name__}, not an object")
    given = {k: v for k, v in raw.items() if v is not None}  # Parquet adds these
    said = given.get("role", given.get("from"))
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise ValueError(f"{where} has the unknown role {said!r}: use one of {', '.join(_ROLES)}")
    if role != "assistant" and not raw.keys() & {"content", "value"}:
        raise ValueError(f"{where} has neither content nor value: {', '.join(map(str, raw))}")
    content = given.get("content", given.get("value", given.get("refusal")))
    try:
        text = content_text(content)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(text) > MAX_TEXT:
        raise ValueError(f"{where} has {len(text):,} characters; the limit is {MAX_TEXT:,}")
    if str(said).lower() in ("function_call", "tool_call"):
        calls = _json(text, f"{where}, a tool call")
        text, given = "", {"tool_calls": calls if isinstance(calls, list) else [calls]}
    if isinstance(call := given.get("function_call"), dict):  # OpenAI's older form
        given = {"tool_calls": [call]} | given
    given = {"reasoning_content": given.get("reasoning")} | given
    found: Message = {"role": role, "content": text}
    found |= {k: given[k] for k in _KEPT if given.get(k)}
    if "tool_calls" in found:
        if role != "assistant" or not isinstance(found["tool_calls"], list):
            raise ValueError(f"{where}: tool_calls must be a list, in an assistant message")
        found["tool_calls"] = [_call(call, where) for call in found["tool_calls"]]
    if role == "assistant" and not text and "tool_calls" not in found:
        raise ValueError(f"{where} is of the assistant and has no content and no tool call")
    if not isinstance(found.get("reasoning_content", ""), str):
        raise ValueError(f"{where}: reasoning_content is not text")
    return found


def plain(messages: Sequence[Message]) -> list[Message]:
    """Return messages with text as content, and U+FFFD in place of any half emoji.

    Raises:
        ValueError: one is not a message, or its content is not text.
    """
    listed = isinstance(messages, Iterable) and not isinstance(messages, str)
    if not listed or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
    ):
        raise ValueError("a message has no role, such as user or assistant")
    texts = [{**m, "content": content_text(m.get("content"))} for m in messages]
    return _well_formed(texts)


def content_or_json(content: Any) -> str:
    """Return the text of a message's content, or as JSON what is no text, such as a picture."""
    try:
        return content_text(content)
    except ValueError:
        return json_text(content)


def json_text(value: Any) -> str:
    """Return a value as JSON that any file can hold; half an emoji becomes U+FFFD."""
    return well_formed(json.dumps(value, ensure_ascii=False))


def _well_formed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_well_formed(k): _well_formed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_well_formed(v) for v in value]
    return well_formed(value) if isinstance(value, str) else value


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the text of each as its only content part."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _call(call: Any, where: str) -> Fields:
    """Return a tool call; its arguments must be an object, because templates fail at others."""
    function: Any = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call has no name")
    given: Any = function.get("arguments", function.get("parameters")) or {}
    what = f"{where}, arguments of a tool call"
    arguments = _json(given, what) if isinstance(given, str) else given
    if not isinstance(arguments, dict):
        raise ValueError(f"{what}: not an object")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    called = {"name": function["name"], "arguments": arguments}
    return {**named, "type": "function", "function": called}


def _json(text: str, where: str) -> Any:
    try:
        return shallow(json.loads(text), 100)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {not_json(error)}") from None


def tools(given: Any) -> list[Fields]:
    """Return tool definitions as templates take them; ShareGPT keeps them as a JSON string."""
    found: Any = _json(given, "the tools") if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        raise ValueError("tools is not a list of objects")
    return [t if "function" in t else {"type": "function", "function": t} for t in found]


def reply_text(message: Message) -> str:
    """Return an assistant message as text that a model would write: thought, answer, tool calls."""
    thought = message.get("reasoning_content")
    parts = [f"<think>\n{thought}\n</think>\n"] if thought else []
    parts += [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        said = json.dumps(call["function"], ensure_ascii=False)
        parts.append(f"<tool_call>\n{said}\n</tool_call>")
    return "\n".join(parts)


def written_calls(reply: str) -> tuple[str, list[str]]:
    """Split a reply into its text without tool calls, and the content of each tool call."""
    before, *parts = reply.split("<tool_call>")
    rest, calls = [before], list[str]()
    for part in parts:
        call, end, after = part.partition("</tool_call>")
        rest.append(after if end else f"<tool_call>{part}")  # cut off: text
        calls += [call.strip()] if end else []
    return "".join(rest).strip() if calls else reply, calls


def spoken(reply: str) -> Message:
    """Return a reply as an assistant message, the inverse of `reply_text`.

    If a tool call cannot be parsed, the whole reply is text.
    """
    text, written = written_calls(reply)
    try:
        calls = [_call(_json(call, "the reply"), "the reply") for call in written]
    except ValueError:
        text, calls = reply, []
    return {"role": "assistant", "content": text.strip()} | ({"tool_calls": calls} if calls else {})
