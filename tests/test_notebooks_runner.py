"""The strict notebook runner, on tiny notebooks with real kernels. It must fail on errors that
papermill ignores.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from types import SimpleNamespace

import nbformat
import pytest
from helpers import ROOT, in_mounts, read_only

from oelkit import kernels, notebooks
from oelkit.__main__ import main
from oelkit.beside import split
from oelkit.notebooks import NotebookError, Parameter, convert, parameters_of, run_notebooks

pytestmark = pytest.mark.slow

PARAMETERS = """run = "demo"
steps = 3  # how many
lr = 1e-3
fast = False
model = "a#b"
seeds = [0, 1]
limit: int | None = None"""


def write(root, name, *sources, parameters=PARAMETERS, after=None):
    head = "[![Open in Colab](https://x.org/badge.svg)](https://x.org)\n\n"
    head += f"# {name}: [logs](../docs/logs.md)"
    cells = [nbformat.v4.new_markdown_cell(head), nbformat.v4.new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    if after is not None:
        notebook.metadata["oelkit"] = {"after": after}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "oelkit").mkdir()
    return tmp_path


def published(root, run="demo"):
    """Return the files that a person opens; the others are for programs."""
    names = sorted(path.name for path in (root / "runs" / run / "notebooks").iterdir())
    return [name for name in names if not name.endswith((".status.json", "junit.xml"))]


def told(root, run="demo"):
    """Return what programs read: each status.json, and the cases of junit.xml by kind."""
    folder = root / "runs" / run / "notebooks"
    states = {p.name.split(".")[0]: json.loads(p.read_text()) for p in folder.glob("*.status.json")}
    suite = xml.parse(folder / "junit.xml").getroot()
    cases = {case.get("name"): [(c.tag, c.get("message")) for c in case] for case in suite}
    assert int(suite.get("tests")) == len(cases)
    kinds = [kind for case in cases.values() for kind, _ in case]
    assert [int(suite.get(k)) for k in ("failures", "skipped", "errors")] == [
        kinds.count("failure"),
        kinds.count("skipped"),
        0,
    ]
    return states, cases


def ends(file):
    """Assert that the process whose id is in the file ends within a minute."""
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.kill(int(file.read_text()), 0)
            time.sleep(0.1)


def fails(root, match, *args, **kwargs):
    with pytest.raises((NotebookError, ValueError), match=match) as caught:
        run_notebooks(*args, root=root, **kwargs)
    assert "\n" not in str(caught.value)


# past IPython, as ZeroMQ does when it aborts at the end of a kernel
ASIDE = "import os; os.write(2, b'last words')"


def test_runs_in_order_with_parameters_for_those_that_declare_them(root, capfd):
    values = "[run, steps, lr, fast, model, seeds, limit, os.getcwd(), sys.executable]"
    show = f"import json, os, sys\nprint(json.dumps({values}))"
    write(
        root,
        "01_first",
        "assert steps == 3",
        "open('order', 'a').write('1')",
        parameters='run = "demo"\nsteps = 3',
    )
    write(root, "02_second", show, "open('order', 'a').write('2')", ASIDE)
    given = {"lr": "0.5", "fast": "true", "model": "x y", "seeds": "4,5", "limit": 7}
    copies = run_notebooks(parameters=given, run="r1", root=root)
    assert (root / "order").read_text() == "12"
    assert [copy.name for copy in copies] == ["01_first.ipynb", "02_second.ipynb"]
    assert published(root, "r1") == [
        "01_first.html",
        "01_first.ipynb",
        "02_second.html",
        "02_second.ipynb",
    ]
    output = next(
        cell for cell in nbformat.read(copies[1], 4).cells if cell.source == show
    ).outputs[0]
    assert json.loads(output.text) == [
        "r1",
        3,
        0.5,
        True,
        "x y",
        [4, 5],
        7,
        str(root),
        sys.executable,
    ]
    assert str(root) in (root / "runs/r1/notebooks/02_second.html").read_text()
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["01_first", "02_second"]
    assert err == ""


def test_another_user_of_the_machine_reads_nothing_from_a_kernels_port(root):
    listen = """import time, zmq
from ipykernel.connect import get_connection_info
about = get_connection_info(unpack=True)
other = zmq.Context.instance().socket(zmq.SUB)
other.connect(f"{about['transport']}://{about['ip']}:{about['iopub_port']}")
other.subscribe(b"")
time.sleep(1)"""
    hear = "time.sleep(1)\nassert not other.poll(1000), other.recv_multipart()"
    write(root, "01_a", listen, "print('said to nobody')", hear)
    (copy,) = run_notebooks(root=root)
    assert "said to nobody" in copy.read_text()


def test_runs_only_what_is_named_whatever_kernel_the_user_registered(root, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["/bin/false"], "display_name": "other", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # set by the user or by importing oelkit
    write(root, "01_a", "1 / 0")
    write(
        root,
        "02_b",
        "import os; assert os.environ['OMP_WAIT_POLICY'] == 'ACTIVE'",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    )
    (copy,) = run_notebooks(["notebooks/02_b.ipynb"], root=root)
    assert "image/png" in copy.read_text()
    assert published(root) == ["02_b.html", "02_b.ipynb"]


def test_error_keeps_the_failed_state_stops_and_spares_the_earlier_copy(root):
    write(root, "01_a", "x = 1", "x / 0", "x = 2")
    write(root, "02_b", "open('ran', 'w')")
    folder = root / "runs" / "demo" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "01_a.ipynb").write_text("earlier")
    fails(root, r"01_a failed in cell 4 \('x / 0'\): ZeroDivisionError: .*01_a.failed.ipynb")
    assert (folder / "01_a.ipynb").read_text() == "earlier"
    assert published(root) == ["01_a.failed.ipynb", "01_a.ipynb"]
    assert not (root / "ran").exists()
    states, cases = told(root)
    assert set(states) == {"01_a"}
    state = states["01_a"]
    assert (state["status"], state["cell"], state["copy"]) == ("failed", 4, "01_a.failed.ipynb")
    assert "ZeroDivisionError" in state["reason"] and state["seconds"] > 0
    assert cases == {
        "01_a": [("failure", state["reason"])],
        "02_b": [("skipped", "an earlier one failed")],
    }
    write(root, "01_a", "x = 1")
    run_notebooks(["01_a"], root=root)
    assert published(root) == ["01_a.html", "01_a.ipynb"]  # the stale failure is gone
    states, cases = told(root)
    assert states["01_a"]["status"] == "passed" and cases == {"01_a": []}


def test_a_failure_that_says_odd_things_is_still_xml(root):
    write(root, "01_a", r"raise ValueError('\x00\x1b[31m<b>&\ud800\u202e\uffff')")
    fails(root, "01_a failed in cell 3")
    states, cases = told(root)
    assert "ValueError" in states["01_a"]["reason"]
    ((kind, message),) = cases["01_a"]
    assert kind == "failure" and "<b>&" in message and "\x1b" not in message


WAIT = """import os, time
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.1)"""


@pytest.fixture
def beside(root, monkeypatch):
    """Let other processes find this package and this root."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return root


def test_what_may_run_beside_the_others_does(beside, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = "assert os.environ['OMP_NUM_THREADS'] == '1' and steps == 7"
    # each waits for the other
    write(beside, "00_free", WAIT, threads, "open('a', 'w'); wait('b')", after="")
    write(beside, "01_a", WAIT, threads, "wait('a'); open('b', 'w')", "open('done', 'w')")
    write(beside, "02_b", WAIT, "wait('c')")
    write(beside, "03_c", "open('done').close(); open('c', 'w')", "assert run == 'r'", after="01_a")
    copies = run_notebooks(parameters={"steps": "7"}, run="r", root=beside)
    assert [copy.stem for copy in copies] == ["00_free", "01_a", "02_b", "03_c"]
    assert all(copy.exists() for copy in copies) and "OMP_NUM_THREADS" not in os.environ
    states, cases = told(beside, "r")
    assert {s["status"] for s in states.values()} == {"passed"} and len(states) == 4
    assert list(cases) == ["00_free", "01_a", "02_b", "03_c"] and not any(cases.values())
    out, err = capfd.readouterr()
    assert sorted(line.split()[0] for line in out.splitlines()) == list(cases) and err == ""


@pytest.mark.parametrize("alone", [{"model": "x"}, {}])
def test_nothing_runs_beside_a_larger_model_or_nothing(beside, alone):
    write(
        beside,
        "00_free",
        "import os",
        "assert not os.path.exists('01')",
        "open('00', 'w')",
        after="",
    )
    if alone:
        write(beside, "01_a", "open('00').close()", "open('01', 'w')")
    write(beside, "02_free", "open('00').close()", after="01_a")
    run_notebooks(parameters=alone, root=beside)


def test_the_failure_of_one_beside_is_told_and_ends_the_batch(beside):
    write(beside, "00_free", "1 / 0", after="")
    write(beside, "01_a", WAIT, "wait('runs/demo/notebooks/00_free.status.json'); time.sleep(3)")
    write(beside, "02_b", "open('ran', 'w')")
    write(beside, "03_free", "open('ran', 'w')", after="02_b")
    fails(beside, "00_free failed in cell 3 .*ZeroDivisionError")
    states, cases = told(beside)
    assert {name: s["status"] for name, s in states.items()} == {
        "00_free": "failed",
        "01_a": "passed",
    }
    assert [kind for case in cases.values() for kind, _ in case] == ["failure", *["skipped"] * 2]
    assert not (beside / "ran").exists()


def test_a_failure_ends_what_runs_beside_and_is_the_one_that_is_told(beside):
    """Also if Ctrl+C is ignored, as in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    write(beside, "00_free", "open('begun', 'w')", "import time; time.sleep(900)", after="")
    write(beside, "01_a", WAIT, "wait('begun')", "1 / 0")
    try:
        fails(beside, "01_a failed in cell 5 .*ZeroDivisionError")
    finally:
        signal.signal(signal.SIGINT, before)
    states, _ = told(beside)
    assert {name: s["status"] for name, s in states.items()} == dict.fromkeys(states, "failed")
    assert len(states) == 2 and ": interrupted" in states["00_free"]["reason"]


def test_two_batches_at_once_on_one_run_leave_two_whole_copies(root):
    write(root, "01_a", "import time; time.sleep(3)", "x = 1", "x")
    command = (
        "from oelkit.notebooks import run_notebooks as r; from pathlib import Path; r(root=Path())"
    )
    ours = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", command], cwd=root, env=ours) for _ in range(2)]
    assert [child.wait() for child in both] == [0, 0]
    assert published(root) == ["01_a.html", "01_a.ipynb"]
    copy = nbformat.read(root / "runs/demo/notebooks/01_a.ipynb", 4)
    assert all(cell.execution_count for cell in copy.cells if cell.cell_type == "code")


def test_of_two_batches_that_write_one_run_the_second_names_its_cell(root):
    hold = "with locked(here):\n    while not Path('go').exists():\n        time.sleep(0.1)"
    begin = "import time\nfrom pathlib import Path\nfrom oelkit.runs.files import locked"
    write(root, "01_a", f"{begin}\nhere = Path('runs', run)", hold)
    command = [sys.executable, "-m", "oelkit", "notebooks", "01_a"]
    (root / "notebooks/00_tour.ipynb").write_text("{}")  # marks the root
    first = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lock = root / "runs/demo/run.lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
        time.sleep(0.1)
    fails(root, r"01_a failed in cell 4 .*runs/demo is being written by process \d+", ["01_a"])
    assert told(root)[0]["01_a"]["cell"] == 4
    (root / "go").touch()
    assert first.wait() == 0
    assert published(root) == ["01_a.failed.ipynb", "01_a.html", "01_a.ipynb"]
    run_notebooks(["01_a"], root=root)
    assert published(root) == ["01_a.html", "01_a.ipynb"]  # the stale failure is gone


def test_a_checkout_that_nobody_can_write_to_is_run_elsewhere(tmp_path):
    env = [sys.executable, "-m", "oelkit", "notebooks"]
    here = in_mounts(read_only(ROOT), *env, "02_inspect", "--run", "read-only", cwd=ROOT)
    assert here.returncode == 1 and "cannot write to the run folder" in here.stderr, here
    copied = in_mounts(read_only(ROOT), *env, "--copy", ".", cwd=tmp_path)
    assert copied.returncode == 0, copied
    there = in_mounts(read_only(ROOT), *env, "02_inspect", "--run", "mine", cwd=tmp_path)
    assert there.returncode == 0, there
    assert {"02_inspect.html", "02_inspect.ipynb"} <= set(published(tmp_path, "mine"))


def test_ctrl_c_ends_the_batch_and_its_kernel(root):
    kernel = "import os, time\nopen('kernel', 'w').write(str(os.getpid()))\nopen('begun', 'w')"
    write(root, "01_a", "x = 1", f"{kernel}\ntime.sleep(900)")
    (root / "notebooks/00_tour.ipynb").write_text("{}")  # marks the root
    command = [sys.executable, "-m", "oelkit", "notebooks", "01_a"]
    batch = subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    while not (root / "begun").exists():
        assert batch.poll() is None
        time.sleep(0.1)
    batch.send_signal(signal.SIGINT)
    said = batch.communicate()[1].decode()
    assert (batch.returncode, said.count("\n")) == (130, 1), said
    state = told(root)[0]["01_a"]
    assert (state["status"], state["cell"]) == ("failed", 4)
    assert published(root) == ["01_a.failed.ipynb"]
    ends(root / "kernel")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core nothing runs beside")
def test_ctrl_c_again_and_again_ends_what_runs_beside_and_loses_no_result(beside):
    kernel = "import os, time\nopen(name, 'w').write(str(os.getpid()))\ntime.sleep(900)"
    write(beside, "00_tour", "x = 1", after="")
    write(beside, "01_a", "x = 1")
    write(beside, "02_b", "name = 'one'", kernel)
    write(beside, "03_c", "name = 'two'", kernel, after="")
    batch = subprocess.Popen([sys.executable, "-m", "oelkit", "notebooks"], cwd=beside)
    files = [beside / "one", beside / "two"]
    while not all(file.exists() and file.read_text() for file in files):
        assert batch.poll() is None
        time.sleep(0.1)
    while batch.poll() is None:
        batch.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert batch.wait() in (130, -signal.SIGINT)  # can arrive when everything is written
    states, cases = told(beside)
    assert {name: s["cell"] for name, s in states.items() if s["cell"]} == {"02_b": 4, "03_c": 4}
    assert [[kind for kind, _ in cases[name]] for name in sorted(cases)] == [
        *([], []),
        *(["failure"], ["failure"]),
    ]
    for file in files:
        ends(file)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core nothing runs beside")
def test_what_runs_beside_ends_with_a_batch_that_is_killed(beside):
    kernel = "import os, time\nopen('kernel', 'w').write(str(os.getpid()))\ntime.sleep(900)"
    write(beside, "00_tour", kernel, after="")
    write(beside, "01_a", "import time", "time.sleep(900)")
    batch = subprocess.Popen([sys.executable, "-m", "oelkit", "notebooks"], cwd=beside)
    file = beside / "kernel"
    while not (file.exists() and file.read_text()):
        assert batch.poll() is None
        time.sleep(0.1)
    batch.kill()
    ends(file)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core nothing runs beside")
def test_one_beside_that_is_killed_has_failed(beside):
    write(beside, "00_free", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)", after="")
    write(beside, "01_a", "import time; time.sleep(1)", "time.sleep(1)")
    with pytest.raises(NotebookError, match="00_free: exit status -9"):
        run_notebooks(root=beside)
    kinds = {name: [kind for kind, _ in case] for name, case in told(beside)[1].items()}
    assert kinds["00_free"] == ["failure"], kinds


def test_a_value_is_read_as_each_notebook_beside_reads_it(beside):
    write(beside, "00_int", "assert k == 2 and isinstance(k, int)", parameters="k = 1", after="")
    write(beside, "01_float", "assert isinstance(k, float)", parameters="k = 1.5", after="")
    write(beside, "02_a", "x = 1")
    assert len(run_notebooks(parameters={"k": "2"}, root=beside)) == 3


def test_what_waits_for_one_that_waits_comes_behind_it(beside):
    for name, after in (("00_a", None), ("01_b", "00_a"), ("02_c", "01_b"), ("03_d", "03_d")):
        write(beside, name, "x = 1", after=after)
    paths = sorted((beside / "notebooks").glob("*.ipynb"))
    assert split(paths, {}) == {None: ["00_a", "03_d"], "00_a": ["01_b", "02_c"]}
    was = paths[3].read_text()
    assert '{\n   "after": "03_d"\n  }' in was
    for odd in ("null", '"after"', '{"after": ["00_a"]}', '{"after": {}}', '{"after": 0}'):
        paths[3].write_text(was.replace('{\n   "after": "03_d"\n  }', odd))
        assert split(paths, {})[None] == ["00_a", "03_d"]


def test_without_a_display_in_another_folder(root, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(root / "oelkit")
    write(
        root,
        "01_a",
        "import matplotlib.pyplot as plt; plt.plot([1]); import os; print(os.getcwd())",
    )
    (copy,) = run_notebooks(root=root)
    assert str(root) in copy.read_text() and "image/png" in copy.read_text()


def test_a_missing_kernel_is_named(root, monkeypatch):
    write(root, "01_a", "x = 1")
    from ipykernel import kernelspec

    def command(**_):
        return {"argv": [str(root / "no-python")], "display_name": "x", "language": "python"}

    monkeypatch.setattr(kernelspec, "get_kernel_dict", command)
    fails(root, "01_a .*no-python")
    assert told(root)[0]["01_a"]["status"] == "failed"
    assert published(root) == ["01_a.failed.ipynb"]
    monkeypatch.setitem(sys.modules, "ipykernel.kernelspec", None)  # ipykernel is not installed
    fails(root, "01_a could not be executed: .*ipykernel")
    assert told(root)[0]["01_a"]["status"] == "failed"


@pytest.fixture
def clock(monkeypatch):
    """Set the runner's clock. It is read twice at the start, then before each code cell (the first
    two are parameters). A cell with no time left gets one second.
    """

    def set_to(*values):
        left = iter(values)
        fake = SimpleNamespace(monotonic=lambda: next(left, values[-1]))
        monkeypatch.setattr(notebooks, "time", fake)

    return set_to


@pytest.mark.parametrize(
    ("source", "match", "times", "said"),
    [
        ("while True: pass", "time-out of 900 s expired", (0, 0, 0, 0, 900), ""),
        (f"{ASIDE}; os._exit(1)", "kernel died", (0,), "last words"),
        ("import sys; sys.exit()", "exits here", (0,), ""),
    ],
)
def test_what_papermill_calls_completed_is_marked_failed(
    root, capfd, clock, source, match, times, said
):
    write(root, "01_a", source, "after = 1")
    clock(*times)
    fails(root, match, timeout=900)
    assert capfd.readouterr().err == said
    assert published(root) == ["01_a.failed.ipynb"]
    cells = nbformat.read(root / "runs/demo/notebooks/01_a.failed.ipynb", 4).cells
    failed = [cell for cell in cells if cell.metadata.papermill.status == "failed"]
    assert [cell.source for cell in failed] == [source]
    assert "error" in [output.output_type for output in failed[0].outputs]
    assert cells[-1].metadata.papermill.status == "pending"


def test_a_cell_that_prints_without_end_is_ended_and_one_that_overwrites_is_not(root, monkeypatch):
    monkeypatch.setattr(kernels, "MOST", 50_000)
    bar = """from IPython.display import display
before = [print(n) for n in range(3)]
shown = display(1, display_id=True)
for n in range(100, 200):
    print("\\r" + str(n) * 1000, end="", flush=True)
shown.update(2)"""
    write(root, "01_a", bar, "while True: print('x' * 1000)", "after = 1")
    fails(root, r"01_a failed in cell 4 .*: over 0.0\d+ MiB of output; let the cell print less")
    copy = root / "runs/demo/notebooks/01_a.failed.ipynb"
    assert told(root)[0]["01_a"]["cell"] == 4 and copy.stat().st_size < 200_000
    *_, bar, endless, after = nbformat.read(copy, 4).cells
    assert bar.outputs[0].text == "0\n1\n2\n" and bar.outputs[2].text == "199" * 1000
    assert bar.outputs[1].data["text/plain"] == "2", "a display is still updated"
    assert "MiB of output" in endless.outputs[-1].evalue
    assert after.metadata.papermill.status == "pending"


def test_time_out_is_of_the_notebook_not_of_the_cell(root, clock):
    write(root, "01_a", "1", "2", "import time; time.sleep(2000)")
    clock(0, 0, 0, 0, 400, 800, 900)
    fails(root, "failed in cell 5 .*time-out of 900 s", timeout=900)


def test_publishes_no_widget_state(root):
    source = (
        "from IPython.display import display\nimport ipywidgets\n"
        "w = ipywidgets.IntSlider()\ndisplay(w)"
    )
    write(root, "01_a", source)
    (copy,) = run_notebooks(root=root)
    assert (
        "widget-view" not in copy.read_text() and "widgets" not in nbformat.read(copy, 4).metadata
    )
    assert "IntSlider" in copy.read_text()


def test_what_models_wrote_is_text_in_a_published_page(root):
    """The gallery and the site consist of such copies."""
    source = """from oelkit.curation import Curation
from oelkit.records import Evidence, ExperienceItem, Outcome, Trajectory, Turn
from oelkit.views.widgets import experience_editor, trajectory_viewer
e = "</pre></td><scr" + "ipt>alert(1)</scr" + "ipt><img src=x onerr" + "or=alert(2)> $x^2$"
turn = Turn(e, [{"role": e, "content": e}], e, e, e, 1, 1, False)
game = Trajectory(e, e, None, e, 1, (turn,), Outcome.UNKNOWN, e)
items = Curation([ExperienceItem(e, e, (Evidence(e, 0),), e, 1, 0)])
print(e)
display(e, turn, game, items, trajectory_viewer([game]), experience_editor(items))"""
    write(root, "01_a", source)
    (copy,) = run_notebooks(root=root)
    page = copy.with_suffix(".html").read_text()
    assert page.count("&lt;script&gt;alert(1)") > 5
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert not re.search(r'src="https?:', page), "it loads nothing from the network"
    assert 'href="../../../docs/logs.md"' in page
    assert "badge.svg" in copy.read_text(), "the executed notebook has the source's cells"


def test_publishes_of_progress_bars_only_the_end(root):
    source = """import sys, time
from tqdm import tqdm
from tqdm.notebook import tqdm as widget_bar
for _ in tqdm(range(3), desc="text bar", mininterval=0):
    time.sleep(0.2)
for _ in widget_bar(range(3), desc="widget bar"):
    pass"""
    write(root, "01_bars", source)
    (copy,) = run_notebooks(root=root)
    shown = str([cell.outputs for cell in nbformat.read(copy, 4).cells if cell.cell_type == "code"])
    assert shown.count("text bar") == 1 and "100%" in shown and "widget bar" not in shown


@pytest.mark.parametrize("run", ["a/b", "../x", "", ".hidden", "a b", "ä"])
def test_refuses_an_unsafe_run_name(root, run):
    write(root, "01_a", "1")
    fails(root, "run name", run=run)
    assert not (root / "runs").exists()


def test_refuses_bad_input_before_anything_runs(root):
    fails(root, "no notebooks")
    write(root, "01_a", "open('ran', 'w')")
    write(root, "02_b", "1", parameters="other = 1")
    fails(root, "unknown notebook '03_c'; there are: 01_a, 02_b", ["01_a", "03_c"])
    fails(root, "unknown notebook '03_c'", "03_c")  # and not its first letter
    fails(root, "unknown parameter 'stpes': 01_a, 02_b know only: .*steps", parameters={"stpes": 1})
    fails(root, "unknown parameter 'other'", ["01_a"], parameters={"other": 2})
    fails(root, "other='two' must be of the kind int", parameters={"other": "two"})
    fails(root, "--run", parameters={"run": "x"})
    fails(root, "timeout", timeout=0)
    fails(root, "timeout", timeout=float("nan"))
    assert not (root / "runs").exists()
    (root / "runs").write_text("a file in the way")
    fails(root, "cannot write to the run folder")
    (root / "notebooks" / "02_b.ipynb").write_text("{")
    fails(root, "02_b.ipynb is not a readable notebook", ["02_b"])
    assert not (root / "ran").exists()


def test_reads_the_parameters_cell(root):
    write(root, "01_a", "steps = 9", parameters=PARAMETERS + "\nhere = str(1)\na = b = (1,\n  2)")
    found = parameters_of(root / "notebooks" / "01_a.ipynb")
    assert {name: parameter.default for name, parameter in found.items()} == {
        "run": "demo",
        "steps": 3,
        "lr": 1e-3,
        "fast": False,
        "model": "a#b",
        "seeds": [0, 1],
        "limit": None,
        "a": (1, 2),
        "b": (1, 2),
    }
    assert found["limit"].kinds == {"int", "None"} and found["steps"].kinds == {"int"}


@pytest.mark.parametrize(
    ("kinds", "default", "value", "expected"),
    [
        ("int", 3, "4", 4),
        ("int", 3, " -4 ", -4),
        ("float", 0.1, "1e-3", 1e-3),
        ("float", 0.1, "2", 2.0),
        ("bool", True, "False", False),
        ("bool", True, "true", True),
        ("str", "a", "5", "5"),
        ("str", "a", "None", "None"),
        ("list", [], "[1]", [1]),
        ("list", [1], "[2, 3]", [2, 3]),
        ("list", [1], "2,3", [2, 3]),
        ("list", ["a"], "['b']", ["b"]),
        ("str None", None, "None", None),
        ("str None", None, "nf4", "nf4"),
        ("int None", None, "5", 5),
        ("None", None, "anything", "anything"),
        ("float", 0.1, 2, 2.0),
        ("dict", {}, "{'r': 4}", {"r": 4}),
    ],
)
def test_converts(kinds, default, value, expected):
    result = convert("x", value, Parameter(set(kinds.split()), default))
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("kinds", "default", "value"),
    [
        ("int", 3, "4.0"),
        ("int", 3, "four"),
        ("int", 3, "True"),
        ("int", 3, True),
        ("int", 3, ""),
        ("float", 0.1, "fast"),
        ("bool", True, "1"),
        ("bool", True, "yes"),
        ("str", "a", 5),
        ("list", [1], "4"),
        ("list", [1], "['a']"),
        ("list", [1], "[1"),
        ("int", 3, None),
        ("int None", None, "x"),
        ("int", 3, "__import__('os')"),
    ],
)
def test_refuses_the_ill_typed(kinds, default, value):
    with pytest.raises(NotebookError, match="parameter x="):
        convert("x", value, Parameter(set(kinds.split()), default))


def test_command_line(root, monkeypatch, capsys):
    write(root, "00_tour", "")  # marks the root
    write(root, "01_a", "assert steps == 5 and run == 'mine'")
    monkeypatch.chdir(root / "notebooks")  # the root is found from below

    def call(*argv):
        return main(["notebooks", *argv])

    assert call("01_a", "-p", "steps=5", "--run", "mine", "--timeout", "60") == 0
    assert published(root, "mine") == ["01_a.html", "01_a.ipynb"]
    for bad in (
        "-p steps",
        "-p steps=1 -p steps=2",
        "-p nope=1",
        "--run a/b",
        "99_x",
        "-p steps=6",
    ):
        assert call(*bad.split()) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
