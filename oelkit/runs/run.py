"""The loop: rounds of rollout, extract, curate, collect, distill and evaluate in a run folder.

Every stage reads and writes files of its round, so that a run goes on after the last finished
stage, and a notebook can call the stages one by one. Round k+1 starts from round k's adapter (its
last step: nothing is chosen on held-out maps). Departure from the paper: by default a round's
experience starts with what the rounds before had (`carry`), because a teacher that reads fewer
rules than its student has absorbed takes them back, and on a quarter of each batch the student
reads the experience too (`retain`); data/micro/README.md has the measurements."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from .. import envs
from ..auto_curation import auto_curate
from ..curation import Curation, items_for_draw
from ..model.loading import load_policy
from ..model.policy import Policy
from ..prompts import load_prompt_set
from ..records import (
    ExperienceItem,
    RecordError,
    State,
    Trajectory,
    append_jsonl,
    read_jsonl,
    write_jsonl,
)
from ..steps.distillation import distill
from ..steps.evaluation import EvalReport, evaluate, probe
from ..steps.extraction import extract
from ..steps.rollouts import raw_games_text, rollout, states
from ..text import join_experience, truncate_to_budget
from .settings import Settings

HELD_OUT = 900_000_000  # first map seed of evaluation; games to learn from have lower ones


class Run:
    """A run folder, its settings and its policy; the methods are the stages of a round, skipped
    where they are done.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        policy: Policy | None = None,
        *,
        progress: bool = True,
    ):
        """Open a run, or go on with one: ValueError where the folder holds a run with other
        settings.
        """
        self.folder, self.progress = run_folder(Path(folder).name, Path(folder).parent), progress
        self.settings = settings = replace(settings, model=policy.name) if policy else settings
        for name, low, high in (
            ("seed", 0, 899),
            ("rounds", 1, 99),
            ("games", 1, 5_000),
            ("collect", 1, 5_000),
            ("draws", 1, 1_000),
            ("episodes", 1, 1_000_000),
            ("samples", 1, 1_000),
        ):
            if (
                not low <= getattr(settings, name) <= high
            ):  # else map seeds of rounds and runs would meet
                raise ValueError(f"{name} is {getattr(settings, name)}: must be {low} to {high}")
        envs.make(settings.env)  # an unknown world is an error now, not after the model is loaded
        record = self.folder / "run.json"
        if record.exists():
            self._compare_settings(record)
        there = self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "run.json.try", "")
            (self.folder / "run.json.try").unlink()
        except OSError as error:  # before the model is loaded
            raise ValueError(
                f"cannot write the run folder {self.folder}: {error.strerror}"
            ) from error
        try:
            self.policy = policy or load_policy(settings.model, dtype=settings.dtype)
            self.prompts = load_prompt_set(settings.prompts or self.policy.default_prompt_set)
            self.prompts = replace(
                self.prompts, max_new_tokens=settings.max_new_tokens or self.prompts.max_new_tokens
            )
        except BaseException:
            if not there:  # a misspelt model leaves no run behind
                self.folder.rmdir()
            raise
        _write_json(
            record,
            {"settings": asdict(settings), "prompts": asdict(self.prompts), "versions": versions()},
        )
        self.play = {
            "prompt_set": self.prompts,
            "temperature": settings.temperature,
            "progress": progress,
        }

    def _compare_settings(self, record: Path) -> None:
        try:
            theirs = asdict(Settings()) | json.loads(record.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{record}: not a run's record ({error!r}); choose another name or delete it"
            ) from error
        ours = {
            k: v for k, v in asdict(self.settings).items() if k not in ("rounds", "arms")
        }  # may be added later
        differ = ", ".join(
            f"{k} was {theirs[k]!r}, is {v!r}" for k, v in ours.items() if theirs[k] != v
        )
        if differ:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({differ}): take another name or delete it"
            )

    # -- folders, seeds, weights

    def round_folder(self, k: int) -> Path:
        """round_K of this run, made if missing."""
        folder = self.folder / f"round_{k}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def eval_env(self) -> str:
        """The world of evaluation: the held-out layouts where there are such, else the same world."""
        return envs.held_out(self.settings.env)

    @property
    def eval_seeds(self) -> range:
        """Map seeds of evaluation, the same for every arm, round and run."""
        return range(HELD_OUT, HELD_OUT + self.settings.episodes)

    def start_round(self, k: int) -> None:
        """Give student and teacher the weights that round k starts from."""
        if k == 1:
            self.policy.reset()
        else:
            self.policy.load_adapter(self.round_folder(k - 1) / "adapter")
            self.policy.sync_teacher()

    def _seeds(self, k: int, first: int, n: int) -> range:
        start = self.settings.seed * 1_000_000 + k * 10_000 + first
        return range(start, start + n)

    def _timed(self, k: int, stage: str, done: Path, work: Callable[[], None]) -> None:
        """Do a stage unless its file is there, from the weights that its round starts from, and
        note its seconds.
        """
        if done.exists():
            return
        self.start_round(k)
        began = time.perf_counter()
        work()
        path = self.round_folder(k) / "seconds.json"
        seconds = json.loads(path.read_text()) if path.exists() else {}
        _write_json(path, {**seconds, stage: round(time.perf_counter() - began, 2)})

    # -- the stages of round k; each reads the files of the stages before it, and makes those that
    # are missing

    def rollout(self, k: int) -> list[Trajectory]:
        """Play the games that experience is extracted from, without experience."""
        path, s = self.round_folder(k) / "trajectories.jsonl", self.settings
        self._timed(
            k,
            "rollout",
            path,
            lambda: write_jsonl(
                path,
                rollout(
                    self.policy,
                    s.env,
                    self._seeds(k, 0, s.games),
                    seed=s.seed * 100 + k,
                    round=k,
                    **self.play,
                ),
            ),
        )
        return read_jsonl(path, Trajectory)

    def extract(self, k: int) -> list[ExperienceItem]:
        """Let the policy write down what the games teach, `draws` times."""
        path, s = self.round_folder(k) / "items.jsonl", self.settings

        def work() -> None:
            counts = Counter()
            items = extract(
                self.policy,
                self.rollout(k),
                self._before(k),
                draws=s.draws,
                budget_tokens=s.budget_tokens,
                seed=s.seed * 100 + k,
                round=k,
                on_step=counts.update,
                **(self.play | {"temperature": 0.7}),
            )
            log = path.parent / "curation.jsonl"
            if log.exists():  # of other items: it does not fit these, but nobody's work is deleted
                log.rename(path.parent / "curation.old.jsonl")
            _write_json(path.with_name("extraction.json"), counts)
            write_jsonl(path, items)

        self._timed(k, "extract", path, work)
        return read_jsonl(path, ExperienceItem)

    def curate(self, k: int) -> list[str]:
        """Accept what no person has decided on (see `auto_curate`) and write what the teacher
        reads, one text a draw.

        What a person adds, and what was merged, is for every draw. Done anew where items.jsonl or
        curation.jsonl is newer than experience.md."""
        folder = self.round_folder(k)
        path, sources = (
            folder / "experience.md",
            [folder / "items.jsonl", folder / "curation.jsonl"],
        )

        def work() -> None:
            self.extract(k)
            before = self._before(k)
            kept = auto_curate(
                Curation.open(*sources), self.settings.draws if any(before) else None
            ).kept()
            texts = [
                join_experience(old, items_for_draw(kept, d, old)) for d, old in enumerate(before)
            ]
            self.write_experience(
                k,
                [
                    truncate_to_budget(text, self.settings.budget_tokens, self.policy.tokenizer)
                    for text in texts
                ],
            )

        if path.exists() and any(
            f.exists() and f.stat().st_mtime_ns > path.stat().st_mtime_ns for f in sources
        ):
            path.unlink()
        self._timed(k, "curate", path, work)
        parts = re.split(r"^## Draw \d+$", path.read_text(encoding="utf-8"), flags=re.M)
        # a person's file may lack the headings
        return [text.strip() for text in parts[1:] or parts * self.settings.draws]

    def write_experience(self, k: int, texts: Sequence[str]) -> None:
        """Let the teacher of round k read these texts, one a draw, in place of what `curate` would
        write.
        """
        _write(
            self.round_folder(k) / "experience.md",
            "".join(f"## Draw {d}\n{t}\n\n" for d, t in enumerate(texts)),
        )

    def experiences(self, k: int) -> list[str]:
        """The texts of `curate` that say anything, which the teacher reads; ValueError where none
        does.
        """
        texts, folder = [text for text in self.curate(k) if text], self.round_folder(k)
        if not texts and (items := self.extract(k)):
            raise ValueError(
                f"nothing to distill in round {k}: all {len(items)} items were rejected; restore or add "
                f"some in {folder / 'curation.jsonl'}"
            )
        if not texts:
            raise ValueError(
                f"nothing to distill in round {k}: {self.policy.name} wrote no item about "
                f"{self.settings.games} games (draws: {self.settings.draws}); start a run with more games "
                f"or a higher temperature, or write items by hand into "
                f"{folder / 'items.jsonl'}"
            )
        return texts

    def collect(self, k: int) -> list[State]:
        """Play other games without experience: the prompts of their turns are the training states."""
        path, s = self.round_folder(k) / "states.jsonl", self.settings
        self._timed(
            k,
            "collect",
            path,
            lambda: write_jsonl(
                path,
                states(
                    rollout(
                        self.policy,
                        s.env,
                        self._seeds(k, 5_000, s.collect),
                        seed=s.seed * 100 + k + 50,
                        round=k,
                        **self.play,
                    )
                ),
            ),
        )
        return read_jsonl(path, State)

    def distill(self, k: int) -> None:
        """Train the adapter of round k from the states and the texts; a line a step goes to
        metrics.jsonl.
        """
        path = self.round_folder(k) / "adapter"
        self._timed(
            k,
            "distill",
            path,
            lambda: self._train(k, f"round {k}", self.experiences(k), self.settings.loss, path),
        )
        self.policy.load_adapter(path)

    def evaluate(self, k: int) -> dict:
        """Measure base, in-context and consolidated arms on held-out maps; returns and writes the
        round's metrics.
        """
        path = self.round_folder(k) / "metrics.json"

        def work() -> None:
            self.policy.load_adapter(path.parent / "adapter")
            one = self.round_folder(1) / "metrics.json"
            first = not one.exists()
            arms = {"base": self._measure(adapter=None)} if first else {}
            texts = self.experiences(k)
            arms["in_context"] = self._measure(texts, adapter="teacher")
            arms["consolidated"] = self._measure()
            ood = {"base": self.probe(None)} if first else {}
            ood["consolidated"] = self.probe("student")
            rows = {
                name: {**report.summary(), "passes": report.passes_string}
                for name, report in arms.items()
            }
            passes = arms["in_context"].passes
            by_draw = [passes[d :: len(texts)] for d in range(len(texts))]
            rows["in_context"]["by_draw"] = [sum(p) / len(p) for p in by_draw if p]
            if not first:
                theirs = json.loads(one.read_text())
                rows["base"], ood["base"] = theirs["pass_rate"]["base"], theirs["ood"]["base"]
            items = self.extract(k)
            kept = Curation.open(path.parent / "items.jsonl", path.parent / "curation.jsonl").kept()
            counts = path.with_name(
                "extraction.json"
            )  # there is none for items that a person put there
            _write_json(
                path,
                {
                    "round": k,
                    "pass_rate": rows,
                    "ood": ood,
                    "items": len(items),
                    "kept": len(kept),
                    "extraction": json.loads(counts.read_text()) if counts.exists() else None,
                },
            )

        if not path.exists():
            self.distill(k)
        self._timed(k, "evaluate", path, work)
        metrics = json.loads(path.read_text())
        for kind in ("reply_tokens", "truncated"):
            metrics[kind] = {name: row[kind] for name, row in metrics["pass_rate"].items()}
        return {
            **metrics,
            "seconds": json.loads((self.round_folder(k) / "seconds.json").read_text()),
        }

    def compare(self) -> dict:
        """The other arms from round 1's states: off-policy KL, SFT, and raw trajectories in place
        of items.
        """
        path = self.folder / "comparison.json"
        if not path.exists():
            self.start_round(1)
            texts, games = self.experiences(1), self.rollout(1)
            raw = [raw_games_text([game], self.prompts) for game in games[: self.settings.draws]]
            result = {"raw": {"in_context": self._measure(raw).summary()}}
            for arm, loss in (("forward_kl", "forward_kl"), ("sft", "sft"), ("raw", "reverse_kl")):
                self.policy.reset()
                self._train(1, arm, raw if arm == "raw" else texts, loss, None)
                row = {"consolidated": self._measure().summary(), "ood": self.probe("student")}
                result.setdefault(arm, {}).update(row)
            _write_json(path, result)
            if (whole := self.folder / "metrics.json").exists():
                _write_json(whole, {**json.loads(whole.read_text()), "arms": result})
        return json.loads(path.read_text())

    def finish(self) -> dict:
        """All rounds, done or yet to do, then metrics.json of the whole run; returns it."""
        rounds = []
        for k in range(1, self.settings.rounds + 1):
            for stage in (self.rollout, self.extract, self.experiences, self.collect, self.distill):
                stage(k)
            rounds.append(self.evaluate(k))
        metrics = {
            "run": self.folder.name,
            "env": self.settings.env,
            "eval_env": self.eval_env,
            "model": self.policy.name,
            "seed": self.settings.seed,
            "bounds": envs.bounds(self.eval_env, self.eval_seeds),
            "rounds": rounds,
        }
        if self.settings.arms or (self.folder / "comparison.json").exists():
            metrics["arms"] = self.compare()
        _write_json(self.folder / "metrics.json", metrics)
        self.policy.load_adapter(
            self.round_folder(self.settings.rounds) / "adapter"
        )  # not the last arm's
        return metrics

    # -- helpers

    def _before(self, k: int) -> list[str]:
        """What the draws of round k already know."""
        return self.curate(k - 1) if k > 1 and self.settings.carry else [""] * self.settings.draws

    def _train(self, k: int, arm: str, texts: list[str], loss: str, folder: Path | None) -> None:
        s, lines = self.settings, self.folder / "metrics.jsonl"
        if lines.exists():  # steps of a try that was cut off
            try:
                rows = read_jsonl(lines)
            except RecordError as error:
                rows = error.records
            write_jsonl(lines, [row for row in rows if row["arm"] != arm])
        distill(
            self.policy,
            self.collect(k),
            texts,
            steps=s.steps,
            batch_size=s.batch_size,
            lr=s.lr,
            loss=loss,
            top_k=s.top_k,
            temperature=s.temperature,
            retention=s.retain,
            max_new_tokens=s.max_new_tokens,
            prompt_set=self.prompts,
            seed=s.seed * 100 + k,
            progress=self.progress,
            on_step=lambda row: append_jsonl(lines, {"arm": arm, "round": k, **row}),
        )
        if folder:
            partial = folder.with_name("adapter.partial")
            self.policy.save_adapter(partial)
            partial.rename(folder)

    def _measure(self, texts: list[str] | str = "", adapter: str | None = "student") -> EvalReport:
        s = self.settings
        return evaluate(
            self.policy,
            self.eval_env,
            self.eval_seeds,
            texts,
            adapter=adapter,
            prompt_set=self.prompts,
            sampling_seeds=[s.seed * s.samples + i for i in range(s.samples)],
            progress=self.progress,
        )

    def probe(self, adapter: str | None = "student") -> dict[str, float] | None:
        """What the model still answers right that has nothing to do with the world; None without a
        probe.jsonl.
        """
        path = Path(self.policy.source) / "probe.jsonl"
        return probe(self.policy, path, adapter=adapter) if path.is_file() else None


def run_folder(name: str, root: str | Path = "runs") -> Path:
    """The folder of a run by its name; ValueError for a name that is none (a slash in it, say)."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            f"run name {name!r}: use letters, digits, '_', and behind the first of them also '.' and '-'"
        )
    return Path(root) / name


def run_loop(
    folder: str | Path, settings: Settings, policy: Policy | None = None, *, progress: bool = True
) -> dict:
    """Run, or go on with, the whole loop in a folder; returns what is in its metrics.json."""
    return Run(folder, settings, policy, progress=progress).finish()


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, for the record."""
    packages = ("torch", "transformers", "peft", "gymnasium")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _write_json(path: Path, value: dict) -> None:
    _write(path, json.dumps(value, indent=1) + "\n")
