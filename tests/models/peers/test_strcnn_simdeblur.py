"""SimDeblur's STRCNN+DTB: against plain NumPy with its layers, and its two views."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.models.peers.strcnn_simdeblur import SimDeblurStrcnnConfig

SMALL = SimDeblurStrcnnConfig(m=1, width=4, encoder_blocks=2, decoder_blocks=1)


def reference(plain: Any, w: dict[str, np.ndarray], windows: list[np.ndarray]) -> list[np.ndarray]:
    """SimDeblur's cell over windows C H W, from zeros."""

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        return plain.conv(x, w[f"strcnn_cell.{name}.weight"], w[f"strcnn_cell.{name}.bias"], stride)

    def normalised(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, scale, bias = (
            w[f"strcnn_cell.{name}.1.{array}"][:, None, None]
            for array in ("running_mean", "running_var", "weight", "bias")
        )
        return (conv(x, f"{name}.0") - mean) / np.sqrt(var + 1e-5) * scale + bias

    def fuse(x: np.ndarray, part: str, blocks: int) -> np.ndarray:
        for i in range(blocks):
            name = f"{part}.feature_fuse.{i}"
            y = plain.relu(normalised(x, f"{name}.conv1"))
            x = plain.relu(normalised(y, f"{name}.conv2") + x)
        return conv(x, f"{part}.feature_fuse.{blocks}")

    restored, f, blended = [], np.zeros(0), np.zeros(0)
    for window in windows:
        x = plain.relu(conv(window, "encoder.feature_extract.0"))
        x = plain.relu(conv(x, "encoder.feature_extract.2", 2))
        f = f if f.size else np.zeros_like(x)
        h = fuse(np.concatenate([x, f]), "encoder", 2)
        blended = blended if blended.size else np.zeros_like(h)
        share = np.abs(np.tanh(conv(np.concatenate([h, blended]), "dtb.conv")))
        share = np.clip(share + w["strcnn_cell.dtb.beta"], 0, 1)
        blended = share * h + (1 - share) * blended
        x = fuse(blended, "decoder", 1)
        f = plain.relu(conv(x, "decoder.feature_extract.0"))
        kernel = w["strcnn_cell.decoder.reconstruct.0.weight"]
        x = plain.transposed(x, kernel, w["strcnn_cell.decoder.reconstruct.0.bias"])
        restored.append(conv(plain.relu(x), "decoder.reconstruct.2").transpose(1, 2, 0))
    return restored


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip, ((1, 1), (0, 1), (0, 0), (0, 0)), mode="edge").transpose(0, 3, 1, 2)
        windows = [padded[i : i + 3].reshape(9, 10, 12) for i in range(3)]
        return np.stack(reference(plain, weights, windows))[:, :9]

    clip = np.random.default_rng(1).random((3, 9, 12, 3), np.float32)
    check_gradient("strcnn_dtb", SMALL, clip, restore)


def test_it_is_simdeblurs_network_in_both_views(plain: Any, imported: Any) -> None:
    loaded, weights = imported("strcnn_dtb", SMALL)
    model = loaded.model
    clip = np.random.default_rng(1).random((3, 9, 12, 3), np.float32)
    restored = jax.jit(model.restore_clip)(jnp.asarray(clip)[None])[0]
    padded = np.pad(clip, ((1, 1), (0, 1), (0, 0), (0, 0)), mode="edge").transpose(0, 3, 1, 2)
    windows = [padded[i : i + 3].reshape(9, 10, 12) for i in range(3)]
    expected = np.stack(reference(plain, weights, windows))[:, :9]
    np.testing.assert_allclose(restored, expected, atol=2e-5 * np.ptp(expected))
    step, state = jax.jit(model.step), model.initial_state(1, 9, 12)
    for i in range(4):
        state, out = step(state, jnp.asarray(clip[None, min(i, 2)]), i > 2)
        if i:
            np.testing.assert_allclose(out[0], restored[i - 1], atol=1e-5)
