"""Each kernel compiles for Ampere and Hopper with each tile of the table, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import tiles

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / ".cuda-plugin"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_tile_compiles(target: str) -> None:
    """In a process of its own, as the CUDA plugin must be there when JAX starts."""
    # JAX_PLATFORMS=cpu: the plugin then compiles without looking for a driver.
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # as users compile them, not as tests do
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(PLUGIN)]),
    }
    find = "import importlib.util as u, sys; sys.exit(not any(map(u.find_spec, sys.argv[1:])))"
    plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    found = subprocess.run(
        [sys.executable, "-c", find, *plugins], env=environment, capture_output=True
    )
    if found.returncode:
        pytest.skip("needs the CUDA plugin's wheels: python tests/install_extras.py")
    done = subprocess.run(
        [sys.executable, HERE / "compile_without_a_gpu.py", HERE / "targets" / f"{target}.txtpb"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == sum(len(row.kernels) for row in tiles.TABLE)
    assert [result for result in results if result["error"]] == []
