"""A real language model learns a database from what SQLite and a colleague say to its queries.

    python examples/sql/learn.py --model MODEL --seed 0  # resumes where it stopped
    python examples/sql/learn.py --table                 # recorded results, in Markdown

Arms, all on held-out questions:

    base          the untrained model
    hand          all facts, written by hand, in the prompt
    own           in each round, the last 40 items that the model wrote, in the prompt
    curated       in each round, the first item for each fact, as a person would keep them
    consolidated  in each round, the curated items in the weights, nothing in the prompt

Base and consolidated are also measured on the other database. Writes a run folder per seed to
runs/, and one JSON line per arm with its command to data/results/sql.jsonl. Needs `oelkit`
installed, or PYTHONPATH=."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oelkit import Curation, Run, Settings, envs, evaluate
from oelkit.envs.sql_databases import shop
from oelkit.records import Trajectory, append_jsonl, read_jsonl, write_text
from oelkit.steps.evaluation import EvalReport
from oelkit.text import MARKER, experience_text, wording

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "data"
OTHER = "oelkit/SqlOther-v0"
SETTINGS = Settings(
    dtype="bfloat16",
    env="oelkit/Sql-v0",
    prompt_set=str(HERE / "sql.toml"),
    rounds=2,
    extract_games=48,
    state_games=64,
    states_with_experience=True,
    num_draws=1,
    steps=16,
    batch_size=8,
    lr=2e-4,
    eval_maps=48,
    gate="off",
    run_ablations=False,
)

HOW = ("steps", "loss", "off_policy_steps")  # settings of the training that a row records


def as_chat(game: Trajectory) -> dict:
    """Return a game as chat messages: the question, then queries and feedback by turns."""
    messages = [{"role": "user", "content": game.turns[0].observation}]
    for turn in game.turns:
        messages.append({"role": "assistant", "content": turn.reply or "(nothing)"})
        messages.append({"role": "user", "content": turn.feedback})
    return {"id": game.id, "model": "agent", "messages": messages}


def says(text: str) -> list[str]:
    """Return the facts that an item states: it contains at least three quarters of their words."""
    words = set(wording(text))
    facts = {name: set(wording(fact.says)) for name, fact in shop().facts.items()}
    return [name for name, its in facts.items() if len(words & its) >= 0.75 * len(its)]


def by_a_person(run: Run, k: int) -> tuple[int, int]:
    """Accept the first item for each fact and reject the rest. Return (accepted, items)."""
    folder, known = run.folder / f"round_{k}", set()
    curation = Curation.open(folder / "items.jsonl", folder / "curation.jsonl", author="study")
    for before in range(1, k):
        known |= {name for text in run.experiences(before) for name in says(text)}
    for item in curation.items:
        new = set(says(item.text)) - known
        known |= new
        if item.status == "pending":
            (curation.accept if new else curation.reject)(item.id)
    return len(curation.kept()), len(curation.items)


def learn(settings: Settings, out: Path, chats: Path | None) -> None:
    """Run all rounds with a seed, except arms with a recorded line."""
    name, seed = Path(settings.model).name, settings.seed
    how = {key: getattr(settings, key) for key in HOW}
    changed = {
        key: value
        for key in (*HOW, "rounds", "dtype")
        if (value := getattr(settings, key)) != getattr(SETTINGS, key)
    }
    named = "".join(f"_{key}_{value}" for key, value in changed.items() if key in HOW)
    run = Run(f"runs/sql_{name}_{seed}{named}", settings)
    command = f"python examples/sql/learn.py --model {name} --seed {seed}"
    command += "".join(f" --{key.replace('_', '-')} {value}" for key, value in changed.items())

    def arm(what: str, k: int, text: str = "", env: str = run.eval_env, **weights) -> None:
        mine = {"arm": what, "model": name, "seed": seed, "round": k, "env": env}
        mine |= how if what == "consolidated" or k > 1 else {}
        if any(row.items() >= mine.items() for row in (read_jsonl(out) if out.exists() else [])):
            return
        began, sampling = time.time(), run.settings.eval_sampling
        options = {"prompt_set": run.prompts, "sampling_seeds": [seed]} | weights
        report = evaluate(run.policy, env, run.eval_seeds, text, sampling, **options)
        row = mine | report.summary() | {"passes": report.passes_string}
        row |= {
            "kinds": kinds(report, env),
            "experience": text,
            "seconds": round(time.time() - began),
            "command": command,
        }
        append_jsonl(out, row)
        print(what, k, env, f"{row['pass_rate']:.0%}", row["kinds"], row["seconds"], flush=True)

    for k in range(1, settings.rounds + 1):
        games, items = run.rollout(k), run.extract(k)
        if k == 1 and chats:
            lines = [json.dumps(as_chat(game), ensure_ascii=False) + "\n" for game in games]
            write_text(chats, "".join(lines))
        print(k, *by_a_person(run, k), "items accepted, written", flush=True)
        run.load(k, trained=False)
        if k == 1:
            arm("base", 0, adapter=None)
            facts = "\n".join(f"{MARKER} {fact.says}" for fact in shop().facts.values())
            arm("hand", 0, facts, adapter=None)
            arm("base", 0, env=OTHER, adapter=None)
        arm("own", k, experience_text(items[-40:]))
        arm("curated", k, "\n".join(run.curate(k)))
        run.distill(k)
        run.load(k)
        arm("consolidated", k)
        arm("consolidated", k, env=OTHER)


def kinds(report: EvalReport, env: str) -> dict[str, list[int]]:
    """Count questions (won, asked) by why they were held out: a form, a pair, or neither."""
    world, found = envs.make(env), dict[str, list[int]]()
    for game, won in zip(report.trajectories, report.passes_string, strict=True):
        world.reset(seed=game.seed)
        count = found.setdefault(world.unwrapped.question.unseen or "neither", [0, 0])
        count[:] = count[0] + int(won), count[1] + 1
    return dict(sorted(found.items()))


def table(rows: Sequence[dict]) -> str:
    """Return a Markdown table with a line per model, seed, round and arm."""
    lines = [
        "| model | seed | round | arm | database | won | one condition | two |",
        "|---" * 8 + "|",
    ]
    for row in sorted(rows, key=lambda row: (row["model"], row["seed"], row["round"])):
        rate = "{:.0f} % [{:.0f}, {:.0f}]".format(
            *(100 * row[key] for key in ("pass_rate", "low", "high"))
        )
        by = [row["kinds"].get(kind) for kind in ("form", "pair")]
        trained = f", {row['steps']} steps of {row['loss']}" if "steps" in row else ""
        if row.get("off_policy_steps"):
            trained += f", the first {row['off_policy_steps']} of forward_kl"
        cells = [row["model"], row["seed"], row["round"], row["arm"] + trained]
        cells += ["other" if row["env"] == OTHER else "shop", rate]
        cells += ["{} of {}".format(*count) if count else "" for count in by]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="local folder or hub id")
    parser.add_argument("--rounds", type=int, default=SETTINGS.rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default=SETTINGS.dtype)
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--loss", default=SETTINGS.loss)
    parser.add_argument("--off-policy-steps", type=int, default=SETTINGS.off_policy_steps)
    parser.add_argument("--out", type=Path, default=DATA / "results/sql.jsonl")
    parser.add_argument("--chats", type=Path, metavar="FILE", help="save round 1's games as chats")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        return print(table(read_jsonl(args.out)))
    if not args.model:
        parser.error("--model is required: the model to train")
    changes = {name: getattr(args, name) for name in ("model", "rounds", "seed", "dtype", *HOW)}
    return learn(replace(SETTINGS, **changes), args.out, args.chats)


if __name__ == "__main__":
    main()
