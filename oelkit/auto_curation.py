"""What no person has decided on, decided by the agreement of the draws."""

from __future__ import annotations

from .curation import CuratedItem, Curation, _words


def auto_curate(curation: Curation, draws: int | None = None) -> Curation:
    """The headless default for what no person has decided on (author "auto"); a second call does
    nothing. Returns it.

    Of three draws or more, what at least half of them wrote in the same words (case and punctuation
    aside) is merged and accepted, and the rest is rejected: a misreading seldom happens twice
    (self-consistency, arXiv 2203.11171). Where they agree on nothing, as with free wording, every
    item is accepted but those with the words of an earlier one of its draw. draws: how many there
    were, where one that wrote nothing has found nothing new (default: those that wrote); if half of
    them found nothing new, then what the others wrote is rejected too."""
    settled = {(i.draw, *_words(i.text)): i.id for i in curation.items if i.status != "pending"}
    writers = len({i.draw for i in curation.items if i.model})
    draws = draws or writers
    groups: dict[tuple[str, ...], list[CuratedItem]] = {}
    for item in [i for i in curation.items if i.status == "pending"]:
        if twin := settled.get((item.draw, *_words(item.text))):
            curation.reject(item.id, f"duplicates {twin}", author="auto")
        else:
            groups.setdefault(_words(item.text), []).append(item)
    wrote = {words: len({i.draw for i in group}) for words, group in groups.items()}
    agreed = {words for words, n in wrote.items() if draws >= 3 and n >= draws / 2}
    for words, group in groups.items():
        ids, reason = [i.id for i in group], f"written by {wrote[words]} of {draws} draws"
        if words in agreed:
            curation.accept(
                curation.merge(ids, group[0].text, reason, author="auto"), author="auto"
            )
        elif agreed or 2 * writers <= draws > 2:
            curation.reject(ids, reason, author="auto")
        else:
            first = {i.draw: i.id for i in reversed(group)}
            curation.accept([id for id in ids if id in first.values()], author="auto")
            for item in group:
                if item.id != first[item.draw]:
                    curation.reject(item.id, f"duplicates {first[item.draw]}", author="auto")
    return curation
