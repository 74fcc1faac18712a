"""All CUDA code paths, on a CPU with fake tensors: devices, dtypes, shapes and operators."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here, to build the device guard"),
    pytest.mark.skipif(
        torch.backends.cuda.is_built(),
        reason="torch is built for CUDA, with hooks of its own: pytest -m gpu, or the CPU wheel",
    ),
]


def test_every_path_for_cuda_fits_in_devices_dtypes_and_operators(tmp_path):
    library, root = tmp_path / "noop_guard.so", Path(torch.__file__).parent
    where = [f"-I{root}/include", f"-L{root}/lib", "-lc10", "-ltorch_cpu"]
    how = ["-O1", "-shared", "-fPIC", "-std=c++20"]
    subprocess.run(
        ["g++", *how, str(HERE / "fake_cuda/noop_guard.cpp"), *where, "-o", str(library)],
        check=True,
    )
    env = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": f"{root}/lib",
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
    }
    run = subprocess.run(
        [sys.executable, str(HERE / "fake_cuda/paths.py")], env=env, capture_output=True, text=True
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert sum(line.startswith("ok") for line in lines) > 60, run.stdout
