"""Conversations as transcripts: for each turn the messages before its reply, and the reply in
parts. Games on a board are not conversations and are shown turn by turn.
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

from ...messages import content_or_json, reply_text, written_calls
from ...records import Message, Trajectory, Turn
from .base import board_of


def is_chat(game: Trajectory) -> bool:
    """Whether a trajectory is a log, or a game that starts without a board."""
    return game.env_id == "log" or not board_of(game.turns[0].observation)["cells"]


def before_turns(game: Trajectory) -> list[list[dict[str, Any]]]:
    """Return for each turn the messages that are new since the previous reply.

    If each prompt extends the one before, as in a log, these are the prompt's new messages.
    Otherwise (a game that repeats everything in one message) it is the observation.
    """
    if _grows(game):
        prompts = [turn.prompt for turn in game.turns]
        ends = [0, *(len(prompt) + 1 for prompt in prompts)]  # past the reply
        return [[_shown(m) for m in p[end:]] for p, end in zip(prompts, ends, strict=False)]
    system = [_shown(m) for m in game.turns[0].prompt if m.get("role") == "system"]
    seen = [[_shown({"role": "user", "content": turn.observation})] for turn in game.turns]
    return [system + seen[0], *seen[1:]]


def _grows(game: Trajectory) -> bool:
    prompts = [turn.prompt for turn in game.turns]
    told = any(m.get("role") != "system" for m in prompts[0])
    grows = told and all(b[: len(a)] == a for a, b in pairwise(prompts))
    return grows and (len(prompts) > 1 or game.env_id == "log")


def after_turn(turn: Turn, before_next: list[dict[str, Any]]) -> str:
    """Return a turn's feedback, unless the messages before the next reply say it."""
    said = "\n".join(m["text"] for m in before_next if m["role"] != "system")
    return "" if turn.feedback in said else turn.feedback


def parts(answer: str) -> tuple[str, list[list[str]]]:
    """Return an answer without its tool calls, and [name, arguments] of each call."""
    text, calls = written_calls(answer)
    return text, [_call(call) for call in calls]


def _shown(message: Message) -> dict[str, Any]:
    """A message as the page shows it."""
    text = content_or_json(message.get("content"))
    if message.get("role") == "assistant":
        with suppress(KeyError, TypeError):  # tool calls of an unknown form
            text = reply_text({**message, "content": text})
    given = message.get("tools") or []
    given = given if isinstance(given, list) else [given]  # of an unknown form too
    tools = [json.dumps(tool, ensure_ascii=False, indent=1) for tool in given]
    name = str(message.get("name") or "")
    return {"role": str(message.get("role", "")), "name": name, "text": text, "tools": tools}


def _call(text: str) -> list[str]:
    try:
        call = json.loads(text)
        arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False, indent=1)
        return [str(call["name"]), arguments]
    except (ValueError, RecursionError, KeyError, AttributeError):  # malformed model output
        return ["", text]
