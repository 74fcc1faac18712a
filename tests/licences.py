"""The licences of the pinned packages: `python tests/licences.py` writes docs/licences.md.

Licences are read from the metadata of installed packages. Rows of other packages (for other
systems, or of the extra `bench`) stay as they are. tests/test_licences.py fails on a licence that
has not been reviewed.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"
HEAD = """# Licences of the pinned packages

All that [constraints.txt](../constraints.txt) pins, by what the packages say of themselves. Made
by `python tests/licences.py`. oelkit ships none of them: pip fetches them from their makers. `make
test` fails, with its name, on a package that is not listed here, says no licence, or is under a
copyleft licence without a reason below.

| package | licence | why it may stay |
|---|---|---|
"""
PERMISSIVE = re.compile(
    r"(the )?(MIT(-CMU|-0)?|0?BSD([- ]\d-Clause)?|Apache(,?( Licen[cs]e,)?( Version)?[- ]2.0)?|ISC"
    r"|PSF-2.0|Python Software Foundation|Zlib|CC0-1.0|BSL-1.0|CNRI-Python|Public Domain"
    r"|DFSG approved)( Software)?( License)?"
    r"( \(\w+\))?( WITH LLVM-exception)?",
    re.IGNORECASE,
)
FILES = "copyleft by file (MPL): used as it is, none of its files is changed"
REASONS = {
    "axe-playwright-python": "says none in its metadata; its LICENSE file is MIT's",
    "certifi": FILES,
    "chardet": "copyleft for the library (LGPL): used as it is; comes with lm-eval, for tests",
    "chess": "copyleft (GPL): comes with TextArena, an optional extra; oelkit does not import it",
    "docutils": "in the public domain but for one file of Emacs (GPL), which is not imported",
    "fqdn": FILES,
    "hypothesis": FILES,
    "tqdm": FILES,
}


def pinned() -> list[str]:
    """Return the names in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line.split("==")[0].lower() for line in lines if "==" in line and line[0] != "#"]


def licence(package: str) -> str | None:
    """Return a package's licence from its metadata, or None if it is not installed."""
    try:
        said = metadata(package)
    except PackageNotFoundError:
        return None
    classes = [c.split(" :: ")[-1] for c in said.get_all("Classifier", []) if "License ::" in c]
    classes = [c for c in classes if c != "OSI Approved"]
    free = (said.get("License") or "").strip().split("\n")[0]
    return said.get("License-Expression") or " AND ".join(classes) or free or "not said"


def permissive(text: str) -> bool:
    """Return whether all licences of an expression (or one of a choice) only require a notice."""
    return all(
        any(PERMISSIVE.fullmatch(one) for one in part.split(" OR ")) for part in text.split(" AND ")
    )


def rows() -> dict[str, str]:
    """Return package and licence of each row of the page."""
    lines = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells[1:]}


def page() -> str:
    """Return the page as it should be."""
    found = rows()
    said = {name: licence(name) or found.get(name, "not said") for name in pinned()}
    return HEAD + "".join(f"| {n} | {text} | {REASONS.get(n, '')} |\n" for n, text in said.items())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
