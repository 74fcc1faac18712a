"""Check that killed and resumed runs end with the same bytes as an uninterrupted one.

    python tests/soak.py --kills 30        # prints the results as JSON

Each run on the embedded model is killed: at a random moment, at a random fsync (when a file is
written but not yet renamed), at a random rename, or with the last line of metrics.jsonl truncated.
Then it is resumed. Each attempt is its own process, forked before torch has threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process does not have its parent's threads

from helpers import ROOT, with_short_probe

from oelkit import Policy, Run, Settings, load_policy

SMALL = Settings.of(
    "tiny",
    rounds=2,
    extract_games=12,
    state_games=6,
    num_draws=2,
    steps=12,
    batch_size=4,
    eval_maps=8,
    run_ablations=False,
    gate="off",
)
# for `make test`: truncates the base model's replies; training steps take most of the time
SHORT = {"env": "oelkit/Descent1-v0", "max_new_tokens": 13, "steps": 4, "extract_games": 3}
SHORT |= {"state_games": 2, "batch_size": 2, "eval_maps": 2}
WAYS = ("moment", "fsync", "rename", "line")


def attempt(folder: Path, policy: Policy, settings: Settings, way: str = "", at: float = 0) -> bool:
    """Run or resume in a child that is killed `at` a place. Return whether it ended by itself."""
    child = os.fork()
    if not child:
        try:
            if way in ("fsync", "rename"):
                names = ("fsync",) if way == "fsync" else ("replace", "rename")
                _kill_at(names, int(at))
            Run(folder, settings, policy, progress=False).run_all()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    if way in ("moment", "line"):
        time.sleep(at)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"a run that was resumed in {folder} ended with an error (above)")
    if way == "line":
        _cut_last_line(folder / "metrics.jsonl", int(1000 * at), settings.steps)
    return os.WIFEXITED(status)


def _kill_at(names: tuple[str, ...], n: int) -> None:
    """Kill this process at the n-th call of one of these functions of `os`."""
    calls = 0
    for name in names:
        real = getattr(os, name)

        def counted(*args, _real=real, **options):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **options)

        setattr(os, name, counted)


def _cut_last_line(path: Path, seed: int, steps: int) -> None:
    data = path.read_bytes() if path.exists() else b""
    if data.count(b"\n") % steps:  # otherwise training is done and its lines are on disk
        line = len(data) - (data.rstrip(b"\n").rfind(b"\n") + 1)
        with open(path, "rb+") as file:
            file.truncate(len(data) - random.Random(seed).randint(1, max(1, line - 1)))


def outputs(folder: Path) -> dict[str, object]:
    """Return the contents of a run by file: bytes, or JSON values without times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif name in ("metrics.jsonl", "round_1/curation.jsonl", "round_2/curation.jsonl"):
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value: object) -> object:
    """Remove times, the run's name, and hashes of files that contain them."""
    if isinstance(value, dict):
        kept = {
            k: v
            for k, v in value.items()
            if k not in ("seconds", "time", "run", "outputs", "inputs")
        }
        return {k: _timeless(v) for k, v in kept.items()}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def soak(kills: int, seed: int, root: Path, settings: Settings = SMALL) -> dict[str, object]:
    """Kill `kills` runs, resume each to its end and compare. Return the results."""
    every = 16 if settings == SMALL else 64  # questions
    model = with_short_probe(ROOT / "data/micro", root / "model", every)
    rng, policy = random.Random(seed), load_policy(model)
    began = time.monotonic()
    attempt(root / "whole", policy, settings)
    length, wanted = time.monotonic() - began, outputs(root / "whole")
    same, killed, differing = 0, dict.fromkeys(WAYS, 0), []
    for i in range(kills):
        folder, way = root / f"run{i}", WAYS[i % len(WAYS)]
        most = {"fsync": 150, "rename": 50}.get(way, length)
        at = rng.uniform(0, most) if way in ("moment", "line") else rng.randint(1, most)
        killed[way] += not attempt(folder, policy, settings, way, at)
        attempt(folder, policy, settings)
        ours = outputs(folder)
        kept = {k: v for k, v in ours.items() if not k.startswith("metrics.damaged")}
        wrong = [name for name in {**wanted, **kept} if wanted.get(name) != kept.get(name)]
        same += not wrong
        differing += [f"run{i} ({way} {at:.2f}): {', '.join(wrong)}"] if wrong else []
    figures = {"runs": kills, "killed": killed, "identical": same, "differing": differing}
    figures |= {"seed": seed, "seconds": round(time.monotonic() - began)}
    command = f"python tests/soak.py --kills {kills} --seed {seed}"
    return figures | {"command": command + " --short" * (settings != SMALL)}


def main() -> int:
    """Print the results. Return 1 if a run ended differently."""
    parser = argparse.ArgumentParser(description="kill runs, resume them, compare")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="short runs, as in make test")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(SMALL, **SHORT) if args.short else SMALL
        figures = soak(args.kills, args.seed, Path(folder), settings)
    print(json.dumps(figures, indent=1))
    return int(figures["identical"] < args.kills)


if __name__ == "__main__":
    sys.exit(main())
