"""The model card of an exported model: its origin, its measurements and how to load it.

It is built only from files in the exported folder, so it can be rewritten once the export has been
played."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model.source import model_folder
from ..text import counted
from .files import read_json, sha256
from .stages import Stages, read_run

ABOUT, CHECKED = "oelkit_export.json", "oelkit_check.json"
_MEASURED = ("pass_rate", "low", "high", "n", "maps", "reply_tokens", "truncated")
_LOAD = {
    "peft": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
    "gguf": "llama-server -m FOLDER/FILE.gguf --jinja",
}


def about(stages: Stages, k: int, form: str) -> dict[str, Any]:
    """Return the data behind the card for round k of a run."""
    chain, rounds = [k], []
    while start := stages.start(chain[-1]):
        chain.append(start)
    for j in reversed(chain):
        metrics = read_json(stages.folder / f"round_{j}/metrics.json") or {}
        row: dict[str, Any] = {"round": j, "starts_from": stages.start(j) or "the base model"}
        for name in ("trajectories", "items", "states"):
            path = stages.folder / f"round_{j}/{name}.jsonl"
            row[name] = len(path.read_bytes().splitlines()) if path.is_file() else None
        rates = metrics.get("pass_rate", {})
        row["pass_rate"] = {arm: {n: r[n] for n in _MEASURED} for arm, r in rates.items()}
        rounds.append({**row, "ood": metrics.get("ood"), "gate": metrics.get("gate")})
    record = read_run(stages.folder)
    return {
        "form": form,
        "run": stages.folder.name,
        "base": model_folder(stages.settings.model),
        "rounds": rounds,
        "experience_sha256": sha256(stages.folder / f"round_{k}/adapter/experience.md"),
        "settings": asdict(stages.settings),
        "prompts": record["prompts"],
        "versions": record.get("versions", {}),
    }


def model_card(folder: Path) -> str:
    """Return the README.md of an exported folder, built from its files."""
    known = read_json(folder / ABOUT)
    settings, base = known["settings"], known["base"]
    on_hub = not Path(base).is_dir()
    head = ["library_name: " + ("peft" if known["form"] == "peft" else "transformers")]
    head += [f"base_model: {base}"] if on_hub else []
    head += ["pipeline_tag: text-generation", "tags: [oelkit, experiential-learning]"]
    name, rounds = settings["model"], counted(len(known["rounds"]), "round")
    parts = ["---", *head, "---", "", f"# {_plain(known['run'])}", ""]
    parts += [
        f"{_plain(name)} after {rounds} of Online Experiential Learning in "
        f"`{settings['env']}`, trained and exported ({known['form']}) with "
        "[oelkit](https://arxiv.org/abs/2603.16856): it played, wrote down what it learned, and "
        "absorbed that into its weights, without rewards or labels.",
        "",
        "## Use",
        "",
        "```python" if known["form"] != "gguf" else "```",
        _LOAD[known["form"]],
        "```",
        "",
        *_prompting(known),
        "",
        "## Rounds",
        "",
        *_rounds(known["rounds"]),
        "",
        *_checked(read_json(folder / CHECKED)),
        *_experience(folder, known["experience_sha256"]),
        "## Settings",
        "",
        ", ".join(f"{n} {_plain(v)}" for n, v in settings.items() if v is not None),
        "",
        "Versions: " + ", ".join(f"{n} {v}" for n, v in known["versions"].items()) + ".",
        "",
    ]
    return "\n".join(parts)


def _prompting(known: dict[str, Any]) -> list[str]:
    """How the model was prompted and sampled; a server must do the same."""
    settings, prompts = known["settings"], known["prompts"]
    thinking = settings.get("enable_thinking")
    lines = [
        f"It was trained on prompts from the set `{_plain(prompts['name'])}` and measured at "
        f"temperature {settings['eval_temperature']}, top_p {settings['eval_top_p']}, top_k "
        f"{settings['eval_top_k']}, at most {prompts['max_new_tokens']} new tokens. A server "
        "should use the same sampling settings, and no repetition penalty."
    ]
    if thinking is not None:
        lines.append(f"Pass `enable_thinking={thinking}` to the chat template, as in training.")
    return lines


def _rounds(rounds: list[dict[str, Any]]) -> list[str]:
    """The chain of rounds as a table."""
    arms = ("base", "in_context", "consolidated")
    lines = ["| round | starts from | games | items | states | base | in context | consolidated |"]
    lines[0] += " OOD before | OOD after |"
    lines.append("|---" * 10 + "|")
    for r in rounds:
        ood = r["ood"] or {}
        cells = [r["round"], r["starts_from"], r["trajectories"], r["items"], r["states"]]
        cells += [_rate(r["pass_rate"].get(arm)) for arm in arms]
        cells += [f"{ood[x]['all']:.1%}" if ood.get(x) else "-" for x in ("base", "consolidated")]
        lines.append("| " + " | ".join("-" if c is None else str(c) for c in cells) + " |")
    said = {r["round"]: (r["gate"] or {}).get("lost") for r in rounds}
    lost = [f"Gate, round {k}: {text}" for k, text in said.items() if text]
    note = "Pass rates on held-out maps with 95% intervals. OOD: correct answers to questions"
    return [*lines, "", note + " unrelated to the world.", *lost]


def _rate(row: dict[str, Any] | None) -> str:
    if not row:
        return "-"
    return f"{row['pass_rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}], n {row['n']}"


def export_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of `check_exports` as the lines of a Markdown table."""
    lines = ["| form | pass rate | points from the run | tokens per reply | cut off | OOD |"]
    lines.append("|---" * 6 + "|")
    for row in rows:
        difference = "-"
        if "difference" in row:
            points = [100 * row[n] for n in ("difference", "difference_low", "difference_high")]
            difference = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
        ood = f"{row['ood']['all']:.1%}" if row.get("ood") else "-"
        end = f"{row['reply_tokens']:.1f} | {row['truncated']:.1%} | {ood} |"
        lines.append(f"| {row['form']} | {_rate(row)} | {difference} | {end}")
    return lines


def _checked(rows: list[dict[str, Any]] | None) -> list[str]:
    head = ["## As exported", ""]
    if not rows:
        return [*head, "This export has not been played again (`check_exports`).", ""]
    said = "Loaded with plain Transformers and PEFT in a separate process and played on the same"
    said += " maps. The difference is paired by map and sample, with a 95% interval:"
    return [*head, said, "", *export_table(rows), ""]


def _experience(folder: Path, digest: str | None) -> list[str]:
    """The absorbed experience: model text, fenced by more backticks than it contains."""
    path, head = folder / "experience.md", ["## Experience", "", f"SHA-256 {digest}.", ""]
    if digest is None:
        return [*head[:2], "This adapter came without the text that it was trained on.", ""]
    if not path.is_file():
        return [*head[:-1], "The text is not published.", ""]
    text = path.read_text(encoding="utf-8").strip()
    fence = "```"
    while fence in text:
        fence += "`"
    return [*head, f"{fence}text", text, fence, ""]


def _plain(value: object) -> str:
    """A value on one line, escaped so that Markdown and HTML show it as text."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("|", "\\|")
