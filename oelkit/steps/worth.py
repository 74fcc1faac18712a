"""Which items help: how much the pass rate drops when one of them is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import given
from ..model.policy import Policy
from ..progress import Bar
from ..records import read_jsonl, write_jsonl
from ..statements import worth_of
from ..stats import paired_bootstrap
from ..text import MARKER
from .checkpoint import identity
from .evaluation import evaluate

Worth = tuple[float, float, float]


def leave_one_out(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    items: Sequence[str],
    *,
    path: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Worth]:
    """Return the pass rate with all items in context minus that without one, for each item.

    Args:
        policy: plays with `adapter` (default "student").
        env_id: a registered world.
        seeds: its maps, the same with and without the item. Do not use the maps of the
            evaluation, which would then have chosen the items.
        items: their texts; duplicates count once.
        path: a .jsonl file, written after each item, from which a later call resumes.
        progress: show a progress bar.
        **options: options of `evaluate`.

    Returns:
        For each text the difference with its 95% interval, paired over the maps; above 0, it helps.

    Raises:
        ValueError: no items or no maps, a `path` of another kind, or an error from `evaluate`.
    """
    given.a_policy(policy, adapters=True)
    path = given.path("path", path) if path else None
    texts = list(dict.fromkeys(given.texts("items", items)))
    seeds = given.seeds("seeds", seeds)
    if not any(texts) or not seeds:
        raise ValueError("nothing to leave out: there are no items, or no maps")
    about = {"env": env_id, "model": policy.name, "maps": len(seeds)}
    asked = repr((sorted(texts), seeds, sorted(options.items())))
    about["key"] = identity(policy, [asked])[:16]
    rows = read_jsonl(path) if path and path.exists() else []
    if not all("worth" in row for row in rows):
        raise ValueError(f"{path}: it holds something else, which would be lost; name another file")
    rows = [row for row in rows if row.items() >= about.items()]
    found = worth_of(rows)

    def passes(read: Sequence[str]) -> Any:
        experience = "\n".join(f"{MARKER} {text}" for text in read)
        return evaluate(policy, env_id, seeds, experience, **options)

    left = [text for text in texts if text not in found]
    with_all = passes(texts) if left else None
    with Bar("leave one out", len(texts), "item", progress) as bar:
        bar.update(len(texts) - len(left))
        for text in left:
            without = passes([other for other in texts if other != text])
            found[text] = paired_bootstrap(without, with_all)
            rows.append({"text": text, **dict(zip(("worth", "low", "high"), found[text])), **about})
            if path:
                write_jsonl(path, rows)
            bar.update(1)
    return {text: found[text] for text in texts}
