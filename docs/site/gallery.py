"""Executed copies of the notebooks, which GitHub and the site show:

python docs/site/gallery.py demo      # those of runs/demo, with a thumbnail each, into gallery/
python docs/site/gallery.py --check   # names the copies whose source has changed since; exit 1
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
    """A notebook without the cell that papermill puts in."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in tags(c)]
    return notebook


def sources(path: Path) -> list[str]:
    """What a notebook says and does."""
    return [cell.source for cell in of_the_notebook(path).cells]


def stale(notebooks: Path, gallery: Path) -> list[str]:
    """The notebooks whose copy is missing or shows another source."""
    found = []
    for path in sorted(notebooks.glob("*.ipynb")):
        copy = gallery / path.name
        if not copy.exists() or sources(copy) != sources(path):
            found.append(path.name)
    return found


def publish(executed: Path, gallery: Path) -> None:
    """Clean an executed notebook of what is of one machine, and draw its thumbnail."""
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
            image = image.convert("RGBA")  # figures have no ground, and lines that are half seen
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
                sys.exit(f"{executed} is missing: make run RUN={args.run}")
            publish(executed, gallery)
    old = stale(notebooks, gallery)
    if old:
        print(f"the source has changed since, or there is no copy: {', '.join(old)}: make gallery")
    return bool(old and args.check)


if __name__ == "__main__":
    sys.exit(main())
