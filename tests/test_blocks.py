"""What README and guides print is run as it is printed, the large parts with smaller numbers; every
command line in them is one that the command line takes.
"""

import re
import shlex

import gymnasium
import pytest
from test_docs import FENCED, INDENTED, PAGES, ROOT, python_blocks

from oelkit.__main__ import parser

# The marked substitutions: the embedded model for a real one, and less of everything.
SMALLER = {
    '"Qwen/Qwen3-1.7B"': '"micro"',
    '"Qwen/Qwen2.5-1.5B-Instruct"': '"micro"',
    "900_000_064": "900_000_004",
    "1000 * k + 24": "1000 * k + 12",
    "1000 * k + 548": "1000 * k + 504",
    "lr=1e-4)": "lr=1e-4, steps=1, batch_size=2)",
    'train, text, prompt_set="rules"': "train, text, steps=1, batch_size=2",
    "chats[:80]": "chats[:8]",
    "chats[80:]": "chats[8:]",
    # a model of a million parameters says nothing about single replies
    "experience_text(items)": '(experience_text(items) or "- EXPERIENCE ITEM: G is the goal.")',
}
# These need a server, a trainer or a run of ours: `test_export.py` and `test_rows.py` try them.
ELSEWHERE = ("import openai", "openai.OpenAI", "SDFTTrainer", "runs/demo")
GUIDES = [page for page in PAGES if page.name == "README.md" or page.parent.name == "docs"]


def smaller(code):
    for printed, ours in SMALLER.items():
        code = code.replace(printed, ours)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    blocks = [
        b for b in python_blocks(page.read_text("utf-8")) if not any(w in b for w in ELSEWHERE)
    ]
    if not blocks:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "data/logs/lake_chats.jsonl").read_text("utf-8").splitlines(True)[:10]
    (tmp_path / "chats.jsonl").write_text("".join(lines), "utf-8")
    names = {}
    for block in blocks:
        exec(compile(smaller(block), f"{page.name}", "exec"), names)
    if "Doors" in names:
        gymnasium.registry.pop("demo/Doors-v0")
    if "my_adapter" in "".join(blocks):
        assert (tmp_path / "my_adapter/adapter_model.safetensors").exists()


def command_lines(text):
    """What a page says to type, placeholders filled in."""
    code = [block for language, block in FENCED.findall(text) if language != "python"]
    code += INDENTED.findall(FENCED.sub("", text)) + re.findall(
        r"`([^`\n]+)`", FENCED.sub("", text)
    )
    for line in "".join(f"{block}\n" for block in code).splitlines():
        found = re.match(r" *(?:python -m )?oelkit +(.*?)(?:  +#.*)?$", line)
        if found and "..." not in found[1] and "COMMAND" not in found[1]:
            yield shlex.split(found[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_taken(page, capsys):
    for line in command_lines(page.read_text("utf-8")):
        try:
            parser().parse_args(line if len(line) > 1 else [*line, "--help"])
        except SystemExit as end:  # --help ends so too
            assert not end.code, (line, capsys.readouterr().err)


def test_the_counters_find_what_is_there():
    found = [line for page in PAGES for line in command_lines(page.read_text("utf-8"))]
    assert len(found) > 10 and ["loop", "--run", "first", "--resume"] in found
    assert sum(len(python_blocks(page.read_text("utf-8"))) for page in GUIDES) > 6
