"""oelkit: Online Experiential Learning of language models, in notebooks.

A model plays (`rollout`), writes down what it learned (`extract`), a person may edit that (`Curation`), the model absorbs it
into its weights (`distill`), and one sees what it gained and lost (`evaluate`). `run_loop` does all of it in rounds.
"""

from .curate import Curation, auto_curate
from .distill import distill
from .evaluate import evaluate, paired_bootstrap, probe, wilson
from .extract import extract, parse_items
from .ifeval import ifeval
from .loop import Run, run_loop, summary
from .memory import memory_plan
from .loading import load_policy
from .policy import Policy
from .prompts import load_prompts
from .rollout import rollout, states
from .settings import Settings

__version__ = "0.1.0"
__all__ = [
    "Curation", "Policy", "Run", "Settings", "auto_curate", "distill", "evaluate", "extract", "ifeval", "load_policy",
    "load_prompts", "memory_plan", "paired_bootstrap", "parse_items", "probe", "rollout", "run_loop", "states", "summary",
    "wilson",
]  # fmt: skip
