"""Shared fixtures. The tiny random model runs through the same code as any other model."""

import os
import signal

# Background jobs of a shell ignore Ctrl+C. Processes that tests start would too, and never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Must be set before huggingface_hub is imported: no test may need the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Must be set before torch is loaded: waiting threads sleep, so that a busy machine slows tests a
# little instead of a hundredfold. Processes that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import house
import pytest
from helpers import ROOT, make_model, with_short_probe

from oelkit.startup import skip_slow_imports

skip_slow_imports()  # as on the command line

# Kernels are users' processes, which look for garbage at their end: over 1 s once torch is loaded.
END = "import atexit, gc; atexit.register(gc.freeze); del atexit, gc\n"


def kernels_begin_with(source, folder):
    """Add code that each kernel runs first to a folder for IPYTHONDIR, and return its name."""
    startup = folder / "profile_default/startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / f"{len(list(startup.iterdir()))}.py").write_text(source)
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def _kernels_end_at_once(tmp_path_factory):
    os.environ["IPYTHONDIR"] = kernels_begin_with(END, tmp_path_factory.mktemp("ipython"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a tiny random Qwen3 model (2 layers of 64, byte-level tokenizer, ChatML with
    enable_thinking).
    """
    return make_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def tiny(tiny_model):
    """A fresh policy on the tiny model."""
    from oelkit.model.loading import load_policy

    return load_policy(tiny_model)


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory):
    """Folder of the embedded model with only a few OOD questions, as all of them take seconds."""
    return with_short_probe(ROOT / "data/micro", tmp_path_factory.mktemp("model") / "micro")


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Settings for a run of seconds, on a tiny random model with a probe and short replies."""
    from oelkit.records import write_jsonl
    from oelkit.runs.settings import Settings

    folder = tmp_path_factory.mktemp("loop")
    model = make_model(folder / "model")
    question = {"kind": "copy", "messages": [{"role": "user", "content": "x"}], "answer": "x"}
    write_jsonl(model / "probe.jsonl", [question])
    return Settings(
        model=str(model),
        env="oelkit/FrozenLake3x3-v0",
        rounds=2,
        extract_games=2,
        state_games=3,
        num_draws=2,
        steps=2,
        batch_size=4,
        eval_maps=4,
        prompt_set="brief",
        max_new_tokens=4,
        lr=5e-3,
    )


@pytest.fixture
def fewer(tmp_path, monkeypatch):
    """Make the scale "tiny" smaller, here and in notebook kernels. Results are not tested."""
    from oelkit.runs.settings import SCALES

    monkeypatch.setenv("IPYTHONDIR", kernels_begin_with(END, tmp_path / "ipython"))

    def change(**less):
        for name, value in less.items():
            monkeypatch.setitem(SCALES["tiny"], name, value)
        code = f"from oelkit.runs.settings import SCALES\nSCALES['tiny'] |= {less}\ndel SCALES\n"
        kernels_begin_with(code, tmp_path / "ipython")

    change(extract_games=4, state_games=4, num_draws=2, steps=2, eval_maps=8, gate="off")
    return change


@pytest.fixture
def smaller(fewer):
    """Like `fewer`, with shorter replies too: those of the base model are truncated."""
    fewer(max_new_tokens=16, eval_maps=4)


@pytest.fixture(scope="session")
def real_model():
    """Folder of a real pretrained model, named by OELKIT_TEST_MODEL."""
    folder = os.environ.get("OELKIT_TEST_MODEL")
    if not folder:
        pytest.skip(
            "OELKIT_TEST_MODEL names no model folder (a small real model such as SmolLM2-135M)"
        )
    return folder


def pytest_terminal_summary(terminalreporter):
    """Print the size of the package after every test run."""
    whole, core, longest = house.sizes()
    names = ", ".join(f"{name} {house.lines(name)}" for name in longest)
    terminalreporter.write_line(f"oelkit/: {whole:,} lines; core path {core:,}; longest: {names}")
