"""A person edits an item in notebook 04 after training, in JupyterLab: 05 and 07 refuse to run, the
button above the editor redoes stale stages, and then both run.
"""

import shutil

from oelkit import Run, Settings
from oelkit.runs.stages import status

from .pages import JUPYTER, PICTURES, ROOT, SAMPLE, SLOW, open_notebook, press, wait_for_kernel

ROUND = ("rollout", "extract", "curate", "collect", "distill")


def run_until(page, id):
    """Run the open notebook's cells up to the one with this id. Return that cell's output as text."""
    there = "jupyterapp.shell.currentWidget.content.widgets.find((c) => c.model.id == ID)"
    there = there.replace("ID", repr(id))
    page.wait_for_function(there, timeout=SLOW)  # cells are rendered one after the other
    page.evaluate(
        """async (id) => {
          const { content } = jupyterapp.shell.currentWidget;
          content.activeCellIndex = content.widgets.findIndex((c) => c.model.id == id) + 1;
          await jupyterapp.commands.execute("notebook:run-all-above");
        }""",
        id,
    )
    outputs = page.evaluate(f"{there}.model.outputs.toJSON()")
    return "".join("".join(o.get("text") or o.get("evalue", "")) for o in outputs)


def bring(page, name):
    """Open a notebook beside the page's others, or return to it, and wait for its kernel."""
    page.evaluate(
        """async (path) => {
          await jupyterapp.commands.execute("docmanager:open", { path });
          await jupyterapp.shell.currentWidget.sessionContext.ready;
        }""",
        f"notebooks/{name}.ipynb",
    )
    page.wait_for_function(
        f"jupyterapp.shell.currentWidget.title.label == '{name}.ipynb'", timeout=SLOW
    )
    wait_for_kernel(page)


def picture(page, name):
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png")


def test_an_edit_after_training_is_refused_until_the_button_does_it_again(
    smaller, serve, place, new_page
):
    folder = place / "runs" / "demo"
    run = Run(folder, Settings.of("tiny"), progress=False)
    one = run.round_folder(1)
    for name in ("trajectories", "items"):
        shutil.copy(SAMPLE / f"{name}.jsonl", one)
    run.distill(1)
    for name in ("04_curate", "05_distill", "07_online_rounds"):
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8")
        text = text.replace("https://colab.research.google.com/assets/", "")  # the badge's picture
        (place / "notebooks" / f"{name}.ipynb").write_text(text, "utf-8")

    def weights():
        return (one / "adapter" / "adapter_model.safetensors").read_bytes()

    def states():
        return {s.stage: s.state for s in status(folder) if s.round == 1 and s.stage in ROUND}

    trained, manifests = weights(), one / "manifests"
    kept = {path: path.stat().st_mtime_ns for path in manifests.iterdir()}
    assert set(states().values()) == {"done"}
    url = serve("jupyterlab", *JUPYTER, "--LabApp.expose_app_in_browser=True")

    def opened(name):  # a separate workspace, or the next page would restore this one's tabs
        page = new_page(height=1000)
        open_notebook(page, f"{url}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
        return page

    page = opened("04_curate")
    run_until(page, "04-13a")
    notice = page.get_by_text("These stages are out of date")
    page.locator(".oel-accepted").first.click(timeout=SLOW)
    assert notice.count() == 0 or not notice.is_visible()
    press(page, "e")
    page.keyboard.type("Walls cost a turn. ")
    press(page, "Control+Enter")
    notice.wait_for(timeout=SLOW)
    page.get_by_text("round_1/curation.jsonl has changed since").wait_for()
    picture(page, "stale_editor")
    assert states()["curate"] == states()["distill"] == "stale"

    other = opened("05_distill")
    for name in ("05_distill", "07_online_rounds"):  # one page: loading JupyterLab takes seconds
        bring(other, name)
        shown = run_until(other, f"{name[:2]}-redo-py")
        picture(other, f"stale_{name}")
        assert "is out of date" in shown and "curation.jsonl has changed since" in shown
    assert weights() == trained

    page.get_by_role("button", name="Redo these stages").click()
    page.get_by_text("Working").wait_for()
    page.get_by_text("round 1: distill").wait_for()  # progress, below the button
    picture(page, "stale_working")
    notice.wait_for(state="hidden", timeout=SLOW)
    picture(page, "stale_done")
    assert weights() != trained and set(states().values()) == {"done"}
    assert "Walls cost a turn." in (one / "adapter" / "experience.md").read_text()
    done = {path.stem for path in manifests.iterdir() if kept[path] != path.stat().st_mtime_ns}
    assert done == {"curate", "collect", "distill"}  # tiny plays for states with the experience
    bring(other, "05_distill")
    assert "distill of round 1: done" in run_until(other, "05-redo-py")
    other.close()
    page.locator(".oel-accepted").nth(1).click()  # the editor knows the items that the stages added
    press(page, "x")
    notice.wait_for(timeout=SLOW)
    assert not page.locator(".oel-failure:visible").count()
