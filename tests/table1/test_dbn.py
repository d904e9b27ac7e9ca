"""DBN against the authors' layers in plain NumPy, and the details that a port must have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.models.parameters import count, is_statistic, outline, split
from jaxdeblur.table1.dbn import DbnConfig

SMALL = DbnConfig(width=2)


def reference(plain: Any, w: dict[str, np.ndarray], window: np.ndarray) -> np.ndarray:
    """Runs the graph of the authors' model file on five frames ``5 H W 3``, oldest first."""

    def layer(name: str, x: np.ndarray, conv: Any, **options: Any) -> np.ndarray:
        y = conv(x, w[f"blocks.{name}.0.weight"], w[f"blocks.{name}.0.bias"], **options)
        mean, var, scale, bias = (
            w[f"blocks.{name}.1.{array}"][:, None, None]
            for array in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / np.sqrt(var + 1e-3) * scale + bias

    def down(name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        return plain.relu(layer(name, x, plain.conv, stride=stride))

    def up(name: str, x: np.ndarray, skip: np.ndarray) -> np.ndarray:
        return plain.relu(skip + layer(name, x, plain.transposed))

    x = window.transpose(0, 3, 1, 2).reshape(-1, *window.shape[1:3])
    f0 = down("F0", x)
    f2 = down("F2", down("F1", down("D1", f0, 2)))
    f5 = down("F5", down("F4", down("F3", down("D2", f2, 2))))
    f8 = down("F8", down("F7", down("F6", down("D3", f5, 2))))
    f11 = down("F11", down("F10", down("F9", up("U1", f8, f5))))
    f13 = down("F13", down("F12", up("U2", f11, f2)))
    f14 = down("F14", up("U3", f13, f0))
    return plain.sigmoid(x[6:9] + layer("F15", f14, plain.conv)).transpose(1, 2, 0)


def test_it_is_the_authors_network(plain: Any, imported: Any) -> None:
    """Also tests sizes that are not multiples of 8: they get zeros below and to the right."""
    loaded, weights = imported("dbn", SMALL)
    clip = np.random.default_rng(1).random((3, 10, 13, 3), np.float32)
    restored = jax.jit(loaded.model.restore_clip)(jnp.asarray(clip)[None])[0]
    window = np.pad(clip[[0, 0, 1, 2, 2]], ((0, 0), (0, 6), (0, 3), (0, 0)))
    expected = reference(plain, weights, window)[:10, :13]
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(restored[1], expected, atol=1e-5)


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip, ((0, 0), (0, 6), (0, 3), (0, 0)))
        windows = [padded[np.clip([t - 2, t - 1, t, t + 1, t + 2], 0, 2)] for t in range(3)]
        return np.stack([reference(plain, weights, each)[:10, :13] for each in windows])

    clip = np.random.default_rng(1).random((3, 10, 13, 3), np.float32)
    check_gradient("dbn", SMALL, clip, restore)


def test_parameters_of_the_published_network() -> None:
    _, parameters = outline(lambda: models.build(DbnConfig()))
    assert count(parameters) == 15_305_291


@pytest.mark.stress
def test_in_training_it_normalises_by_the_batch_and_remembers() -> None:
    model = models.build(SMALL)
    clip = jnp.asarray(np.random.default_rng(0).random((2, 2, 16, 16, 3), np.float32))
    outputs = jax.jit(model.training_outputs)(clip, clip)
    parameters = split(model)[1]
    assert outputs.statistics.keys() == {name for name in parameters if is_statistic(name)}
    mean = "blocks/F15/1/running_mean"
    assert not np.allclose(outputs.statistics[mean], parameters[mean])
    # Normalised by the batch, F15's output has deviation 1; by running statistics it has not.
    added = jax.scipy.special.logit(outputs.restored[0]) - clip
    np.testing.assert_allclose(added.std((0, 1, 2, 3)), 1, atol=0.02)
    used = jax.scipy.special.logit(jax.jit(model.restore_clip)(clip)) - clip
    assert float(jnp.abs(used.std((0, 1, 2, 3)) - 1).min()) > 0.1


@pytest.mark.stress  # the contract of Table 1's systems is stress, too
def test_a_pixel_reads_no_further_than_the_radius() -> None:
    """A NaN spreads to every pixel that reads it."""
    model = models.build(SMALL)
    clip = jnp.full((1, 1, 8, 200, 3), 0.5).at[0, 0, 4, 100].set(jnp.nan)
    restored = jax.jit(model.restore_clip)(clip)
    reached = np.flatnonzero(np.isnan(restored).any(axis=(0, 1, 2, 4)))
    assert reached.max() - reached.min() > 140
    assert reached.min() >= 100 - model.receptive_radius
    assert reached.max() <= 100 + model.receptive_radius
