"""A playground: pick or type a state and compare three answers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as w

from ... import given
from ...records import Message, State
from ...text import content_text, one_line, well_formed
from .base import StaticFallback

if TYPE_CHECKING:
    from ...steps.compare import Answer

TITLES = {"base": "base", "in_context": "experience in context", "distilled": "distilled"}
MOST = 3  # tokens listed per answer
_STEEP = 5.0  # difference in nats at which a token gets its full colour


class Playground(StaticFallback, w.VBox):
    """Base, in-context and distilled answers to a state, with the tokens on which they differ most.

    It asks once on creation, so that a saved notebook shows the answers to the first state.

    Args:
        ask: Returns the answers to messages, such as `lambda m: compare_answers(policy, m, text)`.
        states: States to pick from; the typed text replaces the last message.

    Raises:
        ValueError: There are no states, or one has no message.
    """

    def __init__(self, ask: Callable[[list[Message]], Sequence[Answer]], states: Sequence[State]):
        states = given.records("states", states, State)
        if not states or not all(state.prompt for state in states):
            raise ValueError("no states to pick from, or one without a message")
        self._ask, self._states = ask, states
        names = [(f"{s.id}: {one_line(_last(s))[:60]}", i) for i, s in enumerate(states)]
        self._state = w.Dropdown(options=names, description="state", layout=w.Layout(width="95%"))
        self._text = w.Textarea(rows=6, description="message", layout=w.Layout(width="95%"))
        self._button = w.Button(description="Ask", button_style="primary")
        self._answers = w.HTML()
        super().__init__([self._state, self._text, self._button, self._answers])
        self._state.observe(lambda _: self._pick(), "value")
        self._button.on_click(lambda _: self.ask())
        self._pick()

    def _pick(self) -> None:
        self._text.value = _last(self._states[int(self._state.value or 0)])
        self.ask()

    def ask(self) -> None:
        """Answer the text in the field; an error is shown instead of the answers."""
        state = self._states[int(self._state.value or 0)]
        messages = [*state.prompt[:-1], {**state.prompt[-1], "content": self._text.value}]
        try:
            columns = "".join(map(_column, self._ask(messages)))
            html = f'<div style="display:flex;flex-wrap:wrap;gap:1em">{columns}</div>'
        except (ValueError, RuntimeError) as error:
            html = f"<p>{escape(str(error))}</p>"
        self._answers.value = html
        self.static_html = f"<pre>{escape(self._text.value)}</pre>{html}"


def _last(state: State) -> str:
    try:
        return well_formed(content_text(state.prompt[-1].get("content")))
    except ValueError as error:
        raise ValueError(f"state {state.id!r}: {error}") from None


def _column(answer: Answer) -> str:
    """An answer as HTML; darker tokens differ more from the other two arms."""
    far = answer.differences()
    spans = "".join(_token(answer, i, d) for i, d in enumerate(far))
    most = sorted(range(len(far)), key=lambda i: -far[i])[:MOST]
    cell = 'style="padding:0 .5em;text-align:right"'
    head = "".join(f"<th {cell}>{escape(title)}</th>" for title in ("token", *TITLES.values()))
    rows = "".join(
        f"<tr><td {cell}><code>{escape(repr(answer.tokens[i]))}</code></td>"
        + "".join(f"<td {cell}>{_chance(answer.logprobs[arm][i])}</td>" for arm in TITLES)
        + "</tr>"
        for i in sorted(most)
    )
    return (
        f'<div style="flex:1 1 16em;min-width:0"><h4>{escape(TITLES[answer.arm])}</h4>'
        f'<p style="white-space:pre-wrap;overflow-wrap:anywhere">{spans}</p>'
        '<table><caption style="text-align:left">largest differences: probability of the token'
        f"</caption><tr>{head}</tr>{rows}</table></div>"
    )


def _token(answer: Answer, i: int, difference: float) -> str:
    shade = min(1.0, difference / _STEEP) * 0.6
    said = ", ".join(f"{TITLES[a]} {_chance(answer.logprobs[a][i])}" for a in TITLES)
    style = f"background:rgba(230,159,0,{shade:.2f})"
    return f'<span style="{style}" title="{escape(said)}">{escape(answer.tokens[i])}</span>'


def _chance(logprob: float) -> str:
    return f"{math.exp(logprob):.1%}"
