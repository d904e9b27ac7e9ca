"""Each kernel compiles for Hopper at the largest sizes it takes, without a GPU.

And whole programs do, in which the kernels, their gradients and the mesh come together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def compiled(environment: dict[str, str]) -> Callable[..., dict[str, str | None]]:
    """What becomes of kernels for a target, in a process with the plugin from its start."""

    def compiled(target: str, *only: str) -> dict[str, str | None]:
        file = HERE / "targets" / f"{target}.txtpb"
        done = subprocess.run(
            [sys.executable, HERE / "compile_without_a_gpu.py", file, *only],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(map(json.loads, done.stdout.splitlines()))

    return compiled


@pytest.mark.stress
def test_every_kernel_compiles_for_hopper(
    compiled: Callable[..., dict[str, str | None]],
) -> None:
    found = compiled("sm_90")
    assert len(found) == 4 * len(tiles.NUMBERS)
    assert {name: error for name, error in found.items() if error} == {}


@pytest.mark.stress
def test_none_compiles_for_ampere(compiled: Callable[..., dict[str, str | None]]) -> None:
    """So "auto" is right to take the einsum there."""
    (error,) = compiled("sm_80", "squeeze bfloat16").values()
    assert error is not None
    assert "Pass pipeline failed" in error


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
