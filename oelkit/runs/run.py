"""The loop: rounds of rollout, extract, curate, collect, distill and evaluate in a run folder.

A stage collects its inputs from files alone, loads the weights that it starts from, works, leaves
the policy as it found it, and writes its outputs and its manifest (`stages` says what depends on
what). A run goes on after the last stage that is done, and where something changed under a stage
that is done, it refuses (StaleRunError) or does exactly that again (redo). Round k+1 starts from
round k's adapter (its last step: nothing is chosen on held-out maps), unless the gate or a person
rolled it back. Departure from the paper: by default a round's experience starts with what the
rounds before had (`carry_experience`), because a teacher that reads fewer rules than its student
has absorbed takes them back, and on a quarter of each batch the student reads the experience too
(`retention`); data/micro/README.md has the measurements."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from .. import envs
from ..model.loading import policy_from_config
from ..model.policy import Policy
from ..prompts import load_prompt_set
from ..records import ExperienceItem, State, Trajectory, read_jsonl
from ..steps.evaluation import probe
from . import files, gate, work
from .settings import Settings, run_folder
from .stages import ARMS, FORM, Stages, StageStatus, StaleRunError, read_run

HELD_OUT = 900_000_000  # first map seed of evaluation; games to learn from have lower ones
_LATER = ("rounds", "run_ablations", "gate")  # settings that may change in a run
_RANGES = {  # wider ones would let map seeds of rounds and runs meet
    "seed": (0, 899),
    "rounds": (1, 99),
    "extract_games": (1, 5_000),
    "state_games": (1, 5_000),
    "num_draws": (1, 1_000),
    "eval_maps": (1, 1_000_000),
    "samples_per_map": (1, 1_000),
}


class Run:
    """A run folder, its settings and its policy; the methods are the stages of a round."""

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        policy: Policy | None = None,
        *,
        progress: bool = True,
    ):
        """Open a run, or start one; looking at a run that is there writes nothing.

        Raises:
            ValueError: wrong settings, a folder that cannot be written, or that holds a run with
                other settings or of an older form.
        """
        self.folder, self.progress = run_folder(Path(folder).name, Path(folder).parent), progress
        self.settings = settings = replace(settings, model=policy.name) if policy else settings
        self._writing = False
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(settings, name) <= high:
                raise ValueError(f"{name} is {getattr(settings, name)}: must be {low} to {high}")
        if settings.gate not in gate.GATES:
            raise ValueError(f"gate={settings.gate!r}: say one of {', '.join(gate.GATES)}")
        envs.make(settings.env)  # an unknown world is an error now, not after the model is loaded
        if (self.folder / "run.json").exists():
            theirs = self._compare_settings()
            # a notebook that needs round 1 alone does not make the run forget the others
            self.settings = replace(settings, rounds=max(settings.rounds, theirs["rounds"]))
            self._load_policy(policy)
            return
        there = self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(self.folder / ".try", "")
            (self.folder / ".try").unlink()
        except OSError as error:  # before the model is loaded
            raise ValueError(
                f"cannot write the run folder {self.folder}: {error.strerror}"
            ) from error
        try:
            self._load_policy(policy)
        except BaseException:
            if not there:  # a misspelt model leaves no run behind
                self.folder.rmdir()
            raise
        files.write_json(self.folder / "run.json", self._record() | {"versions": versions()})

    @classmethod
    def open(
        cls, folder: str | Path, policy: Policy | None = None, *, progress: bool = True
    ) -> Run:
        """A run that is there, with its own settings."""
        return cls(
            folder, Settings(**read_run(Path(folder))["settings"]), policy, progress=progress
        )

    def _load_policy(self, policy: Policy | None) -> None:
        s = self.settings
        self.policy = policy or policy_from_config(s)
        prompts = load_prompt_set(s.prompt_set or self.policy.default_prompt_set)
        self.prompts = replace(prompts, max_new_tokens=s.max_new_tokens or prompts.max_new_tokens)

    def _record(self) -> dict[str, Any]:
        return {"form": FORM, "settings": asdict(self.settings), "prompts": asdict(self.prompts)}

    def _compare_settings(self) -> dict[str, Any]:
        theirs = asdict(Settings()) | read_run(self.folder)["settings"]
        ours = {k: v for k, v in asdict(self.settings).items() if k not in _LATER}
        differ = ", ".join(
            f"{k} was {theirs[k]!r}, is {v!r}" for k, v in ours.items() if theirs[k] != v
        )
        if differ:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({differ}): take another name or "
                "delete it"
            )
        return theirs

    # -- folders, seeds, weights

    def round_folder(self, k: int) -> Path:
        """round_K of this run, made if missing."""
        folder = self.folder / f"round_{k}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def eval_env(self) -> str:
        """The world of evaluation: the held-out layouts where there are such, else the same."""
        return envs.held_out(self.settings.env)

    @property
    def eval_seeds(self) -> range:
        """Map seeds of evaluation, the same for every arm, round and run."""
        return range(HELD_OUT, HELD_OUT + self.settings.eval_maps)

    @property
    def stages(self) -> Stages:
        """The stages as they stand now."""
        return Stages(self.folder, asdict(self.settings), asdict(self.prompts))

    def load(self, k: int, trained: bool = True) -> None:
        """Put the weights of round k into the policy.

        Args:
            k: the round.
            trained: the student as it is after the round's training; else as the round starts.
                The teacher is the start of the round in both cases.
        """
        if start := self.stages.start(k):
            self.policy.load_adapter(self.folder / f"round_{start}/adapter")
            self.policy.sync_teacher()
        else:
            self.policy.reset()
        if trained:
            self.policy.load_adapter(self.folder / f"round_{k}/adapter")

    def promote(self, k: int) -> None:
        """Let round k+1 start from round k, whatever the gate found."""
        self._decide(k, k)

    def rollback(self, k: int) -> None:
        """Let round k+1 start from where round k started; the files of round k stay."""
        self._decide(k, self.stages.start(k))

    def _decide(self, k: int, start: int) -> None:
        with self._locked():
            self.stages.decide(k, start)

    def probe(self, adapter: str | None = "student") -> dict[str, float] | None:
        """What the model still answers right that has nothing to do with the world; None without a
        probe.jsonl.
        """
        path = Path(self.policy.source) / "probe.jsonl"
        return probe(self.policy, path, adapter=adapter) if path.is_file() else None

    # -- what is done, and doing it

    def status(self) -> list[StageStatus]:
        """How each stage of each round stands: done, missing, or stale and why."""
        return self.stages.statuses()

    def ensure(self, k: int, stage: str, redo: bool = False) -> None:
        """Do a stage, and before it what it needs, unless that is done.

        Raises:
            StaleRunError: one of them is out of date and redo is False; nothing was done then.
        """
        if self.stages.status(k, stage).state == "done":
            return
        self._refuse(self._needs(k, stage), redo)
        with self._locked():
            self._ensure(k, stage, redo)

    def run_all(self, redo: bool = False) -> dict[str, Any]:
        """All rounds, done or yet to do, then metrics.json of the whole run; returns it.

        Args:
            redo: do again what is out of date, and no more.

        Raises:
            StaleRunError: something is out of date and redo is False.
        """
        self._refuse(statuses := self.status(), redo)
        if any(status.state != "done" for status in statuses):
            with self._locked():
                for k, stage in list(self.stages.nodes()):
                    self.ensure(k, stage, redo)
                    if stage == "curate":  # nothing to distill is an error before any more is done
                        work.known_texts(self, k)
        return files.read_json(self.folder / "metrics.json")

    def redo(self) -> list[StageStatus]:
        """Do again what is out of date, and no more; returns how those stages stood before."""
        stale = [status for status in self.status() if status.state == "stale"]
        for status in stale:
            if status.stage != "metrics" or all(s.state == "done" for s in self.status()[:-1]):
                self.ensure(status.round, status.stage, redo=True)
        return stale

    def _refuse(self, statuses: list[StageStatus], redo: bool) -> None:
        if not redo and (stale := self.stages.blocking(statuses)):
            raise StaleRunError(self.folder, self.stages.blocking(self.status()) or stale)

    def _needs(self, k: int, stage: str) -> list[StageStatus]:
        """The stages that are not done among a stage and those before it."""
        stages, seen = self.stages, {}

        def visit(node: tuple[int, str]) -> None:
            status = stages.status(*node)
            if node not in seen and status.state != "done":
                for other in [*stages.before(*node), *self._judged(node)]:
                    visit(other)
                seen[node] = status

        visit((k, stage))
        return list(seen.values())

    def _judged(self, node: tuple[int, str]) -> list[tuple[int, str]]:
        """The evaluation on which it depends what a stage starts from."""
        waits = node[0] > 1 and self.settings.gate in ("stop", "rollback")
        return [(node[0] - 1, "evaluate")] if waits else []

    def _ensure(self, k: int, stage: str, redo: bool) -> None:
        if self.stages.status(k, stage).state == "done":
            return
        for node in self._judged((k, stage)):  # first: what it starts from depends on it
            self._ensure(*node, redo)
        stages, stops = self.stages, k > 1 and self.settings.gate == "stop"
        if stops and (lost := stages.lost(k - 1)) and not stages.decided(k):
            raise ValueError(
                f"round {k} does not start: {lost}; let it start from round {k - 1} all the same "
                f"with run.promote({k - 1}), or from the one before with run.rollback({k - 1})"
            )
        for node in stages.before(k, stage):
            self._ensure(*node, redo)
        if stages.status(k, stage).state != "done":
            self._do(k, stage)

    def _do(self, k: int, stage: str) -> None:
        """One stage: its work in a folder of its own, then all of it into place."""
        stages, began = self.stages, time.perf_counter()
        manifest = {"inputs": stages.hashes(k, stage), "settings": stages.slice(k, stage)}
        home = stages.manifest_path(k, stage).parent
        home.mkdir(parents=True, exist_ok=True)
        partial, checkpoint = home / f".{stage}.partial", home / f".{stage}.checkpoint"
        files.remove(partial)
        partial.mkdir()
        self._note_settings()
        try:
            with self.policy.as_found():
                self.start_stage(k, stage)
                if stage in ARMS:
                    notes = work.run_arm(self, stage, partial, checkpoint)
                elif stage == "distill":
                    notes = work.distill(self, k, partial, checkpoint)
                else:
                    notes = getattr(work, stage)(self, k, partial)
        except KeyboardInterrupt as stop:
            where = f" ({stop})" if str(stop) else ""
            raise KeyboardInterrupt(
                f"stopped in {stage} of round {k}{where}; go on with `python -m oelkit loop --run "
                f"{self.folder.name} --resume`"
            ) from None
        else:
            manifest["inputs"] |= notes.pop("inputs", {})
            manifest |= {"stage": stage, "round": k, **notes, "versions": versions()}
            manifest["seconds"] = round(time.perf_counter() - began, 2)
            ours = (stages.manifest(k, stage) or {"outputs": {}})["outputs"]
            place = f"round_{k}/" if k else "ablations/" * (stage in ARMS)
            at = stages.manifest_path(k, stage)
            files.commit(partial, self.folder, place, ours, manifest, at)
            files.remove(checkpoint)
        finally:
            files.remove(partial)

    def start_stage(self, k: int, stage: str) -> None:
        """Put the weights that a stage starts from into the policy."""
        if stage not in ("base", "curate", "metrics"):
            self.load(max(k, 1), trained=stage == "evaluate")

    def _note_settings(self) -> None:
        """Keep in run.json what may change in a run, once a stage runs with it."""
        path = self.folder / "run.json"
        old = read_run(self.folder)
        new = old | self._record()
        new["settings"]["rounds"] = max(old["settings"]["rounds"], self.settings.rounds)
        new["settings"]["run_ablations"] |= old["settings"]["run_ablations"]
        if new != old:
            files.write_json(path, new)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._writing:
            yield
            return
        with files.locked(self.folder):
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    # -- the stages of round k; earlier ones that are missing are done first

    def rollout(self, k: int) -> list[Trajectory]:
        """Play the games that experience is extracted from, without experience."""
        self.ensure(k, "rollout")
        return read_jsonl(self.folder / f"round_{k}/trajectories.jsonl", Trajectory)

    def extract(self, k: int) -> list[ExperienceItem]:
        """Let the policy write down what the games teach, `num_draws` times."""
        self.ensure(k, "extract")
        return read_jsonl(self.folder / f"round_{k}/items.jsonl", ExperienceItem)

    def curate(self, k: int) -> list[str]:
        """Accept what no person has decided on (see `auto_curate`) and write what the teacher
        reads; returns one text per draw.

        What a person adds, and what was merged, is for every draw. Done again where the log
        changed, until something is trained on the text; an experience.md that a person wrote is
        what counts, and stays."""
        self.ensure(k, "curate")
        return work.read_texts(self, self.folder / f"round_{k}/experience.md")

    def experiences(self, k: int) -> list[str]:
        """The texts of `curate` that say anything, which the teacher reads.

        Raises:
            ValueError: none does.
        """
        self.ensure(k, "curate")
        return work.known_texts(self, k)

    def collect(self, k: int) -> list[State]:
        """Play other games without experience: the prompts of their turns are the states."""
        self.ensure(k, "collect")
        return read_jsonl(self.folder / f"round_{k}/states.jsonl", State)

    def distill(self, k: int) -> None:
        """Train the adapter of round k; a line per step goes to metrics.jsonl."""
        self.ensure(k, "distill")

    def evaluate(self, k: int) -> dict[str, Any]:
        """Measure base, in-context and consolidated arms on held-out maps; returns the metrics of
        the round.
        """
        self.ensure(k, "evaluate")
        return work.round_metrics(self, k)

    def ablations(self) -> dict[str, Any]:
        """The other arms from round 1's states, one after the other; see `ablations`."""
        for arm in ARMS:
            self.ensure(0, arm)
        return work.arm_metrics(self)

    def write_experience(self, k: int, texts: Sequence[str]) -> None:
        """Let the teacher of round k read these texts, one per draw, in place of what `curate`
        would write; they stay until a person deletes the file.
        """
        path = self.round_folder(k) / "experience.md"
        self.stages.manifest_path(k, "curate").unlink(missing_ok=True)
        files.write_text(path, work.as_draws(texts))


def run_loop(
    folder: str | Path,
    settings: Settings,
    policy: Policy | None = None,
    *,
    progress: bool = True,
    redo: bool = False,
) -> dict[str, Any]:
    """Run, or go on with, the whole loop in a folder; returns what is in its metrics.json."""
    return Run(folder, settings, policy, progress=progress).run_all(redo)


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, for the record."""
    packages = ("torch", "transformers", "peft", "gymnasium")
    return {"python": python_version(), **{p: version(p) for p in packages}}
