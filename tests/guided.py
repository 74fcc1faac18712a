"""Run the targets of fuzz.py, guided by the coverage of oelkit's code (atheris, libFuzzer).

    python tests/guided.py --inputs 20000     # per target; prints the results as JSON

Hypothesis draws its inputs from bytes instead of at random, and libFuzzer changes the bytes to
reach new code. Each target has its own process, as libFuzzer ends its process.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def one(name: str, inputs: int, seed: int) -> None:
    """Run a target in this process, then end the process."""
    import atheris

    with atheris.instrument_imports(include=["oelkit"]):
        import fuzz
    test, counts = fuzz.target(name, inputs)
    atexit.register(lambda: print(f"read: {counts['inputs']}", file=sys.stderr))
    rng, corpus = random.Random(seed), Path("corpus")
    corpus.mkdir()
    for n in range(64):  # enough bytes for an input, as hypothesis makes none from too few
        (corpus / str(n)).write_bytes(rng.randbytes(64 << n % 6))
    limits = [f"-atheris_runs={inputs}", f"-seed={seed + 1}", "-max_len=4096", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def guided(inputs: int, seed: int, only: list[str]) -> dict[str, Any]:
    """Run targets one after the other. Return the results; raise at the first finding."""
    from fuzz import TARGETS

    rows: dict[str, Any] = {}
    for name in only or TARGETS:
        with TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", name, "--inputs", str(inputs)]
            paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
            done = subprocess.run(
                [*command, "--seed", str(seed)],
                cwd=folder,
                env=os.environ | paths,
                capture_output=True,
                text=True,
            )
        if done.returncode:
            raise SystemExit(f"{name}:\n{done.stderr[-4000:]}")
        reached = [int(n) for n in re.findall(r"cov: (\d+)", done.stderr)]
        read = int(re.findall(r"^read: (\d+)", done.stderr, re.M)[-1])
        rows[name] = {"inputs": read, "reached_first": reached[0], "reached": reached[-1]}
        print(name, rows[name], file=sys.stderr, flush=True)
    return {"inputs": sum(row["inputs"] for row in rows.values()), "findings": 0, "targets": rows}


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description="coverage-guided hostile input")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not importlib.util.find_spec("atheris"):
        print("skipped: atheris is not installed (pip install atheris; Linux, Python 3.11 to 3.13)")
    elif args.one:
        one(args.one, args.inputs, args.seed)
    else:
        figures = guided(args.inputs, args.seed, args.only)
        print(json.dumps({**figures, "command": " ".join(["python", *sys.argv])}, indent=1))


if __name__ == "__main__":
    main()
