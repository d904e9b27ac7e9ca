"""A batch taken in parts, and the choice of the parts by the memory that there is."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxdeblur import devices, models, presets
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.memory import available_memory, fit_to_memory
from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state

STRCNN = StrcnnConfig(m=1, width=8, blocks=1, head_width=0, residual=True, leak=0.1)
FSTA = dataclasses.replace(
    FSTA_SMALL, window=3, widths=(8, 8), growths=(4, 4), dense_layers=2, decoder_blocks=(1, 1)
)
CONFIG = TrainingConfig(
    batch_size=4, frames=3, crop=16, learning_rate=1e-3, warmup=0, clip_norm=1e3, weight_decay=1e-3
)


def mesh_of(shares: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (shares, 1),
        ("data", "rows"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[:shares],
    )


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        (STRCNN, {"micro_batch": 2, "recompute": "always"}),
        pytest.param(STRCNN, {"micro_batch": 2}, marks=pytest.mark.stress),
        pytest.param(STRCNN, {"recompute": "always"}, marks=pytest.mark.stress),
        pytest.param(FSTA, {"micro_batch": 2, "recompute": "always"}, marks=pytest.mark.stress),
    ],
)
def test_in_parts_a_step_is_the_same(network: Any, parts: dict[str, Any]) -> None:
    """And on two devices, which each have two of the four clips."""
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (4, 3, 16, 16, 3), dtype=np.uint8)
    # Clips that differ in their loss: parts that were weighed unevenly would show.
    blurred = (sharp * np.array([0.1, 0.3, 0.6, 1.0]).reshape(4, 1, 1, 1, 1)).astype(np.uint8)
    found = []
    for config, mesh in (
        (CONFIG, mesh_of(1)),
        (dataclasses.replace(CONFIG, **parts), mesh_of(2)),
    ):
        rebuild, parameters = split(models.build(network))
        state = initial_train_state(config, parameters)
        state = jax.device_put(state, devices.replicated(mesh))
        step = compile_train_step(config, rebuild, mesh)
        batch = jax.device_put({"blurred": blurred, "sharp": sharp}, devices.clips_over(mesh))
        state, metrics = step(state, batch)
        # Adam's first moment is a tenth of the gradient; its step hardly tells of how large.
        found.append((state.optimizer[1][0].mu, metrics.loss, metrics.gradient_norm))
    whole, in_parts = jax.device_get(found)
    largest = max(float(np.abs(moment).max()) for moment in whole[0].values())
    chex.assert_trees_all_close(in_parts[0], whole[0], rtol=1e-4, atol=1e-5 * largest)
    np.testing.assert_allclose(in_parts[1:], whole[1:], rtol=1e-5)


def test_less_memory_is_chosen_where_there_is_less() -> None:
    """From as much as fits down to a clip at a time; on CPU cores one each is as fast as any."""
    config = dataclasses.replace(CONFIG, batch_size=8, frames=13, crop=128)
    model = models.build(presets.find("strcnn_dtb").network)

    def chosen(available: int | None, shares: int = 2, **fields: Any) -> Any:
        fitted = fit_to_memory(
            dataclasses.replace(config, **fields), model, mesh_of(shares), available
        )
        return fitted.config.micro_batch, fitted.config.recompute, fitted.needed

    plenty, tight, none = (chosen(gib * 2**30) for gib in (100, 2, 0))
    assert plenty[:2] == (2, "never")
    assert tight[:2] == none[:2] == (2, "always")
    assert none[2] < 0.7 * plenty[2]
    assert chosen(None)[:2] == (2, "never")
    assert chosen(2**40, shares=1)[:2] == (1, "never")
    # What the options say stays.
    assert chosen(0, micro_batch=4, recompute="never")[:2] == (4, "never")
    with pytest.raises(UserError, match=r"--micro-batch=1 must be a multiple of the 2 devices"):
        chosen(None, micro_batch=1)


def test_what_normalises_by_its_batch_is_never_taken_in_parts() -> None:
    model = models.build(STRCNN)
    model.clips_are_independent = False
    fitted = fit_to_memory(CONFIG, model, mesh_of(1), 0)
    assert fitted.config.micro_batch == CONFIG.batch_size
    assert fitted.describe().startswith("all clips at a time, recomputing")
    with pytest.raises(UserError, match=r"--micro-batch=1: .* whole batch"):
        fit_to_memory(dataclasses.replace(CONFIG, micro_batch=1), model, mesh_of(1), 0)


def test_there_is_memory() -> None:
    available = available_memory()
    assert available is None or 2**20 < available < 2**46
