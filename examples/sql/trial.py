"""The SQL world with a real model: what its questions are worth without and with experience in the
prompt, and its games as a chat log.

    python examples/sql/trial.py --model MODEL --questions 24 --games 48

Arms on held-out questions: base; own (items that the model extracts from its training games);
curated (those of them that say a fact, each fact once, as a person would keep them); consolidated
(the curated items distilled on the states of the games, nothing in the prompt); hand (all facts,
written by hand). Base and consolidated also on the other database. One JSON line per arm with its
command in data/results/sql.jsonl; the training games as OpenAI chat messages in
data/logs/sql_chats.jsonl. To be run where `oelkit` is installed, or with PYTHONPATH=."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path

from oelkit import distill, evaluate, extract, load_policy, rollout, states
from oelkit.envs.sql_databases import shop
from oelkit.records import append_jsonl
from oelkit.text import MARKER, experience_text, wording

HELD_OUT = 900_000_000
ROOT = Path(__file__).parents[2]


def as_chat(game) -> dict:
    """A game as chat messages: the question, then query and feedback in turns."""
    messages = [{"role": "user", "content": game.turns[0].observation}]
    for turn in game.turns:
        messages.append({"role": "assistant", "content": turn.reply or "(nothing)"})
        messages.append({"role": "user", "content": turn.feedback})
    return {"id": game.id, "model": "agent", "messages": messages}


def says_a_fact(items) -> list:
    """Of each fact the first item that has three quarters of its words, names included."""
    kept = []
    for fact in shop().facts.values():
        words = set(wording(fact.says))
        alike = [i for i in items if len(words & set(wording(i.text))) >= 0.75 * len(words)]
        kept += alike[:1]
    return list(dict.fromkeys(kept))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="local folder or hub id")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--questions", type=int, default=24, help="held-out questions per arm")
    parser.add_argument("--games", type=int, default=48, help="training games")
    parser.add_argument("--steps", type=int, default=24, help="of the training, four states each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "data/results/sql.jsonl")
    parser.add_argument("--chats", type=Path, default=ROOT / "data/logs/sql_chats.jsonl")
    args = parser.parse_args()
    policy = load_policy(args.model, dtype=args.dtype)
    how = {"prompt_set": "rules", "max_new_tokens": 80, "seed": args.seed}
    given = {"model": Path(args.model).name, "dtype": args.dtype, "questions": args.questions}
    given |= {"games": args.games, "steps": args.steps, "seed": args.seed}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "examples/sql/trial.py", *words])

    def arm(name: str, text: str, env: str = "oelkit/SqlUnseen-v0", **weights) -> None:
        began = time.time()
        options = {k: v for k, v in how.items() if k != "seed"} | weights
        seeds = range(HELD_OUT, HELD_OUT + args.questions)
        report = evaluate(policy, env, seeds, text, sampling_seeds=[args.seed], **options)
        row = {"arm": name, "env": env, "model": Path(args.model).name, "seed": args.seed}
        row |= report.summary() | {"passes": report.passes_string, "experience": text}
        row |= {"command": command, "seconds": round(time.time() - began)}
        append_jsonl(args.out, row)
        print(name, row["pass_rate"], f"{row['seconds']} s", flush=True)

    games = rollout(policy, "oelkit/Sql-v0", range(args.games), **how)
    args.chats.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(as_chat(game), ensure_ascii=False) + "\n" for game in games]
    args.chats.write_text("".join(lines), encoding="utf-8")
    items = extract(policy, games[: args.games // 2], show_previous=False, **how)
    kept = says_a_fact(items)
    print(len(items), "items,", len(kept), "kept", flush=True)
    arm("base", "")
    arm("own", experience_text(items[-40:]))
    if kept:
        text = experience_text(kept)
        arm("curated", text)
        options = {"lr": 1e-4, "warmup": 5, "batch_size": 4, "steps": args.steps}
        rows = distill(policy, states(games), text, **options, **how)
        print("loss", [round(row["loss"], 3) for row in rows], flush=True)
        arm("consolidated", "")
        arm("consolidated, unseen database", "", "oelkit/SqlOther-v0")
    arm("base, unseen database", "", "oelkit/SqlOther-v0", adapter=None)
    facts = "\n".join(f"{MARKER} {fact.says}" for fact in shop().facts.values())
    arm("hand", facts)


if __name__ == "__main__":
    main()
