"""SRN against the authors' layers in plain NumPy, and the details that a port must have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.table1.srn import Srn, SrnConfig
from jaxdeblur.testing import float32_error


def without_weights(config: SrnConfig) -> Srn:
    """Returns the network with zeros for weights, which saves the time to draw them."""
    rebuild, template = outline(lambda: models.build(config))
    return rebuild({name: jnp.zeros(array.shape) for name, array in template.items()})


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize_images, align_corners off: output i is read at i * in/out."""
    for axis, size in ((1, height), (2, width)):
        place = np.arange(size) * x.shape[axis] / size
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = np.expand_dims(place - low, (0, 3 - axis))
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def reference(
    plain: Any, w: dict[str, np.ndarray], blurred: np.ndarray, fed: Any = None
) -> list[np.ndarray]:
    """Returns what the three sizes of the authors' graph restore from a picture C H W.

    ``fed`` holds the picture that each size starts from, in place of the coarser result.
    """

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        kernel = w[f"g_net/{name}/weights"].transpose(3, 2, 0, 1)
        zeros = kernel.shape[-1] - stride  # for an even size
        pad = (zeros // 2, zeros - zeros // 2)
        return plain.conv(x, kernel, w[f"g_net/{name}/biases"], stride, (pad, pad))

    def up(x: np.ndarray, name: str) -> np.ndarray:
        kernel = w[f"g_net/{name}/weights"].transpose(3, 2, 0, 1)
        return plain.relu(plain.transposed(x, kernel, w[f"g_net/{name}/biases"]))

    def blocks(x: np.ndarray, *names: str) -> np.ndarray:
        for name in names:
            x = x + conv(plain.relu(conv(x, f"{name}/conv1")), f"{name}/conv2")
        return x

    _, height, width = blurred.shape
    lstm = "g_net/convLSTM/LSTM_conv/weights" in w
    restored, prediction, cell, hidden = [], blurred, None, None
    for shrink in (4, 2, 1):
        h, wd = height // shrink, width // shrink
        prediction = fed[len(restored)] if fed else prediction
        x = np.concatenate([resized(blurred, h, wd), resized(prediction, h, wd)])
        e1 = blocks(plain.relu(conv(x, "enc1_1")), "enc1_2", "enc1_3", "enc1_4")
        e2 = blocks(plain.relu(conv(e1, "enc2_1", 2)), "enc2_2", "enc2_3", "enc2_4")
        x = blocks(plain.relu(conv(e2, "enc3_1", 2)), "enc3_2", "enc3_3", "enc3_4")
        if lstm:
            cell = np.zeros_like(x) if cell is None else resized(cell, h // 4, wd // 4)
            hidden = np.zeros_like(x) if hidden is None else resized(hidden, h // 4, wd // 4)
            gates = conv(np.concatenate([x, hidden]), "convLSTM/LSTM_conv")
            i, j, f, o = np.split(gates, 4)
            cell = cell * plain.sigmoid(f + 1) + plain.sigmoid(i) * np.tanh(j)
            x = hidden = np.tanh(cell) * plain.sigmoid(o)
        x = blocks(x, "dec3_3", "dec3_2", "dec3_1")
        x = blocks(up(x, "dec2_4") + e2, "dec2_3", "dec2_2", "dec2_1")
        x = blocks(up(x, "dec1_4") + e1, "dec1_3", "dec1_2", "dec1_1")
        prediction = conv(x, "dec1_0")
        restored.append(prediction)
    return restored


@pytest.mark.parametrize(
    "variant", ["color", *(pytest.param(v, marks=pytest.mark.stress) for v in ("gray", "lstm"))]
)
def test_it_is_the_authors_network(plain: Any, imported: Any, variant: Any) -> None:
    loaded, weights = imported("srn", SrnConfig(variant, width=2))
    frame = np.random.default_rng(1).random((17, 30, 3), np.float32)
    restored = jax.jit(loaded.model.restore_clip)(jnp.asarray(frame)[None, None])[0, 0]
    blurred = np.pad(frame, ((0, 15), (0, 2), (0, 0)), mode="edge").transpose(2, 0, 1)
    channels = [blurred] if variant == "color" else [blurred[i : i + 1] for i in range(3)]
    expected = np.concatenate([reference(plain, weights, each)[-1] for each in channels])
    expected = expected.transpose(1, 2, 0)[:17, :30]
    np.testing.assert_allclose(restored, expected, atol=2e-5 * np.ptp(expected))


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    """No gradient passes through the picture that a size starts from."""
    fed: list[Any] = []

    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip[0], ((0, 13), (0, 6), (0, 0)), mode="edge").transpose(2, 0, 1)
        restored = []
        for i in range(3):
            picture = padded[i : i + 1]
            if len(fed) == i:  # in the first call, before any change
                made = reference(plain, weights, picture)
                fed.append([picture, *made[:2]])
            restored.append(reference(plain, weights, picture, fed[i])[-1])
        return np.concatenate(restored).transpose(1, 2, 0)[None, :19, :26]

    clip = np.random.default_rng(1).random((1, 19, 26, 3), np.float32)
    check_gradient("srn", SrnConfig("lstm", width=2), clip, restore)


def test_parameters_of_the_published_networks() -> None:
    for variant, number in (("lstm", 8_056_609), ("gray", 6_876_449), ("color", 6_881_251)):
        _, parameters = outline(lambda variant=variant: models.build(SrnConfig(variant)))
        assert count(parameters) == number


@pytest.mark.stress
def test_training_compares_three_sizes_of_grey_pictures(plain: Any, imported: Any) -> None:
    loaded, weights = imported("srn", SrnConfig("lstm", width=2))
    clip, sharp = np.random.default_rng(1).random((2, 1, 1, 32, 16, 3), np.float32)
    outputs = jax.jit(loaded.model.training_outputs)(jnp.asarray(clip), jnp.asarray(sharp))
    grey = lambda x: x @ np.array([[0.2989], [0.587], [0.114]])  # noqa: E731
    expected = reference(plain, weights, grey(clip)[0, 0].transpose(2, 0, 1))
    for level, (restored, target) in enumerate(zip(outputs.restored, outputs.targets, strict=True)):
        step = (4, 2, 1)[level]
        scale = 2e-5 * np.ptp(expected[level])
        for colour in range(3):
            np.testing.assert_allclose(restored[0, 0, ..., colour], expected[level][0], atol=scale)
        wanted = grey(sharp)[:, :, ::step, ::step].repeat(3, -1)
        np.testing.assert_allclose(target, wanted, rtol=0, atol=float32_error(3))


def test_no_gradient_passes_the_picture_but_it_does_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = without_weights(SrnConfig("gray", width=1))
    clip = jnp.ones((1, 16, 16, 1))

    def gradient(level: Any) -> float:
        def loss(p: jax.Array) -> jax.Array:
            monkeypatch.setattr(Srn, "_level", lambda self, *given: level(p, *given))
            return jnp.mean(model._pyramid(clip)[-1])

        return float(jax.jit(jax.grad(loss))(jnp.float32(2)))

    # The result is p^3, but the coarser p^2 counts as constant: the slope is p^2, not 3 p^2.
    assert gradient(lambda p, blurred, coarser, state: (p * coarser, state)) == 4
    # Gradients do pass through what two sizes add to the state.
    assert gradient(lambda p, b, coarser, state: (0 * b + state.mean(), state + p)) == 2


def test_tiles_are_refused_with_the_reason() -> None:
    model = without_weights(SrnConfig(width=2))
    with pytest.raises(UserError, match=r"SRN can't restore a frame in tiles: .* 1,300 pixels"):
        TileGrid(32, 32).step(model, (), jnp.zeros((1, 64, 64, 3)))
