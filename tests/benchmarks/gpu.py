"""Measurements that need a GPU, a few minutes per call.

    python tests/benchmarks/gpu.py WHAT --out FILE.jsonl

WHAT is `correct`, `figures` or `loops`. gpu_learn.py measures how models learn.

Each measurement is written at once as its own line, so that an interrupted call loses nothing.
Whatever no longer fits into `--seconds` is recorded as left out. `--small` is a rehearsal, which
also runs on a CPU. Needs the bench extra. `figures` and `loops` make
random models of published sizes, as time and memory do not depend on the values of weights;
`models` makes them beforehand, in `--models FOLDER`."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Must be set before torch is loaded: waiting threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CAPS = {"4B": 15, "8B": 24}  # GiB that the loop may use


class Call:
    """Writes the lines of one call and tracks the time left."""

    def __init__(self, out: Path, seconds: float, small: bool) -> None:
        self.out, self.ends, self.small = out, time.monotonic() + seconds, small
        self.ready: subprocess.Popen | None = None  # a process of arms.py with its imports done
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.about = {"card": torch.cuda.get_device_name() if self.device == "cuda" else "CPU"}
        if not small and self.device == "cpu":
            raise SystemExit("no CUDA card found; use --small for a rehearsal on the CPU")
        out.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def line(self, **found) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | self.about) + "\n")
        print(json.dumps(found)[:400], flush=True)

    def arms(self, *specs: dict) -> None:
        """Measure all specs in one process of arms.py, which started during the previous call."""
        work, self.ready = self.ready or _start(), _start()
        for spec in specs:
            what = {k: v for k, v in spec.items() if k != "model"}
            what["model"] = Path(spec["model"]).name
            if work.poll() is not None or self.left < 10:
                self.line(**what, left_out="no time" if self.left < 10 else "its process ended")
                continue
            began = time.monotonic()
            work.stdin.write(json.dumps(spec) + "\n")
            work.stdin.flush()
            ready, _, _ = select.select([work.stdout], [], [], self.left)
            if not ready:
                work.kill()
            text = work.stdout.readline() if ready else '{"left_out": "cut off"}'
            found = json.loads(text or '{"error": "its process ended"}')
            self.line(**what | found, whole_seconds=time.monotonic() - began)
        work.stdin.close()

    def process(self, what: dict, *command: str) -> None:
        """Run a process that ends by printing a JSON line. A failure is recorded as a line too."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                text=True,
                timeout=max(1, self.left),
                env=environ(),
                cwd=ROOT,
            )
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            found = {"error": said}
            if not done.returncode:
                found = json.loads(done.stdout.strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"left_out": "cut off"}
        self.line(**what | found, whole_seconds=time.monotonic() - began)


def _start() -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, str(HERE / "arms.py")]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ(), cwd=ROOT)


def environ() -> dict[str, str]:
    """Return the environment of a process. Imports are compiled only once, to a shared cache."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    more = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": path}
    more["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "oelkit_compiled")
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | more


def correct(call: Call) -> int:
    """Run tests/test_cards.py, and record each test with its output."""
    os.environ.setdefault("OELKIT_TEST_DEVICE", call.device)

    class Lines:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                said = report.capstdout.strip() if report.passed else report.longreprtext[-1500:]
                name = report.nodeid.partition("::")[2]
                call.line(
                    test=name, outcome=report.outcome, seconds=report.duration, said=said[-1500:]
                )

    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests/test_cards.py")]
    options += ["-k", "bf16"] if call.small else ["-n", "8"]
    return int(pytest.main(options, plugins=[Lines()]))


def figures(call: Call, models: Path) -> None:
    """Measure steps, KL and rollouts, the most important first."""
    call.line(figure="card", **_floors(call.device))
    sizes, long, reply, counts = ["1.7B", "4B"], [2000, 8000], 32, (16, 64, 128)
    kl = {"tokens": 8192, "width": 2560, "vocab": 151_936}
    if call.small:
        sizes, long, reply, counts = ["micro"], [100, 200], 4, (2,)
        kl = {"tokens": 64, "width": 64, "vocab": 512}
    paths = {size: "micro" if call.small else _model(call, size, models) for size in sizes}
    first, repeats = {"model": paths[sizes[0]], "quantize": "none"}, 1 if call.small else 3
    for size in sizes:
        for quantize in ("none",) if call.small else ("nf4", "none"):
            for arm in ("ours", "trl"):
                step = {"figure": "step", "arm": arm, "model": paths[size], "quantize": quantize}
                step |= {"states": 8, "reply": reply, "split": 1, "repeats": repeats}
                call.arms(*(step | {"experience": tokens} for tokens in long))
        if size == sizes[0]:
            kl |= first | {"figure": "kl", "repeats": repeats}
            call.arms(*(kl | {"arm": arm} for arm in ("ours", "naive", "trl", "liger")))
            turns = first | {"figure": "turns", "turns": 5, "reply": reply, "experience": long[0]}
            call.arms(
                *(
                    turns | {"arm": arm, "games": games, "repeats": 1}
                    for games in counts
                    for arm in ("ours", "padded")
                )
            )
    if call.ready:
        call.ready.kill()


def _model(call: Call, size: str, models: Path) -> str:
    """Return a model's folder, made if missing. It is complete once the tokenizer is written."""
    if not (models / size / "tokenizer_config.json").exists():
        script = [str(HERE / "random_model.py"), size, str(models / size)]
        call.process({"figure": "model", "model": size}, *script)
    return str(models / size)


def loops(call: Call, models: Path) -> None:
    """Run a round of the loop for each model size, within its GiB."""
    for size, cap in {"micro": 4}.items() if call.small else CAPS.items():
        model = "micro" if call.small else _model(call, size, models)
        script = [str(HERE / "gpu.py"), "one-loop", "--model", model, "--cap", str(cap)]
        script += ["--out", str(models / f"loop_{size}")]
        call.process({"figure": "loop", "model": size, "cap": cap}, *script)


def one_loop(model: str, cap: float, folder: str) -> None:
    """Run a round of the loop within `cap` GiB of the card, and print a JSON line."""
    from oelkit import Run, Settings
    from oelkit.records import write_jsonl

    cuda = torch.cuda.is_available()
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    few = {"extract_games": 16, "state_games": 16, "eval_maps": 16, "steps": 4}
    if not cuda:
        few = {"extract_games": 2, "state_games": 2, "eval_maps": 2, "steps": 1, "batch_size": 2}
    few |= {"max_new_tokens": 64}  # random weights never end a reply
    settings = Settings(model=model, rounds=1, num_draws=2, run_ablations=False, **few)
    run = Run(folder, settings, progress=False)
    # they do not write items either, so write two texts of about 2,000 tokens
    note = "Note {}: the goal wins, a hole ends the game, and a step into the wall is lost."
    item = json.loads((ROOT / "data/sample/items.jsonl").read_text("utf-8").splitlines()[0])
    items = [
        item | {"id": f"note-{d}-{i}", "text": note.format(i), "draw": d}
        for d in range(2)
        for i in range(90 if cuda else 2)
    ]
    write_jsonl(run.round_folder(1) / "items.jsonl", items)
    seconds = run.run_all()["rounds"][0]["seconds"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


def _floors(device: str) -> dict:
    """Measure the operations and bytes per second that the card reaches, to compare with."""
    n = 256 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    found = {}
    for name, work, size in (("flops", lambda: a @ a, 2 * n**3), ("bytes", a.clone, 2 * a.nbytes)):
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        found[f"{name}_per_second"] = size / best
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = ("correct", "models", "figures", "loops", "one-loop")
    parser.add_argument("what", choices=steps)
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    parser.add_argument("--seconds", type=float, default=280, help="start nothing after this time")
    parser.add_argument("--small", action="store_true", help="rehearsal, also on a CPU")
    parser.add_argument("--models", type=Path, help="folder to keep random models in")
    parser.add_argument("--model", help="for one-loop: a model folder")
    parser.add_argument("--cap", type=float, default=15, help="for one-loop: GiB")
    args = parser.parse_args()
    if args.what == "one-loop":
        one_loop(args.model, args.cap, str(args.out))
        return 0
    call = Call(args.out.resolve(), args.seconds, args.small)
    if args.what == "correct":
        return correct(call)
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or Path(folder)
        if args.what == "models":
            for size in ("1.7B", "4B", "8B"):
                _model(call, size, models)
        elif args.what == "figures":
            figures(call, models)
        else:
            loops(call, models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
