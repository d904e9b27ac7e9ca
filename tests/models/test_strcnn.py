"""STRCNN and dynamic temporal blending against the equations of the paper, in plain NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.models.strcnn import Recurrence, StrcnnConfig, TemporalBlending
from jaxdeblur.testing import float32_error

SMALL = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1)


def blending(beta: float = 0.3) -> TemporalBlending:
    return TemporalBlending(StrcnnConfig(width=4, beta0=beta), rngs=nnx.Rngs(0))


def maps(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 6, 7, 4)), jnp.float32)


def weights_by_hand(layer: TemporalBlending, past: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Eq. 3, pixel by pixel: min(1, |tanh(A h~_{n-1} + B h_n)| + beta), 5x5, zeros outside."""
    kernel = np.asarray(layer.compare.kernel[...], np.float64)
    width = now.shape[-1]
    a, b = kernel[:, :, :width], kernel[:, :, width:]
    _, height, columns, _ = now.shape
    response = np.zeros(now.shape)
    for y in range(height):
        for x in range(columns):
            for i in range(5):
                for j in range(5):
                    v, u = y + i - 2, x + j - 2
                    if 0 <= v < height and 0 <= u < columns:
                        response[:, y, x] += past[:, v, u] @ a[i, j] + now[:, v, u] @ b[i, j]
    return np.minimum(1.0, np.abs(np.tanh(response)) + float(layer.beta))


def test_blending_is_equations_2_and_3() -> None:
    layer = blending()
    past, now = maps(1), maps(2)
    blended, w = layer(past, now, jnp.bool_(False))
    expected = weights_by_hand(layer, np.asarray(past), np.asarray(now))
    # Of the convolution, 2 x 5 x 5 x 4 terms; tanh is steep for sums of up to 2.
    rounding = float32_error(200, 2)
    largest = float(max(jnp.abs(past).max(), jnp.abs(now).max()))
    np.testing.assert_allclose(w, expected, rtol=0, atol=rounding)
    by_hand = expected * np.asarray(now) + (1 - expected) * np.asarray(past)
    np.testing.assert_allclose(blended, by_hand, rtol=0, atol=2 * largest * rounding)


def test_weights_are_between_beta_and_one() -> None:
    layer = blending(beta=0.3)
    w = layer.weights(10 * maps(1), 10 * maps(2))
    assert float(w.min()) >= 0.3 - float32_error(2)
    assert float(w.max()) == 1.0


def test_weight_is_beta_where_the_responses_cancel() -> None:
    layer = blending(beta=0.3)
    kernel = layer.compare.kernel[...]
    layer.compare.kernel[...] = jnp.concatenate([kernel[:, :, :4], -kernel[:, :, :4]], axis=2)
    w = layer.weights(maps(1), maps(1))  # A h~ + B h = 0 since B = -A and h~ = h
    np.testing.assert_allclose(w, 0.3, rtol=0, atol=float32_error(2 * 5 * 5 * 4))


def test_as_a_distance_equal_features_keep_the_most_of_the_past() -> None:
    config = StrcnnConfig(width=4, blocks=1, beta0=0.1, distance=True)
    layer = models.build(config).blending
    now, past = maps(1), maps(2)
    agree, differ = layer.weights(now, now), layer.weights(past, now)
    np.testing.assert_allclose(agree, 0.1, rtol=0, atol=float32_error(2 * 5 * 5 * 4))
    assert float(differ.mean()) > 0.3


def test_weight_one_copies_the_current_features() -> None:
    layer = blending()
    layer.compare.kernel[...] = 100 * layer.compare.kernel[...]
    blended, w = layer(maps(1), maps(2), jnp.bool_(False))
    ones = np.asarray(w) == 1.0
    assert ones.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(blended)[ones], np.asarray(maps(2))[ones])


@pytest.mark.parametrize("direction", [-1e3, 1e3])
def test_beta_stays_within_0_and_1_under_training(direction: float) -> None:
    layer = blending()
    for _ in range(20):
        layer.beta_logit[...] = layer.beta_logit[...] + direction
        assert 0 <= float(layer.beta) <= 1


def test_beta_is_trained() -> None:
    graph, state = nnx.split(blending())

    def loss(state: nnx.State) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(maps(1), maps(2), jnp.bool_(False))[0] ** 2)

    assert float(jnp.abs(jax.grad(loss)(state)["beta_logit"][...])) > 0


def test_the_first_frame_is_not_dimmed() -> None:
    model = models.build(StrcnnConfig(width=4, blocks=1))
    stem = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)), jnp.float32)
    past = model._recurrence(1, 8, 8)
    _, (h, w) = model._recur(past, stem)
    assert bool((w == 1).all())
    plain = models.build(StrcnnConfig(width=4, blocks=1, blending="none"))
    graph, state = nnx.split(plain, nnx.Param)
    for key in ("encoder", "decoder"):
        state[key] = nnx.split(model, nnx.Param)[1][key]
    _, (expected, _) = nnx.merge(graph, state)._recur(past, stem)
    # Five convolutions of up to 5 x 5 x 8 terms.
    rounding = float32_error(5 * 200, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(h, expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("placement", ["encoder", "middle", "decoder"])
def test_the_blended_features_feed_what_comes_after(placement: str) -> None:
    config = StrcnnConfig(width=4, blocks=2, blending=placement)
    model = models.build(config)
    stem = jnp.ones((1, 4, 4, 2))
    past = Recurrence(jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 4, 4, 4)), jnp.bool_(True))
    other = past._replace(blended=3 * past.blended)
    h, g = (model._recur(p, stem)[1][0] for p in (past, other))
    assert float(jnp.abs(h - g).max()) > 1e-4


def test_the_receptive_field_grows_with_time() -> None:
    """With m = 1 a frame sees only one future frame, but all past ones through F and h~."""
    rebuild, parameters = split(models.build(SMALL))
    restore = jax.jit(lambda clip: rebuild(parameters).restore_clip(clip))
    clip = jnp.asarray(np.random.default_rng(0).random((1, 9, 16, 16, 3)), jnp.float32)
    difference = restore(clip.at[:, 3].add(0.5)) - restore(clip)
    reach = np.abs(difference).max(axis=(0, 2, 3, 4))
    assert reach[8] > 1e-6, "frame n-5 does not change frame n"
    assert (reach[2:] > 1e-6).all()
    np.testing.assert_array_equal(reach[:2], 0)


def test_without_the_recurrence_the_past_ends_at_the_window() -> None:
    rebuild, parameters = split(models.build(StrcnnConfig(m=1, width=4, blocks=1, blending="none")))
    # STRCNN carries only F_{n-1}: with the weights that read it at 0, nothing passes on.
    name = "encoder/0/first/kernel"
    parameters[name] = parameters[name].at[:, :, 2:].set(0)
    for kernel in ("encoder/0/second/kernel", "encoder/0/second/bias"):
        parameters[kernel] = jnp.zeros_like(parameters[kernel])
    parameters["decoder/0/first/kernel"] = parameters["decoder/0/first/kernel"].at[:, :, 2:].set(0)
    parameters["up/kernel"] = parameters["up/kernel"].at[:, :, 2:].set(0)
    parameters["decoder/0/second/kernel"] *= 0
    restore = jax.jit(lambda clip: rebuild(parameters).restore_clip(clip))
    clip = jnp.asarray(np.random.default_rng(0).random((1, 7, 16, 16, 3)), jnp.float32)
    difference = restore(clip.at[:, 3].add(0.5)) - restore(clip)
    reach = np.abs(difference).max(axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(reach > 0, [False, False, True, True, True, False, False])


@pytest.mark.stress
@pytest.mark.parametrize("time", [1, 2, 3, 20])
@pytest.mark.parametrize("size", [(16, 16), (17, 31)])
def test_as_many_frames_out_as_in(time: int, size: tuple[int, int]) -> None:
    clip = jnp.zeros((1, time, *size, 3))
    shape = jax.eval_shape(models.build(SMALL).restore_clip, clip).shape
    assert shape == clip.shape


@pytest.mark.parametrize(
    ("field", "value"), [("m", -1), ("width", 3), ("width", 0), ("blocks", 0), ("head_width", -1)]
)
def test_a_bad_config_is_named(field: str, value: int) -> None:
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        StrcnnConfig(**{field: value})


@pytest.mark.parametrize("head_width", [0, 4])
def test_one_step_reads_as_far_as_it_says(head_width: int) -> None:
    """``receptive_radius`` sets the halo of tiles; a halo that is too small would show seams."""
    config = dataclasses.replace(SMALL, m=0, head_width=head_width)
    model = models.build(config)
    frame = jnp.asarray(np.random.default_rng(0).random((1, 8, 160, 3)), jnp.float32)
    rebuild, parameters = split(model)
    # Small positive weights show the whole reach: no ReLU clips and no tanh saturates.
    parameters = {name: 0.1 * jnp.abs(array) + 0.01 for name, array in parameters.items()}
    # Tests the second frame: the first one is not blended and reads less far.
    step = jax.jit(lambda state, f: rebuild(parameters).step(state, f))
    state, _ = step(model.initial_state(1, 8, 160), frame)
    reach = []
    for column in (80, 81):
        difference = step(state, frame.at[:, :, column].add(0.5))[1] - step(state, frame)[1]
        moved = np.flatnonzero(np.abs(difference).max(axis=(0, 1, 3)))
        reach.append(np.abs(moved - column).max())
    assert max(reach) <= model.receptive_radius
    assert max(reach) >= model.receptive_radius - 4


def test_bfloat16_computes_in_it_and_gives_float32() -> None:
    config = dataclasses.replace(SMALL, scales=(2, 1))
    rebuild, parameters = split(models.build(config))
    half, of_half = split(models.build(dataclasses.replace(config, dtype="bfloat16")))
    clip = jnp.asarray(np.random.default_rng(0).random((1, 3, 16, 16, 3)), jnp.float32)
    restored, exact = (
        jax.jit(lambda p, clip, network=network: network(p).restore_clip(clip))(parameters, clip)
        for network in (half, rebuild)
    )
    assert restored.dtype == jnp.float32
    assert all(array.dtype == jnp.float32 for array in of_half.values())
    difference = jnp.abs(restored - exact).max()
    assert 0 < float(difference) < 0.02


def test_what_lies_beyond_the_border_is_mid_grey() -> None:
    """Without centred frames, zeros beyond the border mean black and cause a dark rim."""
    grey = jnp.full((1, 2, 16, 16, 3), 0.5)  # all features are 0, as biases start at 0
    restored = jax.jit(models.build(SMALL).restore_clip)(grey)
    np.testing.assert_allclose(restored, grey, rtol=0, atol=float32_error(4))


PLAIN = dataclasses.replace(SMALL, recurrent=False, blending="none")
"""The plain CNN of figure 3."""


@pytest.mark.parametrize(
    "config",
    [PLAIN, dataclasses.replace(SMALL, blending="decoder", head_width=2)],
    ids=["plain", "decoder"],
)
def test_the_variants_keep_the_contract(config: StrcnnConfig) -> None:
    """Stream and clip agree for odd sizes, and gradients reach every parameter."""
    model = models.build(config, seed=1)
    rebuild, parameters = split(model)
    clip = jnp.asarray(np.random.default_rng(0).random((1, 4, 7, 10, 3), np.float32))
    loss = lambda p: jnp.mean((rebuild(p).restore_clip(clip) - 0.3) ** 2)  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(parameters)
    assert not [name for name, g in gradients.items() if not np.any(np.asarray(g))]
    restored = jax.jit(model.restore_clip)(clip)
    step, state = jax.jit(model.step), model.initial_state(1, 7, 10)
    for i in range(5):
        state, out = step(state, clip[:, min(i, 3)], i > 3)
        if i:
            np.testing.assert_allclose(out, restored[:, i - 1], atol=1e-5)


def test_the_plain_network_remembers_nothing_beyond_its_window() -> None:
    """With m = 1 frames 0 and 1 see frame 0; frames 2 and 3 see it only by a recurrence."""
    clip = jnp.asarray(np.random.default_rng(0).random((1, 4, 8, 8, 3), np.float32))
    other = clip.at[:, 0].set(0.5)

    def changed(config: StrcnnConfig) -> list[bool]:
        restore = jax.jit(models.build(config).restore_clip)
        return [bool(d) for d in jnp.abs(restore(clip) - restore(other)).max((0, 2, 3, 4)) > 1e-7]

    assert changed(PLAIN) == [True, True, False, False]
    assert changed(dataclasses.replace(SMALL, blending="none")) == [True] * 4
    with pytest.raises(UserError, match="--no-recurrent requires --blending=none"):
        StrcnnConfig(recurrent=False)
