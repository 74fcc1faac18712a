"""Exports of a run, loaded by plain Transformers and PEFT, and played again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import by_hand
from safetensors.torch import load_file, save_file

from oelkit import __main__ as cli
from oelkit import check_exports, export, push_to_hub
from oelkit.model.loading import load_policy
from oelkit.model.plain import PlainModel
from oelkit.model.sampling import generate
from oelkit.records import State, read_jsonl, write_text
from oelkit.runs.export import exported_round
from oelkit.runs.files import locked
from oelkit.runs.run import Run
from oelkit.runs.saved import SavedRun
from oelkit.runs.settings import Settings
from oelkit.runs.stages import Stages, stages_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def micro(micro_folder, tmp_path_factory):
    """Run one short round on the embedded model."""
    less = {"rounds": 1, "extract_games": 24, "state_games": 16, "num_draws": 2, "eval_maps": 24}
    less |= {"env": "oelkit/FrozenLake4x4-v0", "lr": 1e-3, "steps": 20}  # learned in one round
    less |= {"batch_size": 8, "max_new_tokens": 32}
    settings = Settings(model=str(micro_folder), run_ablations=False, gate="off", **less)
    folder = tmp_path_factory.mktemp("runs") / "short"
    Run(folder, settings, progress=False).run_all()
    return folder


@pytest.fixture(scope="module")
def two_rounds(settings, tmp_path_factory):
    """Run two rounds on a random model. Tests must not change it."""
    without_arms = replace(settings, run_ablations=False)  # no export reads them
    run = Run(tmp_path_factory.mktemp("runs") / "two", without_arms, progress=False)
    by_hand(run, "H is a hole.", "```\n<script>alert(1)</script>").run_all()
    return run


@pytest.fixture
def copy(two_rounds, tmp_path):
    return shutil.copytree(two_rounds.folder, tmp_path / "two")


def greedy(model, run, adapter="student"):
    states = read_jsonl(run / "round_1/states.jsonl", State)[:24]
    prompts = [model.encode(state.prompt) for state in states]
    replies = generate(model, prompts, adapter=adapter, temperature=0, max_new_tokens=24)
    return prompts, [reply.text for reply in replies]


def test_an_adapter_in_plain_peft_says_what_the_run_says(micro, micro_folder):
    folder = export(micro, "peft")
    policy = load_policy(micro_folder, adapter=micro / "round_1/adapter")
    plain = PlainModel(folder, str(micro_folder), policy.default_prompt_set)
    assert greedy(plain, micro) == greedy(policy, micro)
    assert greedy(plain, micro) != greedy(policy, micro, adapter=None)


def test_a_merged_model_needs_neither_peft_nor_the_base(micro, micro_folder):
    folder = export(micro, "merged")
    assert not (folder / "adapter_config.json").exists()
    weights = load_file(folder / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"torch.bfloat16"}
    again = load_policy(folder)  # with the prompt set that it was trained on
    assert again.default_prompt_set == load_policy(micro_folder).default_prompt_set
    policy = load_policy(micro_folder, adapter=micro / "round_1/adapter")
    plain = PlainModel(folder, str(micro_folder), policy.default_prompt_set)
    (prompts, merged), (theirs, run) = greedy(plain, micro), greedy(policy, micro)
    same = sum(a == b for a, b in zip(merged, run, strict=True))
    base = greedy(policy, micro, adapter=None)[1]
    assert prompts == theirs and same >= 0.9 * len(run)  # 16 bits can flip close decisions
    assert sum(a == b for a, b in zip(base, run, strict=True)) < 0.5 * len(run)


def test_an_adapter_without_a_run_is_exported_like_that_of_a_run(micro, tmp_path, capsys):
    adapter = shutil.copytree(micro / "round_1/adapter", tmp_path / "my_adapter")
    assert cli.main(["export", str(adapter), "--to", "peft", "--to", "merged"]) == 0
    assert capsys.readouterr().out.endswith(f"written: {adapter}/export/merged\n")
    for form, weights in (("peft", "adapter_model"), ("merged", "model")):
        ours, runs = (
            (folder / f"{weights}.safetensors").read_bytes()
            for folder in (adapter / "export" / form, export(micro, form, tmp_path / form))
        )
        assert ours == runs
    assert (adapter / "export/merged/experience.md").exists()
    assert load_policy(adapter / "export/merged").default_prompt_set == "brief"
    with pytest.raises(ValueError, match="my_adapter holds an adapter, but no run"):
        check_exports(adapter, [])
    assert cli.main(["export", str(tmp_path / "none")]) == 1
    assert "none holds no run" in capsys.readouterr().err


def test_exports_play_the_same_maps_again_and_one_that_lost_its_weights_shows(micro, tmp_path):
    whole = export(micro, "peft", tmp_path / "whole")
    empty = export(micro, "peft", tmp_path / "empty")
    weights = load_file(empty / "adapter_model.safetensors")
    save_file({k: 0 * w for k, w in weights.items()}, empty / "adapter_model.safetensors")
    run, good, bad = check_exports(micro, [whole, empty])
    measured = json.loads((micro / "metrics.json").read_text())["rounds"][0]["pass_rate"]
    assert {k: run[k] for k in measured["consolidated"]} == measured["consolidated"]
    assert good["n"] == run["n"] == 24 and good["ood"]["n"] == run["ood"]["n"]
    assert good["difference_low"] <= 0 <= good["difference_high"]
    assert bad["difference_high"] < 0 and bad["pass_rate"] < run["pass_rate"]
    passes = [np.array(list(map(int, row["passes"]))) for row in (run, bad)]
    assert bad["difference"] == pytest.approx((passes[1] - passes[0]).mean())
    for folder, row in ((whole, good), (empty, bad)):
        card = (folder / "README.md").read_text()
        assert f"{100 * row['difference']:+.1f} [" in card and "| run |" in card


def test_the_card_says_what_the_model_is_made_of(two_rounds, tmp_path):
    folder = export(two_rounds, out=tmp_path / "mine")
    card = (folder / "README.md").read_text()
    about = json.loads((folder / "oelkit_export.json").read_text())
    assert [row["starts_from"] for row in about["rounds"]] == ["the base model", 1]
    metrics = json.loads((two_rounds.folder / "metrics.json").read_text())
    for row, r in zip(about["rounds"], metrics["rounds"], strict=True):
        assert row["items"] == r["items"] and row["trajectories"] == 2
        assert row["ood"] == r["ood"]
        for arm, rate in row["pass_rate"].items():
            assert {k: r["pass_rate"][arm][k] for k in rate} == rate
            assert f"[{rate['low']:.1%}, {rate['high']:.1%}], n {rate['n']}" in card
    for said in ("oelkit/FrozenLake3x3-v0", "lr 0.005", "H is a hole.", about["experience_sha256"]):
        assert said in card
    fenced = card.split("````text\n")[1]  # model text stays within its fence
    assert "<script>" in fenced.split("````")[0] and "<script>" not in fenced.split("````")[1]
    assert "has not been played again" in card
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == two_rounds.settings.model


def test_private_keeps_the_experience_out_and_its_hash_in(two_rounds, tmp_path):
    folder = export(two_rounds.folder, out=tmp_path / "mine", private=True)
    digest = json.loads((folder / "oelkit_export.json").read_text())["experience_sha256"]
    assert digest in (folder / "README.md").read_text()
    assert not any(b"is a hole" in path.read_bytes() for path in folder.iterdir())


def test_a_round_that_was_rolled_back_is_not_exported(copy):
    stages_of(copy).decide(2, keep=False)
    about = json.loads((export(copy) / "oelkit_export.json").read_text())
    assert [row["round"] for row in about["rounds"]] == [1]
    stages_of(copy).decide(1, keep=False)
    stages_of(copy).decide(2, keep=False)
    with pytest.raises(ValueError, match="all rounds are rolled back"):
        export(copy)


def test_a_round_chosen_by_a_gate_that_is_out_of_date_is_not_exported(copy, monkeypatch):
    monkeypatch.setattr(Stages, "lost", lambda self, k: "it lost" if k == 2 else "")
    run = json.loads((copy / "run.json").read_text())
    run["settings"]["gate"] = "rollback"
    (copy / "run.json").write_text(json.dumps(run))
    assert exported_round(stages_of(copy)) == 1
    SavedRun(copy).curation(2).add("Walls cost a turn.")
    with pytest.raises(ValueError, match="evaluate of round 2 is stale"):
        export(copy, "peft")


def test_an_adapter_whose_config_is_damaged_is_named(copy):
    path = copy / "round_1/adapter/adapter_config.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"adapter_config.json: damaged"):
        export(path.parent, "peft")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(copy, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="choose one of peft, merged, gguf"):
        export(copy, "onnx")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        export(copy, out=tmp_path / "there")
    with locked(copy), pytest.raises(ValueError, match="is being written by process"):
        export(copy)
    for name in ("LLAMA_CPP", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"convert_hf_to_gguf.py: set LLAMA_CPP"):
        export(copy, "gguf")
    write_text(copy / "round_2/experience.md", "## Draw 0\nWalls are safe.\n")
    with pytest.raises(ValueError, match="distill of round 2 is stale"):
        export(copy)
    assert not (copy / "export").exists()


def test_a_converter_gets_the_merged_model_and_its_error_is_said(copy, tmp_path, monkeypatch):
    script = tmp_path / "convert_hf_to_gguf.py"
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    script.write_text(
        "import pathlib, sys\nmodel = pathlib.Path(sys.argv[1])\n"
        "weights = (model / 'model.safetensors').read_bytes()\n"
        "assert sys.argv[2] == '--outfile'; pathlib.Path(sys.argv[3]).write_bytes(weights[:9])\n"
    )
    folder = export(copy, "gguf")
    assert (folder / "two.gguf").stat().st_size == 9 and not (folder / "merged").exists()
    assert "llama-server" in (folder / "README.md").read_text()
    script.write_text("raise SystemExit('this model is not known')\n")
    with pytest.raises(ValueError, match="did not convert .*this model is not known"):
        export(copy, "gguf")
    assert (folder / "two.gguf").exists()  # the one from before


def test_without_the_hub_nothing_is_pushed(two_rounds, tmp_path):
    folder = export(two_rounds, out=tmp_path / "mine")
    with pytest.raises(ConnectionError, match="me/mine: not pushed to the hub"):
        push_to_hub(folder, "me/mine")
    with pytest.raises(ValueError, match="not a folder written by"):
        push_to_hub(tmp_path, "me/mine")


def test_an_export_that_cannot_be_loaded_is_an_error(copy):
    folder = export(copy)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    for named in ([folder], folder, str(folder)):  # a single one is no list of letters
        with pytest.raises(RuntimeError, match=f"{folder}: could not be loaded and played"):
            check_exports(copy, named)


def test_the_command(copy, capsys):
    assert cli.main(["export", str(copy), "--to", "peft"]) == 0
    out = capsys.readouterr().out
    assert f"written: {copy / 'export/peft'}" in out and "| peft |" in out
    assert cli.main(["export", str(copy), "--to", "peft", "--to", "merged", "--out", "x"]) == 1
    assert "--out and --push take one form" in capsys.readouterr().err
