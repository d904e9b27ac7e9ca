"""Code shared by benchmarks: numbers on the command line, timing in turn, a training step."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdeblur import devices, models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.shapes import Batch
from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state


def whole(text: str, least: int = 0) -> int:
    """Parses a whole number of at least ``least``, as the type of an option."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number, {least} or more, not {text[:50]!r}"
        )
    return number


def natural(text: str) -> int:
    """Parses a whole number of at least 1: without a measurement there is no median."""
    return whole(text, 1)


def positive(text: str) -> float:
    """Parses a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text[:50]!r}")
    return number


def reason(stderr: str) -> str:
    """Returns the last line of a failed process, without the name that its errors begin with."""
    said = stderr.strip().splitlines() or ["no error message"]
    return said[-1].partition(": error: ")[2] or said[-1]


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


def results_so_far(out: Path | None, condition: dict[str, Any]) -> dict[str, Any]:
    """Returns ``condition`` and ``results`` of a benchmark that resumes where it was stopped.

    Args:
      out: the file that ``write_json`` makes; if it is None or missing, there are no results yet.
      condition: what results must share to be in one table.

    Raises:
      UserError: the file contains something else.
    """
    if not out or not out.exists():
        return {"condition": condition, "results": {}}
    try:
        held: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        matches = held["condition"] == condition
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--out={out}: not a results file of this program") from error
    if not matches:
        raise UserError(f"--out={out}: contains results for other settings: {held['condition']}")
    return held


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


def training(network: Any, config: TrainingConfig) -> Callable[[Batch], Any]:
    """Returns train.py's training step: it continues from its last state and returns metrics."""
    rebuild, parameters = split(models.build(network))
    mesh = devices.make_mesh(config.batch_size)
    state = jax.device_put(initial_train_state(config, parameters), devices.replicated(mesh))
    compiled = compile_train_step(config, rebuild, mesh)

    def step(batch: Batch) -> Any:
        nonlocal state
        state, metrics = compiled(state, jax.device_put(batch, devices.clips_over(mesh)))
        return metrics

    return step
