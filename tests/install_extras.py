"""Installs what lets the tests compile GPU kernels without a GPU: JAX's CUDA plugin, bare.

Without the rest of its dependencies, gigabytes of CUDA libraries that compiling does not need, and
into a folder of its own, since JAX would try to start it, and complain, wherever it finds it. Each
version of JAX has its own: with the plugin of another one it ends in a segmentation fault. Where it
can't be had, those tests skip and say so; everything else runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax

FOLDER = Path(__file__).resolve().parent.parent / ".cuda-plugin" / jax.__version__

PACKAGES = [
    f"jax-cuda12-plugin=={jax.__version__}",
    f"jax-cuda12-pjrt=={jax.__version__}",
    "nvidia-cuda-nvcc-cu12>=12.9,<13",  # the compiler of PTX, which JAX 0.12 looks for beside it
]

if __name__ == "__main__":
    where = ["--no-deps", "--upgrade", "--target", str(FOLDER)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *where, *PACKAGES]
    if subprocess.run(command, check=False).returncode:
        print(f"{' and '.join(PACKAGES)} can't be installed: tests that need them will skip")
