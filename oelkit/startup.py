"""Start and end processes faster: leave out what libraries load on import but oelkit never uses."""

from __future__ import annotations

import atexit
import gc
import os
import sys


def skip_slow_imports() -> None:
    """Call before the libraries are imported, and never in a user's own process.

    - PEFT imports bitsandbytes, which calls torch.compile on import. That loads the compiler: 1 s.
    - nbformat and Voila import jsonschema, which builds a grammar of URLs to check them: 2 s.
    - At its end, Python looks for garbage among all that was imported: 1 s. Our files are closed.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    atexit.register(gc.freeze)
