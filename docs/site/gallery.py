"""Executed copies of the notebooks, for GitHub and the site:

python docs/site/gallery.py demo      # copy those of runs/demo to gallery/, with thumbnails
python docs/site/gallery.py --check   # list outdated copies; exit status 1 if there are any
"""

import argparse
import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

from oelkit.executed import tags

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 320  # pixels of a thumbnail


def of_the_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook without the cell that papermill injects."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in tags(c)]
    return notebook


def sources(path: Path) -> list[str]:
    """Return the source of each cell."""
    return [cell.source for cell in of_the_notebook(path).cells]


def stale(notebooks: Path, gallery: Path) -> list[str]:
    """Return the notebooks whose copy is missing or has a different source."""
    found = []
    for path in sorted(notebooks.glob("*.ipynb")):
        copy = gallery / path.name
        if not copy.exists() or sources(copy) != sources(path):
            found.append(path.name)
    return found


def publish(executed: Path, gallery: Path) -> None:
    """Remove machine-specific data from an executed notebook, and save its thumbnail."""
    notebook = of_the_notebook(executed)
    kept = {"kernelspec", "language_info"}
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in kept}
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    text = nbformat.writes(notebook)
    text = re.sub(re.escape(str(ROOT)) + "/?", "", text)
    (gallery / executed.name).write_text(text + "\n", "utf-8")
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    images = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if images:
        widest = max(images, key=len)
        with Image.open(io.BytesIO(base64.b64decode(widest))) as image:
            image = image.convert("RGBA")  # figures and their faint lines are transparent
            image.thumbnail((WIDTH, WIDTH))
            image.save(gallery / f"{executed.stem}.png", optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="name of a run whose notebooks have been executed")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    notebooks, gallery = ROOT / "notebooks", ROOT / "gallery"
    if args.run:
        gallery.mkdir(exist_ok=True)
        for path in sorted(notebooks.glob("*.ipynb")):
            executed = ROOT / "runs" / args.run / "notebooks" / path.name
            if not executed.exists():
                sys.exit(f"{executed} is missing; run: make run RUN={args.run}")
            publish(executed, gallery)
    old = stale(notebooks, gallery)
    if old:
        print(f"missing or outdated in gallery/: {', '.join(old)}; run: make gallery")
    return bool(old and args.check)


if __name__ == "__main__":
    sys.exit(main())
