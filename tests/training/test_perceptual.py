"""What features of VGG19 add to a loss, against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur.errors import UserError
from jaxdeblur.training.perceptual import BLOCKS, perceptual_error

WIDTHS = {0: (3, 2), 2: (2, 3), 5: (3, 2), 7: (2, 4), 10: (4, 2), 12: (2, 3), 14: (3, 2)}


def vgg19(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (c_in, c_out) in WIDTHS.items():
        arrays[f"features.{i}.weight"] = rng.normal(size=(c_out, c_in, 3, 3)).astype(np.float32)
        arrays[f"features.{i}.bias"] = rng.normal(size=c_out).astype(np.float32)
    safetensors.numpy.save_file(arrays, path)
    return arrays


def features(arrays: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Of an image ``H W 3``: the last convolution of each block, before its ReLU."""
    x, found = image[..., ::-1].transpose(2, 0, 1) * 2 - 1, []
    for block in BLOCKS:
        for n, i in enumerate(block):
            weight = arrays[f"features.{i}.weight"]
            padded = np.pad(np.maximum(x, 0) if n else x, ((0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
            x = np.einsum("chwij,ocij->ohw", windows, weight)
            x = x + arrays[f"features.{i}.bias"][:, None, None]
        found.append(x)
        c, h, w = x.shape
        x = np.maximum(x, 0).reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
    return found


def test_it_is_the_weighted_error_of_three_layers(tmp_path: Path) -> None:
    arrays = vgg19(tmp_path / "vgg19.safetensors")
    restored, sharp = np.random.default_rng(1).random((2, 1, 2, 8, 16, 3)).astype(np.float32)
    expected = 0.0
    for ours, theirs in zip(restored[0], sharp[0], strict=True):
        pairs = zip(features(arrays, ours), features(arrays, theirs), (1, 0.2, 0.04), strict=True)
        expected += sum(0.01 * w * np.mean((a - b) ** 2) for a, b, w in pairs) / 2
    error = jax.jit(lambda *pair: perceptual_error(*pair, str(tmp_path / "vgg19.safetensors")))
    assert float(error(jnp.asarray(restored), jnp.asarray(sharp))) == pytest.approx(expected, 1e-4)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path)
    clip = jnp.zeros((1, 1, 8, 8, 3))
    with pytest.raises(UserError, match=r"--vgg19=.*other.safetensors: no weights of VGG19"):
        perceptual_error(clip, clip, str(path))
