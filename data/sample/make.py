"""Make the sample records from scratch with the lakes model, in a few seconds:
python data/sample/make.py
"""

from pathlib import Path

from oelkit import Curation, extract, leave_one_out, load_policy, rollout
from oelkit.records import Outcome, write_jsonl
from oelkit.runs.gate import VALIDATION

HERE = Path(__file__).parent
GOAL, HOLE = "G is the goal.", "H is a hole."


def record(items: list, games: list, path: Path) -> Curation:
    """Record the session of a person who keeps each true statement once per draw.

    They merge duplicates, edit or reject the rest, and undo one slip.
    """
    path.unlink(missing_ok=True)
    curation = Curation(items, path, author="sample")
    won = {game.id for game in games if game.outcome is Outcome.SUCCESS}
    for draw in sorted({item.draw for item in items}):
        mine = [item for item in items if item.draw == draw]
        for text in (HOLE, GOAL):
            same = [item.id for item in mine if item.text == text]
            curation.accept(
                curation.merge(same, text, reason="the same thing, seen in several games")
                if same[1:]
                else same
            )
        edited = False
        for item in mine:
            if item.text in (HOLE, GOAL):
                continue
            if (
                item.text.endswith("is the goal.")
                and item.evidence[0].trajectory_id in won
                and not edited
            ):
                curation.edit(item.id, GOAL, reason="the game was won on a G")
                curation.accept(item.id)
                edited = True
            else:
                curation.reject(
                    item.id,
                    reason="G wins" if item.text == "G is a hole." else "not what the game shows",
                )
    curation.reject(curation.kept()[0].id, reason="a slip of the mouse")
    curation.undo()
    return curation


if __name__ == "__main__":
    policy = load_policy("data/micro_lakes")
    # exactly the games that a run with seed 0 plays in round 1
    games = rollout(
        policy, "oelkit/FrozenLake4x4-v0", range(10_000, 10_064), temperature=1.0, seed=1, round=1
    )
    write_jsonl(HERE / "trajectories.jsonl", games)
    # A higher temperature than in a run, and earlier items are not shown, so that there are
    # duplicates and mistakes to curate.
    found = extract(policy, games, num_draws=2, show_previous=False, temperature=1.5, round=1)
    write_jsonl(HERE / "items.jsonl", found)
    print(record(found, games, HERE / "curation.jsonl"))
    (HERE / "worth.jsonl").unlink(missing_ok=True)
    texts, maps = (
        list(dict.fromkeys(item.text for item in found)),
        range(VALIDATION, VALIDATION + 128),
    )
    leave_one_out(policy, "oelkit/FrozenLake4x4-v0", maps, texts, path=HERE / "worth.jsonl")
