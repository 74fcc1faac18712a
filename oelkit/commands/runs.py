"""Commands that act on a run folder; each gets the arguments that `__main__` has parsed."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from shlex import quote
from typing import Any

from ..logs import read_chats
from ..records import write_jsonl
from ..redaction import redact
from ..runs.files import locked, read_json
from ..runs.settings import (
    SCALES,
    Settings,
    as_argument,
    extract_logs,
    is_adapter,
    no_run,
    only_logs,
    run_folder,
)
from ..runs.stages import StaleRunError, stages_of, stale
from ..runs.table import weights
from ..tables import visible
from .start import TREE, lay_out


def settings_of(args: Namespace) -> Settings:
    """Return the settings of the scale, overridden by those on the command line."""
    return Settings.of(args.scale or "tiny", **_given(args))


def _given(args: Namespace) -> dict[str, Any]:
    return {n: v for n, v in vars(args).items() if n in Settings.__dataclass_fields__}


def notebooks(args: Namespace) -> None:
    """Execute notebooks on one run, two at a time where possible; stop at the first error."""
    from ..notebooks import NotebookError, run_notebooks

    if args.copy and (args.names or args.parameter):
        raise NotebookError("--copy copies all notebooks as they are: leave out names and -p")
    if args.copy:
        return lay_out(TREE, Path(), Path(args.copy), "open them: cd {} && jupyter lab")
    parameters: dict[str, str] = {}
    for pair in args.parameter:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise NotebookError(f"-p takes name=value, not {pair!r}")
        if parameters.setdefault(name.strip(), value) != value:
            raise NotebookError(f"-p {name.strip()} appears twice with different values")
    run_notebooks(args.names, parameters, args.run, args.timeout)


def loop(args: Namespace) -> None:
    """Run all steps in rounds, with a table and a report at the end."""
    goes_on = args.resume or args.redo
    folder = _place(args.run) if goes_on else run_folder(args.run)  # begins in runs/
    there = (folder / "run.json").exists()
    if there and not goes_on:
        raise ValueError(
            f"{folder} already holds a run: continue it with --resume, or choose another --run NAME"
        )
    if goes_on and not there:
        raise ValueError(f"{no_run(folder)}; to start one, leave out --resume and --redo")
    try:
        from ..runs.run import Run

        on_step = None
        if args.track:
            from ..views.live import tracker

            on_step = tracker(args.track, folder / "track", folder.name)
        if there:
            run = Run.open(folder, **(SCALES[args.scale] if args.scale else {}) | _given(args))
        else:
            run = Run(folder, settings_of(args))
        run.on_step = on_step
        run.run_all(args.redo)
    except KeyboardInterrupt as stop:
        begun = (folder / "run.json").exists()  # otherwise the same command starts it
        resume = f"; resume with `oelkit loop --run {quote(args.run)} --resume`" if begun else ""
        raise KeyboardInterrupt(str(stop) or f"interrupted{resume}") from None
    report(args)


def report(args: Namespace) -> None:
    """Rewrite the report.html of a run and print its table."""
    from ..views.findings import findings
    from ..views.report import damage_told, write_report
    from ..views.summary import summary

    path = write_report(folder := folder_of(args.run))
    _tell_stale(folder)
    with damage_told(folder):
        metrics = read_json(folder / "metrics.json")
        told = [summary(metrics), *findings(metrics)]
    print(*(visible(str(line)) for line in told), f"report: {path}", sep="\n")


def _tell_stale(folder: Path) -> None:
    if old := stale(folder):
        warnings.warn(str(StaleRunError(folder, old)), stacklevel=3)


def compare(args: Namespace) -> None:
    """Compare finished runs side by side: a table, and a figure with --out."""
    from ..views import comparison
    from ..views.report import damage_told

    runs, settings = {}, {}
    for name in args.runs:
        folder = folder_of(name)
        if not (folder / "metrics.json").is_file():
            raise ValueError(
                f"{folder} is not finished: resume with `oelkit loop --run {as_argument(folder)} "
                "--resume`"
            )
        if name in runs:
            raise ValueError(f"{name} is named twice")
        _tell_stale(folder)
        runs[name], run = (read_json(folder / f"{file}.json") for file in ("metrics", "run"))
        with damage_told(folder):
            settings[name] = run["settings"]
            comparison.table({name: runs[name]}, {name: settings[name]})
            if args.out:
                comparison.figure({name: runs[name]})
    print(visible(comparison.table(runs, settings)))
    if args.out:
        comparison.figure(runs).savefig(args.out, dpi=150)


def folder_of(run: str) -> Path:
    """Return the folder of a run: a name in runs/, or a path (with a slash)."""
    if not ((folder := _place(run)) / "run.json").exists():
        raise ValueError(no_run(folder))
    return folder


def _place(run: str) -> Path:
    path = Path(run)
    return run_folder(run) if path.name == run else path


def status(args: Namespace) -> int:
    """Show which stages of a run are done, missing or stale, and why."""
    if logs := only_logs(_place(args.run)):
        print(logs)
        return 3
    rows = stages_of(folder_of(args.run)).statuses()
    for row in rows:
        place = f"round {row.round}" if row.round else "run"
        print(visible(f"{place:<9} {row.stage:<10} {row.state:<8} {row.why}".rstrip()))
    return 0 if all(row.state == "done" for row in rows) else 3


def promote(args: Namespace) -> None:
    """Make the round after K start from round K."""
    _decide(args, keep=True)


def rollback(args: Namespace) -> None:
    """Make the round after K start where round K started."""
    _decide(args, keep=False)


def _decide(args: Namespace, keep: bool) -> None:
    stages = stages_of(folder := folder_of(args.run))
    with locked(folder):
        first = stages.decide(args.round, keep)
    print(f"round {args.round + 1} starts from {weights(first)}")
    print(f"to see what this makes stale: oelkit status {quote(args.run)}")


def estimate(args: Namespace) -> None:
    """Estimate what a run needs (memory, tokens, minutes per stage, cost) from a small trial."""
    from ..model.loading import policy_from_config
    from ..runs.estimate import estimate
    from ..runs.run import Run

    settings = settings_of(args)
    print(estimate(Run, settings, policy_from_config(settings), args.price_per_hour))


def export(args: Namespace) -> None:
    """Export a model for other programs; a run's is checked by playing again in that form."""
    from ..runs.card import export_table
    from ..runs.export import check_exports, export, push_to_hub

    forms = list(dict.fromkeys(args.to or ["peft"]))
    if len(forms) > 1 and (args.out or args.push):
        raise ValueError("--out and --push take one form: use --to once")
    adapter = is_adapter(Path(args.run))
    run = Path(args.run) if adapter else folder_of(args.run)
    folders = [export(run, form, args.out, private=args.private) for form in forms]
    if not args.out:  # otherwise `main` prints the path at the end
        print(*(f"written: {folder}" for folder in folders), sep="\n")
    if args.check and not adapter:
        print(*export_table(check_exports(run, folders)), sep="\n")
    if args.push:
        print(f"pushed: {push_to_hub(folders[0], args.push)}")


def import_chats(args: Namespace) -> None:
    """Read chat logs of an agent into round 1 of a run, as trajectories and states."""
    from ..steps.rollouts import states

    folder = run_folder(args.run) / "round_1"
    paths = [folder / f"{name}.jsonl" for name in ("trajectories", "states")]
    if (there := [path for path in paths if path.exists()]) and not args.force:
        raise ValueError(f"{there[0]} already exists: choose another --run, or use --force")
    how = {"format": args.format, "on_bad": args.bad}
    with warnings.catch_warnings(action="ignore"):  # about skipped lines, which are printed below
        chats = read_chats(args.file, **how, redact=None if args.no_redact else redact)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent):
        for path, records in zip(paths, (chats, states(chats))):
            write_jsonl(path, records)
    print(visible(str(chats)), *(f"written: {path}" for path in paths), sep="\n")
    print("continue with:", extract_logs(folder))
