"""Installs JAX's CUDA plugin, with which the tests compile GPU kernels without a GPU.

Most of its dependencies are left out: gigabytes of CUDA libraries that compiling does not need. The
plugin has its own folder, since JAX tries to start it, and complains, wherever it finds it. Each
version of JAX has its own plugin: with another one, JAX ends in a segmentation fault. Where the
plugin can't be installed, those tests are skipped with the reason; everything else runs.
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
    "nvidia-cuda-nvcc-cu12>=12.9,<13",  # the PTX compiler, which JAX 0.12 looks for beside it
]

if __name__ == "__main__":
    where = ["--no-deps", "--upgrade", "--target", str(FOLDER)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *where, *PACKAGES]
    if subprocess.run(command, check=False).returncode:
        print(f"{' and '.join(PACKAGES)} can't be installed: tests that need them will skip")
