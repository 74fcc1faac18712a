"""Drives a run: decides which stages to do and in which order, and does them.

A stage reads its inputs only from files, loads the weights that it starts from and works in a
folder of its own. It leaves the policy as it found it, then moves its outputs and manifest into
place."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from .. import given
from ..records import write_text
from . import files, measures, work
from .context import RunContext
from .settings import Settings, as_argument, wrong
from .stages import FORM, StageStatus, StaleRunError, read_run
from .table import ARMS, FILES, STAGES, Node

WORK = {
    "rollout": work.rollout,
    "extract": work.extract,
    "curate": work.curate,
    "collect": work.collect,
    "distill": work.distill,
    "evaluate": measures.evaluate,
    "base": measures.base,
    "metrics": measures.metrics,
} | {arm: partial(measures.run_arm, arm) for arm in ARMS}


class Driver(RunContext):
    """A run that does its stages in order, each only when needed."""

    _writing = False
    _seen: Mapping[Node, StageStatus] = {}
    """Status of the stages of earlier rounds when the current round began."""
    _stamps: Sequence[Any] = ()
    """Stamps of the files of each earlier round at that time, from round 1 on."""

    def load(self, k: int, trained: bool = True) -> None:
        """Put the weights of round k into the policy.

        Args:
            k: The round.
            trained: Load the student as it is after the round's training; otherwise as the round
                starts. The teacher is the start of the round in both cases.
        """
        if start := self.stages.start(k):
            self.policy.load_adapter(self.folder / f"round_{start}/adapter")
            self.policy.sync_teacher()
        else:
            self.policy.reset()
        if trained:
            self.policy.load_adapter(self.folder / f"round_{k}/adapter")

    def round_folder(self, k: int) -> Path:
        """Return the folder round_K of this run; create it if missing."""
        folder = self.folder / f"round_{k}"
        folder.mkdir(exist_ok=True)
        return folder

    def write_experience(self, k: int, texts: Sequence[str]) -> None:
        """Write round k's experience.md with these texts, one per draw, instead of `curate`'s.

        The teacher reads them. They stay until a person deletes the file; what a person wrote there
        before is kept as experience.old.md. ValueError unless there is a text for each draw.
        """
        text, draws = work.as_draws(texts := given.texts("texts", texts)), self.settings.num_draws
        if len(texts) != draws:
            raise ValueError(f"{len(texts)} texts for {draws} draws: give each draw its text")
        path = self.round_folder(given.count("round", k)) / "experience.md"
        if self.stages.by_hand(k, "curate") and given.text_file(path) != text:
            files.keep_aside(path)
        write_text(path, text)  # first: without its manifest, a text of `curate` passes for theirs
        self.stages.manifest_path(k, "curate").unlink(missing_ok=True)

    def start_stage(self, k: int, stage: str) -> None:
        """Load the weights that a stage starts from into the policy."""
        if stage not in ("base", "curate", "metrics"):
            self.load(max(k, 1), trained=stage == "evaluate")

    def status(self) -> list[StageStatus]:
        """Return the status of each stage of each round: done, missing, or stale and why."""
        return self.stages.statuses()

    def ensure(self, k: int, stage: str, redo: bool = False) -> None:
        """Do a stage, and first the stages that it needs, skipping those that are done.

        Raises:
            StaleRunError: One of them is out of date and redo is False. Nothing was done.
            ValueError: There is no such round.
        """
        if stage in STAGES and (said := wrong("rounds", given.whole("round", k))):
            raise ValueError(f"round {k}: a round {said}")
        if self._writing and stage == STAGES[0]:  # once per round, not once per stage
            self._look(k)
        if self.stages.status(k, stage, self._earlier(k)).state == "done":
            return
        self._refuse(needs := self._needs((k, stage)), redo)
        with self._locked():
            if len(needs) == 1:
                self._do(k, stage)
                return
            for status in needs:
                self.ensure(status.round, status.stage, redo)

    def run_all(self, redo: bool = False) -> dict[str, Any]:
        """Do what is missing in all rounds, then return the metrics.json of the whole run.

        Args:
            redo: Redo what is out of date, and nothing else.

        Raises:
            StaleRunError: Something is out of date and redo is False.
        """
        self._refuse(statuses := self.status(), redo)
        if left := [status for status in statuses if status.state != "done"]:
            with self._locked():
                for status in left:
                    if status.stage == "collect":  # play no games if there is nothing to distill
                        work.known_texts(self, status.round)
                    self.ensure(status.round, status.stage, redo)
        return files.read_json(self.folder / "metrics.json")

    def redo(self) -> list[StageStatus]:
        """Redo what is out of date, and nothing else; return those stages as they were before."""
        stale = [status for status in self.status() if status.state == "stale"]
        for status in stale:
            if status.stage != "metrics" or all(s.state == "done" for s in self.status()[:-1]):
                self.ensure(status.round, status.stage, redo=True)
        return stale

    def _look(self, k: int) -> None:
        """Note the status of the rounds before k; look again only if one of their files changed."""
        stages, old, root = self.stages, self._stamps, self.folder
        stamps = [[files.stamp(f"{root}/{n.format(k=j)}") for n in FILES] for j in range(1, k)]
        seen = dict(self._seen) if stamps[: len(old)] == old else {}
        for node in itertools.product(range(1, k), STAGES):
            stages.status(*node, seen)
        self._seen, self._stamps = seen, stamps

    def _earlier(self, k: int) -> dict[Node, StageStatus]:
        """The stages of the rounds before k that are known to be done."""
        return {n: s for n, s in self._seen.items() if 0 < n[0] < k and s.state == "done"}

    def _refuse(self, statuses: list[StageStatus], redo: bool) -> None:
        if not redo and (stale := self.stages.blocking(statuses)):
            raise StaleRunError(self.folder, self.stages.blocking(self.status()) or stale)

    def _needs(self, node: Node) -> list[StageStatus]:
        """A stage and those it needs that are not done, each after those that it needs itself."""
        stages, needs, nodes, known = self.stages, {}, [node], self._earlier(node[0])
        while nodes:
            before = [n for n in stages.before(*nodes[-1]) if n not in needs]
            if left := [n for n in before if stages.status(*n, known).state != "done"]:
                nodes += left[::-1]
            else:
                node = nodes.pop()
                needs[node] = stages.status(*node, known)
        return list(needs.values())

    def _do(self, k: int, stage: str) -> None:
        stages, began = self.stages, time.perf_counter()
        lost = stages.lost(k - 1) if self.settings.gate == "stop" else ""
        if lost and not stages.decided(k):
            raise ValueError(
                f"round {k} does not start: {lost}. To start it from round {k - 1} anyway, call "
                f"run.promote({k - 1}); to start it where that round started, run.rollback({k - 1})"
            )
        if k > self.settings.rounds:  # run.json and the status then know of this round
            self.settings = replace(self.settings, rounds=k)
        self._note_settings()
        manifest = {"inputs": stages.hashes(k, stage), "settings": stages.slice(k, stage)}
        at = stages.manifest_path(k, stage)
        folder = at.with_name(f".{stage}.partial")
        if self.progress:
            print(f"round {k}: {stage}" if k else f"run: {stage}", flush=True)
        files.remove(folder)
        folder.mkdir(parents=True)
        if at.exists():  # so that `sweep` keeps this try's checkpoint, whatever the clock says
            os.utime(at, (0, 0))
        try:
            with self.policy.as_found():
                self.start_stage(k, stage)
                notes = WORK[stage](self, k, folder)
            manifest["inputs"] |= notes.pop("inputs", {})
            manifest |= {"stage": stage, "round": k, **notes, "versions": versions()}
            manifest["seconds"] = round(time.perf_counter() - began, 2)
            ours = (stages.manifest(k, stage) or {"outputs": {}})["outputs"]
            place = f"round_{k}/" if k else "ablations/" * (stage in ARMS)
            self.check_ours()
            files.commit(folder, self.folder, place, ours, manifest, at)
            files.remove(work.checkpoint(folder))
        except KeyboardInterrupt as stop:
            name = StageStatus(k, stage, "missing").name
            where = f" ({stop})" if str(stop) else ""
            more = " --run-ablations" * (stage in ARMS and not self.settings.run_ablations)
            raise KeyboardInterrupt(
                f"stopped in {name}{where}; resume with `oelkit loop "
                f"--run {as_argument(self.folder)} --resume{more}`"
            ) from None
        finally:
            if self.ours():
                files.remove(folder)

    def record(self) -> dict[str, Any]:
        """Return the content of run.json without the versions."""
        return {"form": FORM, "settings": asdict(self.settings), "prompts": asdict(self.prompts)}

    def _note_settings(self) -> None:
        """Record in run.json the settings that can change within a run, once a stage uses them."""
        old = read_run(self.folder)
        old["settings"] = asdict(Settings()) | old["settings"]
        new = old | self.record()
        new["settings"]["rounds"] = max(old["settings"]["rounds"], self.settings.rounds)
        new["settings"]["run_ablations"] |= old["settings"]["run_ablations"]
        if new != old:
            files.write_json(self.folder / "run.json", new)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._writing:
            yield
            return
        with files.locked(self.folder) as ours:
            self._writing, self.ours = True, ours
            try:
                yield
            finally:
                self._writing, self._seen, self._stamps = False, {}, ()
                del self.ours


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = ("torch", "transformers", "peft", "gymnasium")
    return {"python": python_version(), **{p: version(p) for p in packages}}
