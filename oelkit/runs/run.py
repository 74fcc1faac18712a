"""The loop: rounds of rollout, extract, curate, collect, distill and evaluate in a run folder.

A stage reads its inputs only from files, loads the weights that it starts from, leaves the policy
as it found it, and writes its outputs and a manifest (`stages` defines the dependencies). A run
resumes after the last stage that is done. If an input of a finished stage changed, the run refuses
to continue (StaleRunError) or redoes exactly what is affected (`redo`).

Round k+1 starts from the last step of round k's adapter, unless the gate or a person rolled it
back. Nothing is chosen on held-out maps.

Departures from the paper: by default a round's experience starts with that of the earlier rounds
(`carry_experience`), because a teacher that reads fewer rules than its student has absorbed makes
the student unlearn them. On a quarter of each batch the student reads the experience too
(`retention`). data/micro_lakes/README.md has the measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from .. import envs, given
from ..config import ModelConfig
from ..model.loading import policy_from_config
from ..model.lora import base_marks, same_base
from ..model.policy import Policy
from ..prompts import PromptSet, load_prompt_set
from ..records import ExperienceItem, State, Trajectory, read_jsonl, write_jsonl
from . import files, measures, work
from .context import HELD_OUT as HELD_OUT
from .driver import Driver, versions
from .estimate import Estimate, estimate
from .saved import SavedRun
from .settings import Settings, check_ranges, check_settings, run_folder
from .stages import read_prompts
from .table import ARMS, REHEARSAL

_LATER = ("rounds", "run_ablations", "gate")  # settings that can differ when a run is opened
# a run keeps these: every stage depends on them, or the run has its own copy of the file
_ALWAYS = (*(f.name for f in fields(ModelConfig)), "env", "seed", "rehearsal")


class Run(Driver, SavedRun):
    """A run folder, its settings and its policy; the methods are the stages of a round."""

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        policy: Policy | None = None,
        *,
        progress: bool = True,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Open a run, or start one; opening an existing run writes nothing.

        `on_step` receives the row of each training step, with its arm and round.

        Raises:
            ValueError: The settings are invalid, the folder cannot be written, or it holds a run
                with other settings or in an older format.
        """
        folder = given.path("folder", folder)
        self.folder, self.progress = run_folder(folder.name, folder.parent), progress
        self.on_step = on_step
        given.one("settings", settings, Settings, ', such as Settings.of("tiny")')
        if policy is not None:
            given.a_policy(policy)
            settings = replace(settings, **_as_loaded(policy))
        self.settings = settings
        check_ranges(asdict(settings))
        for world in {settings.env, envs.held_out(settings.env)}:
            envs.check(world)  # an unknown world fails before the model is loaded
        if settings.prompt_set:
            load_prompt_set(settings.prompt_set)  # and so does an unknown prompt set
        there, record = self.folder.exists(), self.folder / "run.json"
        if record.exists():
            files.refuse_links(self.folder)
            self._join()
            self._load_policy(policy)
            return
        files.try_to_write(self.folder)  # or fail before the model is loaded
        try:
            self._load_policy(policy)
            rehearsal = work.read_rehearsal(settings, self.policy)
        except BaseException:
            if not there and not any(self.folder.iterdir()):  # a misspelt model leaves no run
                self.folder.rmdir()
            raise
        if record.exists():  # another process was faster
            self._join()
            return
        self.settings = replace(settings, gate=settings.gate or "warn")
        if rehearsal:
            write_jsonl(self.folder / REHEARSAL, rehearsal)
        marks = {"base": base_marks(self.policy.model)} if _trains(self.policy) else {}
        files.write_json(record, self.record() | {"versions": versions(), **marks})

    @classmethod
    def open(
        cls,
        folder: str | Path,
        policy: Policy | None = None,
        *,
        progress: bool = True,
        **changes: Any,
    ) -> Run:
        """Open an existing run with its own settings, except for these changes.

        Stages that were done with another value become out of date; only `redo` does them again.

        Raises:
            ValueError: There is no such run or setting, or the change would make it another run.
        """
        theirs = asdict(saved := SavedRun(folder).settings)
        check_settings(theirs | changes)
        if changes.get("prompt_set"):
            load_prompt_set(changes["prompt_set"])  # or fail before the model is loaded
        changes["gate"] = changes.get("gate") or saved.gate  # none: keep the run's own
        for name, value in changes.items():
            less = name in ("rounds", "run_ablations") and value < theirs[name]
            if value != theirs[name] and (name in _ALWAYS or less):
                raise ValueError(
                    f"{folder} is a run with other settings: {name} was {theirs[name]!r}, is "
                    f"{value!r}; leave it out, or choose another name for the run"
                )
        run = cls(folder, saved, policy, progress=progress)
        run.settings = replace(run.settings, **changes)
        run.prompts = run._read_prompts()
        return run

    def _load_policy(self, policy: Policy | None) -> None:
        self.policy = policy or policy_from_config(self.settings)
        self.prompts = self._read_prompts()
        then = (files.read_object(self.folder / "run.json") or {}).get("base")
        if then and _trains(self.policy) and not same_base(then, self.policy.model):
            raise ValueError(
                f"{self.folder}: the weights of {self.policy.name} are other ones than when this "
                "run began; restore them, or choose another name for the run"
            )

    def _read_prompts(self) -> PromptSet:
        name = self.settings.prompt_set or self.policy.default_prompt_set
        return read_prompts(name, self.settings)

    def _join(self) -> None:
        """Keep the rounds and the gate of the run in the folder, unless more or another is asked;
        ValueError if other settings differ."""
        saved = SavedRun(self.folder).settings
        theirs = asdict(saved)
        ours = {k: v for k, v in asdict(self.settings).items() if k not in _LATER}
        differ = {k: v for k, v in ours.items() if theirs[k] != v}
        if differ:
            told = ", ".join(f"{k} was {theirs[k]!r}, is {v!r}" for k, v in differ.items())
            changes = ", ".join(f"{k}={v!r}" for k, v in differ.items())
            call = f"Run.open({str(self.folder)!r}"
            changed = "" if set(differ) & set(_ALWAYS) else f", or changed: {call}, {changes})"
            raise ValueError(
                f"{self.folder} holds a run with other settings ({told}): choose another name, or "
                f"open it as it is: {call}){changed}"
            )
        # a notebook that needs only round 1 must not drop the others
        rounds, gate = max(self.settings.rounds, saved.rounds), self.settings.gate or saved.gate
        self.settings = replace(self.settings, rounds=rounds, gate=gate)

    # -- folders, seeds, weights

    def promote(self, k: int) -> None:
        """Let round k+1 start from round k, whatever the gate found."""
        self._decide(k, keep=True)

    def rollback(self, k: int) -> None:
        """Let round k+1 start where round k started; the files of round k stay."""
        self._decide(k, keep=False)

    def _decide(self, k: int, keep: bool) -> None:
        with self._locked():
            self.stages.decide(given.whole("round", k), keep)

    # -- the stages of round k; each first does the missing stages before it

    def rollout(self, k: int) -> list[Trajectory]:
        """Play the games that experience is extracted from, without experience."""
        self.ensure(k, "rollout")
        return self.trajectories(k)

    def extract(self, k: int) -> list[ExperienceItem]:
        """Let the policy write down what the games teach, `num_draws` times."""
        self.ensure(k, "extract")
        return self.items(k)

    def curate(self, k: int) -> list[str]:
        """Decide on what no person has (see `auto_curate`), write what the teacher reads, and
        return one text per draw.

        Merged items and those that a person adds go into every draw. The stage is redone when the
        log changes, until something is trained on the text. An experience.md that a person wrote
        is used as it is and kept."""
        self.ensure(k, "curate")
        return work.read_texts(self, self.folder / f"round_{k}/experience.md")

    def experiences(self, k: int) -> list[str]:
        """Return the non-empty texts of `curate`, which the teacher reads.

        Raises:
            ValueError: All are empty.
        """
        self.ensure(k, "curate")
        return work.known_texts(self, k)

    def collect(self, k: int) -> list[State]:
        """Play other games; the prompts of their turns, without experience, are the states."""
        self.ensure(k, "collect")
        return read_jsonl(self.folder / f"round_{k}/states.jsonl", State)

    def distill(self, k: int) -> None:
        """Train the adapter of round k; a line per step goes to metrics.jsonl."""
        self.ensure(k, "distill")

    def evaluate(self, k: int) -> dict[str, Any]:
        """Measure the base, in-context and consolidated arms on held-out maps and return the
        round's metrics.
        """
        self.ensure(k, "evaluate")
        return measures.round_metrics(self, k)

    def ablations(self) -> dict[str, Any]:
        """Train and measure the other arms on round 1's states; return their rows."""
        for arm in ARMS:
            self.ensure(0, arm)
        return measures.arm_metrics(self)

    def estimate(self, price_per_hour: float | None = None) -> Estimate:
        """Estimate what a whole run with these settings needs on this machine; see `estimate`."""
        return estimate(type(self), self.settings, self.policy, price_per_hour)


def run_loop(
    folder: str | Path,
    settings: Settings,
    policy: Policy | None = None,
    *,
    progress: bool = True,
    redo: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Start or resume the whole loop in a folder and return its metrics.json."""
    return Run(folder, settings, policy, progress=progress, on_step=on_step).run_all(redo)


def _as_loaded(policy: Policy) -> dict[str, Any]:
    """The settings with which a later process loads the same model."""
    settings: dict[str, Any] = {"model": policy.name}
    if _trains(policy):
        settings["lora_rank"] = policy.model.peft_config["student"].r
    if policy.enable_thinking is not None:
        settings["enable_thinking"] = policy.enable_thinking
    return settings


def _trains(policy: Policy) -> bool:  # else it is a served or an exported model
    return hasattr(policy, "trainable")
