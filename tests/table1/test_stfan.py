"""STFAN against its authors' definition in plain NumPy, with weights under their names."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.table1.stfan import StfanConfig, filter_adaptive_convolution

SMALL = StfanConfig(width=2, taps=3)


def test_parameters_are_counted_as_published() -> None:
    assert count(outline(lambda: models.build(StfanConfig()))[1]) == 5_372_547


def loops(x: np.ndarray, filters: np.ndarray, size: int) -> np.ndarray:
    """Channel c's tap (row i, column j) is filter channel size * size * c + size * i + j."""
    y = np.zeros(x.shape)
    height, width, channels = x.shape
    for h, w, c in itertools.product(range(height), range(width), range(channels)):
        for i, j in itertools.product(range(size), repeat=2):
            row = min(max(h + i - size // 2, 0), height - 1)
            column = min(max(w + j - size // 2, 0), width - 1)
            y[h, w, c] += x[row, column, c] * filters[h, w, size * size * c + size * i + j]
    return y


@pytest.mark.parametrize("size", [1, 3, 5])
def test_filter_adaptive_convolution(size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 2)).astype(np.float32)
    filters = rng.normal(size=(2, 4, 6, 2 * size * size)).astype(np.float32)
    y = filter_adaptive_convolution(jnp.asarray(x), jnp.asarray(filters), size)
    expected = [loops(*pair, size) for pair in zip(x, filters, strict=True)]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def forward(plain: Any, w: dict[str, Any], taps: int, clip: np.ndarray) -> np.ndarray:
    """Runs the authors' network on frames whose sizes are multiples of four."""

    def leaky(x: np.ndarray) -> np.ndarray:
        return plain.relu(x, 0.1)

    def conv(name: str, x: Any, stride: int = 1) -> np.ndarray:
        return leaky(plain.conv(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride))

    def up(name: str, x: Any) -> np.ndarray:
        return leaky(plain.transposed(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"]))

    def block(name: str, x: Any) -> np.ndarray:
        at = f"{name}.stem"
        inner = leaky(plain.conv(x, w[f"{at}.0.weight"], w[f"{at}.0.bias"]))
        return x + plain.conv(inner, w[f"{at}.2.weight"], w[f"{at}.2.bias"])

    def encode(prefix: str, x: Any) -> np.ndarray:
        for i in (1, 2, 3):
            x = conv(f"{prefix}{i}_1", x, 1 if i == 1 else 2)
            x = block(f"{prefix}{i}_3", block(f"{prefix}{i}_2", x))
        return x

    def filters(name: str, x: Any) -> np.ndarray:
        x = block(f"{name}.2", block(f"{name}.1", conv(f"{name}.0", x)))
        return conv(f"{name}.3", x)

    def adapt(x: Any, taps_of_each: Any) -> np.ndarray:
        y = loops(x.transpose(1, 2, 0), taps_of_each.transpose(1, 2, 0), taps)
        return y.transpose(2, 0, 1)

    frames = clip[..., ::-1].transpose(0, 3, 1, 2)  # BGR
    last_blurred = last_restored = frames[0]
    features, restored = None, []
    for frame in frames:
        k3 = encode("kconv", np.concatenate([frame, last_blurred, last_restored]))
        warp = filters("fac_warp", k3)
        deblur = filters("fac_deblur", np.concatenate([k3, conv("kconv4", warp)]))
        e3 = encode("conv", frame)
        if features is None:
            features = np.concatenate([e3, e3])
        features = np.concatenate([adapt(e3, deblur), adapt(conv("fea", features), warp)])
        x = block("upconv2_1", block("upconv2_2", up("upconv2_u", features)))
        x = block("upconv1_1", block("upconv1_2", up("upconv1_u", x)))
        restored.append(conv("img_prd", x) + frame)
        last_blurred, last_restored = frame, np.clip(restored[-1], 0, 1)
    return np.stack(restored).transpose(0, 2, 3, 1)[..., ::-1]


def test_it_is_what_the_reference_is(plain: Any, imported: Any) -> None:
    """Covers BGR, leaky ReLUs after filters and last layer too, first frame, clamp and order."""
    loaded, weights = imported("stfan", SMALL)
    clip = np.random.default_rng(1).random((3, 6, 9, 3), np.float32)
    padded = np.pad(clip, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="edge")
    expected = forward(plain, weights, SMALL.taps, padded)[:, :6, :9]
    assert expected[:-1].max() > 1.1  # min() < -0.1 would do too: the clamp matters
    restored = jax.jit(loaded.model.restore_clip)(jnp.asarray(clip[None]))[0]
    np.testing.assert_allclose(restored, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    """Gradients pass from frame to frame: nothing is detached here."""

    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="edge")
        return forward(plain, weights, SMALL.taps, padded)[:, :6, :9]

    clip = np.random.default_rng(1).random((3, 6, 9, 3), np.float32)
    check_gradient("stfan", SMALL, clip, restore)


@pytest.mark.stress
def test_training_detaches_what_passes_from_frame_to_frame() -> None:
    def second(clip: jax.Array, detach: bool) -> jax.Array:
        model = models.build(dataclasses.replace(SMALL, width=1, detach=detach))
        (restored,), (target,), _ = model.training_outputs(clip, clip)
        assert restored.shape == target.shape == clip.shape
        return restored[:, 1].sum()

    @jax.jit
    def gradients(clip: jax.Array) -> list[jax.Array]:
        return [jax.grad(second)(clip, detach) for detach in (True, False)]

    clip = jnp.asarray(np.random.default_rng(0).random((1, 2, 6, 7, 3)), jnp.float32)
    detached, through = (np.abs(each).sum(axis=(0, 2, 3, 4)) for each in gradients(clip))
    assert detached[0] == 0
    assert min(*through, detached[1]) > 0


@pytest.mark.stress  # the contract of Table 1's systems is stress, too
def test_a_step_reads_no_further_than_the_radius() -> None:
    """A NaN spreads to every pixel that reads it."""
    model = models.build(dataclasses.replace(SMALL, width=1, taps=5))
    frame = jnp.full((1, 4, 256, 3), 0.5)
    restored = jax.vmap(lambda column: step(model, frame.at[0, 0, column].set(jnp.nan)))
    spread = np.isnan(jax.jit(restored)(jnp.arange(128, 132))).any(axis=(1, 2, 4))
    reach = max(
        np.abs(np.flatnonzero(row) - column).max() for column, row in enumerate(spread, 128)
    )
    assert model.receptive_radius - 12 <= reach <= model.receptive_radius


def step(model: Any, frame: jax.Array) -> jax.Array:
    return model.step(model.initial_state(*frame.shape[:3]), frame)[1]


def test_what_is_no_network_is_said() -> None:
    for wrong in ({"width": 0}, {"taps": 4}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            StfanConfig(**wrong)
