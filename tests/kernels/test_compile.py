"""Each kernel compiles for Hopper at its largest supported sizes, without a GPU.

So do whole programs that combine the kernels, their gradients and the mesh.
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
    """Returns the environment of a process in which JAX finds the CUDA plugin."""
    # With JAX_PLATFORMS=cpu the plugin compiles without looking for a driver.
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
    """Compiles kernels for a target in a new process with the plugin; returns their errors."""

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
    """This is why "auto" takes the einsum there."""
    (error,) = compiled("sm_80", "squeeze bfloat16").values()
    assert error is not None
    assert "Pass pipeline failed" in error


@pytest.mark.stress
def test_a_training_step_and_a_stream_compile(environment: dict[str, str], tmp_path: Path) -> None:
    """Compiles the attention network by the benchmark that reports its memory.

    The benchmark has to find the plugin by itself, as it does when users start it.
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
    # At least a squeeze and an expand, plus their gradients in training.
    assert training["our_kernels"] >= 4
    assert stream["our_kernels"] >= 2
    assert work["TFLOP"] > 0
