"""Decide on pending items by the agreement of the draws."""

from __future__ import annotations

from collections.abc import Sequence

from . import given
from .curation import Curation
from .likeness import contradictions
from .operations import CuratedItem
from .statements import by_wording, for_every_draw


def auto_curate(
    curation: Curation, draws: int | None = None, known: Sequence[str] = ()
) -> Curation:
    """Decide on pending items (author "auto") by the agreement of the draws; return the curation.

    Earlier decisions, such as a person's, apply to the same words in every draw; if some copies
    were rejected and one was accepted, all are accepted. With three draws or more, items that at
    least half of the draws wrote in the same words (see `text.wording`) are merged and accepted,
    and the rest are rejected: a misreading seldom happens twice (self-consistency, arXiv
    2203.11171). If the draws agree on nothing, as with free wording, every item is accepted except
    those that repeat the words of an earlier item of the same draw.

    An item that contradicts a `known` sentence is rejected, with that sentence as the reason ("M is
    the goal." if "M is the key." is known). A model that already knows something misreads its next
    games about it, in all draws alike.

    Args:
        curation: changed in place; a second call does nothing.
        draws: number of draws, including those that wrote nothing because they found nothing new
            (default: the draws that wrote). If half of them or more found nothing new, the others'
            items are rejected.
        known: sentences that are already known to hold, for example from earlier rounds.
    """
    given.one("curation", curation, Curation)
    for id, against in _refuted(curation, given.texts("known", known)):
        curation.reject(id, f"contradicts: {against}", author="auto")
    writers = len({draw for item in curation.items for draw in item.draws})
    draws = max(writers, given.count("draws", draws or 0, 0))
    groups = by_wording(curation.items)
    wrote = {words: _draws(group) for words, group in groups.items()}
    agreed = {words for words, n in wrote.items() if draws >= 3 and n >= draws / 2}
    for words, group in groups.items():
        accepted, pending = _with(group, "accepted"), _with(group, "pending")
        rejected, ids = _with(group, "rejected"), [i.id for i in pending]
        reason = f"written by {wrote[words]} of {draws} draws"
        if not pending:
            continue
        if rejected and not accepted:
            curation.reject(ids, f"same words as {rejected[0].id}", author="auto")
        elif any(item.every_draw for item in accepted):
            curation.accept(ids, f"same words as {accepted[0].id}", author="auto")
        elif words in agreed and not any(map(for_every_draw, accepted)):
            text = (accepted or pending)[0].text
            same = [i.id for i in group if i in accepted or i in pending]
            one = same[0] if len(same) == 1 else curation.merge(same, text, reason, author="auto")
            curation.accept(one, author="auto")
        elif accepted or not (agreed or 2 * writers <= draws > 2):
            _accept_once(curation, accepted, pending)
        else:
            curation.reject(ids, reason, author="auto")
    return curation


def _refuted(curation: Curation, known: Sequence[str]) -> list[tuple[list[str], str]]:
    """Return pending items that contradict a known sentence, grouped by that sentence."""
    pending, known = _with(curation.items, "pending"), list(dict.fromkeys(known))
    texts, n = [*known, *(item.text for item in pending)], len(known)
    pairs = [(a, b) for a, b in contradictions(texts, claims_only=True) if a < n <= b]
    first = {b: a for a, b in reversed(pairs)}  # reject an item only once
    by_sentence = dict[int, list[str]]()
    for b in sorted(first):
        by_sentence.setdefault(first[b], []).append(pending[b - n].id)
    return [(ids, known[a]) for a, ids in by_sentence.items()]


def _with(group: list[CuratedItem], status: str) -> list[CuratedItem]:
    return [item for item in group if item.status == status]


def _draws(group: list[CuratedItem]) -> int:
    """Count the draws that wrote a group of items; 0 if it was rejected."""
    accepted, pending = _with(group, "accepted"), _with(group, "pending")
    if _with(group, "rejected") and not accepted:
        return 0
    return len({draw for item in accepted + pending for draw in item.draws})


def _accept_once(
    curation: Curation, accepted: list[CuratedItem], pending: list[CuratedItem]
) -> None:
    """Accept pending items in the same words, each only once per draw's text."""
    everywhere = next((i.id for i in accepted if for_every_draw(i)), None)
    first = {i.draw: i.id for i in accepted}
    twins = {i.id: everywhere or first.setdefault(i.draw, i.id) for i in pending}
    if new := [id for id, twin in twins.items() if id == twin]:
        curation.accept(new, author="auto", every_draw=False)
    for id, twin in twins.items():
        if id != twin:
            curation.reject(id, f"duplicates {twin}", author="auto")
