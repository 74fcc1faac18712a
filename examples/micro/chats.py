"""Measure how many conversations of an agent are needed, on the embedded model.

    python examples/micro/chats.py

Trains on states of 3, 30 and 148 conversations of the shipped log, and of 300 and 3,000 further
boards of its world. Steps and experience (the recorded session) are always the same. Appends one
JSON line per number to data/results/chats.jsonl: KL and equal answers on 48 conversations set
aside, and the pass rate on held-out layouts. Needs `oelkit` installed, or PYTHONPATH=."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from oelkit import Settings, agreement, distill, envs, evaluate, load_policy, read_chats, states
from oelkit.config import DistillConfig, part
from oelkit.curation import replay
from oelkit.prompts import act_messages, load_prompt_set
from oelkit.records import ExperienceItem, State, append_jsonl, read_jsonl
from oelkit.text import experience_text

ROOT = Path(__file__).parents[2]
ASIDE, STEPS, FIRST = 48, 24, 20_000
WORLD = "oelkit/FrozenLake4x4-v0"


def further(number: int) -> list[State]:
    """Return the first states of boards that are not in the log."""
    prompts, found = load_prompt_set("brief"), []
    env = envs.make(WORLD, board=prompts.board)
    for seed in range(FIRST, FIRST + number):
        board, _ = env.reset(seed=seed)
        found.append(State(f"m{seed}", "", 0, act_messages(prompts, board)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chats", default="0,3,30,148,300,3000", help="numbers of conversations")
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/chats.jsonl")
    args = parser.parse_args()
    log = states(read_chats(ROOT / "data/logs/lake_chats.jsonl"))
    aside, train = log[:ASIDE], log[ASIDE:]
    items = read_jsonl(ROOT / "data/sample/items.jsonl", ExperienceItem)
    kept = replay(items, ROOT / "data/sample/curation.jsonl").kept()
    text = experience_text({item.text: item for item in kept}.values())
    config = part(DistillConfig, Settings.of("tiny"))
    for number in map(int, args.chats.split(",")):
        began, policy = time.time(), load_policy("micro")
        some = train[:number] if number <= len(train) else further(number)
        if number:
            distill(policy, some, text, config, steps=STEPS, seed=args.seed)
        row = {"chats": number, "seed": args.seed, "steps": STEPS if number else 0}
        row |= {"agreement": agreement(policy, aside, text, seed=args.seed)}
        maps = range(900_000_000, 900_000_064)
        row |= {"pass_rate": evaluate(policy, "oelkit/FrozenLake4x4Unseen-v0", maps).summary()}
        row |= {"command": f"python examples/micro/chats.py --seed {args.seed}"}
        append_jsonl(args.out, row | {"seconds": round(time.time() - began)})
        print(number, row["agreement"], row["pass_rate"]["pass_rate"], flush=True)


if __name__ == "__main__":
    main()
