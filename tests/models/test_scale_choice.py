"""Parallel networks at several scales, and the gates that choose between them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.images import enlarge, reduce_size
from jaxdeblur.models.parameters import split
from jaxdeblur.models.scale_choice import Gates
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.shapes import Parameters
from jaxdeblur.testing import float32_error
from jaxdeblur.weights.load import LoadedModel, starting_parameters
from jaxdeblur.weights.save import export_weights

CHOICE = StrcnnConfig(
    m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1, scales=(4, 2, 1)
)
ONE_SCALE = dataclasses.replace(CHOICE, scales=(1,))
FIRM = 30.0  # A logit that opens a gate fully; its negative closes it.


def draw_clip(height: int = 24, width: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((1, 4, height, width, 3)), jnp.float32)


def firmly(parameters: Parameters, *logits: float) -> Parameters:
    """Returns parameters whose gates have one logit per level everywhere, coarse to fine."""
    return parameters | {
        "gates/head/kernel": 0 * parameters["gates/head/kernel"],
        "gates/head/bias": jnp.array(logits),
    }


def test_each_size_is_compared_with_the_sharp_clip_reduced_to_it() -> None:
    """Sizes that cannot be halved are padded; context frames are left out."""
    model = models.build(CHOICE)
    clip, sharp = draw_clip(17, 22), draw_clip(17, 22)[:, 1:3] / 2
    made = jax.jit(model.training_outputs)(clip, sharp)
    for scale, restored, target in zip(CHOICE.scales, made.restored, made.targets, strict=True):
        assert restored.shape == (1, 2, -(-17 // scale), -(-22 // scale), 3)
        expected = reduce_size(np.asarray(sharp), scale)
        np.testing.assert_allclose(target, expected, rtol=0, atol=float32_error(scale**2))
    whole = jax.jit(model.restore_clip)(clip)[:, 1:3]
    np.testing.assert_allclose(made.restored[-1], whole, rtol=0, atol=1e-5)


@pytest.mark.stress
def test_closed_gates_leave_every_bit_of_the_frames() -> None:
    rebuild, parameters = split(models.build(CHOICE))
    closed = firmly(parameters, -FIRM, -FIRM, -FIRM)
    clip = draw_clip()
    assert np.array_equal(rebuild(closed).restore_clip(clip), clip)
    assert float(jnp.abs(rebuild(parameters).restore_clip(clip) - clip).max()) > 1e-3


@pytest.mark.parametrize("scale", [2, *(pytest.param(s, marks=pytest.mark.stress) for s in (4, 1))])
def test_gates_open_for_one_level_give_what_it_restores_by_itself(scale: int) -> None:
    model = models.build(CHOICE)
    rebuild, parameters = split(model)
    which = CHOICE.scales.index(scale)
    logits = [FIRM if level == which else -FIRM for level in range(3)]
    clip = draw_clip()
    restored = jax.jit(lambda clip: rebuild(firmly(parameters, *logits)).restore_clip(clip))(clip)

    @jax.jit
    def alone(clip: jax.Array) -> jax.Array:
        reduced = reduce_size(clip, scale)
        residual = model.level.restore_clip(reduced) - reduced
        for _ in range(which, len(CHOICE.scales) - 1):
            residual = enlarge(residual, 2)
        return residual

    assert float(jnp.abs(alone(clip)).max()) > 1e-3
    # The residual of a dozen convolutions of up to 200 terms.
    rounding = float32_error(12 * 200)
    np.testing.assert_allclose(restored, clip + alone(clip), rtol=0, atol=rounding)


def test_a_stream_without_the_finest_level() -> None:
    """It restores as if the finest level's gate were shut, but from other evidence."""
    rebuild, parameters = split(models.build(CHOICE))
    clip = draw_clip()

    @jax.jit
    def both(*logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = rebuild(firmly(parameters, *logits))
        state, made = model.without_finest(model.initial_state(1, 24, 32)), []
        for t in [*range(clip.shape[1]), *[clip.shape[1] - 1] * model.lookahead]:
            state, frame = model.step(state, clip[:, t], len(made) >= clip.shape[1])
            made.append(frame)
        streamed = jnp.stack(made[model.lookahead :], 1)
        return model.restore_clip(clip), streamed

    whole, coarse = both(-FIRM, FIRM, FIRM)
    shut, _ = both(-FIRM, FIRM, -FIRM)
    np.testing.assert_allclose(coarse, shut, atol=1e-5)
    assert float(jnp.abs(coarse - whole).max()) > 1e-3
    assert float(jnp.abs(coarse - clip).max()) > 1e-3


def test_the_next_coarser_evidence_stands_for_the_finest() -> None:
    model = models.build(CHOICE)
    reduced, restored = jax.jit(model.reduce_and_restore)(draw_clip())
    _, whole = model.evidence(reduced, restored)
    _, coarse = model.evidence(reduced[:-1], restored[:-1])
    *above, coarser, _ = jnp.split(whole, len(CHOICE.scales), axis=-1)
    np.testing.assert_array_equal(coarse, jnp.concatenate([*above, coarser, coarser], -1))


def test_no_level_waits_for_another() -> None:
    assert models.build(CHOICE).lookahead == CHOICE.m


def test_every_level_is_the_same_network() -> None:
    _, parameters = split(models.build(CHOICE))
    _, of_one = split(models.build(ONE_SCALE))
    levels = {name for name in parameters if not name.startswith("gates/")}
    assert levels == {f"level/{name}" for name in of_one}


@pytest.mark.parametrize("scales", [(), (2,), (1, 2), (4, 1), (6, 3, 1), (4, 4, 2, 1), (0, 1)])
def test_each_scale_is_half_of_the_one_before(scales: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="--scales must halve"):
        models.build(dataclasses.replace(CHOICE, scales=scales))


def test_a_gate_knows_of_the_whole_frame_and_of_no_other() -> None:
    gates = models.build(CHOICE).gates
    channels = gates.join.kernel.shape[2]
    evidence = np.random.default_rng(0).standard_normal((1, 2, 4, 60, channels)).astype(np.float32)
    changed = evidence.copy()
    changed[:, 0, :, 40:] += 3.0  # beyond the reach of the convolutions
    difference = np.abs(gates.logits(jnp.asarray(changed)) - gates.logits(jnp.asarray(evidence)))
    assert difference[:, 0, :, 0].min() > 1e-5
    assert difference[:, 1].max() == 0


def test_what_the_gates_go_by() -> None:
    """Tests two cells of 8 pixels: edges across and down, change and its power, grey, features."""
    # The evidence depends on no parameter.
    gates = nnx.eval_shape(lambda: Gates(CHOICE.scales, 2, rngs=nnx.Rngs(0)))
    frames = jnp.broadcast_to(0.02 * jnp.arange(16.0)[:, None], (1, 8, 16, 3))
    residual = jnp.full_like(frames, -0.1).at[:, 4:].set(0.3)
    known = jnp.full((1, 4, 8, 2), -3.0)
    found = jax.jit(functools.partial(gates._evidence, 1))(frames, residual, known)
    power = (0.5 * 0.1**2 + 0.5 * 0.3**2 + 1e-6) ** 0.5
    expected = [
        [*np.log(np.array([across, 0, 0.2, power]) + 1e-3), grey, *[np.log(3.01)] * 2]
        for across, grey in ((0.02, 0.07), (0.02 * 7 / 8, 0.23))  # no edge at the border
    ]
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4)
    # A sigmoid of 1/2 gives a share of 1/2; 1/12 and 11/12 already give 0 and 1.
    shares = gates.shares(jnp.log(jnp.array([1 / 11, 1.0, 11.0]))[None, None])
    np.testing.assert_allclose(shares[0, 0], [0, 0.5, 1], rtol=0, atol=float32_error(8))


def test_it_starts_from_other_scales(tmp_path: Path) -> None:
    """The network is taken over; the gates are new unless the scales are the same."""
    _, drawn = split(models.build(CHOICE, seed=1))
    for config in (ONE_SCALE, dataclasses.replace(CHOICE, scales=(2, 1)), CHOICE):
        there = models.build(config, seed=2)
        path = tmp_path / "there.safetensors"
        export_weights(LoadedModel(there, "test", config, 7, "test", {}), path)
        started = starting_parameters(models.build(CHOICE), drawn, str(path))
        theirs = split(there)[1]
        prefix = "" if config == ONE_SCALE else "level/"
        for name in ("stem/kernel", "head/bias"):
            assert np.array_equal(started[f"level/{name}"], theirs[prefix + name])
        gate = "gates/join/kernel"
        assert np.array_equal(started[gate], (theirs if config == CHOICE else drawn)[gate])
