"""Compare the time that `estimate` predicts for a run with the time it takes, one line per run.

    python examples/micro/estimates.py --out data/results/estimates.jsonl

Both are CPU seconds of this process (one thread), so that other work on the machine matters
little."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

time.perf_counter = time.process_time  # before oelkit is imported

from oelkit import Settings  # noqa: E402
from oelkit.model.loading import policy_from_config  # noqa: E402
from oelkit.records import append_jsonl  # noqa: E402
from oelkit.runs.estimate import estimate  # noqa: E402
from oelkit.runs.run import Run, run_loop  # noqa: E402

RUNS = {
    "four rounds": {},
    "one round, few maps, all arms": {"rounds": 1, "eval_maps": 48, "steps": 10, "gate": "off"},
    "two samples per map": {"rounds": 1, "samples_per_map": 2, "eval_maps": 64, "num_draws": 4}
    | {"extract_games": 32, "batch_size": 16, "steps": 40, "run_ablations": False, "seed": 3},
}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON Lines file to append to")
    parser.add_argument("--only", choices=RUNS, help="run only this one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [args.only] if args.only else RUNS:
        settings = Settings.of("tiny", **RUNS[name])
        policy = policy_from_config(settings)
        said = estimate(Run, settings, policy)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            metrics = run_loop(Path(folder) / "run", settings, policy, progress=False)
        took = time.process_time() - began
        stages = dict(metrics["seconds"])
        for row in metrics["rounds"]:
            for stage, seconds in row["seconds"].items():
                stages[stage] = stages.get(stage, 0.0) + seconds
        row = {"run": name, "changes": RUNS[name], "model": policy.name, "env": settings.env}
        row |= {"estimated": said.minutes * 60, "took": took, "trial": said.seconds["trial"]}
        row |= {"ratio": said.minutes * 60 / took, "estimated_stages": said.seconds}
        row |= {"stages": stages, "command": "python examples/micro/estimates.py"}
        append_jsonl(args.out, row)
        print(json.dumps({k: row[k] for k in ("run", "estimated", "took", "ratio")}), flush=True)


if __name__ == "__main__":
    main()
