"""Make the sample records from scratch with the embedded model: python data/sample/make.py (some seconds)."""

from pathlib import Path

from oelkit import Curation, extract, load_policy, rollout
from oelkit.records import write_jsonl

HERE = Path(__file__).parent
GOAL, HOLE = "G is the goal.", "H is a hole."


def record(items: list, path: Path) -> Curation:
    """A person's session, operation by operation: what is true of the games stays, and each is said once a draw."""
    path.unlink(missing_ok=True)
    curation = Curation(items, path, author="sample")
    for draw in sorted({item.draw for item in items}):
        mine = [item for item in items if item.draw == draw]
        holes = [item.id for item in mine if item.text == HOLE]
        if len(holes) > 1:
            holes = [curation.merge(holes, HOLE, reason="the same thing, seen in several games")]
        curation.accept(holes)
        for item in mine:
            if item.text.endswith("is the goal.") and item.text != GOAL:
                curation.edit(item.id, GOAL, reason="the game was won on a G")
            if item.text.endswith("is the goal."):
                curation.accept(item.id)
            elif item.text == "G is a hole.":
                curation.reject(item.id, reason="G wins")
            elif item.text != HOLE:
                curation.reject(item.id, reason="no such letter on that board")
    curation.reject(curation.kept()[0].id, reason="a slip of the mouse")
    curation.undo()
    return curation


if __name__ == "__main__":
    policy = load_policy("micro")
    # the very games that a run with seed 0 plays in round 1
    games = rollout(policy, "oelkit/FrozenLake4x4-v0", range(10_000, 10_024), temperature=1.0, seed=1, round=1)
    write_jsonl(HERE / "trajectories.jsonl", games)
    # hotter than a run, and without showing the items so far: so there are doubles and mistakes to curate
    found = extract(policy, games, draws=2, show_previous=False, temperature=1.0, round=1)
    write_jsonl(HERE / "items.jsonl", found)
    print(record(found, HERE / "curation.jsonl"))
