"""Measure how real models learn on a GPU.

    python tests/benchmarks/gpu_learn.py --out FILE.jsonl --model FOLDER  # or --gguf FILE

Runs the waiter world with several seeds, the dinner online and offline, then the waiter with one
setting changed at a time. Several runs work at once, each in its own process. Writes a line after
each round. The runs' own rows and folders are in a folder with FILE's name without suffix."""

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
    "batch_tokens": 4096,  # otherwise each run would plan with all free memory
}
OTHERWISE = [  # changes of budget or loss, one at a time, for one round
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

# settings of the rehearsal
SMALL = {"batch_size": 2, "state_games": 2, "steps": 1, "eval_maps": 2, "max_new_tokens": 8}


@dataclass
class Job:
    """A run that writes a line per round to `out`. It waits for the run in `like`, if any."""

    name: str
    command: list[str]
    out: Path
    like: Job | None = None
    seen: int = 0
    work: subprocess.Popen | None = None

    @property
    def folder(self) -> Path:
        """Its working directory, where runs/ holds only its own run folder."""
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
        """Return the lines written since the last call."""
        found = self.out.read_text("utf-8").splitlines() if self.out.exists() else []
        new, self.seen = found[self.seen :], len(found)
        return [json.loads(text) for text in new]


def _jobs(call: Call, model: str, rounds: int, seeds: int) -> list[Job]:
    """Return all jobs: the waiter with each seed, the dinner, then the waiter with changes."""
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
    """Run all jobs, `at_once` at the same time, the most important first."""
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
                for waiting in [other for other in todo if other.like is job]:
                    if not job.out.exists():  # there is nothing to begin from
                        todo.remove(waiting)
                        call.line(figure="learn", run=waiting.name, left_out=f"no {job.name}")
        time.sleep(1)
    for job in running:
        job.work.terminate()
        call.line(figure="learn", run=job.name, left_out="cut off")
    for job in todo:
        call.line(figure="learn", run=job.name, left_out="no time")


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def unpack(gguf: Path) -> str:
    """Save the model of a GGUF file in bfloat16 in a folder beside it. Return the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = gguf.with_suffix("")
    if not (folder / "config.json").exists():
        name = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **name)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            trust_remote_code=False,
            dtype=torch.bfloat16,
            quantization_config=config,
            **name,
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are dense now
        tokenizer.save_pretrained(folder), model.save_pretrained(folder)
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    parser.add_argument("--model", help="model folder")
    parser.add_argument("--gguf", type=Path, help="or a GGUF file")
    parser.add_argument(
        "--seconds", type=float, default=580, help="stop everything after this time"
    )
    parser.add_argument("--small", action="store_true", help="rehearsal, also on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=14, help="number of runs at the same time")
    args = parser.parse_args()
    call = Call(args.out.resolve(), args.seconds, args.small)
    model = unpack(args.gguf.resolve()) if args.gguf else args.model
    if not model:
        parser.error("one of --model FOLDER or --gguf FILE is required")
    if Path(model).exists():
        model = str(Path(model).resolve())  # each run works in its own directory
    learn(call, model, args.rounds, args.seeds, args.at_once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
