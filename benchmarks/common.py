"""Code shared by benchmarks: timing in turn, a training step, means with deviations."""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdeblur import devices, models
from jaxdeblur.models.parameters import split
from jaxdeblur.shapes import Batch
from jaxdeblur.training.step import (
    TrainingConfig,
    TrainState,
    compile_train_step,
    initial_train_state,
)


def machine() -> str:
    """Returns the device and the version of JAX, as shown in tables."""
    return f"{devices.described()}, {platform.machine()}, jax {jax.__version__}"


def side_by_side(
    cases: Mapping[str, Callable[[], Any]], repeats: int, untimed: int = 1
) -> dict[str, float]:
    """Returns median seconds of each case, timed in turn so that a slow minute affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(untimed + repeats):
        for name, run in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[untimed:]) for name, values in seconds.items()}


def spread(values: Sequence[float] | np.ndarray, digits: int = 2, sign: str = "") -> str:
    """Formats mean ± standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.{digits}f}{deviation}"


def has_torch() -> bool:
    """Returns whether torch is installed, with CUDA if JAX runs on a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return jax.default_backend() != "gpu" or torch.cuda.is_available()


def random_clips(config: TrainingConfig, context: tuple[int, int]) -> Batch:
    """Returns a batch of noise for a training step, with the window's frames around each clip."""
    before, after = context
    shape = (config.batch_size, before + config.frames + after, config.crop, config.crop, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"blurred": clips, "sharp": clips[:, before : before + config.frames, ::-1].copy()}


def begin(model: Any, config: TrainingConfig, mesh: Mesh) -> tuple[Any, TrainState, Any]:
    """Returns what rebuilds a network, its state before the first step, and the compiled step."""
    rebuild, parameters = split(model)
    state = jax.device_put(initial_train_state(config, parameters), devices.replicated(mesh))
    return rebuild, state, compile_train_step(config, rebuild, mesh)


def training(network: Any, config: TrainingConfig) -> Callable[[Batch], Any]:
    """Returns train.py's training step: it continues from its last state and returns metrics."""
    mesh = devices.make_mesh(config.batch_size)
    _, state, compiled = begin(models.build(network), config, mesh)

    def step(batch: Batch) -> Any:
        nonlocal state
        state, metrics = compiled(state, jax.device_put(batch, devices.clips_over(mesh)))
        return metrics

    return step
