"""Status of each stage: done, missing, or stale and why.

A stage is done when its file exists and its manifest, `manifests/STAGE.json` beside it, records the
current inputs and output (by hash) and the current settings. A file that the stage did not write
(no manifest, or another hash) is a person's: it is used and never overwritten. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..prompts import PromptSet, load_prompt_set
from . import table
from .files import read_object, sha256, write_json
from .settings import Settings, as_argument, check_settings, no_run
from .table import ARMS, BY_HAND, KNOWN, READ, READY, REHEARSAL, STAGES, STARTED, TABLE, Node

FORM = 2  # format of the run folder; 1 had no manifests


@dataclass(frozen=True)
class StageStatus:
    """Status of one stage of one round (round 0: the whole run)."""

    round: int
    stage: str
    state: str
    """done, missing or stale."""
    why: str = ""
    """One sentence: what is missing, or which file or setting changed."""
    follows: bool = False
    """Stale only because an earlier stage is."""

    @property
    def name(self) -> str:
        """Name for use in sentences, such as "distill of round 1"."""
        return f"{self.stage} of round {self.round}" if self.round else self.stage


class StaleRunError(ValueError):
    """Inputs or settings of finished stages changed; nothing is redone silently."""

    def __init__(self, folder: Path, stale: list[StageStatus]):
        first = next((s for s in stale if not s.follows), stale[0])
        more = f"; {len(stale) - 1} more in run.status()" if len(stale) > 1 else ""
        super().__init__(
            f"{folder} is out of date ({first.name}: {first.why}{more}): redo this with `oelkit "
            f"loop --run {as_argument(folder)} --redo` (run.redo(), or redo=True), or undo that"
        )
        self.stale = stale


class Stages:
    """The current state of a run folder's stages, from files, settings and manifests alone."""

    def __init__(self, folder: Path, settings: Settings, prompts: dict[str, Any]):
        self.folder, self.settings, self.prompts = folder, settings, prompts
        self._rounds = range(1, settings.rounds + 1)

    def start(self, k: int) -> int:
        """Return the round whose adapter round k starts from; 0 is the untrained model.

        A person's promotion or rollback (chain.json) overrides the gate's rollback."""
        said, goes_back = self._chain(), self.settings.gate == "rollback"
        while k > 1:
            if str(k) in said:
                return said[str(k)]
            k -= 1
            if not (goes_back and self.lost(k)):
                return k
        return 0

    def decided(self, k: int) -> bool:
        """Whether a person decided what round k starts from."""
        return str(k) in self._chain()

    def _chain(self) -> dict[str, int]:
        """A person's decisions by round; checked, because they become folder names."""
        path = self.folder / "chain.json"
        said = (read_object(path, start=dict) or {"start": {}})["start"]
        for k, start in said.items():
            if type(start) is not int or not (k.isdecimal() and 0 <= start < int(k)):
                raise ValueError(f"{path}: round {k!r} cannot start from {start!r}; correct it")
        return said

    def decide(self, k: int, keep: bool) -> int:
        """Record that round k+1 starts from round k (keep) or from where round k did, and return
        that. The caller must hold the run's lock."""
        if not (self.folder / f"round_{k}/adapter").is_dir():
            raise ValueError(f"round {k} is not trained yet: nothing to decide on")
        start = k if keep else self.start(k)
        write_json(self.folder / "chain.json", {"start": self._chain() | {str(k + 1): start}})
        return start

    def lost(self, k: int) -> str:
        """Return what the gate found against round k, as a sentence; "" if nothing."""
        judged = (read_object(self.folder / f"round_{k}/metrics.json") or {}).get("gate")
        return str(judged.get("lost", "")) if isinstance(judged, dict) else ""

    def nodes(self) -> Iterator[Node]:
        """Yield every stage of the run in execution order."""
        for k in self._rounds:
            for stage in STAGES:
                if (k, stage) == (1, "evaluate"):
                    yield 0, "base"
                yield k, stage
        for arm in ARMS:
            if self.settings.run_ablations or (self.folder / self.writes(0, arm)).exists():
                yield 0, arm
        yield 0, "metrics"

    def reads(self, k: int, stage: str) -> list[str]:
        """Return the input files of a stage, by name within the run folder."""
        if stage == "metrics":
            done = [node for node in self.nodes() if node[1] in ("base", "evaluate", *ARMS)]
            told = [f"round_{j}/{n}.jsonl" for j in self._rounds for n in ("items", "curation")]
            return [self.writes(*node) for node in done] + told
        s, settings = self.start(k), self.settings
        unread = {
            STARTED: s == 0,
            KNOWN: s == 0 or not settings.carry_experience,
            "round_{s}/metrics.json": s == 0 or settings.gate == "off",
            READY: stage == "collect" and not settings.states_with_experience,
            REHEARSAL: not settings.rehearsal,
        }
        names = [name.format(k=k, s=s) for name in TABLE[stage].reads if not unread.get(name)]
        if k and stage == "evaluate" and self.by_hand(k, "distill"):  # no text beside it
            names = [name.replace("/adapter/experience.md", "/experience.md") for name in names]
        return names

    def writes(self, k: int, stage: str) -> str:
        """Return the file that marks a stage as done, by name within the run folder."""
        return TABLE[stage].writes.format(k=k)

    def before(self, k: int, stage: str) -> list[Node]:
        """Return the stages whose files a stage reads."""
        rounds = {k, self.start(k)} if k else self._rounds
        made = {self.writes(j, name): (j, name) for j in rounds for name in STAGES}
        made |= {READ.format(k=j): (j, "distill") for j in rounds}
        made |= {self.writes(0, name): (0, name) for name in ("base", *ARMS)}
        nodes = [made[name] for name in self.reads(k, stage) if name in made]
        if k > 1 and self.settings.gate in ("stop", "rollback"):  # it sets the start
            nodes = [(k - 1, "evaluate"), *nodes]
        return list(dict.fromkeys(nodes))

    def slice(self, k: int, stage: str) -> dict[str, Any]:
        """Return what a stage depends on: settings, prompt texts and the starting round."""
        mine = {name: getattr(self.settings, name) for name in TABLE[stage].settings}
        mine |= {"prompt_set": table.read_by(stage, self.prompts)} if TABLE[stage].prompts else {}
        mine |= {"start": self.start(k)} if k else {}
        if stage == "metrics":
            mine["chain"] = [self.start(j) for j in (*self._rounds, self._rounds[-1] + 1)]
        if stage in ("base", "evaluate"):
            mine["validation"] = self.settings.gate != "off"
        if mine.get("start") and KNOWN in TABLE[stage].reads:
            mine["carry_experience"] = self.settings.carry_experience
        return mine

    def manifest_path(self, k: int, stage: str) -> Path:
        """Return the path of a stage's manifest."""
        return self.folder / (f"round_{k}" if k else "") / "manifests" / f"{stage}.json"

    def manifest(self, k: int, stage: str) -> dict[str, Any] | None:
        """Return the manifest written when the stage was done; None if it never was."""
        return read_object(self.manifest_path(k, stage), inputs=dict, outputs=dict, settings=dict)

    def hashes(self, k: int, stage: str) -> dict[str, str | None]:
        """Return name and current hash of each input file."""
        return {name: sha256(self.folder / name) for name in self.reads(k, stage)}

    def by_hand(self, k: int, stage: str) -> bool:
        """Whether the stage's file exists but is not what the stage wrote."""
        name, manifest = self.writes(k, stage), self.manifest(k, stage)
        there = sha256(self.folder / name)
        return there is not None and (manifest is None or manifest["outputs"].get(name) != there)

    def statuses(self) -> list[StageStatus]:
        """Return the status of every stage, in order."""
        known: dict[Node, StageStatus] = {}
        return [self.status(*node, known) for node in self.nodes()]

    def status(
        self, k: int, stage: str, known: dict[Node, StageStatus] | None = None
    ) -> StageStatus:
        """Return the status of one stage; `known` caches the stages looked up on the way."""
        known, open_nodes = {} if known is None else known, [(k, stage)]
        while (k, stage) not in known:  # no recursion: there can be hundreds of rounds
            if isinstance(found := self._status(*open_nodes[-1], known), StageStatus):
                known[open_nodes.pop()] = found
            else:
                open_nodes.append(found)
        return known[k, stage]

    def _status(self, k: int, stage: str, known: dict[Node, StageStatus]) -> StageStatus | Node:
        """The status of one stage, or an earlier stage that must be known first."""
        name, manifest = self.writes(k, stage), self.manifest(k, stage)
        if not (self.folder / name).exists():
            return StageStatus(k, stage, "missing", f"{name} is not there")
        stale = StageStatus(k, stage, "stale")
        if self.by_hand(k, stage):
            if stage not in BY_HAND:
                return replace(stale, why=f"{name} is not what the stage wrote")
            why, log = f"{name} was put there by hand and is kept", f"round_{k}/curation.jsonl"
            then = manifest["inputs"].get(log) if manifest else sha256(self.folder / log)
            if stage == "curate" and then != sha256(self.folder / log):
                why += f"; {log} has changed since, but has no effect until {name} is deleted"
            return StageStatus(k, stage, "done", why)
        if manifest and (changed := self._changed(k, stage, manifest)):
            return replace(stale, why=changed)
        for node in self.before(k, stage):
            if not (other := known.get(node)):
                return node
            if other.state != "done":
                return replace(stale, why=f"{other.name} is {other.state}", follows=True)
        return StageStatus(k, stage, "done")

    def _changed(self, k: int, stage: str, manifest: dict[str, Any]) -> str:
        """The first setting or file that changed since the stage was done, as a sentence."""
        then, now = manifest["settings"], self.slice(k, stage)
        if then.get("start") != now.get("start"):
            was, is_ = (table.weights(x.get("start", 0)) for x in (then, now))
            return f"it started from {was}, but should start from {is_} (chain.json or the gate)"
        for name in (n for n in now if n in then and then[n] != now[n]):
            if name == "prompt_set":
                was = then[name] if isinstance(then[name], dict) else {}
                if not (texts := [key for key, text in now[name].items() if text != was.get(key)]):
                    continue  # older manifests have all texts of the set
                return f"the prompt set {now[name]['name']!r} has changed ({', '.join(texts)})"
            if name == "chain":
                return table.moved(then[name], now[name])
            if name == "validation":
                return f"the gate was {'off' if now[name] else 'on'} and no longer is"
            return f"the setting {name} was {then[name]!r} and is {now[name]!r}"
        was, is_ = manifest["inputs"], self.hashes(k, stage)
        for name in (n for n in {**was, **is_} if was.get(n) != is_.get(n)):
            gone = "is gone" if is_.get(name) is None else "has changed since"
            return f"{name} {'is new' if was.get(name) is None else gone}"
        for name in (one.format(k=k) for one in TABLE[stage].beside):
            there = sha256(self.folder / name)
            if manifest["outputs"].get(name, there) != there:
                return f"{name} is {'not what the stage wrote' if there else 'gone'}"
        return ""

    def blocking(self, statuses: list[StageStatus]) -> list[StageStatus]:
        """Return the stale stages that are redone only on request: all but `metrics`, which costs
        nothing, and `curate`, as long as nothing was trained on its text."""
        old = [s for s in statuses if s.state == "stale" and s.stage != "metrics"]
        trained = {s.round for s in old if (self.folder / self.writes(s.round, "distill")).exists()}
        return [s for s in old if s.stage != "curate" or s.follows or s.round in trained]


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json; ValueError if it is missing, damaged or in an older format."""
    path = folder / "run.json"
    if (record := read_object(path, settings=dict)) is None:
        raise ValueError(no_run(folder))
    if record.get("form") != FORM:
        raise ValueError(
            f"{folder} is a run in an older format, without manifests: `oelkit report "
            f"--run {folder.name}` and the viewer still read it; to continue, start a new run"
        )
    read_object(path, prompts=dict)
    try:
        check_settings(record["settings"])
        PromptSet(**dict.fromkeys(PromptSet.__dataclass_fields__) | record["prompts"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; damaged, or from another version of oelkit") from None
    return record


def status(folder: str | Path) -> list[StageStatus]:
    """Return the status of each stage: done, missing, or stale and why; see `stages_of`."""
    return stages_of(folder).statuses()


def stale(folder: str | Path) -> list[StageStatus]:
    """Return the stages that are out of date; a damaged or an older run cannot tell, so none."""
    with suppress(ValueError):
        return [one for one in status(folder) if one.state == "stale"]
    return []


def stages_of(folder: str | Path) -> Stages:
    """Return the current stages of a run folder, without its model; ValueError if there is no run,
    or one in an older format."""
    record = read_run(folder := Path(folder))
    settings, prompts = Settings(**record["settings"]), record["prompts"]
    with suppress(ValueError):  # the prompt set is gone or on another machine: use the recorded one
        prompts = asdict(read_prompts(str(prompts.get("name")), settings))
    return Stages(folder, settings, prompts)


def read_prompts(name: str, settings: Settings) -> PromptSet:
    """Return a prompt set as it is now, with the limit of new tokens that the settings set."""
    prompts = load_prompt_set(name)
    return replace(prompts, max_new_tokens=settings.max_new_tokens or prompts.max_new_tokens)
