"""The notebooks' set-up cell as on Colab: with a fake google.colab, ipywidgets 7, and the project
cloned and pip-installed into its own environment, which shares all other packages.
"""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDGETS = "7.7.1"  # the version on Colab
# later cells in the same process show games, a log and items
SCRIPT = """
import json, sys, types
for name in ("google", "google.colab"):
    sys.modules[name] = types.ModuleType(name)
cell = CELL
exec(cell)
exec(cell)  # safe to run twice
import ipywidgets, oelkit
from pathlib import Path
from oelkit.curation import Curation
from oelkit.logs import read_chats
from oelkit.records import ExperienceItem, Trajectory, read_jsonl
from oelkit.views import widgets
games = read_jsonl("data/sample/trajectories.jsonl", Trajectory)
items = read_jsonl("data/sample/items.jsonl", ExperienceItem)
views = [widgets.trajectory_viewer(games), widgets.experience_editor(Curation(items))]
views += [widgets.trajectory_viewer(read_chats("data/logs/lake_chats.jsonl"))]
shown = [sorted(view._repr_mimebundle_()[0]) for view in views]
here = str(Path(oelkit.__file__).parents[1])
print(json.dumps([ipywidgets.__version__, here, str(Path.cwd()), shown]))
"""


def setup_cell(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return next("".join(c["source"]) for c in cells if "google.colab" in "".join(c["source"]))


def test_all_notebooks_are_set_up_alike():
    assert len(NOTEBOOKS) > 9 and len({setup_cell(path) for path in NOTEBOOKS}) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Colab is Linux")
def test_the_first_cell_installs_and_replaces_nothing(tmp_path):
    content, place = tmp_path / "content", tmp_path / "env"
    content.mkdir()
    venv.create(place, with_pip=False)  # pip is one of the shared packages
    python = place / "bin/python"
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(place)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://github.com/oelkit/oelkit"}
    env |= {"GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf"}

    def run(*command):
        done = subprocess.run(command, cwd=content, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", f"ipywidgets=={WIDGETS}")
    before = json.loads(run(*pip, "list", "--format", "json"))
    cell = setup_cell(NOTEBOOKS[0]).replace("/content", str(content))
    out = run(python, "-c", SCRIPT.replace("CELL", repr(cell)))
    assert out.count("the embedded model, micro, fits everywhere".capitalize()) == 1, out
    widgets, package, cwd, shown = json.loads(out.splitlines()[-1])
    assert widgets == WIDGETS and package == cwd == str(content / "oelkit")
    assert all("application/vnd.jupyter.widget-view+json" in kinds for kinds in shown)
    after = json.loads(run(*pip, "list", "--format", "json"))
    others = [[p for p in found if p["name"] != "oelkit"] for found in (before, after)]
    assert others[0] == others[1], "something was replaced"
