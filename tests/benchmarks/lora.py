"""Compare LoRA ranks and learning rates: `python tests/benchmarks/lora.py --model FOLDER`.

Each trial distills the same notes into a new adapter, then measures how far the student is from the
teacher on states that were not trained on: KL(student || teacher) in nats per token. It is measured
on replies of the untrained student, which are the same for all trials, and on the trained student's
own. Options that are not listed keep the defaults of `distill`. Writes one JSON line per trial. The
result says which settings close the gap in few steps, not which play best."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path

# Must be set before torch is loaded: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from oelkit import distill, envs, load_policy, rollout, states
from oelkit.config import DistillConfig
from oelkit.model import losses as kl
from oelkit.model.policy import Policy
from oelkit.model.sampling import generate
from oelkit.model.scoring import reply_hidden
from oelkit.prompts import load_prompt_set, with_experience
from oelkit.records import State

ENV = "oelkit/FrozenLake4x4-v0"
NOTES = (
    "- EXPERIENCE ITEM: H is a hole, never step on it.\n"
    "- EXPERIENCE ITEM: G is the goal, walk there."
)


@torch.no_grad()
def gap(
    policy: Policy,
    found: list[State],
    replies: list[list[int]],
    temperature: float,
    notes: str = NOTES,
    prompt_set: str | None = None,
) -> float:
    """Return KL(student without notes || teacher with notes), averaged over tokens."""
    prompts, hidden = load_prompt_set(prompt_set or policy.default_prompt_set), []
    for adapter, text in (("teacher", notes), ("student", "")):
        asked = [policy.encode(with_experience(prompts, state.prompt, text)) for state in found]
        with policy.adapter(adapter):
            hidden.append(reply_hidden(policy, asked, replies))
    return kl.reverse_kl(hidden[1], hidden[0], policy.head, temperature=temperature).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = DistillConfig()
    parser.add_argument("--model", default="micro", help="micro, a model folder or a hub id")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--env", default=ENV, help="a world, or MODULE:ID for your own")
    parser.add_argument(
        "--held-env", help="world to measure the gap in; default: the same, other maps"
    )
    parser.add_argument("--prompt-set", help="default: the model's own")
    parser.add_argument(
        "--notes", type=Path, help="file with the experience; default: notes on lakes"
    )
    parser.add_argument("--ranks", default="16")
    parser.add_argument("--lrs", default=str(default.lr))
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch", type=int, default=default.batch_size, help="states per step")
    parser.add_argument("--warmup", type=int, default=default.warmup)
    parser.add_argument("--retention", type=float, default=default.retention)
    parser.add_argument("--temperature", type=float, default=default.temperature)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of a reply")
    parser.add_argument("--held", type=int, default=32, help="states to measure the gap on")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/lora.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    policy = load_policy(args.model, dtype=args.dtype)
    options = {"temperature": args.temperature, "max_new_tokens": args.tokens}
    notes = args.notes.read_text("utf-8").strip() if args.notes else NOTES
    turns = min(2, envs.make(args.env).max_turns)  # states per game, roughly
    train, held = (
        states(rollout(policy, env, seeds, prompt_set=args.prompt_set, **options))[:n]
        for env, first, n in ((args.env, 0, 32), (args.held_env or args.env, 1000, args.held))
        for seeds in [range(first, first + n // turns)]
    )
    asked = [policy.encode(s.prompt) for s in held]
    replies = [r.ids for r in generate(policy, asked, seed=1, **options)]
    measured = args.temperature, notes, args.prompt_set
    lists = ((int, args.ranks), (float, args.lrs), (int, args.seeds))
    chosen = ([kind(x) for x in text.split(",")] for kind, text in lists)
    for rank, lr, seed in itertools.product(*chosen):
        began = time.perf_counter()
        lora = {"r": rank, "lora_alpha": 2 * rank}
        policy = load_policy(args.model, dtype=args.dtype, lora=lora)
        before = gap(policy, held, replies, *measured)
        history = distill(
            policy,
            train,
            [notes],
            prompt_set=args.prompt_set,
            steps=args.steps,
            batch_size=args.batch,
            lr=lr,
            warmup=args.warmup,
            retention=args.retention,
            seed=seed,
            **options,
        )
        own = [r.ids for r in generate(policy, asked, seed=2, **options)]
        line = {
            "model": Path(args.model).name,
            "env": args.env,
            "dtype": str(policy.head.weight.dtype).removeprefix("torch."),
            "rank": rank,
            "lr": lr,
            "warmup": args.warmup,
            "seed": seed,
            "steps": args.steps,
            "batch_size": args.batch,
            "retention": args.retention,
            "temperature": args.temperature,
            "reply_tokens": args.tokens,
            "n": len(held),
            "kl_before": before,
            "kl_after": gap(policy, held, replies, *measured),
            "kl_after_own": gap(policy, held, own, *measured),
            "loss": [round(row["loss"], 4) for row in history],
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps(line), flush=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
