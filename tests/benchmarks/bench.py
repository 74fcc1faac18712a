"""The benchmarks: `make bench`, or `python tests/benchmarks/bench.py --model FOLDER`.

Each arm of each figure runs in its own process (`arms.py`), all with the same weights, prompts and
token counts. Medians are appended to runs/bench/results.jsonl, one JSON line per figure, and
printed as a table. Peers that are not installed are skipped with a message. Targets apply to
SmolLM2-135M on two CPU cores; for other models, only the ratio is shown."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from arms import timed
from transformers import AutoConfig, AutoModelForCausalLM

from oelkit.model.source import model_folder

HERE = Path(__file__).resolve().parent
FIGURES = ("start", "waiting", "kl", "step", "cost", "retention", "turns", "scaling")
PEERS = {"trl": "trl", "liger": "liger-kernel"}  # arm to package
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # as importing oelkit sets them
# by tokens of experience: times faster, times less memory
STEP_TARGETS = {1000: (2.0, 3 / 2), 4000: (5.0, 2.0), 7000: (10.0, 3.0)}


def main(argv: list[str] | None = None) -> int:
    """Run the chosen figures. Return 1 if an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="micro", help="micro, a model folder or a hub id")
    parser.add_argument(
        "--quantize", default="auto", choices=("auto", "nf4", "none"), help="see load_policy"
    )
    parser.add_argument("--only", default=",".join(FIGURES), help=f"some of {','.join(FIGURES)}")
    parser.add_argument(
        "--repeats", type=int, default=3, help="measured runs per arm, after the warm-up"
    )
    parser.add_argument("--rows", type=int, default=4096, help="tokens of the KL")
    parser.add_argument(
        "--experience", default="1000,4000,7000", help="tokens of experience in a step"
    )
    parser.add_argument("--games", type=int, default=64, help="games of the rollout")
    parser.add_argument("--alone", type=int, default=2, help="games played one at a time")
    parser.add_argument(
        "--padded", type=int, default=8, help="games of the other arms of the rollout"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/results.jsonl"))
    args = parser.parse_args(argv)
    figures = args.only.split(",")
    if unknown := set(figures) - set(FIGURES):
        parser.error(f"unknown figures {sorted(unknown)}; choose from {', '.join(FIGURES)}")
    config = AutoConfig.from_pretrained(model_folder(args.model), trust_remote_code=False)
    config = config.get_text_config()
    bench = Bench(args, config)
    for figure in figures:
        getattr(bench, figure)()
    bench.table()
    return int(bench.failed)


class Bench:
    """Runs arms, keeps their results and writes a line per figure."""

    def __init__(self, args: argparse.Namespace, config) -> None:
        self.args, self.config, self.failed, self.lines = args, config, False, []
        # targets apply only to the model with these sizes
        sizes = config.hidden_size, config.vocab_size, config.num_hidden_layers
        self.judged, cuda = sizes == (576, 49152, 30), torch.cuda.is_available()
        self.about = {
            "model": Path(args.model).name,
            "sizes": _sizes(config),
            "threads": torch.get_num_threads(),
            "machine": torch.cuda.get_device_name() if cuda else f"CPU {platform.machine()}",
            "gflops": _gflops(),
            "versions": _versions("oelkit", "torch", "transformers", "peft", *PEERS.values()),
            "command": shlex.join(["python", "tests/benchmarks/bench.py", *_argv(args)]),
        }

    def run(self, figure: str, arm: str, environ: dict | None = None, **spec) -> dict | None:
        """Run an arm, with `environ` as its environment variables if given.

        Returns its results, or None after a message if its peer is not installed or it failed.
        """
        environ = dict(os.environ) if environ is None else environ
        if arm in PEERS and not importlib.util.find_spec(arm if arm == "trl" else "liger_kernel"):
            print(f"{figure}: {PEERS[arm]} is not installed (make bench installs it)", flush=True)
            return None
        spec = {
            "figure": figure,
            "arm": arm,
            "model": self.args.model,
            "quantize": self.args.quantize,
            "repeats": self.args.repeats,
        } | spec
        print(f"{figure} {arm} {_short(spec)} …", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / "arms.py"), json.dumps(spec)],
            capture_output=True,
            text=True,
            env=environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            self.failed = True
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            print(
                f"{figure} {arm} failed with exit status {done.returncode}: {reason[0]}", flush=True
            )
            return None
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return found | {"median": statistics.median(found["seconds"])}

    def line(
        self,
        what: str,
        unit: str,
        ours: float,
        peer: float,
        peer_name: str,
        n: int,
        *,
        target: float | None = None,
        at_most: bool = False,
        **more,
    ) -> None:
        """Write one figure. The ratio is peer / ours (how many times better), or ours / peer if the
        target is a maximum.
        """
        ratio = ours / peer if at_most else peer / ours
        target = target if self.judged else None
        reached = None if target is None else (ratio <= target if at_most else ratio >= target)
        line = {
            "what": what,
            "unit": unit,
            "ours": ours,
            "peer": peer,
            "peer_name": peer_name,
            "ratio": ratio,
            "ratio_is": "ours / peer" if at_most else "peer / ours",
            "target": target,
            "reached": reached,
            "n": n,
            **more,
            **self.about,
        }
        self.lines.append(line)
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        with self.args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def both(
        self,
        what: str,
        ours: dict,
        peer: dict | None,
        peer_name: str,
        target=None,
        memory=None,
        **more,
    ) -> None:
        """Write two lines: time and peak memory."""
        if not peer:
            return
        for who, found in (("ours", ours), ("peer", peer)):
            rest = found.keys() - {"seconds", "median", "peak", "loss"}
            more |= {f"{who}_{key}": found[key] for key in sorted(rest)}
        n = min(len(ours["seconds"]), len(peer["seconds"]))
        seconds = {"ours_seconds": ours["seconds"], "peer_seconds": peer["seconds"]}
        medians, peaks = ([found[key] for found in (ours, peer)] for key in ("median", "peak"))
        self.line(f"{what}: time", "s", *medians, peer_name, n, target=target, **seconds, **more)
        if all(peaks):
            megabytes = [peak / 1e6 for peak in peaks]
            what = f"{what}: peak memory"
            self.line(what, "MB", *megabytes, peer_name, n, target=memory, **more)

    def costs(
        self, what: str, ours: dict, peer: dict, peer_name: str, target: float | None = None, **more
    ) -> None:
        """Write a line on how many times as long our own step takes; a target is the most."""
        seconds = {"ours_seconds": ours["seconds"], "peer_seconds": peer["seconds"]}
        medians, n = (ours["median"], peer["median"]), len(ours["seconds"])
        more |= seconds
        self.line(what, "s", *medians, peer_name, n, target=target, at_most=True, **more)

    # -- figures

    def start(self) -> None:
        """Time new processes in turn, after one run each so that files are cached."""
        ours = {"import oelkit": ["-c", "import oelkit"], "--help": ["-m", "oelkit", "--help"]}
        commands = {**ours, "import torch": ["-c", "import torch"]}
        seconds = {name: [] for name in commands}
        for turn in range(self.args.repeats + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        found = {
            name: {"seconds": each, "median": statistics.median(each), "peak": None}
            for name, each in seconds.items()
        }
        torch_alone = found["import torch"], "import torch alone"
        for name, command in ours.items():
            self.both(f"start of {' '.join(['python', *command])}", found[name], *torch_alone)

    def waiting(self) -> None:
        """Measure the cost of waiting threads that soon sleep, so that a busy machine is usable."""
        size = {"states": 8, "reply": 16, "experience": 256}
        spinning = {k: v for k, v in os.environ.items() if k not in WAITING}
        ours = self.run("step", "ours", spinning | WAITING, **size)
        if ours and (peer := self.run("step", "ours", spinning, **size)):
            what = "distillation step, waiting threads soon sleep (GOMP_SPINCOUNT=1000): time"
            self.costs(what, ours, peer, "OpenMP's default")

    def kl(self) -> None:
        size = {
            "tokens": self.args.rows,
            "width": self.config.hidden_size,
            "vocab": self.config.vocab_size,
        }
        what = "reverse KL of {tokens} tokens, H {width}, V {vocab}".format(**size)
        if ours := self.run("kl", "ours", **size):
            for arm, name, memory in (
                ("naive", "naive log-softmax autograd", 15.0),
                ("trl", "TRL's chunked kernel (its torch path on a CPU)", None),
                ("liger", "Liger's fused JSD, not compiled", None),
            ):
                time = None if arm == "liger" else 1.0
                self.both(what, ours, self.run("kl", arm, **size), name, time, memory)

    def step(self) -> None:
        for tokens in self._experiences():
            size = {"states": 8, "reply": 16, "experience": tokens}
            faster, less = STEP_TARGETS.get(round(tokens, -3), (None, None))
            if ours := self.run("step", "ours", **size):
                what = (
                    f"distillation step, 8 states, 16 reply tokens, {tokens} tokens of experience"
                )
                name = "TRL SDFTTrainer, full_logits, micro-batches of {}"
                peer = self.run("step", "trl", **size, split=1)
                self.both(what, ours, peer, name.format(8), faster, less)
                first = tokens == self._experiences()[0]  # also one state at a time
                if first and (ours := self.run("step", "ours", **size, batch_tokens=1)):
                    peer = self.run("step", "trl", **size, split=8)
                    self.both(f"{what}, batch_tokens=1", ours, peer, name.format(1), None, 1.0)

    def cost(self) -> None:
        low, high = self.run("step", "ours", states=8, reply=16, experience=256), None
        longest = self._experiences()[-1]
        if low and (high := self.run("step", "ours", states=8, reply=16, experience=longest)):
            what = f"distillation step at {longest} tokens of experience over one at 256"
            first = {"ours_first": high["first"], "peer_first": low["first"]}
            self.costs(f"{what}, prefix cached: time", high, low, "ours at 256", 1.25, **first)

    def retention(self) -> None:
        """Measure the default retention: with a quarter of the states, the student reads too."""
        size = {"states": 8, "reply": 16, "experience": min(1000, self._room())}
        plain = self.run("step", "ours", **size)
        if plain and (ours := self.run("step", "ours", retention=0.25, **size)):
            what = f"distillation step, {size['experience']} tokens of experience, retention 0.25"
            self.costs(f"{what}: time", ours, plain, "ours without retention")

    def turns(self) -> None:
        tokens = min(2000, self._room())
        size = {
            "games": self.args.games,
            "turns": 5,
            "reply": 16,
            "experience": tokens,
            "repeats": 1,
        }
        what = (
            f"rollout, {self.args.games} games x 5 turns, {tokens} tokens of experience, "
            "16 of reply: time a turn"
        )
        if ours := self.run("turns", "ours", **size):
            for arm, name, games, target in (
                ("again", "ours, nothing kept from turn to turn", self.args.games, None),
                ("alone", "generate, one game at a time", self.args.alone, 8.0),
                ("padded", "padded generate from scratch", self.args.padded, 5.0),
                ("paged", "generate_batch (paged cache)", self.args.padded, None),
            ):
                if peer := self.run("turns", arm, **size | {"games": games}):
                    # CPU time is meaningful even if the machine does other work
                    for kind, key, most in (("", "median", target), ("CPU ", "cpu_seconds", None)):
                        self.line(
                            what.replace("time a turn", f"{kind}time a turn"),
                            f"{kind}s a turn",
                            *(found[key] / found["turns"] for found in (ours, peer)),
                            name,
                            1,
                            target=most,
                            peer_games=games,
                            load=os.getloadavg()[0],
                            ours_prompt_tokens=ours["prompt_tokens"],
                            peer_prompt_tokens=peer["prompt_tokens"],
                            ours_peak=ours["peak"],
                            peer_peak=peer["peak"],
                        )

    def scaling(self) -> None:
        for arm, counts in (("rollout", (16, 64, 256)), ("extract", (8, 32))):
            found = [self.run("scaling", arm, games=n, reply=16) for n in counts]
            for (a, one), (b, many) in zip(zip(counts, found), list(zip(counts, found))[1:]):
                if one and many:
                    what = f"{arm} of {b} games over {a} games: time"
                    self.costs(what, many, one, f"ours with {a}", float(b / a))

    # -- sizes

    def _room(self) -> int:
        return self.config.max_position_embeddings - 1200

    def _experiences(self) -> list[int]:
        """Return tokens of experience, capped so that the rest fits the context."""
        return sorted({min(int(n), self._room()) for n in self.args.experience.split(",")})

    def table(self) -> None:
        print(f"\n{'figure':<92} {'peer':<46} {'ours':>10} {'peer':>10} {'ratio':>7} {'target':>9}")
        for x in self.lines:
            sign = "<=" if x["ratio_is"] == "ours / peer" else ">="
            goal = (
                ""
                if x["target"] is None
                else f"{sign} {x['target']:g} {'' if x['reached'] else '(!)'}"
            )
            print(
                f"{x['what']:<92} {x['peer_name']:<46} {x['ours']:>10.4g} {x['peer']:>10.4g} "
                f"{x['ratio']:>7.2f} {goal:>9}"
            )


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _sizes(config) -> dict[str, int]:
    """Return the sizes that the theoretical floors need."""
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config, trust_remote_code=False).base_model.layers
    return {
        "matrices": sum(p.numel() for p in layers.parameters() if p.ndim == 2),
        "layers": len(layers),
        "width": config.hidden_size,
        "vocab": config.vocab_size,
    }


def _gflops() -> float:
    """Return the best rate of 2,048 x 2,048 float32 products, in 1e9 operations per second.

    The floors are computed from it.
    """
    a = torch.randn(2048, 2048, device="cuda" if torch.cuda.is_available() else "cpu")
    return 2 * 2048**3 / min(timed(lambda: a @ a, 10)) / 1e9


def _argv(args: argparse.Namespace) -> list[str]:
    """Return the arguments without paths of this machine."""
    given = vars(args) | {"model": Path(args.model).name}
    return [x for name, value in given.items() if name != "out" for x in (f"--{name}", str(value))]


def _short(spec: dict) -> str:
    return " ".join(
        f"{k}={v}"
        for k, v in spec.items()
        if k not in ("figure", "arm", "model", "quantize", "width", "vocab")
    )


if __name__ == "__main__":
    sys.exit(main())
