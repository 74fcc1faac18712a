"""Measure how much longer a command takes on a busy machine.

    python tests/benchmarks/busy.py --out FILE.jsonl -- make run

Runs it alone, then beside one endless loop per core, and writes a line with both times and their
ratio. The command's output goes to the terminal. Nothing else should run meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

LOOP = [sys.executable, "-c", "while True: pass"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    parser.add_argument("command", nargs="+", help="the command, after --")
    args = parser.parse_args()
    load, alone, cores = os.getloadavg()[0], seconds(args.command), os.cpu_count() or 1
    loops = [subprocess.Popen(LOOP) for _ in range(cores)]
    try:
        beside = seconds(args.command)
    finally:
        for loop in loops:
            loop.kill()
    line = {"command": shlex.join(args.command), "cores": cores, "load_before": round(load, 2)}
    line |= {"alone_s": round(alone, 1), "busy_s": round(beside, 1)}
    line["ratio"] = round(beside / alone, 2)
    print(json.dumps(line))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
