"""oelkit: Online Experiential Learning of language models, in notebooks.

A model plays (`rollout`) and writes down what it learned (`extract`). You can edit those items
(`Curation`). The model then absorbs them into its weights (`distill`), and `evaluate` measures what
it gained and lost. `run_loop` repeats all of this in rounds.

The names in `__all__` are the public API. Each loads its module on first use, so `import oelkit`
is cheap.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# By default, waiting OpenMP threads spin. They starve other processes and are starved by them: 25
# times slower or worse beside one busy core. If they sleep at once instead, a step takes 1.5 times
# as long on a quiet machine. So they spin shortly first: 1,000 times. torch reads both on import.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from .auto_curation import auto_curate as auto_curate
    from .curation import Curation as Curation
    from .logs import read_chats as read_chats
    from .model.loading import load_policy as load_policy
    from .model.memory import memory_plan as memory_plan
    from .model.policy import Policy as Policy
    from .model.served import ServedModel as ServedModel
    from .prompts import load_prompt_set as load_prompt_set
    from .runs.export import check_exports as check_exports
    from .runs.export import export as export
    from .runs.export import push_to_hub as push_to_hub
    from .runs.run import Run as Run
    from .runs.run import run_loop as run_loop
    from .runs.settings import Settings as Settings
    from .stats import paired_bootstrap as paired_bootstrap
    from .stats import wilson_interval as wilson_interval
    from .steps.agreement import agreement as agreement
    from .steps.distillation import distill as distill
    from .steps.evaluation import evaluate as evaluate
    from .steps.evaluation import probe as probe
    from .steps.extraction import extract as extract
    from .steps.ifeval import ifeval as ifeval
    from .steps.rollouts import rollout as rollout
    from .steps.rollouts import states as states
    from .steps.worth import leave_one_out as leave_one_out
    from .text import parse_items as parse_items
    from .views.summary import summary as summary

__version__ = "0.1.0"
_HOMES = {
    "auto_curation": "auto_curate",
    "curation": "Curation",
    "logs": "read_chats",
    "model.loading": "load_policy",
    "model.memory": "memory_plan",
    "model.policy": "Policy",
    "model.served": "ServedModel",
    "prompts": "load_prompt_set",
    "runs.export": "check_exports export push_to_hub",
    "runs.run": "Run run_loop",
    "runs.settings": "Settings",
    "steps.agreement": "agreement",
    "steps.distillation": "distill",
    "stats": "paired_bootstrap wilson_interval",
    "steps.evaluation": "evaluate probe",
    "steps.extraction": "extract",
    "steps.ifeval": "ifeval",
    "steps.rollouts": "rollout states",
    "steps.worth": "leave_one_out",
    "text": "parse_items",
    "views.summary": "summary",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "runs":  # a package that is also a mapping
        return import_module(".runs", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'oelkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module", "os"})
