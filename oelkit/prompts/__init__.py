"""Prompt sets: the texts used to prompt a model, as data.

A set is a TOML file in `oelkit/prompts/`, or your own file by path. It holds the templates `intro`,
`experience`, `act`, `history`, `extract`, `turn` and `previous`, the board rendering and the most
new tokens per reply. Optional are a `system` prompt and `chat`, which makes earlier turns messages
of their own instead of `history`. Text filled into a template is never read as a template.
`experience` must use {items}, `act` {observation} and `extract` {game}.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter

from ..messages import spoken
from ..records import Fields, Message, Trajectory, Turn
from ..text import answer_text, content_text

SHIPPED = {p.stem: p for p in sorted(Path(__file__).parent.glob("*.toml"))}
_NEEDED = {"experience": "items", "act": "observation", "extract": "game"}
_FIELDS = {  # the fields that each template can use
    "experience": "items",
    "act": "history observation turn max_turns moves",
    "history": "turn observation move feedback",
    "extract": "game previous",
    "turn": "turn observation board reply action feedback",
    "previous": "items",
}


@dataclass(frozen=True)
class PromptSet:
    """One prompt set; a run records its `name`."""

    name: str
    board: str
    max_new_tokens: int
    intro: str
    experience: str
    act: str
    history: str
    extract: str
    turn: str
    previous: str
    system: str = ""
    chat: bool = False


def load_prompt_set(name: str | Path | PromptSet) -> PromptSet:
    """Load a set by name ('paper', 'brief', 'rules') or by the path of a .toml file.

    A prompt set is returned as it is.

    Raises:
        ValueError: the set does not exist or is invalid; the message says why.
    """
    if isinstance(name, PromptSet):
        return name
    path = Path(name) if str(name).endswith(".toml") else SHIPPED.get(str(name))
    if not path or not os.path.isfile(path):
        what = f"no prompt set {str(name)[:99]!r}: choose one of {', '.join(SHIPPED)}"
        raise ValueError(f"{what}, or give the path of a .toml file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # TOML or UTF-8
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    wanted = {f.name for f in fields(PromptSet)} - {"name"}
    missing, unknown = sorted(wanted - {"system", "chat"} - set(raw)), sorted(set(raw) - wanted)
    if missing or unknown:
        raise ValueError(f"{path}: missing fields {missing}, unknown fields {unknown}")
    for key, value in raw.items():
        kind = {"max_new_tokens": int, "chat": bool}.get(key, str)
        if type(value) is not kind:
            raise ValueError(f"{path}: {key} must be {kind.__name__}, not {value!r}")
        if key in _FIELDS:
            _check_template(str(value), f"{path}: {key}", _FIELDS[key], _NEEDED.get(key))
    return PromptSet(name=str(name), **raw)


def _check_template(template: str, what: str, names: str, needed: str | None) -> None:
    """Refuse a template that cannot be filled in or lacks what it is for, before a run starts.

    Only a name is allowed in braces. An attribute (`{items.upper}`) or a format (`{items:>9999}`)
    would fail, or fill the memory, only when the template is used.
    """
    wrong, used = "", set[str | None]()
    try:
        for _, name, form, conversion in Formatter().parse(template):
            used.add(name)
            if name is not None and (form or conversion or name not in names.split()):
                wrong = f"{{{name}}}"
    except ValueError as error:
        wrong = str(error)
    if wrong:
        said = f"{what} cannot be filled in ({wrong}): it can use {names} in braces"
        raise ValueError(f"{said}; write any other brace twice")
    if needed and needed not in used:
        raise ValueError(f"{what} does not use {{{needed}}}, so the model would never read it")


def act_messages(
    prompt_set: PromptSet,
    observation: str,
    turns: Sequence[Turn] = (),
    max_turns: int = 5,
    moves: Sequence[str] = ("left", "down", "right", "up"),
    tools: Sequence[Fields] = (),
) -> list[Message]:
    """Return the messages of a turn: system prompt, game so far without reasoning, board, question.

    This is one user message after the system prompt, if any. With `chat`, each reply and what came
    back is a message of its own, with the board again if it has changed.

    moves: the words that the model can answer with; none: the world names them itself.
    tools: definitions that the chat template renders; a reply that calls one is a tool call.
    """
    words = [f"[{word}]" for word in moves]
    choice = f": {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else ""
    boards, parts = [*(t.observation for t in turns), observation], list[Message]()
    if prompt_set.chat:
        for turn, before, after in zip(turns, boards, boards[1:], strict=False):
            answer = answer_text(turn.reply)
            said = spoken(answer) if tools else {"role": "assistant", "content": answer.strip()}
            known = after in (before, turn.feedback)
            back = turn.feedback if known else f"{turn.feedback}\n\n{after}"
            role = "tool" if "tool_calls" in said else "user"
            parts += [said, {"role": role, "content": back}]
    shown = 0 if prompt_set.chat else len(turns)
    history = "".join(
        prompt_set.history.format(
            turn=i + 1,
            observation=t.observation,
            move=f"[{t.action}]" if t.action else "no move",
            feedback=t.feedback,
        )
        for i, t in enumerate(turns[:shown])
    )
    text = prompt_set.act.format(
        history=history,
        observation=boards[shown],
        turn=shown + 1,
        max_turns=max_turns,
        moves=choice,
    )
    asked = {"role": "user", "content": (prompt_set.intro + text).strip("\n")}
    system = [{"role": "system", "content": prompt_set.system}] if prompt_set.system else []
    messages = [*system, asked, *parts]
    return [{**messages[0], "tools": list(tools)}, *messages[1:]] if tools else messages


def with_experience(
    prompt_set: PromptSet, messages: Sequence[Message], experience: str
) -> list[Message]:
    """Return the messages with the experience block in the first user message.

    The block follows the set's intro if the message starts with it, and precedes everything that
    differs between states, so the teacher's prompts share a prefix, even within a conversation. It
    works on any stored prompt, including logs from elsewhere. An empty experience changes nothing.

    Raises:
        ValueError: there is no user message, or it has parts that are not text.
    """
    if not experience:
        return list(messages)
    first = next((i for i, m in enumerate(messages) if m.get("role") == "user"), None)
    if first is None:
        raise ValueError("a prompt without a user message has no place for the experience")
    content, intro = content_text(messages[first].get("content")), prompt_set.intro.lstrip("\n")
    cut = len(intro) if intro and content.startswith(intro) else 0
    block = prompt_set.experience.format(items=experience)
    new = {**messages[first], "content": content[:cut] + block + content[cut:]}
    return [*messages[:first], new, *messages[first + 1 :]]


def without_experience(
    prompt_sets: Sequence[PromptSet], messages: Sequence[Message], experience: str
) -> list[Message]:
    """Return the messages without the experience that `with_experience` added with one of the sets.

    Raises:
        ValueError: the text is not where any of the prompt sets puts it.
    """
    for prompt_set in prompt_sets:
        block, plain = prompt_set.experience.format(items=experience), list(messages)
        for i, message in enumerate(plain):
            if message.get("role") == "user" and block in (said := str(message.get("content"))):
                plain[i] = {**message, "content": said.replace(block, "", 1)}
                break
        if with_experience(prompt_set, plain, experience) == list(messages):
            return plain
    names = " or ".join(prompt_set.name for prompt_set in prompt_sets)
    raise ValueError(
        f"the experience is not where the prompt set {names} puts it: give the text and the "
        "prompt set that these games were played with"
    )


def extract_messages(
    prompt_set: PromptSet, trajectory: Trajectory, previous: str = "", first: int = 0
) -> list[Message]:
    """Return the user message that asks what a trajectory teaches beyond `previous` ("": none).

    first: turns of the game before those of the trajectory.
    """
    known = prompt_set.previous.format(items=previous) if previous else ""
    text = prompt_set.extract.format(game=game_text(prompt_set, trajectory, first), previous=known)
    return [{"role": "user", "content": text.strip("\n")}]


def game_text(prompt_set: PromptSet, trajectory: Trajectory, first: int = 0) -> str:
    """Return a whole game in words: for each turn the board, the full reply and its effect.

    {board} is filled only at the first turn of each level. first: as in `extract_messages`.
    """
    levels = [t.extra.get("level") for t in trajectory.turns]
    return "".join(
        prompt_set.turn.format(
            turn=first + i + 1,
            observation=t.observation,
            board=f"{t.observation}\n" if i == 0 or levels[i] != levels[i - 1] else "",
            reply=t.reply,
            action=t.action or "?",
            feedback=t.feedback,
        )
        for i, t in enumerate(trajectory.turns)
    )
