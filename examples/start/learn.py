"""Learn the world beside this file: python learn.py [MODEL] [STEPS]

"micro", the model that ships with oelkit, only shows that everything runs: it was made for other
worlds and cannot learn this one. Qwen/Qwen3-1.7B, from the hub, can read and write."""

import sys
from pathlib import Path

import world  # registers mine/Doors-v0  # noqa: F401

from oelkit import Curation, auto_curate, distill, evaluate, extract, load_policy, rollout, states

model = sys.argv[1] if len(sys.argv) > 1 else "micro"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
how = {"prompt_set": Path(__file__).with_name("prompts.toml"), "progress": True}
env, unseen = "mine/Doors-v0", range(900_000_000, 900_000_032)

policy = load_policy(model)
base = evaluate(policy, env, unseen, **how).summary()
games = rollout(policy, env, range(24), **how)
items = extract(policy, games, **how)
for item in items:
    print("The model wrote:", item.text)
experience = auto_curate(Curation(items)).experience()  # or write it yourself: one item per line
if not experience:
    experience = "- EXPERIENCE ITEM: With red light [up] opens the door."
    print("The model wrote no items. Training on one written by a person:", experience)
told = evaluate(policy, env, unseen, experience, **how).summary()
distill(policy, states(games), [experience], steps=steps, lr=1e-4, **how)
after = evaluate(policy, env, unseen, **how).summary()
policy.save_adapter(Path(__file__).with_name("my_adapter"))
for name, row in (("before", base), ("in context", told), ("after", after)):
    print(f"{name:<11} {row['pass_rate']:4.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']}")
if model == "micro":
    print("Everything runs. micro was made for other worlds and cannot learn this one.")
    print(f"Now try a model that can read and write: python {sys.argv[0]} Qwen/Qwen3-1.7B")
