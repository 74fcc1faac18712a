"""Execute the notebooks in a batch, strictly: what papermill lets pass in silence is an error here.

Floor 4; imports nothing of oelkit. It finds the repository, checks every name, parameter and folder
before the first kernel starts, executes each notebook with papermill in a kernel of *this*
interpreter with the repository root as its working directory, and publishes an executed copy and
its HTML in `runs/NAME/notebooks/`. It knows nothing of what the notebooks do, and keeps no results
but theirs.

Stricter than papermill 2.7, which only warns of a misspelt parameter, passes a string for a number,
marks the cell of a time-out or of a dead kernel "completed", times out by the cell, and takes
`sys.exit()` in the middle for a success."""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

KINDS = {"int", "float", "bool", "str", "list", "tuple", "dict", "None"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class NotebookError(RuntimeError):
    """A batch of notebooks that could not start or did not finish; one sentence that says where and
    what to do.
    """


class Parameter(NamedTuple):
    """A name that a `parameters` cell assigns: the kinds of value that it takes and its default."""

    kinds: set[str]
    default: Any


def find_root(start: Path | None = None) -> Path:
    """The repository root: the first folder at or above `start` (here, this file) with notebooks/
    and oelkit/.
    """
    begins = [start] if start is not None else [Path.cwd(), Path(__file__)]
    for folder in (
        parent for begin in begins for parent in (begin.resolve(), *begin.resolve().parents)
    ):
        if (folder / "notebooks").is_dir() and (folder / "oelkit").is_dir():
            return folder
    raise NotebookError(
        f"no folder with notebooks/ and oelkit/ at or above {begins[0]}: run this in a clone of oelkit"
    )


def parameters_of(path: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares: literal assignments in its cell tagged `parameters`.

    An annotation (`limit: int | None = None`) adds kinds to that of the default. Read from the
    syntax tree and not with papermill's line patterns, which split a value at a `#` inside a
    string."""
    import nbformat

    try:
        with quiet():
            notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds for a damaged file
        raise NotebookError(f"{path} is not a readable notebook ({first_line(error)})") from error
    found: dict[str, Parameter] = {}
    for cell in notebook.cells:
        if "parameters" not in tags(cell):
            continue
        try:
            statements = ast.parse(cell.source).body
        except SyntaxError as error:
            raise NotebookError(f"{path}: the parameters cell is not Python ({error})") from error
        for node in statements:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            with contextlib.suppress(
                ValueError
            ):  # a computed value (`here = Path.cwd()`) is no parameter
                default = ast.literal_eval(node.value)
                kinds = {kind_of(default), *re.findall(r"\w+", annotation)} & KINDS
                found |= {
                    t.id: Parameter(kinds, default) for t in targets if isinstance(t, ast.Name)
                }
        break  # papermill, too, uses the first such cell
    return found


def kind_of(value: Any) -> str:
    """The name of a value's type as annotations write it."""
    return "None" if value is None else type(value).__name__


def convert(name: str, value: Any, declared: Parameter) -> Any:
    """`value` (text from the command line, or already an object) as the declared kind;
    NotebookError if ill-typed.
    """
    kinds, default = declared
    if isinstance(value, str) and ("str" not in kinds or (value == "None" and "None" in kinds)):
        text = value.strip()
        with contextlib.suppress(
            ValueError, SyntaxError, MemoryError, RecursionError
        ):  # then it stays a str
            value = ast.literal_eval(
                text.capitalize() if text.lower() in ("true", "false", "none") else text
            )
    if isinstance(value, tuple) and "list" in kinds:
        value = list(value)  # -p seeds=1,2,3
    if kind_of(value) == "int" and "int" not in kinds and "float" in kinds:
        value = float(value)
    fits = kind_of(value) in kinds or kinds == {
        "None"
    }  # `x = None` without an annotation says nothing of the kind
    if fits and isinstance(value, list | tuple) and isinstance(default, list | tuple) and default:
        fits = {kind_of(v) for v in value} <= {kind_of(v) for v in default}
    if not fits:
        wanted = " or ".join(sorted(kinds))
        raise NotebookError(
            f"parameter {name}={value!r} is not of the kind {wanted} (its default: {default!r})"
        )
    return value


def select(root: Path, names: Iterable[str]) -> list[Path]:
    """The notebooks of these names (`01_rollout`, also with folder or .ipynb); all in order if none
    is named.
    """
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if not known:
        raise NotebookError(f"there are no notebooks in {root / 'notebooks'}")
    wanted = [Path(name).name.removesuffix(".ipynb") for name in names] or list(known)
    for name in wanted:
        if name not in known:
            raise NotebookError(f"unknown notebook {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(wanted)]


def output_folder(root: Path, run: str) -> Path:
    """`runs/RUN/notebooks`, made and tried for writing; NotebookError for a name that is no plain
    folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
        raise NotebookError(
            f"run name {run!r} is not usable: letters, digits, '.', '_' and '-', and no leading dot"
        )
    folder = root / "runs" / run / "notebooks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise NotebookError(
            f"cannot write to the run folder {folder} ({error.strerror or error})"
        ) from error
    return folder


def run_notebooks(
    names: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    run: str = "demo",
    timeout: float = 3600,
    root: Path | None = None,
) -> list[Path]:
    """Execute notebooks one after another on one run and publish their copies; the first error
    stops.

    names: as for `select`. parameters: name -> value (or text); each must be declared by at least
    one of the notebooks and reaches those that declare it. run: the run's name, given to the
    notebooks as their parameter `run`. timeout: wall seconds for each notebook. Returns the
    executed copies. Raises NotebookError; then the state of the failed notebook is kept as
    `NAME.failed.ipynb`, and an earlier good copy stays untouched."""
    root = root or find_root()
    paths = select(root, names)
    if not timeout > 0:
        raise NotebookError(f"timeout must be a positive number of seconds, not {timeout:g}")
    given = dict(parameters or {})
    if "run" in given:
        raise NotebookError("the run is named with --run, not with -p run=…")
    declared = {path: parameters_of(path) for path in paths}
    for name in given:
        if not any(name in known for known in declared.values()):
            choices = ", ".join(sorted(set().union(*declared.values()) - {"run"})) or "none"
            raise NotebookError(
                f"unknown parameter {name!r}: {', '.join(p.stem for p in paths)} know only: {choices}"
            )
    given["run"] = run
    values = [
        {n: convert(n, v, declared[path][n]) for n, v in given.items() if n in declared[path]}
        for path in paths
    ]
    folder = output_folder(root, run)
    copies = []
    for path, own in zip(paths, values, strict=True):
        began = time.monotonic()
        copies.append(execute(path, own, folder, timeout, root))
        html = copies[-1].with_suffix(".html").relative_to(root)
        print(f"{path.stem:<20} {time.monotonic() - began:6.1f} s   {html}", flush=True)
    return copies


def execute(
    path: Path, parameters: dict[str, Any], folder: Path, timeout: float, cwd: Path
) -> Path:
    """Execute one notebook and publish `folder/NAME.ipynb` and `.html` (see `run_notebooks`);
    returns the former.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    final, failed = folder / path.name, folder / f"{path.stem}.failed.ipynb"
    partial = folder / f".{path.stem}.partial.ipynb"
    deadline = time.monotonic() + timeout
    at, reason = 0, ""
    bar = {"desc": path.stem, "leave": False} if sys.stderr.isatty() else False

    def started(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    try:
        with quiet():
            try:
                papermill.execute_notebook(
                    nbformat.read(path, as_version=4),
                    partial,
                    parameters,
                    kernel_name="python3",
                    language="python",
                    cwd=cwd,
                    start_timeout=120,
                    progress_bar=bar,
                    # the rest goes to nbclient: the time that is left for this cell, and our own
                    # interpreter
                    timeout_func=lambda cell: max(1, round(deadline - time.monotonic())),
                    on_cell_start=started,
                    kernel_manager_class=kernel_manager(),
                )
            except CellTimeoutError:
                reason = f"the notebook's time-out of {timeout:g} s passed"
            except DeadKernelError:
                reason = "the kernel died (often: out of memory)"
            except papermill.PapermillExecutionError as error:
                at, reason = error.cell_index, f"{error.ename}: {first_line(error.evalue)}"
            except (RuntimeError, OSError) as error:  # the kernel does not start, the disk is full
                reason = first_line(error)
            if not partial.exists():
                raise NotebookError(f"{path.stem} could not be executed: {reason}")
            notebook = nbformat.read(partial, as_version=4)
        publishable(notebook)
        cells = notebook.cells = [
            c for c in notebook.cells if "papermill-error-cell-tag" not in tags(c)
        ]
        code = [(i, c) for i, c in enumerate(cells) if c.cell_type == "code" and c.source.strip()]
        ended = [
            i
            for i, c in code
            if not c.execution_count or any(o.output_type == "error" for o in c.outputs)
        ]
        if ended and not reason:
            at, reason = ended[0], "the notebook exits here, before its end"
        if reason:
            mark_failure(cells, at, reason)
            nbformat.write(notebook, partial)
            os.replace(partial, failed)
            injected = any(
                "injected-parameters" in tags(c) for c in cells[:at]
            )  # count as in the source
            where = f"cell {at + 1 - injected} ({first_line(cells[at].source)[:60]!r})"
            raise NotebookError(
                f"{path.stem} failed in {where}: {reason}; its state is in {failed}"
            )
        with quiet():
            html, _ = HTMLExporter().from_notebook_node(notebook)
        for target, text in (
            (final.with_suffix(".html"), html),
            (final, nbformat.writes(notebook)),
        ):
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, target)
        failed.unlink(missing_ok=True)
    except OSError as error:
        raise NotebookError(
            f"cannot write the executed copy of {path.stem} to {folder} ({error})"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return final


def mark_failure(cells: list[Any], at: int, reason: str) -> None:
    """Correct papermill's marks in place: the cell `at` failed for `reason`, those after it never
    ran.
    """
    import nbformat

    for index, cell in enumerate(cells[at:]):
        cell.metadata.setdefault("papermill", {}).update(
            status="pending" if index else "failed", exception=not index
        )
    if cells[at].cell_type == "code" and not any(
        o.output_type == "error" for o in cells[at].outputs
    ):
        text = nbformat.v4.new_output(
            "error", ename="NotebookError", evalue=reason, traceback=[reason]
        )
        cells[at].outputs.append(text)


def publishable(notebook: Any) -> None:
    """In place: of a text bar only its last state, of a widget bar (frozen at 0 %) nothing; no dead
    widget views.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    CoalesceStreamsPreprocessor(enabled=True).preprocess(notebook, {})
    notebook.metadata.pop("widgets", None)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            if len(output.get("data", {})) > 1 and output.data.pop(WIDGET_VIEW, None):
                cell.outputs = [
                    o
                    for o in cell.outputs
                    if o is not output or "%|" not in o.data.get("text/plain", "")
                ]


def kernel_manager() -> type:
    """A kernel manager whose python3 is this interpreter, whatever kernels the user has registered
    under that name.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # figures inline even where MPLBACKEND=Agg is set for scripts; no debugger banner, no kernel log
    # on the terminal
    env = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    spec = KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=50"]), env=env)

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec = property(lambda self: spec)

    return ThisInterpreter


@contextlib.contextmanager
def quiet():
    """Keep papermill's, nbclient's and nbconvert's log lines and warnings off the terminal: errors
    become ours.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def tags(cell: Any) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def first_line(message: object) -> str:
    """The first non-empty line of a message."""
    return next(
        (line.strip() for line in str(message).splitlines() if line.strip()), type(message).__name__
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `python -m oelkit notebooks`."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="notebooks, e.g. 01_rollout (default: all, in order)",
    )
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="name=value", help="a parameter"
    )
    parser.add_argument(
        "--run", default="demo", metavar="NAME", help="run folder runs/NAME (default: demo)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600,
        metavar="S",
        help="seconds a notebook (default: 3600)",
    )


def main(args: argparse.Namespace) -> int:
    """Run what `add_arguments` parsed; 0, or 1 after one sentence on stderr (130 after Ctrl-C)."""
    try:
        parameters: dict[str, str] = {}
        for pair in args.parameter:
            name, equals, value = pair.partition("=")
            if not equals or not name.strip().isidentifier():
                raise NotebookError(f"-p takes name=value, not {pair!r}")
            if parameters.setdefault(name.strip(), value) != value:
                raise NotebookError(f"-p {name.strip()} is given twice with different values")
        run_notebooks(args.names, parameters, args.run, args.timeout)
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
