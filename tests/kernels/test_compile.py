"""Each kernel compiles for Ampere and Hopper with each tile of the table, without a GPU.

And whole programs do, in which the kernels, their gradients and the mesh come together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kernels import tiles

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / ".cuda-plugin" / jax.__version__


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a process in which JAX finds the CUDA plugin."""
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
        pytest.skip(f"needs the CUDA plugin of JAX {jax.__version__}: tests/install_extras.py")
    return environment


@pytest.mark.stress
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_tile_compiles(target: str, environment: dict[str, str]) -> None:
    """In a process of its own, as the CUDA plugin must be there when JAX starts."""
    done = subprocess.run(
        [sys.executable, HERE / "compile_without_a_gpu.py", HERE / "targets" / f"{target}.txtpb"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    tables = [tiles.TABLE, *(tiles.MOSAIC.values() if target == "sm_90" else ())]
    assert len(results) == sum(len(row.kernels) for table in tables for row in table)
    assert [result for result in results if result["error"]] == []


@pytest.mark.stress
def test_a_training_step_and_a_stream_compile(environment: dict[str, str], tmp_path: Path) -> None:
    """The attention network, by the benchmark that says what memory it takes.

    It finds the plugin by itself: as users start it, nothing else does.
    """
    for name in ("JAX_PLATFORMS", "PYTHONPATH"):
        del environment[name]
    small = ["--widths", "8", "--growths", "4", "--encoder-blocks", "1", "--decoder-blocks", "1"]
    clips = ["--window=3", "--frames=3", "--crop=32", "--attention-levels=0"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_day", "memory", "--preset=fsta_small", *small,
         *clips, "--batch-size=2", "--size=64x32", "--minutes=60", f"--out={tmp_path}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    training, stream, work = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert training["what"] == "fsta_small, bfloat16: training step of 2 x 3 x 32 x 32"
    # At least a squeeze and an expand, and their gradients where it trains.
    assert training["our_kernels"] >= 4
    assert stream["our_kernels"] >= 2
    assert work["TFLOP"] > 0
