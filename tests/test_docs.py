"""Pages: a short front page, readable tables, working links, names that exist.

Code and commands in README and guides are run as printed, with smaller numbers for large parts. The
command lines of all pages must parse.
"""

import ast
import contextlib
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.parse import unquote

import gymnasium
import pytest
from helpers import load_script, with_short_probe
from serve_micro import serve

from oelkit import Run, Settings, load_policy, rollout
from oelkit.__main__ import main, parser

ROOT = Path(__file__).parents[1]
START = ROOT / "docs/site/index.md"  # is at the root of the site
PAGES = [
    START,
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "data").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
each = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")


def prose(text):
    """Return a page without code blocks, link targets and HTML, but with link and image text."""
    text = INDENTED.sub("", FENCED.sub("", text))
    text = re.sub(r"\]\([^)]*\)", "] ", text)
    return re.sub(r"<[^>]*>", lambda tag: " ".join(re.findall(r'alt="([^"]*)"', tag[0])), text)


def words(text):
    """Count words, including inline code."""
    return re.findall(r"\S*\w\S*", text)


def cells(text):
    for line in FENCED.sub("", text).splitlines():
        if line.lstrip().startswith("|"):
            yield from re.split(r"(?<!\\)\|", line.strip().strip("|"))


def anchors(path):
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def python_blocks(text):
    return [code for language, code in FENCED.findall(text) if language == "python"]


def names_from_oelkit(tree):
    """Yield (module, name) of every name imported from oelkit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oelkit"):
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_front_page_is_short_and_begins_with_a_command():
    text = (ROOT / "README.md").read_text("utf-8")
    count = len(words(prose(text)))
    first = min(text.index("\n    make "), text.find("\n```") % len(text))
    before = len(words(prose(text[:first] + "\n")))
    print(f"README.md: {count} words, {before} before the first command")
    assert count <= 1200 and before <= 120


@each
def test_no_table_cell_is_over_25_words(page):
    text = prose(page.read_text("utf-8"))
    assert [cell for cell in cells(text) if len(words(cell)) > 25] == []


@each
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text("utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r"(?:src|srcset)=\"([^\"]+)\"", text
    )
    assert targets or page.name != "README.md" or page.parent != ROOT
    for target in targets:
        if re.match(r"https?:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        folder = ROOT if page == START else page.parent
        path = (folder / file).resolve() if file else page
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


@each
def test_python_blocks_compile_and_name_what_oelkit_has(page):
    blocks = python_blocks(page.read_text("utf-8"))
    assert blocks or page.name != "README.md" or page.parent != ROOT
    for code in blocks:
        for module, name in names_from_oelkit(ast.parse(code)):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_counters_count_and_skip_what_they_should():
    page = "One ![two three](four.png) [five](six seven)\n\n    code here\n\n```python\ncode\n```\n"
    page += '<img src="x" alt="six seven">\n\n| a | ' + "word " * 26 + "|\n"
    assert len(words(prose(page))) == 6 + 1 + 26
    assert [len(words(cell)) for cell in cells(page)] == [1, 26]
    assert list(names_from_oelkit(ast.parse("from oelkit.records import State\nimport os"))) == [
        ("oelkit.records", "State")
    ]


def test_the_file_tree_names_every_module_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    tree = text.split("## What is where")[1].split("## A run folder")[0].split("    notebooks/ ")[0]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    there = {path.name for path in (ROOT / "oelkit").rglob("*.py")}
    assert there - named <= {"__init__.py"} and named <= there


def test_the_start_page_names_every_guide_once():
    listed = re.findall(r"^docs/(\w+)$", START.read_text("utf-8"), re.M)
    made = ["command_line", "reference"]  # generated from the code
    assert sorted(listed) == sorted([p.stem for p in ROOT.glob("docs/*.md")] + made)


def test_settings_are_fields_of_a_run():
    names = {field.name for field in fields(Settings)}
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "settings.md").read_text("utf-8"), re.M)
    assert len(rows) >= 10 and set(rows) <= names


# Marked substitutions: the embedded model for a real one, and smaller numbers.
SMALLER = {
    '"Qwen/Qwen3-1.7B"': '"micro"',
    '"Qwen/Qwen2.5-1.5B-Instruct"': '"micro"',
    '"Qwen/Qwen3-8B"': '"micro"',
    'range(256), prompt_set="rules"': 'range(2), prompt_set="rules", max_new_tokens=8',
    'served, games, prompt_set="rules"': 'served, games, prompt_set="rules", max_new_tokens=8',
    "900_000_064": "900_000_004",
    "1000 * k + 24": "1000 * k + 12",
    "1000 * k + 548": "1000 * k + 504",
    "lr=1e-4": "lr=1e-4, steps=1, batch_size=2",
    'train, text, prompt_set="rules"': "train, text, steps=1, batch_size=2",
    "chats[:80]": "chats[:8]",
    "chats[80:]": "chats[8:]",
    # a model of a million parameters cannot judge single replies
    "experience_text(items)": '(experience_text(items) or "- EXPERIENCE ITEM: G is the goal.")',
}
FEW = {"rounds": 1, "extract_games": 2, "state_games": 2, "num_draws": 1, "eval_maps": 2}
FEW |= {"steps": 1, "batch_size": 2}
# These need what is not here: TRL (`test_rows.py` trains with it where it is installed), LiteLLM,
# and a log of llama.cpp's server (`test_capture.py` tests both blocks).
ELSEWHERE = ("SDFTTrainer", "litellm", "llama.log")
GUIDES = [page for page in PAGES if page.name == "README.md" or page.parent.name == "docs"]


def to_run(page):
    blocks = python_blocks(page.read_text("utf-8"))
    return [block for block in blocks if not any(word in block for word in ELSEWHERE)]


def smaller(code, model):
    for printed, ours in [*SMALLER.items(), ('"micro"', f'"{model}"')]:
        code = code.replace(printed, ours)
    return code


def play_new_worlds(known, model):
    """Play two games in each world that a block registered, so that its `step` is called."""
    for world in sorted(set(gymnasium.registry) - known):
        games = rollout(load_policy(model), world, range(2), max_new_tokens=8)
        assert all(game.turns and "error" not in game.extra for game in games), games


def make_demo(folder, model):
    """Make the small finished run that pages call demo."""
    demo = Settings.of("tiny", model=str(model), run_ablations=False, gate="off", **FEW)
    Run(folder, demo, progress=False).run_all()


def some_chats(folder):
    """Write the chats.jsonl that pages name."""
    lines = (ROOT / "data/logs/lake_chats.jsonl").read_text("utf-8").splitlines(True)[:10]
    (folder / "chats.jsonl").write_text("".join(lines), "utf-8")


@pytest.fixture
def own_worlds():
    """Forget a page's own worlds after the test: they would be suggested to later ones."""
    shipped = set(gymnasium.registry)
    yield
    sys.modules.pop("doors", None)
    for world in set(gymnasium.registry) - shipped:
        gymnasium.registry.pop(world)


@pytest.fixture
def pages_server(micro_folder):
    """Serve the embedded model under the names that the pages give to servers."""
    with serve(load_policy(micro_folder), name=str(micro_folder)) as server:
        server.models["runs/demo/export/merged"] = None
        yield server


@pytest.mark.slow
@pytest.mark.usefixtures("own_worlds")
@pytest.mark.parametrize("page", [*filter(to_run, GUIDES)], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run_one_after_the_other(
    page, micro_folder, pages_server, tmp_path, monkeypatch
):
    blocks = to_run(page)
    monkeypatch.chdir(tmp_path)
    some_chats(tmp_path)
    if any('"runs/demo"' in block for block in blocks):  # the run of the page
        make_demo(tmp_path / "runs/demo", micro_folder)
    names = {}
    for block in blocks:
        known = set(gymnasium.registry)
        code = smaller(block, micro_folder)
        code = code.replace("http://localhost:8000/v1", pages_server.url)
        exec(compile(code, f"{page.name}", "exec"), names)
        play_new_worlds(known, micro_folder)
    if "my_adapter" in "".join(blocks):
        assert (tmp_path / "my_adapter/adapter_model.safetensors").exists()


def test_the_reference_has_what_the_guides_import_and_what_its_functions_return():
    conf = load_script("docs/site/conf.py")
    names = [name for title in conf.API.values() for name in title.split()]
    listed = {id(conf.named(name)) for name in names}
    assert len(listed) == len(names), "a name is there twice"
    for page in GUIDES:
        for code in python_blocks(page.read_text("utf-8")):
            for module, name in names_from_oelkit(ast.parse(code)):
                thing = getattr(importlib.import_module(module), name)
                assert id(thing) in listed, f"{page.name}: {module}.{name}"
    for function in filter(inspect.isfunction, map(conf.named, names)):
        with contextlib.suppress(NameError):  # of a type that only the type checker imports
            for kind in types_in(get_type_hints(function).get("return")):
                ours = getattr(kind, "__module__", "").startswith("oelkit")
                assert not ours or id(kind) in listed, f"{function.__name__}: {kind}"


def test_the_long_calls_of_the_first_examples_show_their_progress():
    loop = next(c for c in python_blocks((ROOT / "README.md").read_text("utf-8")) if "for k" in c)
    tour = json.loads((ROOT / "notebooks/00_tour.ipynb").read_text("utf-8"))["cells"]
    cells = "\n".join("".join(cell["source"]) for cell in tour if cell["cell_type"] == "code")
    for code, long in ((loop, "rollout extract distill evaluate"), (cells, "distill")):
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        calls = [call for call in calls if getattr(call.func, "id", "") in long.split()]
        assert calls and all("progress" in [k.arg for k in call.keywords] for call in calls)


def types_in(hint):
    """Yield the types in a type hint, such as Trajectory in list[Trajectory]."""
    inner = get_args(hint)
    yield from (kind for part in inner for kind in types_in(part)) if inner else [hint]


def command_lines(text):
    """Return the command lines of a page, with placeholders filled in."""
    code = [block for language, block in FENCED.findall(text) if language != "python"]
    code += INDENTED.findall(FENCED.sub("", text)) + re.findall(
        r"`([^`\n]+)`", FENCED.sub("", text)
    )
    typed = "".join(f"{block}\n" for block in code).replace("\\\n", "")
    for line in typed.splitlines():
        found = re.match(r" *(?:python -m )?oelkit +(.*?)(?:  +#.*)?$", line)
        if found and "..." not in found[1] and "COMMAND" not in found[1]:
            yield shlex.split(found[1])


# Marked substitutions in commands: the embedded model, what a name stands for, smaller numbers.
NAMED = {
    "FOLDER_OR_HUB_ID": "MODEL",
    "Qwen/Qwen2.5-1.5B-Instruct": "MODEL",
    "smollm2-135m": "MODEL",
    "FILE": "chats.jsonl",
    "RUN": "first",
    "NAME": "first",
}
LESS = {
    "loop": "--rounds 1 --extract-games 8 --state-games 2 --num-draws 1 --max-new-tokens 32 "
    "--eval-maps 2 --steps 1 --batch-size 2 --gate off --no-run-ablations",
    "extract": "--max-new-tokens 8",
    "distill": "--steps 1 --batch-size 2",
    "ifeval": "--limit 1 --max-new-tokens 8",
    "estimate": "--max-new-tokens 8",
}
# demo takes a minute (`test_start.py`), and the views run until they are stopped
# (`browser/test_apps.py`)
TRIED_ELSEWHERE = ("demo", "curate", "view")
# What a page says of its command, other than that it succeeds.
ENDS = {
    "status mine": (3, "imported logs but no loop yet"),
    "loop --run first --resume --steps 16": (1, "the setting steps was 1 and is 16"),
}


@pytest.fixture(scope="module")
def desk(micro_folder, tmp_path_factory):
    """A folder with all that the commands of a page are given."""
    folder = tmp_path_factory.mktemp("desk")
    one = folder / "runs/demo/round_1"
    make_demo(folder / "runs/demo", with_short_probe(micro_folder, folder / "micro"))
    for name in ("first", "second", "mine"):
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
    shutil.copytree(one / "adapter", folder / "my_adapter")
    for name in ("trajectories.jsonl", "states.jsonl"):
        shutil.copy(one / name, folder)
    shutil.copy(ROOT / "data/sample/items.jsonl", folder)
    shutil.copy(ROOT / "tests/data/ifeval.jsonl", folder / "input_data.jsonl")
    some_chats(folder)
    world = python_blocks((ROOT / "docs/worlds.md").read_text("utf-8"))[0]
    (folder / "doors.py").write_text(world, "utf-8")
    return folder


def made_by(words):
    """Return the file or folder that a command makes, which is not there before."""
    if words[0] in ("loop", "import"):
        return Path("runs", words[words.index("--run") + 1] if "--run" in words else "demo")
    return Path({"extract": "items.jsonl", "distill": "my_adapter"}.get(words[0], "nothing"))


def commands_to_run(page):
    lines = dict.fromkeys(map(tuple, command_lines(page.read_text("utf-8"))))
    whole = [line for line in lines if len(line) > 1 or line[0] == "doctor"]
    return [line for line in whole if line[0] not in TRIED_ELSEWHERE and line[-1] != "--help"]


@pytest.mark.slow
@pytest.mark.usefixtures("own_worlds")
@pytest.mark.parametrize(
    "page", [*filter(commands_to_run, GUIDES)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_run_as_printed(page, desk, tmp_path, monkeypatch, capsys):
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for i, line in enumerate(commands_to_run(page)):
        before = Path(f"before-{i}")
        words = [NAMED.get(word, word) for word in line]
        begins = words[0] != "loop" or "--scale" in words
        made = made_by(words)
        if begins and made.exists():
            made.rename(before)
        given = [str(desk / "micro") if word == "MODEL" else word for word in words]
        given += LESS.get(words[0], "").split() if begins else []
        ended, said = main(given), "".join(capsys.readouterr())
        status, told = ENDS.get(" ".join(words), (0, ""))
        assert ended == status and told in said, (words, said)
        if words[0] == "extract":  # a model of a million parameters finds nothing in chats
            before.replace(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_taken(page, capsys):
    for line in command_lines(page.read_text("utf-8")):
        try:
            parser().parse_args(line if len(line) > 1 else [*line, "--help"])
        except SystemExit as end:  # --help ends like this too
            assert not end.code, (line, capsys.readouterr().err)


def test_the_counters_find_what_is_there():
    found = [line for page in PAGES for line in command_lines(page.read_text("utf-8"))]
    assert len(found) > 10 and ["loop", "--run", "job", "--resume"] in found
    assert len(list(command_lines(START.read_text("utf-8")))) >= 3
    broken = [*command_lines("Text:\n\n    oelkit demo \\\n        --seed 1\n    cd x\n")]
    assert broken == [["demo", "--seed", "1"]]
    assert sum(len(python_blocks(page.read_text("utf-8"))) for page in GUIDES) > 6


@pytest.mark.parametrize(("scale", "column"), [("paper", 2), ("tiny", 3)])
def test_the_settings_that_the_departures_name_are_those_of_the_scale(scale, column):
    text = (ROOT / "docs/departures.md").read_text("utf-8")
    settings, checked = Settings.of(scale), 0
    for line in text.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.search(r"\(`(\w+)`\)$", row[0])
        if not name or len(row) < 4:
            continue
        said = row[2] if row[column] == "the same" and column == 3 else row[column]
        said = row[1] if said == "the same" else said
        value = getattr(settings, name[1])
        if isinstance(value, float | int) and not isinstance(value, bool):
            said = re.sub(r"\bnone\b", "0", said).replace(",", "")
            assert float(re.match(r"[\d.e-]+", said)[0].rstrip(".")) == value, line
            checked += 1
    assert checked >= 9


def test_the_same_pythons_are_named_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [kind[-4:] for kind in project["classifiers"] if "Python :: 3." in kind]
    matrix = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    assert json.loads(re.search(r" python: (\[.*\])", matrix)[1]) == named
    assert project["requires-python"] == f">={named[0]}"
    for page in (ROOT / "README.md", ROOT / "docs/machines.md"):
        assert f"Python {named[0]} to {named[-1]}" in page.read_text("utf-8")
