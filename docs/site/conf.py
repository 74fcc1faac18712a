"""Configuration of Sphinx, which build.py calls. MyST-NB reads the pages, which are Markdown and
executed notebooks. The Furo theme loads nothing from other hosts."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import oelkit
from oelkit.__main__ import parser

project, author = "oelkit", "oelkit"
version = release = oelkit.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "index.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "data/**/README.md",
    "examples/**/README.md",
]
# small enough that 98 columns of code need no scrolling
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}
html_theme, html_title, html_copy_source = "furo", "oelkit", False
html_show_sphinx = html_show_copyright = False
nb_execution_mode = "off"
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# pages outside the tables of contents are reached by links
suppress_warnings = ["toc.not_included"]

# All names that the guides import or mention, and what those return. A name without a dot is of
# `oelkit` itself.
API = {
    "Steps": "rollout states extract parse_items distill evaluate probe agreement ifeval "
    "leave_one_out steps.evaluation.EvalReport steps.ifeval.IFEvalReport config.Sampling",
    "Experience": "Curation auto_curate text.experience_text statements.read_worth",
    "Records": "records.Trajectory records.Turn records.State records.ExperienceItem "
    "records.Evidence records.Outcome records.read_jsonl records.RecordError",
    "Logs": "read_chats logs.Chats redaction.redact",
    "Worlds": "envs.bounds envs.from_textarena",
    "Models": "load_policy Policy ServedModel memory_plan model.memory.MemoryPlan load_prompt_set "
    "prompts.PromptSet",
    "Runs": "Run run_loop Settings summary export check_exports push_to_hub",
    "Views": "views.widgets.experience_editor views.widgets.trajectory_viewer "
    "views.live.LivePanel views.live.several views.live.tracker",
    "Statistics": "wilson_interval paired_bootstrap stats.episodes_needed",
    "Files": "project.shipped",
}


def named(name: str):
    """Return what a name of API stands for."""
    module, _, last = f"oelkit.{name}".rpartition(".")
    return getattr(import_module(module), last)


def entry(name: str) -> list[str]:
    """Return the lines that document a name of API."""
    thing = named(name)
    kind = "class" if isinstance(thing, type) else "function"
    members = "\n   :members:" if kind == "class" else ""
    lines = ["```{eval-rst}", f".. auto{kind}:: oelkit.{name}{members}"]
    if thing.__name__ != name.rpartition(".")[2]:  # autodoc says only whose other name it is
        lines += ["", f".. auto{kind}:: {thing.__module__}.{thing.__name__}{members}"]
    return [*lines, "```", ""]


def write_reference(app) -> None:
    """Write the pages generated from code: all public names, and `--help` of every command."""
    rest = set(oelkit.__all__) - {name for names in API.values() for name in names.split()}
    about = "All public names of `oelkit`, and those of its modules that the guides use."
    lines = ["# Reference", "", about, ""]
    for title, names in (API | ({"More": " ".join(sorted(rest))} if rest else {})).items():
        lines += [f"## {title}", ""]
        for name in names.split():
            lines += entry(name)
    folder = Path(app.srcdir) / "docs"
    (folder / "reference.md").write_text("\n".join(lines), "utf-8")
    lines = ["# Command line", "", "`oelkit COMMAND --help` prints the same.", ""]
    whole = parser()
    for name, command in {"oelkit": whole, **whole.commands}.items():
        about = command.format_help()
        title = name if name == "oelkit" else f"oelkit {name}"
        lines += [f"## {title}", "", "```text", about.rstrip(), "```", ""]
    (folder / "command_line.md").write_text("\n".join(lines), "utf-8")


def adapt(app, name: str, source: list[str]) -> None:
    """Replace badges, which are images on another host, and point gallery/ links at notebooks/."""
    source[0] = source[0].replace("](gallery/", "](notebooks/")
    source[0] = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]", "[Open in Colab]", source[0])


def copy_pictures(app, error) -> None:
    """Copy images that pages embed as raw HTML, and write llms.txt."""
    if error or app.builder.name != "html":
        return
    out, here = Path(app.outdir), Path(app.srcdir)
    (out / "data/results").mkdir(parents=True, exist_ok=True)
    for page in here.glob("*.md"):
        for path in re.findall(r'(?:src|srcset)="([^":]+)"', page.read_text("utf-8")):
            shutil.copyfile(here / path, out / path)
    titles = {name: node.astext() for name, node in app.env.titles.items()}
    pages = [f"- [{title}]({name}.html)" for name, title in sorted(titles.items())]
    text = "# oelkit\n\n> Online Experiential Learning of language models, in notebooks.\n\n"
    text += "## Pages\n\n"
    (out / "llms.txt").write_text(text + "\n".join(pages) + "\n", "utf-8")


def setup(app) -> None:
    """Connect the hooks."""
    app.connect("builder-inited", write_reference)
    app.connect("source-read", adapt)
    app.connect("build-finished", copy_pictures)
