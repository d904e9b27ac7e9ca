"""RDN against its authors' graph in plain NumPy, and the effects of its normalisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.table1.rdn import RdnConfig

SMALL = RdnConfig(width=2)
HEIGHT, WIDTH = 37, 46


def test_parameters_are_counted_as_published() -> None:
    assert count(outline(lambda: models.build(RdnConfig()))[1]) == 3_671_517


def forward(plain: Any, w: dict[str, Any], windows: np.ndarray) -> list[np.ndarray]:
    """Returns all four estimates of the authors' graph; ``B 5 H W 3``, sizes multiples of 8."""

    def layer(name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        kernel, bias = w[f"{name}.conv.weight"], w[f"{name}.conv.bias"]
        if name.endswith("deconv"):
            maps = [plain.transposed(plain.relu(each), kernel, bias) for each in x]
        else:  # TensorFlow's SAME: at even sizes, stride 2 pads no zero before and one behind
            pad = (0, 1) if stride == 2 else (kernel.shape[-1] // 2,) * 2
            maps = [plain.conv(plain.relu(each), kernel, bias, stride, (pad, pad)) for each in x]
        y = np.stack(maps)
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
        y = (y - mean[:, None, None]) / np.sqrt(variance + 1.001e-5)[:, None, None]
        return y * w[f"{name}.gamma"][:, None, None] + w[f"{name}.beta"][:, None, None]

    def three(block: str, x: np.ndarray) -> np.ndarray:
        for i in (1, 2, 3):
            x = layer(f"{block}_{i}_conv", x)
        return x

    def merge(name: str, x: np.ndarray, before: Any) -> np.ndarray:
        return x if before is None else layer(f"{name}_conv", np.concatenate([x, before], 1))

    def improve(observation: Any, estimate: Any, past: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        x = layer("d0_conv", np.concatenate([observation, estimate], 1))
        x = layer("d1_0_conv", x, 2)
        x = x + three("d1", x)
        x = layer("d2_0_conv", x)
        a = x + three("d2", x)
        x = layer("d3_0_conv", a, 2)
        b = x + three("d3", x)
        x = layer("d4_0_conv", b, 2)
        s0 = x + three("d4", merge("d41_s", x, past[0]))
        x = layer("u1_0_deconv", s0) + b
        s1 = x + three("u1", merge("u1_s", x, past[1]))
        x = layer("u2_0_deconv", s1) + a
        s2 = x + three("u2", merge("u2_s", x, past[2]))
        x = layer("u3_4_conv", three("u3", layer("u3_0_deconv", s2)))
        return estimate + x, [s0, s1, s2]

    frames = windows[..., ::-1].transpose(1, 0, 4, 2, 3) * 255.0 / 128 - 1  # BGR
    estimate, past, estimates = frames[4], [None] * 3, []
    for observation in frames[3::-1]:
        estimate, past = improve(observation, estimate, past)
        estimates.append((estimate + 1).transpose(0, 2, 3, 1)[..., ::-1] * 128 / 255)
    return estimates


@pytest.mark.stress  # The reference in NumPy is slow.
def test_it_is_what_the_reference_is_and_depends_on_the_batch(plain: Any, imported: Any) -> None:
    """Covers SAME padding, the order of frames, merging, batch statistics and all estimates."""
    # With most random weights the normalisation amplifies rounding beyond these tolerances.
    loaded, weights = imported("rdn", SMALL, seed=6)
    model: Any = loaded.model
    clip = np.random.default_rng(1).random((2, 6, HEIGHT, WIDTH, 3), np.float32)
    padded = np.pad(clip, ((0, 0), (0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")

    def views(clip: jax.Array) -> Any:
        outputs = model.training_outputs(clip, clip[:, 4:])
        state = model.initial_state(2, HEIGHT, WIDTH)
        _, stream = jax.lax.scan(model.step, state, clip.swapaxes(0, 1))
        return outputs, model.restore_clip(clip), stream.swapaxes(0, 1)

    outputs, restored, stream = jax.jit(views)(jnp.asarray(clip))
    assert [each.shape for each in outputs.restored] == [(2, 2, HEIGHT, WIDTH, 3)] * 4
    assert all(np.array_equal(target, clip[:, 4:]) for target in outputs.targets)
    for t in (4, 5):
        expected = forward(plain, weights, padded[:, t - 4 : t + 1])
        for estimate, exact in zip(outputs.restored, expected, strict=True):
            exact = exact[:, :HEIGHT, :WIDTH]
            np.testing.assert_allclose(estimate[:, t - 4], exact, atol=1e-4 * np.ptp(exact))
    # The first frame five times: before a video its first frame is repeated.
    exact = forward(plain, weights, padded[:, [0] * 5])[-1][:, :HEIGHT, :WIDTH]
    np.testing.assert_allclose(restored[:, 0], exact, atol=1e-4 * np.ptp(exact))
    np.testing.assert_allclose(restored[:, 4:], outputs.restored[-1], atol=1e-3)
    np.testing.assert_allclose(stream, restored, atol=1e-3)

    alone = forward(plain, weights, padded[:1, 1:])[-1][:, :HEIGHT, :WIDTH]
    assert np.abs(alone - outputs.restored[-1][:1, 1]).max() > 0.1
    assert not model.clips_are_independent


def test_it_can_not_be_tiled_and_says_why() -> None:
    with pytest.raises(UserError, match=r"statistics of the whole frame .* tiles"):
        _ = nnx.eval_shape(lambda: models.build(SMALL)).halo
