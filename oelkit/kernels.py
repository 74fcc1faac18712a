"""The kernels of notebooks in a batch: this interpreter, and a limit on what one cell shows."""

from __future__ import annotations

import sys
from asyncio import ensure_future
from tempfile import TemporaryFile
from typing import Any, cast

from .executed import settled

MOST = 16 * 2**20  # characters that a cell can show; a message counts about a thousand more


def kernel_manager() -> type:
    """Return a kernel manager whose python3 is this interpreter, whatever is registered."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    # overrides this process: figures inline even if scripts use Agg, and no debugger banner
    env = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    command = get_kernel_dict(extra_arguments=["--log-level=50"])  # no log on the terminal

    class ThisInterpreter(AsyncKernelManager):
        kernel_spec: Any = KernelSpec(**command, env=env)

        @default("transport_encryption")
        def _encrypted(self) -> str:  # other users of the machine can reach a kernel's ports
            return "auto"

    return ThisInterpreter


def engine() -> str:
    """Return the name of a papermill engine that ends a notebook once a cell shows over MOST.

    Otherwise a cell that prints without end fills memory and disk until its time-out."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class Client(PapermillNotebookClient):
        size, over = 0, False

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            kind = msg["msg_type"]
            new = 0 if kind.startswith("comm") or self.over else len(str(msg))  # comm: of widgets
            self.size += new
            if self.size > 2 * MOST:  # with what was cleared or overwritten, and other cells
                self.measure(cell, new)
            if self.over and kind != "status":
                return None
            return super().process_message(msg, cell, cell_index)

        def measure(self, cell: Any, new: int) -> None:
            # later outputs than the last picture, as displays are updated by their place
            kept = [n for n, output in enumerate(cell.outputs, 1) if "name" not in output]
            last = max(kept, default=0)
            cell.outputs[last:] = settled(cell.outputs[last:])
            self.size = new + len(str(cell.outputs))
            if self.size > MOST:
                self.size, self.over, manager = 0, True, cast(Any, self.km)
                cell.outputs = cell.outputs[:1]  # enough to see what it is
                for output in cell.outputs:
                    output |= {"text": output.text[:100_000]} if "name" in output else {}
                self.killing = ensure_future(manager.provisioner.kill())

        def check(self, **_: Any) -> None:
            if self.over:
                what = f"over {MOST / 2**20:g} MiB of output"
                raise RuntimeError(f"{what}; let the cell print less, or write it to a file")

        def execute(self, **options: Any) -> Any:
            self.on_cell_executed = self.check  # if it ended before its kernel did
            with TemporaryFile("w+", errors="replace") as said:
                try:
                    return super().execute(stderr=said, **options)
                except RuntimeError:  # such as a DeadKernelError
                    self.check()
                    said.seek(0)  # of no use at the end of a good kernel: ZeroMQ may abort there
                    sys.stderr.write(said.read())
                    raise

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            for name in ("input_path", "stdout_file", "stderr_file"):  # papermill's own
                options.pop(name, None)
            options["iopub_timeout"] = 600  # seconds: 4 are too few for a large output
            options["startup_timeout"] = options.pop("start_timeout")
            Client(nb_man, kernel_name=kernel_name, **options).execute()

    papermill_engines.register("oelkit", Engine)
    return "oelkit"
