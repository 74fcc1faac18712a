"""Execute notebooks in a batch, strictly: what papermill silently accepts is an error here.

Every name, parameter and folder is checked before the first kernel starts. Papermill 2.7 only warns
about a misspelt parameter, passes a string as a number, marks a cell that timed out or whose kernel
died "completed", applies time-outs per cell and treats an early `sys.exit()` as success."""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .beside import Beside, one_interrupt, split
from .executed import (
    INTERRUPTED,
    NotebookError,
    NotebookResult,
    clean,
    first_line,
    html_page,
    mark_failure,
    tags,
    unrun,
    write_results,
)
from .kernels import engine, kernel_manager
from .project import find_root
from .records import write_text
from .runs.files import refuse_links, stamp, try_to_write
from .runs.settings import run_folder

KINDS = {"int", "float", "bool", "str", "list", "tuple", "dict", "None"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep log lines and warnings of papermill and its kind off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


class Parameter(NamedTuple):
    """A parameter that a `parameters` cell assigns: the kinds of value it takes and its default."""

    kinds: set[str]
    default: Any


@one_interrupt()
def run_notebooks(
    names: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    run: str = "demo",
    timeout: float = 3600,
    root: Path | None = None,
) -> list[Path]:
    """Execute notebooks on one run, some beside others (`Beside`), and return the copies.

    Args:
        names: such as `01_rollout`, with or without folder and .ipynb; none: all, in order.
        parameters: name to value (or text); each goes to the notebooks that declare it.
        run: name of the run, passed to the notebooks as their parameter `run`.
        timeout: most seconds per notebook, as a guard against hangs.
        root: folder with notebooks/ and runs/; it is the notebooks' working directory.

    Raises:
        NotebookError: one failed. It is kept as `NAME.failed.ipynb`, beside an earlier good copy.

    For programs, NAME.status.json and junit.xml are beside the copies, even after a failure.
    """
    root, given = root or find_root(), dict(parameters or {})
    paths = _select(root, names)
    if not timeout > 0:
        raise NotebookError(f"timeout must be a positive number of seconds, not {timeout:g}")
    if "run" in given:
        raise NotebookError("the run is named with --run, not with -p run=…")
    declared = [parameters_of(path) for path in paths]
    known = sorted(set().union(*declared) - {"run"})
    for name in (name for name in given if name not in known):
        stems, choices = ", ".join(path.stem for path in paths), ", ".join(known) or "none"
        raise NotebookError(f"unknown parameter {name!r}: {stems} know only: {choices}")
    given["run"] = run
    values = [{n: convert(n, v, own[n]) for n, v in given.items() if n in own} for own in declared]
    folder, own_of = _output_folder(root, run), {p.stem: v for p, v in zip(paths, values)}
    beside = Beside(split(paths, given), given, own_of, run, timeout, root, folder)
    results, now, began = list[NotebookResult](), "", 0.0
    try:
        with beside:
            for path in (path for path in paths if path.stem in beside.first):
                beside.check()
                now, began = path.stem, time.monotonic()
                copy = _execute(path, own_of[now], folder, timeout, root)
                html, seconds = copy.with_suffix(".html"), time.monotonic() - began
                print(f"{now:<20} {seconds:6.1f} s   {html.relative_to(root)}", flush=True)
                results.append(NotebookResult(now, "passed", seconds, copy.name))
                now = ""
                beside.start(path.stem)
            beside.wait()
    except BaseException as error:  # Ctrl+C as well
        if now:  # otherwise the second batch failed
            at, seconds = getattr(error, "cell", None), time.monotonic() - began
            copy = f"{now}.failed.ipynb" if at else ""
            results.append(NotebookResult(now, "failed", seconds, copy, at, first_line(error)))
        raise
    finally:
        ended = {result.notebook: result for result in [*results, *beside.results()]}
        skipped = NotebookResult("", "skipped", reason="an earlier one failed")
        write_results(folder, [ended.get(n) or replace(skipped, notebook=n) for n in own_of])
    return [folder / path.name for path in paths]


@_quiet()
def parameters_of(path: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook: literal assignments in its cell tagged `parameters`.

    An annotation (`limit: int | None = None`) adds kinds to that of the default. They are read from
    the syntax tree, because papermill's line patterns split a value at a `#` inside a string."""
    import nbformat

    try:
        cells = nbformat.read(path, as_version=4).cells
        source = next((c.source for c in cells if "parameters" in tags(c)), "")
        statements = ast.parse(source).body
    except Exception as error:  # nbformat raises many kinds for a damaged file
        raise NotebookError(f"{path} is not a readable notebook ({first_line(error)})") from error
    found: dict[str, Parameter] = {}
    for node in statements:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        with suppress(ValueError):  # skip computed values (`here = Path.cwd()`)
            default = ast.literal_eval(node.value)
            kinds = {_kind(default), *re.findall(r"\w+", annotation)} & KINDS
            found |= {t.id: Parameter(kinds, default) for t in targets if isinstance(t, ast.Name)}
    return found


def convert(name: str, value: Any, declared: Parameter) -> Any:
    """Convert `value` (text or an object) to the declared kind; NotebookError if ill-typed."""
    kinds, default = declared
    if isinstance(value, str) and ("str" not in kinds or (value == "None" and "None" in kinds)):
        text = value.strip()
        text = text.capitalize() if text.lower() in ("true", "false", "none") else text
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
    if isinstance(value, tuple) and "list" in kinds:
        value = list(value)  # -p seeds=1,2,3
    if type(value) is int and "int" not in kinds and "float" in kinds:
        value = float(value)
    fits = _kind(value) in kinds or kinds == {"None"}  # `x = None` declares no kind
    if fits and isinstance(value, list | tuple) and isinstance(default, list | tuple) and default:
        fits = {_kind(v) for v in value} <= {_kind(v) for v in default}
    if fits:
        return value
    kind = " or ".join(sorted(kinds))
    raise NotebookError(f"parameter {name}={value!r} must be of the kind {kind}, like {default!r}")


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _select(root: Path, names: Iterable[str]) -> list[Path]:
    known = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    if not known:
        raise NotebookError(f"no notebooks in {root}: copy them with oelkit notebooks --copy .")
    names = [names] if isinstance(names, str) else names
    wanted = [Path(name).name.removesuffix(".ipynb") for name in names] or list(known)
    for name in (name for name in wanted if name not in known):
        raise NotebookError(f"unknown notebook {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(wanted)]


def _output_folder(root: Path, run: str) -> Path:
    folder = run_folder(run, root / "runs") / "notebooks"
    refuse_links(folder.parent)
    try_to_write(folder)
    return folder


@_quiet()
def _execute(path: Path, parameters: dict, folder: Path, timeout: float, cwd: Path) -> Path:
    """Execute one notebook, publish `folder/NAME.ipynb` and `.html`, and return the former."""
    import nbformat

    final, failed = folder / path.name, folder / f"{path.stem}.failed.ipynb"
    partial = folder / f".{path.stem}.{os.getpid()}.partial.ipynb"  # another batch has its own
    old = stamp(failed)
    try:
        at, reason = _run_cells(path, partial, parameters, timeout, cwd)
        if not partial.exists():
            raise NotebookError(f"{path.stem} could not be executed: {reason}")
        notebook = nbformat.read(partial, as_version=4)
        cells = clean(notebook)
        if not reason and (left := [i for i, c in enumerate(cells) if unrun(c)]):
            at, reason = left[0], "the notebook exits here, before its end"
        if reason:
            mark_failure(cells, at, reason)
            write_text(failed, nbformat.writes(notebook))
            number = at + 1 - any("injected-parameters" in tags(c) for c in cells[:at])
            where = f"{path.stem} failed in cell {number} ({first_line(cells[at].source)[:60]!r})"
            kind: Any = KeyboardInterrupt if reason == INTERRUPTED else NotebookError
            error = kind(f"{where}: {reason}; the failed notebook is {failed}")
            error.cell = number
            raise error
        write_text(final.with_suffix(".html"), html_page(notebook))
        write_text(final, nbformat.writes(notebook))
        if old and stamp(failed) == old:  # from an earlier batch, not from one running now
            failed.unlink()
    finally:
        partial.unlink(missing_ok=True)
    return final


def _run_cells(path: Path, to: Path, parameters: dict, timeout: float, cwd: Path) -> tuple:
    """Let papermill execute a notebook; return the last cell started and why it failed, or ""."""
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    at, deadline = 0, 0.0

    def began(cell: Any, cell_index: int) -> None:
        nonlocal at, deadline
        at, deadline = cell_index, deadline or time.monotonic() + timeout

    fixed: Any = {"kernel_name": "python3", "language": "python", "start_timeout": 600}
    bar: Any = {"desc": path.stem, "leave": False, "file": sys.stdout}
    try:
        papermill.execute_notebook(
            nbformat.read(path, as_version=4),
            to,
            parameters,
            **fixed,
            engine_name=engine(),
            cwd=cwd,
            progress_bar=bar if sys.stdout.isatty() else False,
            # passed on to nbclient: the time left for this cell, and our interpreter
            timeout_func=lambda cell: max(1, round(deadline - time.monotonic())),
            on_cell_start=began,
            kernel_manager_class=kernel_manager(),
        )
    except KeyboardInterrupt:
        return at, INTERRUPTED
    except CellTimeoutError:
        return at, f"the notebook's time-out of {timeout:g} s expired"
    except DeadKernelError:
        return at, "the kernel died (often: out of memory)"
    except papermill.PapermillExecutionError as error:
        return error.cell_index, f"{error.ename}: {first_line(error.evalue)}"
    except (RuntimeError, OSError, ImportError) as error:  # no kernel starts, the disk is full
        return at, first_line(error)
    return at, ""
