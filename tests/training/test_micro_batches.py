"""Micro-batches: the same step as with the whole batch, with less memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxdeblur import devices, models
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.step import (
    TrainingConfig,
    compile_train_step,
    initial_train_state,
    micro_batch_count,
)

STRCNN = StrcnnConfig(m=1, width=8, blocks=1, head_width=0, residual=True, leak=0.1)
FSTA = dataclasses.replace(
    FSTA_SMALL, window=3, widths=(8, 8), growths=(4, 4), dense_layers=2, decoder_blocks=(1, 1)
)
CONFIG = TrainingConfig(
    batch_size=4, frames=3, crop=16, learning_rate=1e-3, warmup=0, clip_norm=1e3, weight_decay=1e-3
)


def mesh_of(shares: int) -> jax.sharding.Mesh:
    return devices.mesh_of(jax.devices()[:shares])


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        (STRCNN, {"micro_batch": 1, "recompute": True}),
        pytest.param(STRCNN, {"micro_batch": 1}, marks=pytest.mark.stress),
        pytest.param(STRCNN, {"micro_batch": 2, "recompute": True}, marks=pytest.mark.stress),
        pytest.param(FSTA, {"micro_batch": 1, "recompute": True}, marks=pytest.mark.stress),
    ],
)
def test_in_parts_a_step_is_the_same(network: Any, parts: dict[str, Any]) -> None:
    """Also on two devices, each of which has two of the four clips."""
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (4, 3, 16, 16, 3), dtype=np.uint8)
    # The clips differ in their loss, so that unevenly weighted parts would show.
    blurred = (sharp * np.array([0.1, 0.3, 0.6, 1.0]).reshape(4, 1, 1, 1, 1)).astype(np.uint8)
    found = []
    for config, mesh in (
        (dataclasses.replace(CONFIG, micro_batch=4), mesh_of(1)),
        (dataclasses.replace(CONFIG, **parts), mesh_of(2)),
    ):
        rebuild, parameters = split(models.build(network))
        state = initial_train_state(config, parameters)
        state = jax.device_put(state, devices.replicated(mesh))
        step = compile_train_step(config, rebuild, mesh)
        batch = jax.device_put({"blurred": blurred, "sharp": sharp}, devices.clips_over(mesh))
        state, metrics = step(state, batch)
        # Adam's first moment is a tenth of the gradient; its step hardly depends on the size.
        found.append((state.optimizer[1][0].mu, metrics.loss, metrics.gradient_norm))
    whole, in_parts = jax.device_get(found)
    largest = max(float(np.abs(moment).max()) for moment in whole[0].values())
    chex.assert_trees_all_close(in_parts[0], whole[0], rtol=1e-4, atol=1e-5 * largest)
    np.testing.assert_allclose(in_parts[1:], whole[1:], rtol=1e-5)


def test_a_cpu_takes_a_clip_at_a_time_and_options_are_obeyed() -> None:
    model = models.build(STRCNN)

    def count(shares: int, **fields: int) -> int:
        return micro_batch_count(dataclasses.replace(CONFIG, **fields), model, mesh_of(shares))

    assert [count(shares) for shares in (1, 2, 4)] == [4, 2, 1]
    assert count(1, micro_batch=2) == 2
    assert count(2, micro_batch=2) == 1
    with pytest.raises(UserError, match="--micro-batch=3 must divide the 4 clips"):
        count(1, micro_batch=3)


def test_what_normalises_by_its_batch_is_never_taken_in_parts() -> None:
    model = models.build(STRCNN)
    model.clips_are_independent = False
    assert micro_batch_count(CONFIG, model, mesh_of(1)) == 1
    with pytest.raises(UserError, match=r"--micro-batch=1: .* whole batch"):
        micro_batch_count(dataclasses.replace(CONFIG, micro_batch=1), model, mesh_of(1))
