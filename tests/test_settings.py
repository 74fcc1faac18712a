"""Settings: one default per name, scales, run names, and the package's public names."""

import ast
import json
import re
from dataclasses import FrozenInstanceError, asdict, fields
from inspect import signature
from pathlib import Path

import pytest

import oelkit
from oelkit.config import DistillConfig, EvalConfig, ExtractConfig, ModelConfig, Sampling, part
from oelkit.notebooks import run_notebooks
from oelkit.runs.settings import SCALES, Settings, check_settings, run_folder

ROOT = Path(__file__).parents[1]
PARTS = (ModelConfig, ExtractConfig, DistillConfig, EvalConfig)


def test_settings_are_those_of_the_steps_and_of_the_loop():
    names = [f.name for f in fields(Settings)]
    for config in PARTS:
        mine = {f.name: f.default for f in fields(config)}
        assert mine == {f.name: f.default for f in fields(Settings) if f.name in mine}
        assert part(config, Settings(seed=3)) == config()
    assert sum(len(fields(config)) for config in PARTS) + 10 == len(names) == len(set(names))
    assert all(f.metadata["help"] for config in (*PARTS, Sampling) for f in fields(config))
    assert part(DistillConfig, Settings.of("tiny", steps=7)) == DistillConfig(
        lr=5e-4, warmup=0, steps=7
    )
    # made for the embedded model: all others are trained with the safe defaults
    assert part(DistillConfig, Settings.of("tiny", model="a/b")) == DistillConfig()
    assert Settings.of("tiny", model="a/b", lr=1e-3).lr == 1e-3
    with pytest.raises(FrozenInstanceError):
        Settings().lr = 1


def test_scales_change_settings_that_there_are():
    for scale, changes in SCALES.items():
        assert asdict(Settings.of(scale, model="m")) == asdict(Settings(model="m")) | changes
    assert Settings.of("paper", model="m", rounds=1).rounds == 1
    for wrong, told in (
        (lambda: Settings(round=3), r"no setting 'round' \(did you mean rounds\?\)"),
        (lambda: Settings(3), "3: name the setting, as in"),
        (lambda: Settings(rounds="3"), "rounds: expected int, got the str '3'"),
    ):
        with pytest.raises(TypeError, match=told):
            wrong()
    assert "rounds" in signature(Settings.of).parameters and "Any" not in dir(oelkit)
    played, trained = signature(oelkit.evaluate).parameters, signature(oelkit.distill).parameters
    assert {"env_kwargs", "top_p", "options"} <= played.keys() and "seed" not in played
    assert trained["lr"].default == Settings().lr and [*trained][:2] == ["policy", "states"]
    with pytest.raises(TypeError, match=r"no setting 'step' \(did you mean steps\?\)"):
        Settings.of("tiny", step=3)
    with pytest.raises(ValueError, match=r"no setting 'step' \(did you mean steps\?\)"):
        check_settings({"step": 3})
    with pytest.raises(ValueError, match="no scale 'huge': choose one of tiny, small, paper"):
        Settings.of("huge")


def test_how_replies_are_drawn():
    settings = Settings(temperature=0.9, extract_temperature=0.1, eval_top_k=3, max_new_tokens=5)
    assert settings.play_sampling == Sampling(0.9, 1.0, 0, 5)
    assert settings.extract_sampling == Sampling(0.1, 1.0, 0, 5)
    assert settings.eval_sampling == Sampling(0.7, 0.8, 3, 5)


@pytest.mark.parametrize("name", ["_x", "demo-1.x", "0", "a" * 100])
def test_a_name_of_a_run(name, tmp_path):
    assert run_folder(name, tmp_path) == tmp_path / name


@pytest.mark.parametrize("name", ["über", "a/b", "../x", "", ".hidden", "-x", "a b", "a" * 101])
def test_no_name_of_a_run_is_none_for_the_notebooks_either(name, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01.ipynb").write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    for refuse in (lambda: run_folder(name), lambda: run_notebooks(run=name, root=tmp_path)):
        with pytest.raises(ValueError, match="run name"):
            refuse()


def test_every_public_name_loads_and_type_checkers_see_the_same():
    for name in oelkit.__all__:
        assert getattr(oelkit, name) is getattr(oelkit, name) is not None
        assert name in dir(oelkit)
    tree = ast.parse(Path(oelkit.__file__).with_suffix(".pyi").read_text("utf-8"))
    seen = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in seen)  # what is exported
    assert sorted(alias.name for alias in seen) == oelkit.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oelkit.nothing


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_imports_torch_after_oelkit(path):
    """oelkit sets the waiting policy of OpenMP's threads, which torch reads when it is loaded."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    first = re.search(r"^(?:from|import) (oelkit|torch)\b", source, re.M)
    assert first and first[1] == "oelkit"
