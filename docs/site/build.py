"""Build the site from the tracked files: python docs/site/build.py [FOLDER]

Copies the files to FOLDER/pages in the layout of the repository, so that links still work. The
executed notebooks of gallery/ replace the stripped ones. A warning is an error."""

import shutil
import subprocess
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def build(folder: Path) -> int:
    """Build the site in folder/site. Return 0 if there were no warnings."""
    pages, site = folder / "pages", folder / "site"
    for old in (pages, site):
        shutil.rmtree(old, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--", ":!notebooks", ":!*.safetensors"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if not (ROOT / name).is_file():
            continue  # deleted, and not committed yet
        to = pages / name.replace("gallery/", "notebooks/", 1)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to)
    shutil.copyfile(HERE / "index.md", pages / "index.md")
    return build_main(["-q", "-W", "--keep-going", "-c", str(HERE), str(pages), str(site)])


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    status = build(out)
    if status:
        print("the site has warnings; see above")
    else:
        print(f"open {out / 'site' / 'index.html'}")
        print("Opened as a file, search shows titles only: browsers block access to other files.")
        print("To see excerpts as well, serve the site:")
        print(f"    python -m http.server --bind 127.0.0.1 --directory {out / 'site'}")
    sys.exit(status)
