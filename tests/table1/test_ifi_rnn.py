"""IFI-RNN against ESTRNN's re-implementation in plain NumPy, with weights by its names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.table1.ifi_rnn import IfiRnnConfig

SMALL = IfiRnnConfig(widths=(4, 5, 6), hidden=3, up_widths=(5, 4), blocks=2)


def test_parameters_are_counted_as_published() -> None:
    assert count(outline(lambda: models.build(IfiRnnConfig()))[1]) == 1_635_683


def forward(plain: Any, w: dict[str, Any], clip: np.ndarray) -> np.ndarray:
    """Runs the re-implementation on frames whose sizes are multiples of four."""

    def conv(name: str, x: Any, stride: int = 1) -> np.ndarray:
        return plain.conv(x, w[f"{name}.weight"], w[f"{name}.bias"], stride)

    def block(name: str, x: Any) -> np.ndarray:
        return x + conv(f"{name}.main_branch.2", plain.relu(conv(f"{name}.main_branch.0", x)))

    def go_over(k: int, frame: np.ndarray, hidden: Any) -> tuple[np.ndarray, np.ndarray]:
        at, x = f"rnncell{k}", frame
        for i in range(3):
            x = conv(f"{at}.F_B.{i}", x, 2 if i else 1)
        x = np.concatenate([x, hidden])
        for i in range(SMALL.blocks):
            x = block(f"{at}.F_R.{i}", x)
        return x, conv(f"{at}.F_h.2", block(f"{at}.F_h.1", conv(f"{at}.F_h.0", x)))

    _, height, width, _ = clip.shape
    hidden = np.zeros((SMALL.hidden, height // 4, width // 4))
    restored = []
    for frame in clip.transpose(0, 3, 1, 2) - 0.5:
        x, hidden = go_over(0, frame, hidden)
        for _ in range(SMALL.iterations):
            x, hidden = go_over(1, frame, hidden)
        for i in range(2):
            at = f"rnncell1.F_L.{i}"
            x = plain.transposed(x, w[f"{at}.weight"], w[f"{at}.bias"])
        restored.append(conv("rnncell1.F_L.2", x) + 0.5)
    return np.stack(restored).transpose(0, 2, 3, 1)


def test_it_is_what_the_reference_is(plain: Any, imported: Any) -> None:
    """Covers padding, the initial state, four passes per frame and upsampling."""
    loaded, weights = imported("ifi_rnn", SMALL)
    clip = np.random.default_rng(1).random((3, 10, 13, 3), np.float32)
    padded = np.pad(clip, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="edge")
    expected = forward(plain, weights, padded)[:, :10, :13]
    restored = jax.jit(loaded.model.restore_clip)(jnp.asarray(clip[None]))[0]
    np.testing.assert_allclose(restored, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip, ((0, 0), (0, 1), (0, 2), (0, 0)), mode="edge")
        return forward(plain, weights, padded)[:, :19, :26]

    clip = np.random.default_rng(1).random((3, 19, 26, 3), np.float32)
    check_gradient("ifi_rnn", SMALL, clip, restore)


@pytest.mark.stress  # the contract of Table 1's systems is stress, too
def test_a_step_reads_no_further_than_the_radius() -> None:
    """A NaN spreads to every pixel that reads it."""
    model = models.build(dataclasses.replace(SMALL, blocks=1, iterations=1))
    frame = jnp.full((1, 4, 256, 3), 0.5)
    restored = jax.vmap(lambda column: step(model, frame.at[0, 0, column].set(jnp.nan)))
    spread = np.isnan(jax.jit(restored)(jnp.arange(128, 132))).any(axis=(1, 2, 4))
    reach = max(
        np.abs(np.flatnonzero(row) - column).max() for column, row in enumerate(spread, 128)
    )
    assert model.receptive_radius - 4 <= reach <= model.receptive_radius


def step(model: Any, frame: jax.Array) -> jax.Array:
    """Returns the restored frame and the new state, each value repeated over its 4 x 4 pixels."""
    state, restored = model.step(model.initial_state(*frame.shape[:3]), frame)
    return jnp.concatenate([restored, jnp.repeat(state, 4, axis=2).repeat(4, axis=1)], -1)


@pytest.mark.parametrize("wrong", [{"up_widths": (4, 0)}, {"iterations": 0}])
def test_what_is_no_network_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        IfiRnnConfig(**wrong)
