"""Hints for a reader: near-duplicate texts, contradictions, and the turn that taught a text.

All by words, without a model: endings and small words are ignored, and numbers, signs, single
letters and negations must agree, and so must the word after "before", "after", "from" and "than".
On the 58 pairs of tests/data/pairs.tsv this finds 20 of 25 paraphrases and accepts none of the 33
other pairs; the overlap of plain words (Jaccard, 0.8) finds 3 and accepts 1. Embeddings are not
used: averaged hidden states of SmolLM2-135M distinguish the two kinds no better than chance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from math import ceil
from typing import NamedTuple

from .records import Turn
from .text import wording

_SMALL, _NOT, _COUNT = (
    frozenset(words.split())
    for words in (
        "a an the is are was be been it its this that of in on at to for by with as from within "
        "over above and or if when then so into per you your their they them there have has do "
        "does must may can should will would get gets one who which what own also very just always "
        "ein eine einen einem einer eines immer toujours siempre sempre altijd всегда",
        "not no never cannot without avoid nothing none neither nor unless except hardly dont cant "
        "nicht kein keine keinen keinem keiner nie niemals ohne weder ne pas jamais sans aucun "
        "aucune ni nunca jamás sin non mai senza nem não sem niet geen не нет без 不 不要 没有 别",
        "two three four five six seven eight nine ten eleven twelve dozen hundred thousand million "
        "percent half double once twice second third fourth fifth sixth seventh eighth ninth tenth "
        "only almost",
    )
)
_ORDERS = ("before", "after", "from", "than")
_OPPOSITES = """left right, up down, first last, top bottom, before after, more less, win lose,
open closed, above below, higher lower, allowed forbidden, true false, safe dangerous,
north south, east west, < >, <= >="""
_SIDE = {w: (n, w) for n, pair in enumerate(_OPPOSITES.split(",")) for w in pair.split()}
_EXACT, _VALUE = re.compile(r"^.$|[^a-z'\u2019-]"), re.compile(r"[^a-z]*\d")  # "nl-7" names a thing
_ENDINGS = ("ing", "ies", "ed", "es", "ly", "s")
_CLAIM = re.compile(r"(.{1,80}?) (?:is|are|was|means|equals|=) (.{1,80})")
_THING = re.compile(r"(?:not )?(?:an?|the) |\W{0,3}\w{1,3}\W{0,3}$|.{0,3}\d")


class _Said(NamedTuple):
    words: frozenset[str]  # what it is about: stems without small words
    exact: Hashable  # what must agree: numbers, signs, letters; with several also their order
    negated: bool
    frame: frozenset[str]  # the words, with numbers and opposites replaced by their kind
    values: tuple[str, ...]  # what was replaced, in order


def similar(texts: Sequence[str], threshold: float = 0.75) -> list[list[int]]:
    """Group texts that say nearly the same: a share of common words (Dice) of `threshold` or more.

    Texts that differ only by one swapped word ("router", "modem") are about two things. Groups are
    chains of similar pairs.

    Returns:
        Groups of indices into `texts`, in order; a text that is like no other is in no group.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    said = [_said(text) for text in texts]
    group_of = {i: [i] for i in range(len(said))}
    for places in _by_key(((s.exact, s.negated), i) for i, s in enumerate(said)):
        for a, b in _sharing(places, said, threshold):
            common = len(said[a].words & said[b].words)
            sizes = len(said[a].words), len(said[b].words)
            near = 2 * common >= threshold * sum(sizes) and sizes != (common + 1, common + 1)
            if near and group_of[a] is not group_of[b]:
                group_of[a] += group_of[b]
                for i in group_of[b]:
                    group_of[i] = group_of[a]
    groups = {id(group): sorted(group) for group in group_of.values() if len(group) > 1}
    return sorted(groups.values())


def _sharing(places: list[int], said: list[_Said], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs that can reach the threshold: they share one of each text's rarest words.

    This is a prefix filter (Chaudhuri et al. 2006), because comparing all pairs takes too long.
    """
    counts, having = Counter(w for i in places for w in said[i].words), dict[str, list[int]]()
    for b in places:
        words = sorted(said[b].words, key=lambda w: (counts[w], w))
        common = ceil(threshold * len(words) / (2 - threshold) - 1e-9)  # at least, for Dice
        rare = words[: len(words) - common + 1] or [""]
        for a in {a: None for w in rare for a in having.get(w, ())}:
            yield a, b
        for w in rare:
            having.setdefault(w, []).append(b)


def contradictions(texts: Sequence[str], claims_only: bool = False) -> list[tuple[int, int]]:
    """Return pairs of texts that seem to contradict each other.

    They say two things about one subject ("H is a hole.", "H is the goal."), one says "not", or
    they differ only in a number or an opposite ("within 45 days", "within 30 days"; "left first",
    "right first"). More than 10 texts that differ only in this way count as a list of things, and
    so do names with a number ("Order NL-7 is late", "Order NL-8 is late").

    claims_only: compare only sentences like the first kind, which name their subject.
    """
    pairs = set[tuple[int, int]]()
    claims = {i: claim for i, text in enumerate(texts) if (claim := _claim(text))}
    for places in _by_key((claim[0], i) for i, claim in claims.items()):
        for a, b in _pairs(places):
            one, two = _said(claims[a][1]), _said(claims[b][1])
            things = _THING.match(claims[a][1]) and _THING.match(claims[b][1])
            apart = things and not (one.words & two.words or one.negated or two.negated)
            if apart or _against(one, two):
                pairs.add((a, b))
    if claims_only:
        return sorted(pairs)
    said = [_said(text) for text in texts]
    for places in _by_key((s.frame, i) for i, s in enumerate(said) if s.frame):
        things = len({said[i].values for i in places}) > 10
        for a, b in () if things else _pairs(places):
            one, two = said[a], said[b]
            swapped = one.negated and two.negated and one.exact != two.exact  # H is, G is not
            if swapped or (_against(one, two) and not {a, b} & claims.keys()):
                pairs.add((a, b))
    return sorted(pairs)


def teaching_turn(text: str, turns: Sequence[Turn]) -> int:
    """Return the turn, from 0, that taught a text: its feedback shares the most distinctive words.

    The fewer turns have a word, the more distinctive it is. Words seen before the reply count half.
    Ties go to the first turn, or to the last if all turns tie. Of 190 pairs of an item and a chat
    in data/logs/sql_chats.jsonl it finds the turn in 190, and "the last turn" would find 108
    (tests/test_likeness.py).
    """
    before, news = "", list[tuple[frozenset[str], frozenset[str]]]()
    for turn in turns:
        seen = turn.observation.replace(before, " ") if before else turn.observation
        after, before = _said(turn.feedback).words, turn.feedback
        news.append((_said(seen).words - after, after))
    having, said = Counter(word for new in news for part in new for word in part), _said(text).words
    tells = [[sum(1 / having[w] for w in said & part) for part in new] for new in news]
    scores = [round(seen / 2 + after, 9) for seen, after in tells]
    best = max(scores)
    return len(turns) - 1 if min(scores) == best else scores.index(best)


def _pairs(places: list[int]) -> Iterable[tuple[int, int]]:
    return combinations(places, 2) if len(places) <= 100 else ()


@lru_cache(1 << 15)
def _said(text: str) -> _Said:
    raw = tuple("not" if w.endswith(("n't", "n\u2019t")) else w for w in wording(text))
    negated = any(w in _NOT for w in raw)
    words = [w for w in raw if w not in _SMALL and w not in _NOT]
    letter = re.search(r"[^\s.!?:;] A\b(?! \w)", text)  # "A" is no article
    told, after = list[str](), ""
    for w in reversed(raw):
        told.append(f"{w} {after}" if w in _ORDERS else w)
        after = after if w in _SMALL else _stem(w)
    told.reverse()
    counts = _COUNT | {"one"} if _COUNT & {*raw} else _COUNT  # else it can be a pronoun
    exact = [w for w in told if (w != "a" or letter) and (w in counts or _EXACT.search(w))]
    if len(order := {*exact, *(w for w in told if w in _SIDE)}) > 1:  # "x > y", "A beats B"
        exact = ["not" if w in _NOT else w for w in told if w in order or w in _NOT]
    kinds = [
        f"opposite {_SIDE[w][0]}" if w in _SIDE else "#" if w in _COUNT or _VALUE.match(w) else ""
        for w in words
    ]
    return _Said(
        frozenset(map(_stem, words)),
        tuple(exact) if len(order) > 1 else frozenset(exact),
        negated,
        frozenset(kind or _stem(w) for kind, w in zip(kinds, words, strict=True)),
        tuple(w for kind, w in zip(kinds, words, strict=True) if kind),
    )


def _claim(text: str) -> tuple[Hashable, str] | None:
    """Return (subject, what is said of it) of a sentence like "H is a hole.", or None."""
    found = _CLAIM.fullmatch(" ".join(wording(text)))
    return (_said(found[1])[:3], found[2]) if found else None


def _against(a: _Said, b: _Said) -> bool:
    return a.frame == b.frame and (a.values, a.negated) != (b.values, b.negated)


def _stem(word: str) -> str:
    if not word.isalpha() or len(word) < 4:
        return word
    end = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= 3), "")
    word = word[: len(word) - len(end)]
    return word[:-1] if word[-1] == "e" or word[-2:-1] == word[-1:] else word


def _by_key(pairs: Iterable[tuple[Hashable, int]]) -> list[list[int]]:
    groups = dict[Hashable, list[int]]()
    for key, place in pairs:
        groups.setdefault(key, []).append(place)
    return list(groups.values())
