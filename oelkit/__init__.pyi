"""The public names, for `__init__.py`, which loads them on first use, and for type checkers."""

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

__version__: str
__all__: list[str]
