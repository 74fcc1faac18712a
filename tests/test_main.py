"""The command line, through its real entry point: what it does to files, and one clear line for
each mistake.
"""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import make_game

import oelkit.runs.run  # saved before tests replace model loading
from oelkit import __main__ as cli
from oelkit.commands.runs import settings_of
from oelkit.commands.steps import experience_texts
from oelkit.config import DistillConfig, part
from oelkit.curation import Curation
from oelkit.model.sampling import Reply
from oelkit.project import find_root
from oelkit.records import Evidence, ExperienceItem, State, Trajectory, read_jsonl, write_jsonl
from oelkit.runs.driver import WORK
from oelkit.runs.settings import Settings
from oelkit.runs.stages import FORM

ROOT = Path(__file__).parent.parent
PROGRESS = re.compile(r"^(round \d+: |run: |[\w ,]+: \d+ (of \d+ )?\w+ in ).*\n", re.M)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A temporary working directory that is a repository root, so it holds runs/."""
    for name in ("notebooks", "oelkit"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place, capsys):
    """Run a command in this process. Return (status, stdout, stderr)."""

    def run(*arguments):
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def refused(answer, *parts):
    """Assert exit status 1 and one line on stderr that contains `parts`."""
    status, out, err = answer
    lines = err.strip().splitlines()
    assert (status, PROGRESS.sub("", out), len(lines)) == (1, "", 1), answer
    assert lines[0].startswith("error: ") and all(part in lines[0] for part in parts), lines[0]


def misused(answer, flag, *parts):
    """Assert exit status 2, usage, and one sentence that names the flag."""
    status, out, err = answer
    last = err.strip().splitlines()[-1]
    assert (status, out) == (2, "") and f": error: argument {flag}: " in last, answer
    assert all(part in last for part in parts), last


def items(path, texts, draws=2):
    write_jsonl(
        path,
        [
            ExperienceItem(f"i{n}", text, (Evidence("g", 0),), "tiny", 1, n % draws)
            for n, text in enumerate(texts)
        ],
    )
    return path


def flags(tiny):
    given = {
        name: getattr(tiny, name)
        for name in (
            "model",
            "env",
            "extract_games",
            "state_games",
            "num_draws",
            "steps",
            "batch_size",
            "eval_maps",
            "prompt_set",
            "rounds",
            "lr",
            "max_new_tokens",
        )
    }
    return [
        "--run-ablations",
        *(
            part
            for name, value in given.items()
            for part in (f"--{name.replace('_', '-')}", str(value))
        ),
    ]


@pytest.mark.slow
def test_the_real_command_line(tmp_path):
    """In a separate process: the module starts, a mistake gives one line and status 1, usage gives
    status 2.
    """

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "oelkit", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            timeout=300,
        )

    wrong = run(
        "play",
        "--env",
        "oelkit/Nowhere-v0",
        "--out",
        os.devnull + ".jsonl",
        "--model",
        "/no/such/model",
    )
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert (
        wrong.stderr.startswith("error: unknown environment 'oelkit/Nowhere-v0'")
        and wrong.stderr.count("\n") == 1
    )
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('mine/World-v0', gymnasium.Env, max_episode_steps=1)\n"
    )
    start = "import sys; from oelkit.__main__ import main; sys.exit(main())"  # the console script
    line = [sys.executable, "-P", "-c", start, "play", "--env", "mine:mine/World", "--out", "x"]
    own = subprocess.run(
        line,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    *told, error = own.stderr.splitlines()
    assert error == "error: 'mine:mine/World' has no reset()"
    assert len(told) == 1 and told[0].startswith("warning: Using the latest versioned environment")
    usage = run("loop", "--rounds", "many")
    assert usage.returncode == 2 and "--rounds: invalid int value: 'many'" in usage.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(call, command):
    """Each command has its own example, which the parser accepts, and states its defaults."""
    status, out, _ = call(command, "--help")
    assert status == 0
    examples = [line.split()[1:] for line in out.splitlines() if line.startswith("  oelkit ")]
    assert examples and all(example[0] == command for example in examples)
    for example in examples:
        cli.parser().parse_args(example)
    assert command in call("--help")[1]


def test_help_says_the_defaults_by_group(call):
    out = call("loop", "--help")[1]
    assert "(default: 0.0001; 0.0005 for the embedded model)" in " ".join(out.split())
    groups = "The model, and how", "How trajectories", "How a round trains", "How the pass rate"
    assert sorted(groups, key=out.index) == list(groups)
    assert "--no-enable-thinking" in out and "{auto,nf4,none}" in out


def made(*arguments):
    """Return the settings that a command line gives."""
    return settings_of(cli.parser().parse_args(arguments))


def test_the_flags_of_the_loop_are_its_settings():
    assert made("loop") == Settings.of("tiny") and Settings().lr == 1e-4
    given = Settings.of(
        "tiny", dtype="float32", quantize="nf4", lora_rank=4, enable_thinking=False, warmup=2
    )
    given = replace(given, clip=0.5, tail="bucket", top_k=256, prompt_set="paper", rounds=5)
    given = replace(given, run_ablations=False, show_previous=False, strict=True, gate="stop")
    line = []
    for name, value in asdict(given).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            line += [f"--{flag}" if value else f"--no-{flag}"]
        else:
            line += [f"--{flag}", str(value)] if value is not None else []
    assert made("loop", *line) == given
    assert made("loop", "--top-k", "none", "--budget-tokens", "none").budget_tokens is None


def test_a_scale_is_other_defaults_and_a_flag_beside_it_holds(call, place):
    paper = made("loop", "--scale", "paper", "--steps", "5")
    assert paper == Settings.of("paper", steps=5)
    refused(call("loop", "--scale", "paper", "--env", "none/Such-v0"), "none/Such-v0")
    status, _, err = call("loop", "--scale", "small", "--dtype", "float8")
    assert status == 2 and "float8" in err and "bfloat16" in err


def test_steps_take_their_part_of_the_settings(call, place, settings, monkeypatch):
    """Options that once had no flag reach the model and the training."""
    seen = {}

    def load(name, **options):
        seen.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr("oelkit.model.loading.load_policy", load)
    line = ["--no-enable-thinking", "--quantize", "none", "--lora-rank", "4", "--dtype", "float32"]
    refused(call("evaluate", *line), "far enough")
    assert seen["lora"]["r"] == 4 and seen["enable_thinking"] is False
    assert (seen["quantize"], seen["dtype"]) == (None, "float32")
    config = part(
        DistillConfig,
        made(
            "distill",
            "--states",
            "s",
            "--experience",
            "e",
            "--out",
            "o",
            "--warmup",
            "3",
            "--clip",
            "2",
            "--tail",
            "renormalize",
        ),
    )
    assert config == DistillConfig(steps=20, lr=5e-4, warmup=3, clip=2.0, tail="renormalize")


def test_extract_samples_as_its_help_says(call, place, settings, monkeypatch):
    temperatures = []

    def generate(policy, prompts, *, temperature, **_):
        temperatures.append(temperature)
        return [Reply([], "", False)] * len(prompts)

    monkeypatch.setattr("oelkit.steps.extraction.generate", generate)
    write_jsonl("games.jsonl", [make_game()])
    line = ["extract", "--model", settings.model, "--trajectories", "games.jsonl", "--force"]
    line += ["--prompt-set", "brief", "--max-new-tokens", "8"]
    told = "wrote no item about 1 game: 0 of 4 replies say that there is nothing new"
    with pytest.warns(UserWarning, match=told):
        status, out, _ = call(*line, "--out", "x.jsonl")
    assert status == 0 and out.count("next: oelkit view games.jsonl\n") == 1 and "curate" not in out
    with pytest.warns(UserWarning, match=told):
        assert call(*line, "--out", "x.jsonl", "--extract-temperature", "0")[0] == 0
    assert temperatures == [0.7, 0]
    about = call("extract", "--help")[1].rpartition("--extract-temperature FLOAT")[2]
    assert about.partition("--")[0].strip().endswith("(default: 0.7)")


def test_extract_prints_what_was_written(call, place, settings, monkeypatch):
    """Most draws first, without terminal escape sequences."""

    def generate(policy, prompts, **_):
        hole = "- EXPERIENCE ITEM: H is \x1b[31ma hole."
        far = "- EXPERIENCE ITEM: G is far.\n"
        return [Reply([], far * (i == 0) + hole, False) for i, _ in enumerate(prompts)]

    monkeypatch.setattr("oelkit.steps.extraction.generate", generate)
    write_jsonl("games.jsonl", [make_game()])
    line = ["extract", "--model", settings.model, "--trajectories", "games.jsonl"]
    out = call(*line, "--num-draws", "2", "--out", "x.jsonl", "--prompt-set", "brief")[1]
    said = [line for line in out.splitlines() if line.startswith("  ")]
    assert said == [
        r"  H is \x1b[31ma hole.  (written by 2 of 2 draws)",
        "  G is far.  (written by 1 of 2 draws)",
    ]


def test_an_interrupted_extract_goes_on_after_its_replies(call, place, settings, monkeypatch):
    asked = []

    def generate(policy, prompts, sampling, *, seed):
        if len(asked) == 2 and not (place / "again").exists():
            raise KeyboardInterrupt
        asked.append(seed)
        return [Reply([7], f"- EXPERIENCE ITEM: H is hole {seed}.", False)] * len(prompts)

    monkeypatch.setattr("oelkit.model.sampling.generate", generate)
    write_jsonl("games.jsonl", [replace(make_game(), id=f"g{i}") for i in range(4)])
    line = ["extract", "--model", settings.model, "--trajectories", "games.jsonl"]
    line += ["--prompt-set", "brief", "--seed", "1", "--out", "x.jsonl"]
    wrong = ["brif" if word == "brief" else word for word in line]
    refused(call(*wrong, "--model", "no/model"), "no prompt set 'brif'")  # before the model
    assert call(*line)[::2] == (130, "interrupted; the same command continues there\n")
    assert not Path("x.jsonl").exists()
    (place / "again").touch()
    with open(".x.jsonl.replies", "a") as kept:
        kept.write('{"schema": 1, "as')  # killed while it wrote
    assert call(*line)[0] == 0 and asked == [*range(1009, 1009 + len(asked))]
    texts = {item.text for item in read_jsonl("x.jsonl", ExperienceItem)}
    assert sorted(texts) == [f"H is hole {seed}." for seed in asked]
    assert not Path(".x.jsonl.replies").exists()
    assert call(*line, "--force", "--seed", "2")[0] == 0 and asked[-1] > 2018


@pytest.mark.slow
def test_loop_stops_resumes_and_reports(call, place, settings):
    run = place / "runs" / "first"
    refused(
        call("loop", "--run", "first", *flags(settings)), "round 1", "add your own with key i in"
    )  # a random model
    refused(call("loop", "--run", "first", *flags(settings)), "--resume", "--run NAME")
    refused(call("report", "--run", "first"), "no metrics.json", "loop --run first --resume")
    items(run / "round_1" / "items.jsonl", ["H is a hole.", "G is the goal."])
    status, out, err = call("loop", "--run", "first", "--resume")
    assert status == 0, err
    metrics = json.loads((run / "metrics.json").read_text())
    assert [r["round"] for r in metrics["rounds"]] == [1, 2] and set(metrics["arms"]) == {
        "raw",
        "forward_kl",
        "sft",
    }
    assert (
        f"report: {run / 'report.html'}" in out
        and "consolidated" in out
        and "4 held-out maps" in out
    )
    assert "H is a hole." in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert "round 2: distill\ndistill: " in out and ", loss=" in out
    again = call("report", run)  # a path, too
    assert again == (0, PROGRESS.sub("", out), "") and (run / "report.html").exists()
    refused(call("loop", "--run", "first", *flags(settings)), "--resume", "--run NAME")
    other = call("loop", "--run", "first", "--resume", "--seed", "3")
    refused(other, "other settings", "seed was 0, is 3")
    refused(call("loop", "--run", "first", "--resume", "--rounds", "1"), "rounds was 2, is 1")
    refused(call("loop", "--run", "frist", "--resume"), "did you mean first?", "leave out --resume")
    with (run / "metrics.jsonl").open("a") as f:
        f.write("{")
    refused(call("report", "--run", "first"), "metrics.jsonl, line ", "not JSON")


@pytest.mark.slow
def test_status_tells_what_is_stale_and_redo_does_no_more(call, place, settings):
    run = place / "runs" / "first"
    line = ["loop", "--run", "first", *flags(settings), "--no-run-ablations"]
    assert call(*line)[0] == 1  # a random model writes nothing
    status, out, _ = call("status", "first")
    assert status == 3 and re.search(r"round 1 +extract +done\n", out)
    assert re.search(r"round 1 +distill +missing +round_1/adapter\S* is not there\n", out)
    items(run / "round_1" / "items.jsonl", ["H is a hole.", "G is the goal."])
    assert call(*line[:3], "--resume")[0] == 0
    status, out, err = call("status", run)  # a path, too
    assert (status, err) == (0, "") and "stale" not in out and "missing" not in out
    code = f"import sys; from oelkit.__main__ import main; main(['status', {str(run)!r}])"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    trained = run / "round_1" / "adapter" / "adapter_model.safetensors"
    before, games = trained.read_bytes(), (run / "round_1/trajectories.jsonl").stat().st_mtime_ns
    Curation.open(run / "round_1/items.jsonl", run / "round_1/curation.jsonl").add("Be quick.")
    status, out, _ = call("status", "first")
    assert status == 3
    assert re.search(r"round 1 +curate +stale +round_1/curation.jsonl has changed since\n", out)
    for command in ("report", "compare"):
        with pytest.warns(
            UserWarning, match="first is out of date .curate of round 1: round_1/cur"
        ):
            assert call(command, "first")[0] == 0
    assert re.search(r"round 1 +rollout +done\n", out)
    refused(call(*line[:3], "--resume"), "out of date", "round_1/curation.jsonl", "--redo")
    assert trained.read_bytes() == before
    assert call(*line[:3], "--redo")[0] == 0 and call("status", "first")[0] == 0
    assert trained.read_bytes() != before
    assert (run / "round_1/trajectories.jsonl").stat().st_mtime_ns == games
    assert "such as: oelkit rollback first 1\n" in call("rollback", "first")[2]
    status, out, _ = call("rollback", "first", "1")
    assert (status, out.splitlines()[0]) == (0, "round 2 starts from the untrained model")
    status, out, _ = call("status", "first")
    assert status == 3 and "should start from the untrained model" in out
    assert call("promote", "first", "1")[1].startswith("round 2 starts from round 1\n")
    assert call("status", "first")[0] == 0
    refused(call("promote", "first", "3"), "round 3 is not trained yet")
    refused(call("status", "none"), "runs/none holds no run; there are: first")
    refused(call("status", "./first"), "first holds no run")


def test_a_run_is_named_alone_or_behind_a_flag(call, place):
    of_two = ("promote", "rollback")
    for command in (
        "status",
        "loop",
        "report",
        "export",
        "data",
        "demo",
        "curate",
        "view",
        *of_two,
    ):
        rest = ["1"] if command in of_two else ["--out", "x"] if command == "data" else []
        for line in (["mine", *rest], ["--run", "mine", *rest], [*rest, "--run=mine"]):
            assert cli.parser().parse_args([command, *line]).run == "mine", line
        named = cli.parser().parse_args([command, *rest]).run
        assert named == ("first" if command == "demo" else "demo")
    for line in (["f", "mine"], ["f", "--run", "mine"]):
        args = cli.parser().parse_args(["import", *line])
        assert (args.file, args.run) == ("f", "mine")
    misused(call("status", "mine", "--run", "other"), "RUN", "'other' is named already")
    missing = call("import", "absent.jsonl", "--bad", "skip", "mine")  # a flag in between
    refused(missing, "absent.jsonl: No such file")
    assert call("status", "--", "mine") == call("status", "mine")


def test_a_run_of_an_older_form_is_told_in_a_sentence(call, place):
    (place / "runs" / "old").mkdir(parents=True)
    (place / "runs" / "old" / "run.json").write_text('{"settings": {"draws": 10}}')
    for command in (["status", "old"], ["loop", "--run", "old", "--resume"]):
        refused(call(*command), "older form", "start a new run")


def test_a_measure_of_the_default_model_is_written_with_its_name(call, place):
    small = ["--env", "oelkit/FrozenLake3x3-v0", "--eval-maps", "1", "--max-new-tokens", "2"]
    status, _, err = call("evaluate", *small, "--out", "rate.json")
    assert status == 0 and json.loads(Path("rate.json").read_text())["model"] == "micro", err
    same = ["--out", "x.json", "--replies", "./x.json"]
    refused(call("ifeval", "q.jsonl", *same), "--out and --replies need a file each")


def test_steps_on_files(call, place, settings, monkeypatch):
    tiny = ["--model", settings.model, "--prompt-set", settings.prompt_set]
    status, out, err = call(
        "play", *tiny, "--env", settings.env, "--seeds", "4:7", "--out", "new/games.jsonl"
    )
    assert (status, PROGRESS.sub("", out)) == (0, "written: new/games.jsonl\n"), err
    assert re.match(r"rollout: 3 games in \S+, won=\d\n", out)
    games = read_jsonl("new/games.jsonl", Trajectory)
    assert [g.seed for g in games] == [4, 5, 6]
    refused(
        call("play", *tiny, "--out", "new/games.jsonl"), "new/games.jsonl already exists", "--force"
    )
    notes = place / "notes.md"
    notes.write_text("H is a hole.")
    status, _, err = call(
        "play",
        *tiny,
        "--env",
        settings.env,
        "--seeds",
        "4:7",
        "--experience",
        notes,
        "--force",
        "--out",
        "new/games.jsonl",
    )
    assert status == 0, err
    told = read_jsonl("new/games.jsonl", Trajectory)
    assert all("H is a hole." in t.prompt[0]["content"] for g in told for t in g.turns)
    status, out, err = call(
        "extract",
        *tiny,
        "--trajectories",
        "new/games.jsonl",
        "--num-draws",
        "2",
        "--previous",
        notes,
        "--out",
        "items.jsonl",
    )
    assert status == 0 and read_jsonl("items.jsonl", ExperienceItem) is not None, err
    assert "written: items.jsonl\nnext: oelkit " in out
    items(place / "items.jsonl", ["H is a hole.", "G is the goal."])
    curation = Curation.open("items.jsonl", "curation.jsonl")
    curation.accept("i0")
    status, out, err = call(
        "distill",
        *tiny,
        "--trajectories",
        "new/games.jsonl",
        "--experience",
        "items.jsonl",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--out",
        "adapter",
    )
    assert out.endswith("\nthen use it: oelkit export adapter --to merged\n")
    line = ["distill", *tiny, "--trajectories", "new/games.jsonl", "--experience", "items.jsonl"]
    line += ["--steps", "2", "--batch-size", "2", "--out", "again"]
    with monkeypatch.context() as stopped:
        pressed = nullcontext(lambda: True)
        stopped.setattr("oelkit.steps.distillation.interrupt_deferred", lambda: pressed)
        told = "stopped after 1 of 2 steps; the same command continues there\n"
        assert call(*line)[::2] == (130, told) and not Path("again").exists()
    assert "distill: 2 steps" in call(*line)[1] and not Path(".again.checkpoint").exists()
    weights = [
        Path(f"{name}/adapter_model.safetensors").read_bytes() for name in ("adapter", "again")
    ]
    assert weights[0] == weights[1]
    write_jsonl("general.jsonl", [State("s", "t", 0, [{"role": "user", "content": "Count."}])])
    assert call(*line[:-1], "third", "--rehearsal", "general.jsonl")[0] == 0
    assert Path("third/adapter_model.safetensors").read_bytes() != weights[0]
    wrong = call(*line[:-1], "fourth", "--rehearsal", "gneral.jsonl")
    refused(wrong, "gneral.jsonl: No such file")
    assert (
        status == 0 and "loss" in out and (place / "adapter" / "adapter_model.safetensors").exists()
    ), err
    told = r"experience: 2 items \(1 accepted, 1 pending; using the accepted\), one text of \d+ tok"
    assert re.match(told, out), out
    assert "H is a hole." in (read := (place / "adapter/experience.md").read_text())
    assert read.startswith("## Draw 0\n") and "G is" not in read
    status, out, err = call(
        "evaluate",
        *tiny,
        "--adapter",
        "adapter",
        "--env",
        settings.env,
        "--eval-maps",
        "3",
        "--out",
        "rate.json",
    )
    assert status == 0 and "on 3 maps of oelkit/FrozenLake3x3Unseen-v0" in out, err
    assert re.search(r"a difference of 10 points, you need \d+ episodes per arm", out)
    assert json.loads((place / "rate.json").read_text())["n"] == 3


def test_the_embedded_model_is_told_of_states_without_a_board(call, place, monkeypatch):
    def stop(text):
        raise ValueError("far enough")

    policy = SimpleNamespace(name="micro", tokenizer=stop)
    monkeypatch.setattr("oelkit.model.loading.policy_from_config", lambda *_, **__: policy)
    write_jsonl("states.jsonl", [State("s", "t", 0, [{"role": "user", "content": "x"}])])
    (place / "told.md").write_text("Be kind.")
    line = ["distill", "--states", "states.jsonl", "--experience", "told.md", "--out", "a"]
    with pytest.warns(UserWarning, match="understands only boards"):
        refused(call(*line), "far enough")


def test_experience_files(place):
    (place / "plain.txt").write_text("H is a hole.\n")
    (place / "experience.md").write_text("## Draw 0\na\nb\n\n## Draw 1\nc\n\n")
    path = str(items(place / "items.jsonl", ["a", "b", "c"]))
    assert experience_texts(None) == [""] and experience_texts("plain.txt") == ["H is a hole."]
    assert experience_texts("experience.md") == ["a\nb", "c"]
    (place / "mine.md").write_text("# Mine\n\n## Draw 0\na\n")
    with pytest.raises(ValueError, match="mine.md: text before the first heading `## Draw 0`"):
        experience_texts("mine.md")
    (place / "nothing.md").write_text("## Draw 0\n\n## Draw 1\n")
    with pytest.raises(ValueError, match="nothing.md contains no experience"):
        experience_texts("nothing.md")
    assert experience_texts("nothing.md", needed=False) == [""]
    assert experience_texts(path) == [
        "- EXPERIENCE ITEM: a\n- EXPERIENCE ITEM: c",
        "- EXPERIENCE ITEM: b",
    ]
    curation = Curation.open(path, place / "curation.jsonl")
    curation.accept("i1")
    curation.add("mine")
    assert experience_texts(path) == ["- EXPERIENCE ITEM: b\n- EXPERIENCE ITEM: mine"]


def test_bad_input_is_one_line_and_leaves_nothing(call, place, settings):
    tiny = ["--model", settings.model]
    for name in ("games", "bad", "none"):
        write_jsonl(place / f"{name}.jsonl", [make_game()] if name != "none" else [])
    with open("bad.jsonl", "a") as f:
        f.write('{"schema": 1, "id": "x"}\n')
    write_jsonl("states.jsonl", [State("s", "t", 0, [{"role": "user", "content": "x"}])])
    path = items(place / "items.jsonl", ["a", "b"])
    Curation.open(path, place / "curation.jsonl").reject(["i0", "i1"])
    (place / "text.md").write_text("- EXPERIENCE ITEM: a")
    before = sorted(place.rglob("*"))
    distill = ["distill", *tiny, "--out", "a", "--steps", "1"]
    refused(
        call("play", *tiny, "--env", "oelkit/Nowhere-v0", "--out", "x"),
        "unknown environment",
        "FrozenLake4x4-v0",
    )
    refused(call("play", "--model", "no/such/model/here", "--out", "x"), "no/such/model/here")
    refused(call("loop", *tiny, "--run", "a/b"), "run name 'a/b'")
    refused(call("report", "--run", "../x"), "../x holds no run")
    refused(call("loop", *tiny, "--env", "Nowhere-v0"), "unknown environment 'Nowhere-v0'")
    misused(call("loop", *tiny, "--rounds", "0"), "--rounds", "must be 1 to 999, not '0'")
    refused(
        call("extract", *tiny, "--trajectories", "bad.jsonl", "--out", "x"),
        "bad.jsonl, line 2",
        "'env_id'",
    )
    refused(call("extract", *tiny, "--trajectories", "none.jsonl", "--out", "x"), "empty")
    refused(
        call("extract", *tiny, "--trajectories", "absent.jsonl", "--out", "x"),
        "absent.jsonl: No such file",
    )
    refused(
        call(*distill, "--trajectories", "none.jsonl", "--experience", "text.md"),
        "trajectories are empty",
    )
    refused(
        call(*distill, "--states", "states.jsonl", "--experience", "items.jsonl"),
        "all were rejected",
    )
    refused(
        call(*distill, "--states", "states.jsonl", "--experience", "games.jsonl"),
        "games.jsonl, line 1",
        "'text'",
    )
    misused(call("evaluate", *tiny, "--eval-maps", "0"), "--eval-maps")
    refused(call("evaluate", *tiny, "--adapter", "no/adapter"), "no/adapter")
    for seeds in ("5", "9:3", "4:4", "0:999999999"):
        misused(call("play", "--seeds", seeds, "--out", "x"), "--seeds", f"{seeds!r} is not a")
    assert call("distill", "--experience", "x", "--out", "y")[0] == 2
    assert sorted(place.rglob("*")) == before


def test_damaged_files_of_a_run_and_texts_that_are_none_are_named(call, place, settings):
    folder = place / "runs/odd"
    folder.mkdir(parents=True)
    record = {"form": FORM, "settings": {"rounds": 1}, "prompts": {"name": "x"}, "versions": {}}
    (folder / "run.json").write_text(json.dumps(record))
    for damaged in (
        "{",
        "[]",
        "{}",
        '{"rounds": []}',
        '{"rounds": [{"pass_rate": 1}]}',
        "\ufeff{}",
    ):
        (folder / "metrics.json").write_text(damaged, "utf-8")
        refused(call("compare", "odd"), "odd")
        refused(call("report", "--run", "odd"), "odd")
    row = {"pass_rate": 0.5, "low": 0.4, "high": 0.6}
    rounds = [{"pass_rate": {"consolidated": row}, "ood": {"consolidated": None}}]  # no base
    (folder / "metrics.json").write_text(json.dumps({"rounds": rounds, "eval_env": "x"}))
    refused(call("compare", "odd", "--out", "odd.png"), "odd")
    tiny = ["--model", settings.model, "--out", "x"]
    (place / "told.md").write_bytes("## Draw 0\nLöcher\n".encode("cp1252"))
    refused(call("play", *tiny, "--experience", "told.md"), "told.md: not UTF-8")
    (place / "told.md").write_text("\ufeff## Draw 0 \nH is a hole.\n## Draw 1\t\nG is the goal.\n")
    assert experience_texts("told.md") == ["H is a hole.", "G is the goal."]


def test_what_cannot_be_written_is_known_before_the_work(call, place, settings, monkeypatch):
    monkeypatch.setattr("oelkit.model.loading.policy_from_config", lambda *_, **__: 1 / 0)
    (place / "folder").mkdir()
    (place / "file").touch()
    write_jsonl(place / "games.jsonl", [make_game()])
    for arguments in (
        ["play", "--out", "folder"],
        ["play", "--out", os.devnull],
        ["evaluate", "--out", "folder"],
        ["distill", "--trajectories", "games.jsonl", "--experience", "file", "--out", "file"],
        ["extract", "--trajectories", "games.jsonl", "--out", "folder"],
    ):
        answer = call(*arguments, "--force", "--model", settings.model)
        refused(answer, f"{arguments[-1]} cannot be written")
    assert (place / "file").read_bytes() == b""


def numbers():
    """Yield (command, flag, whether it is a whole number) of all numbers and dates that argparse
    accepts.
    """
    kinds = {"int": True, "float": False, "date": False}
    for command, one in cli.parser().commands.items():
        for action in one._actions:
            kind = "date" if action.dest == "date" else getattr(action.type, "__name__", "")
            if kind in kinds:
                yield command, (action.option_strings or [action.dest])[0], kinds[kind]


@pytest.mark.parametrize("command, flag, whole", list(numbers()))
def test_a_number_that_is_none_is_refused_with_its_flag(call, command, flag, whole):
    for value in ("x", "-1" + "0" * 15, "9" * 30, *(() if whole else ("nan", "inf", "NaN"))):
        given = ["demo", value] if flag == "round" else [flag, value]
        told = "K" if flag == "round" else flag
        misused(call(command, *given), told, value, ": must be " if value != "x" else "x")


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--steps", "0"),
        ("--lr", "nan"),
        ("--batch-size", "0"),
        ("--warmup", "-1"),
        ("--retention", "2"),
        ("--temperature", "-1"),
        ("--max-new-tokens", "0"),
        ("--lora-rank", "0"),
        ("--date", "2026-13-01"),
    ],
)
def test_a_setting_that_no_training_takes_is_refused_before_the_games(
    place, monkeypatch, call, flag, value
):
    monkeypatch.setattr("oelkit.runs.run.policy_from_config", lambda *_, **__: 1 / 0)
    misused(call("loop", "--run", "odd", flag, value), flag, ": must be ", repr(value))
    name = flag[2:].replace("-", "_")
    kind = str if name == "date" else int if value.lstrip("-").isdigit() else float
    with pytest.raises(ValueError, match=f"^{name} is .*: must be "):
        oelkit.runs.run.Run(place / "runs/odd", Settings(**{name: kind(value)}))
    assert not (place / "runs/odd").exists()


@pytest.mark.parametrize(
    "line, told",
    [
        (["play", "--seeds", "0:1", "--out", ""], "--out has"),
        (["distill", "--out", "x", "--experience", "x", "--states="], "--states= has"),
        (["status", ""], "status has"),
    ],
)
def test_an_empty_text_is_refused_before_any_work(call, monkeypatch, line, told):
    function, *rest = cli.COMMANDS[line[0]]
    never = wraps(function)(lambda *_: 1 / 0)
    monkeypatch.setitem(cli.COMMANDS, line[0], (never, *rest))
    status, out, err = call(*line)
    assert (status, out) == (2, "") and f"error: {told} an empty value" in err


@pytest.mark.parametrize(
    "line",
    ["loop --run=--", "notebooks -p=--", "notebooks -p--", "view x --port=--", "play --ou=--"],
)
def test_two_dashes_for_a_value_are_one_sentence(call, line):
    status, out, err = call(*line.split())
    assert (status, out) == (2, "") and "needs a value, and -- is none" in err.splitlines()[-1], err


def test_games_may_be_greedy_and_steps_have_any_seed():
    assert made("play", "--out", "x", "--temperature", "0").temperature == 0
    assert made("evaluate", "--seed", "-1000000000000").seed == -(10**12)
    assert made("distill", "--out", "x", "--states", "s", "--experience", "e").date == "2026-01-01"


def test_odd_arguments_are_named(call, place, settings):
    write_jsonl(place / "games.jsonl", [make_game()])
    (place / "told.md").write_text("H is a hole.")
    tiny = ["--model", settings.model, "--out", "x"]
    for world in ("a:b:c", ":", ":b"):
        refused(call("play", *tiny, "--env", world), f"unknown environment '{world}'", "MODULE:ID")
    misused(call("play", *tiny, "--seed", "9" * 30), "--seed", "999")
    (place / "bad.parquet").write_bytes(b"PAR1 and so on PAR1")
    refused(call("import", "bad.parquet"), "bad.parquet: not Parquet")
    folder = place / "runs/old"  # with few settings, as from an older oelkit or a stranger
    folder.mkdir(parents=True)
    record = {"model": settings.model, "extract_games": 1, "num_draws": 1, "max_new_tokens": 4}
    record = {"form": FORM, "settings": record | {"prompt_set": "brief"}, "prompts": {}}
    (folder / "run.json").write_text(json.dumps(record))
    refused(call("loop", "--run", "old", "--resume"), "nothing to distill in round 1")
    refused(call("data", "old", "--round", "7", "--out", "x.jsonl"), "round_7/trajectories.jsonl")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(call("view", "games.jsonl", "--port", port), f"port {port} at 127.0.0.1")


def test_unwritable_run_folder(call, place, settings):
    (place / "runs").write_text("a file where a folder should be")
    refused(
        call("loop", "--model", settings.model, "--run", "first"),
        "cannot write to the run folder",
        "runs/first",
    )


@pytest.mark.parametrize(
    "run, typed", [("runs/first", "first"), ("my runs/first", "'my runs/first'")]
)
def test_interrupt_says_how_to_go_on(call, place, settings, monkeypatch, run, typed):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # Ctrl-C before there is a run
        patch.setattr("oelkit.runs.run.policy_from_config", stop)
        started = call("loop", "--run", "first", *flags(settings))
    assert started == (130, "", "interrupted\n")
    monkeypatch.setitem(WORK, "rollout", stop)  # while it plays
    assert call("loop", "--run", "first", *flags(settings))[0] == 130
    (place / "runs").rename(place / Path(run).parent)
    status, out, err = call("loop", "--run", run, "--resume")
    monkeypatch.setattr("oelkit.runs.run.Run.open", stop)  # or while the model is loaded
    assert call("loop", "--run", run, "--resume")[2].startswith("interrupted; resume with")
    assert (status, out, err) == (
        130,
        "round 1: rollout\n",
        f"stopped in rollout of round 1; resume with `oelkit loop --run {typed} --resume`\n",
    )


def test_the_notebooks_are_laid_out_with_all_that_they_read(call, place):
    status, out, _ = call("notebooks", "--copy", "mine")
    assert status == 0 and "files to mine\nopen them: cd mine" in out
    theirs = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (place / "mine/notebooks").iterdir()} == theirs
    sources = "".join(path.read_text("utf-8") for path in (place / "mine/notebooks").iterdir())
    read = set(re.findall(r"[\"'(]((?:data|examples|tests)/[\w/.]+)", sources))
    assert len(read) > 8 and all((place / "mine" / path).exists() for path in read), read
    assert call("notebooks", "--copy", "mine")[0] == 0  # the same files again
    assert "python 'my own'/learn.py\n" in call("init", "my own")[1]
    (place / "mine/notebooks/00_tour.ipynb").write_text("my work")
    refused(call("notebooks", "--copy", "mine"), "00_tour.ipynb already exists and differs")
    for more in (["01_rollout"], ["-p", "seed=1"]):  # they would be left out silently
        refused(call("notebooks", *more, "--copy", "mine"), "leave out names and -p")


def test_runs_go_to_the_working_directory_or_beside_the_notebooks_above_it(place, monkeypatch):
    assert find_root() == place
    (place / "notebooks/00_tour.ipynb").write_text("")
    (place / "notebooks/deep").mkdir()
    monkeypatch.chdir(place / "notebooks/deep")
    assert find_root() == place
