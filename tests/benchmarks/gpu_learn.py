"""Real models learn on a card: `python tests/benchmarks/gpu_learn.py --out FILE.jsonl` with
`--model FOLDER` or `--gguf FILE`.

The waiter world with several seeds, the dinner online and offline, then the waiter with one thing
otherwise: so many runs at once, each in a process of its own. A line for each round as soon as it
is there; the rows of the runs themselves and their folders are in a folder named like FILE."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gpu import ROOT, Call, environ

WAITER = {
    "batch_size": 64,
    "state_games": 256,
    "steps": 40,
    "lr": 3e-4,
    "warmup": 5,
    "batch_tokens": 4096,  # each run would otherwise plan with all that is free
}
OTHERWISE = [  # what follows from the budget and from the loss: one at a time, for one round
    {"temperature": 0.7},
    {"state_games": 32},
    {"loss": "forward_kl"},
    {"steps": 10},
    {"rank": 4},
    {"lr": 1e-4},
    {"batch_size": 8},
    {"rank": 64},
    {"steps": 80},
]

# of the rehearsal
SMALL = {"batch_size": 2, "state_games": 2, "steps": 1, "eval_maps": 2, "max_new_tokens": 8}


@dataclass
class Job:
    """A run that writes a line for each of its rounds to `out`; one `like` another waits for it."""

    name: str
    command: list[str]
    out: Path
    like: Job | None = None
    seen: int = 0
    work: subprocess.Popen | None = None

    @property
    def folder(self) -> Path:
        """Where it works: its run folder is the only one in runs/ there."""
        return self.out.with_suffix("")

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        like = ["--like", *map(str, (self.like.folder / "runs").iterdir())] if self.like else []
        with self.out.with_suffix(".log").open("w") as log:
            self.work = subprocess.Popen(
                [sys.executable, *self.command, *like],
                env=environ() | {"OMP_NUM_THREADS": "1"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def new(self) -> list[dict]:
        """The lines that came since the last time."""
        found = self.out.read_text("utf-8").splitlines() if self.out.exists() else []
        new, self.seen = found[self.seen :], len(found)
        return [json.loads(text) for text in new]


def _jobs(call: Call, model: str, rounds: int, seeds: int) -> list[Job]:
    """The waiter world with each seed, the dinner online and offline, then what is otherwise."""
    folder = call.out.with_suffix("")
    few = SMALL if call.small else {}
    jobs = []

    def job(script: str, seed: int, about: str, *options: str, like: Job | None = None) -> Job:
        out = folder / f"{len(jobs)}.jsonl"
        command = [str(ROOT / f"examples/{script}/learn.py"), "--model", model, *options]
        command += ["--seed", str(seed), "--out", str(out)]
        jobs.append(Job(f"{script}, {about}, seed {seed}", command, out, like))
        return jobs[-1]

    def chosen(changes: dict) -> list[str]:
        return [f"{k}={v if k == 'loss' else json.dumps(v)}" for k, v in changes.items()]

    base = ["--set", *chosen(WAITER | few)]
    first = [job("waiter", seed, "as set", *base, f"--rounds={rounds}") for seed in range(seeds)]
    for arm in () if call.small else ("offline", "online"):
        for seed in range(min(seeds, 2)):
            job("dinner", seed, arm, "--arm", arm)
    for change in OTHERWISE[: 1 if call.small else None]:
        for seed, like in enumerate(first):
            (about,) = chosen(change)
            job("waiter", seed, about, *base, about, "--rounds=1", like=like)
    return jobs


def learn(call: Call, model: str, rounds: int, seeds: int, at_once: int) -> None:
    """Real models learn, so many runs at once, in the order in which they matter."""
    todo, running = _jobs(call, model, rounds, seeds), []
    while (todo or running) and call.left > 0:
        ready = [job for job in todo if not job.like or job.like.out.exists()]
        for job in ready[: at_once - len(running)]:
            todo.remove(job)
            running.append(job)
            job.start()
        for job in list(running):
            over = job.work.poll() is not None
            for row in job.new():
                rates = {k: v["pass_rate"] for k, v in row.items() if "pass_rate" in _dict(v)}
                about = {k: row[k] for k in ("round", "items", "true", "seconds")}
                call.line(figure="learn", run=job.name, **about, **rates)
            if over:
                running.remove(job)
                if job.work.returncode:
                    said = job.out.with_suffix(".log").read_text()[-500:]
                    call.line(figure="learn", run=job.name, error=said)
        time.sleep(1)
    for job in running:
        job.work.terminate()
        call.line(figure="learn", run=job.name, left_out="cut off")
    for job in todo:
        call.line(figure="learn", run=job.name, left_out="no time")


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def unpack(gguf: Path) -> str:
    """A folder beside a GGUF file with its model in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = gguf.with_suffix("")
    if not (folder / "config.json").exists():
        name = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **name)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, quantization_config=config, **name
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # its weights are dense now
        tokenizer.save_pretrained(folder), model.save_pretrained(folder)
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--model", help="a model folder")
    parser.add_argument("--gguf", type=Path, help="or a GGUF file")
    parser.add_argument("--seconds", type=float, default=580, help="after which all is cut off")
    parser.add_argument("--small", action="store_true", help="the rehearsal, on a CPU too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=14, help="runs at the same time")
    args = parser.parse_args()
    call = Call(args.out.resolve(), args.seconds, args.small)
    model = unpack(args.gguf.resolve()) if args.gguf else args.model
    if not model:
        parser.error("say which: --model FOLDER or --gguf FILE")
    if Path(model).exists():
        model = str(Path(model).resolve())  # each run works in a folder of its own
    learn(call, model, args.rounds, args.seeds, args.at_once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
