"""What only a card can say, in three calls of some minutes: `python tests/benchmarks/gpu.py WHAT
--out FILE.jsonl`, where WHAT is `correct`, `figures` or `learn` (with `--model FOLDER` or `--gguf
FILE`).

Each measurement is a line of its own, written at once, so that a call that is cut off loses
nothing; what no longer fits into `--seconds` is left out and said to be. `--small` is the rehearsal
on a CPU; `table` prints what is there. Needs the bench extra. `figures` makes random models of
published sizes, for time and memory do not depend on what weights say."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before torch is loaded: threads that wait sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CAPS = {"4B": 15, "8B": 24}  # GiB within which the loop is to run


class Call:
    """Writes the lines of one call, and knows how much time is left."""

    def __init__(self, out: Path, seconds: float, small: bool) -> None:
        self.out, self.ends, self.small = out, time.monotonic() + seconds, small
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.about = {"card": torch.cuda.get_device_name() if self.device == "cuda" else "CPU"}
        if not small and self.device == "cpu":
            raise SystemExit("no CUDA card here; --small is the rehearsal on a CPU")
        out.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def line(self, **found) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | self.about) + "\n")
        print(json.dumps(found)[:400], flush=True)

    def process(self, what: dict, *command: str, least: float = 10) -> None:
        """A process that prints a JSON line at its end; a failure is a line as well."""
        if self.left < least:
            return self.line(**what, left_out="no time")
        began = time.monotonic()
        environ = os.environ | {"PYTHONPATH": _path(), "HF_HUB_OFFLINE": "1"}
        environ |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                text=True,
                timeout=self.left,
                env=environ,
                cwd=ROOT,
            )
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            found = {"error": said}
            if not done.returncode:
                found = json.loads(done.stdout.strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"left_out": "cut off"}
        self.line(**what | found, whole_seconds=time.monotonic() - began)


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def correct(call: Call) -> int:
    """The tests of tests/test_cards.py, each with what it printed."""
    os.environ.setdefault("OELKIT_TEST_DEVICE", call.device)

    class Lines:
        def pytest_runtest_setup(self, item):
            if call.left < 5:
                pytest.skip("no time")

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                said = report.capstdout.strip() if report.passed else report.longreprtext[-1500:]
                name = report.nodeid.partition("::")[2]
                call.line(
                    test=name, outcome=report.outcome, seconds=report.duration, said=said[-1500:]
                )

    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests/test_cards.py")]
    return int(pytest.main([*options, *(["-k", "bf16"] if call.small else [])], plugins=[Lines()]))


def figures(call: Call) -> None:
    """Steps, KL, rollouts and loops; what matters most comes first."""
    call.line(figure="card", **_floors(call.device))
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["micro"] if call.small else ["1.7B", "4B"]
        long = [100] if call.small else [2000, 8000]
        reply = 4 if call.small else 64
        kl = {"tokens": 8192, "width": 2560, "vocab": 151_936}
        if call.small:
            kl = {"tokens": 64, "width": 64, "vocab": 512}
        for size in sizes:
            model = _model(call, size, folder)
            for quantize in ("none",) if call.small else ("nf4", "none"):
                for tokens in long:
                    for arm in ("ours", "trl"):
                        spec = {"states": 8, "reply": reply, "experience": tokens, "split": 1}
                        _arm(call, "step", arm, size, model, quantize, **spec)
            if size == sizes[0]:
                for arm in ("ours", "naive", "trl", "liger"):
                    _arm(call, "kl", arm, size, model, "none", **kl)
                for games in (2,) if call.small else (16, 64, 128):
                    for arm in ("ours", "padded"):
                        spec = {"games": games, "turns": 5, "reply": reply, "experience": long[0]}
                        _arm(call, "turns", arm, size, model, "none", **spec)
            else:
                _loop(call, size, model, folder)
        if not call.small:
            _loop(call, "8B", _model(call, "8B", folder), folder)
        else:
            _loop(call, "micro", "micro", folder)


def _model(call: Call, size: str, folder: str) -> str:
    if size == "micro":
        return size
    call.process(
        {"figure": "model", "model": size}, str(HERE / "random_model.py"), size, f"{folder}/{size}"
    )
    return f"{folder}/{size}"


def _arm(call: Call, figure: str, arm: str, size: str, model: str, quantize: str, **spec) -> None:
    what = {"figure": figure, "arm": arm, "quantize": quantize, **spec}
    whole = what | {"model": model, "repeats": 1 if call.small else 2}
    call.process(what | {"model": size}, str(HERE / "arms.py"), json.dumps(whole))


def _loop(call: Call, size: str, model: str, folder: str) -> None:
    cap = CAPS.get(size, 4)
    what = {"figure": "loop", "model": size, "cap": cap}
    call.process(
        what,
        str(HERE / "gpu.py"),
        "one-loop",
        "--model",
        model,
        "--cap",
        str(cap),
        "--out",
        f"{folder}/loop_{size}",
    )


def one_loop(model: str, cap: float, folder: str) -> None:
    """A round of the whole loop within so many GiB of the card; prints a JSON line."""
    from oelkit import Run, Settings

    cuda = torch.cuda.is_available()
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    few = {"extract_games": 16, "state_games": 16, "eval_maps": 16, "steps": 4}
    if not cuda:
        few = {"extract_games": 2, "state_games": 2, "eval_maps": 2, "steps": 1, "batch_size": 2}
    settings = Settings(model=model, rounds=1, num_draws=2, run_ablations=False, **few)
    run = Run(folder, settings, progress=False)
    items = ROOT / "data/sample/items.jsonl"  # random weights write none
    (run.round_folder(1) / "items.jsonl").write_text(items.read_text("utf-8"), "utf-8")
    seconds = run.run_all()["rounds"][0]["seconds"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


def _floors(device: str) -> dict:
    """Operations and bytes a second that the card reaches here: what figures are held against."""
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


def learn(call: Call, model: str, rounds: int, seeds: int) -> None:
    """The waiter world with a real model, at a batch of 64 as in the paper: seed by seed."""
    script = str(ROOT / "examples/waiter/learn.py")
    options = ["--model", model, "--arm", "own", "--rounds", str(rounds)]
    changes = {"batch_size": 64, "state_games": 256, "steps": 20, "lr": 1e-4}
    if call.small:
        changes = {"batch_size": 2, "state_games": 2, "steps": 1, "eval_maps": 2}
    options += [
        x for name, value in changes.items() for x in ("--set", f"{name}={json.dumps(value)}")
    ]
    for seed in range(seeds):
        rows = call.out.with_name(f"{call.out.stem}_rows_{seed}.jsonl")
        _follow(call, [script, *options, "--seed", str(seed), "--out", str(rows)], rows, seed)


def _follow(call: Call, command: list[str], rows: Path, seed: int) -> None:
    """Run it, and write a line for each of its rounds when that is there."""
    if call.left < 20:
        return call.line(figure="learn", seed=seed, left_out="no time")
    log, seen = rows.with_suffix(".log"), 0
    with log.open("w") as said:
        environ = os.environ | {"PYTHONPATH": _path(), "HF_HUB_OFFLINE": "1"}
        work = subprocess.Popen(
            [sys.executable, *command], env=environ, cwd=rows.parent, stdout=said, stderr=said
        )
        while True:
            over = work.poll() is not None
            found = rows.read_text("utf-8").splitlines() if rows.exists() else []
            for text in found[seen:]:
                row = json.loads(text)
                rates = {
                    k: v["pass_rate"]
                    for k, v in row.items()
                    if isinstance(v, dict) and "pass_rate" in v
                }
                about = {k: row[k] for k in ("arm", "round", "items", "true", "seconds")}
                call.line(figure="learn", seed=seed, **about, **rates)
            seen = len(found)
            if over or call.left < 0:
                break
            time.sleep(1)
        if not over:
            work.terminate()
            work.wait()
            call.line(figure="learn", seed=seed, left_out="cut off")
        elif work.returncode:
            call.line(figure="learn", seed=seed, error=log.read_text()[-500:])


def unpack(gguf: Path) -> str:
    """A folder beside a GGUF file with its model in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = gguf.with_suffix("")
    if not (folder / "config.json").exists():
        name = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **name)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, quantization_config=config, **name
        )
        del model.config.quantization_config  # its weights are dense now
        tokenizer.save_pretrained(folder), model.save_pretrained(folder)
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("correct", "figures", "learn", "table", "one-loop"))
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--seconds", type=float, default=280, help="after which nothing begins")
    parser.add_argument("--small", action="store_true", help="the rehearsal, on a CPU too")
    parser.add_argument("--model", help="a model folder, for learn")
    parser.add_argument("--gguf", type=Path, help="a GGUF file, for learn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cap", type=float, default=15, help="GiB of one-loop")
    args = parser.parse_args()
    if args.what == "one-loop":
        one_loop(args.model, args.cap, str(args.out))
        return 0
    if args.what == "table":
        for text in args.out.read_text("utf-8").splitlines():
            print(*(f"{k}={v}" for k, v in json.loads(text).items() if k != "loss"), sep="  ")
        return 0
    call = Call(args.out.resolve(), args.seconds, args.small)
    if args.what == "correct":
        return correct(call)
    if args.what == "figures":
        figures(call)
    else:
        model = unpack(args.gguf.resolve()) if args.gguf else args.model
        learn(call, model, args.rounds, args.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
