"""Layers of the reference implementations in plain NumPy, and imported weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import models
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.table1.convert import convert
from jaxdeblur.table1.references import REFERENCES
from jaxdeblur.weights.load import LoadedModel


class Plain:
    """Layers as PyTorch defines them, on maps C H W and kernels C_out C_in kh kw, in float64."""

    @staticmethod
    def conv(x: Any, weight: Any, bias: Any, stride: int = 1, pad: Any = None) -> np.ndarray:
        c_out, _, rows, columns = weight.shape
        pad = ((rows // 2, rows // 2), (columns // 2, columns // 2)) if pad is None else pad
        x = np.pad(np.float64(x), ((0, 0), *pad))
        height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
        y = np.zeros((c_out, height, width))
        for i in range(rows):
            for j in range(columns):
                seen = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
                y += np.einsum("chw,oc->ohw", seen[:, :height, :width], weight[:, :, i, j])
        return y + np.float64(bias)[:, None, None]

    @staticmethod
    def transposed(x: Any, weight: Any, bias: Any) -> np.ndarray:
        """Applies a kernel C_in C_out 4 4, or 3 3 with output padding 1, at stride 2, padding 1."""
        _, height, width = x.shape
        size = weight.shape[-1]
        y = np.zeros((weight.shape[1], 2 * height + 3, 2 * width + 3))
        for i in range(size):
            for j in range(size):
                part = np.einsum("chw,co->ohw", np.float64(x), weight[:, :, i, j])
                y[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += part
        return y[:, 1 : 2 * height + 1, 1 : 2 * width + 1] + np.float64(bias)[:, None, None]

    @staticmethod
    def up(x: Any) -> np.ndarray:
        """Doubles the size bilinearly; pixels are areas, not points."""
        for axis in (1, 2):
            x = np.moveaxis(np.float64(x), axis, -1)
            padded = np.concatenate([x[..., :1], x, x[..., -1:]], -1)
            low = 0.25 * padded[..., :-2] + 0.75 * x
            high = 0.75 * x + 0.25 * padded[..., 2:]
            x = np.moveaxis(np.stack([low, high], -1).reshape(*x.shape[:-1], -1), -1, axis)
        return x

    @staticmethod
    def relu(x: Any, leak: float = 0.0) -> np.ndarray:
        return np.where(x > 0, x, leak * x)

    @staticmethod
    def sigmoid(x: Any) -> np.ndarray:
        return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="session")
def plain() -> type[Plain]:
    return Plain


def random_reference(name: str, network: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws weights, by the reference's names, that keep the magnitude of maps about the same."""
    rng = np.random.default_rng(seed)
    _, template = outline(lambda: models.build(network))
    names = REFERENCES[name].names(network)
    arrays = {}
    for theirs, (ours, _, shape) in names.items():
        spread = 0.3 if len(shape) < 4 else (1.5 / np.prod(template[ours].shape[:3])) ** 0.5
        array = spread * rng.normal(size=shape)
        if ours.endswith(("running_var", "scale", "gamma")):
            array = 0.5 + np.abs(array)
        arrays[theirs] = array.astype(np.float32)
    assert {weight.ours for weight in names.values()} == set(template)
    return arrays


@pytest.fixture
def imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[LoadedModel, dict[str, np.ndarray]]]:
    """Writes random weights under the reference's names to a file and converts it."""

    def make(name: str, network: Any, seed: int = 0) -> tuple[LoadedModel, dict[str, np.ndarray]]:
        arrays = random_reference(name, network, seed)
        known = REFERENCES[name]._replace(networks=(network,))
        monkeypatch.setitem(REFERENCES, name, known)
        path = tmp_path / f"{name}.safetensors"
        safetensors.numpy.save_file(arrays, path)
        loaded = convert(name, path)
        return loaded, arrays

    return make


@pytest.fixture(autouse=True)
def _exact() -> Any:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def check_gradient(imported: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Compares gradients with the reference's: ``check(name, network, clip, reference)``.

    Compares the slope of a weighted sum of the restored clip along a random change of all weights
    and pixels: ours from the gradient, that of ``reference(weights, clip)`` from two of its values.
    One direction suffices, as every weight contributes. Even the float32 parts run in float64:
    rounding in float32 moves units across the kink of a ReLU, where the slope jumps.
    """

    def check(name: str, network: Any, clip: np.ndarray, restore: Callable[..., Any]) -> None:
        loaded, weights = imported(name, network)
        parameters = {ours: np.float64(each) for ours, each in split(loaded.model)[1].items()}
        weights = {theirs: np.float64(array) for theirs, array in weights.items()}
        clip = np.float64(clip)
        rng = np.random.default_rng(2)
        weigh, change = rng.normal(size=(2, *clip.shape))
        changes = {theirs: 0.1 * rng.normal(size=array.shape) for theirs, array in weights.items()}

        with jax.enable_x64(True), monkeypatch.context() as patched:
            patched.setattr(jnp, "float32", jnp.float64)
            patched.setattr(registry, "DTYPES", ("float64",))
            rebuild, _ = outline(lambda: models.build(replace(network, dtype="float64")))

            def loss(parameters: Any, clip: jax.Array) -> jax.Array:
                return (rebuild(parameters).restore_clip(clip[None])[0] * weigh).sum()

            value_and_gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
            value, (gradients, of_clip) = value_and_gradients(parameters, clip)
        assert of_clip.dtype == np.float64
        assert value == pytest.approx((restore(weights, clip) * weigh).sum(), rel=1e-9)
        shares = [(np.asarray(of_clip) * change).sum()]
        for theirs, (ours, axes, _) in REFERENCES[name].names(network).items():
            shares.append((np.asarray(gradients[ours]) * changes[theirs].transpose(axes)).sum())
        values = []
        for step in (1e-6, -1e-6):
            moved = {name: weights[name] + step * changes[name] for name in weights}
            values.append((restore(moved, clip + step * change) * weigh).sum())
        slope = (values[0] - values[1]) / 2e-6
        assert abs(sum(shares) - slope) < 1e-8 * np.linalg.norm(shares)

    return check
