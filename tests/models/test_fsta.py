"""The attention network: the reach of its window, its stream's state, tiles, bad configs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdeblur.errors import UserError
from jaxdeblur.models.attention import expand, spatial_squeeze, temporal_squeeze
from jaxdeblur.models.fsta import Fsta
from jaxdeblur.models.fsta_config import FSTA, FSTA_CONCAT, FSTA_LIVE, FSTA_SMALL, FstaConfig
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.testing import float32_error

TINY = FstaConfig(
    window=5,
    widths=(4,),
    growths=(4,),
    dense_layers=1,
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    attention_levels=(0,),
    spatial_maps=3,
    temporal_maps=2,
    implementation="einsum",
)
TWO_LEVELS = {
    "widths": (4, 6),
    "growths": (4, 4),
    "encoder_blocks": (1, 1),
    "decoder_blocks": (1, 1),
    "attention_levels": (0, 1),
    "implementation": "auto",
}
PRESETS = {
    "fsta": FSTA,
    "fsta_concat": FSTA_CONCAT,
    "fsta_small": FSTA_SMALL,
    "fsta_live": FSTA_LIVE,
}
# Of these networks: ten layers of 3 x 3 x 8 terms.
ROUNDING = float32_error(10 * 72)


def make(seed=0, **fields):
    return Fsta(dataclasses.replace(TINY, **fields), rngs=nnx.Rngs(seed))


def draw_clip(time, height=8, width=12, seed=0):
    return jax.random.uniform(jax.random.key(seed), (1, time, height, width, 3))


def restore(model, clip):
    graph, parameters = nnx.split(model)
    return jax.jit(lambda p, clip: nnx.merge(graph, p).restore_clip(clip))(parameters, clip)


def stream(model, clip):
    """Restores a clip by the stream view; each step reuses the memory of the last state."""
    graph, parameters = nnx.split(model)
    step = jax.jit(lambda p, state, frame: nnx.merge(graph, p).step(state, frame), donate_argnums=1)
    state = model.initial_state(1, *clip.shape[2:4])
    last, outputs = clip.shape[1] - 1, []
    for t in range(last + 1 + model.lookahead):
        state, restored = step(parameters, state, clip[:, min(t, last)])
        outputs.append(restored)
    return jnp.stack(outputs[model.lookahead :], axis=1)


@pytest.mark.parametrize(
    "fields",
    [
        TWO_LEVELS,
        {"window": 4, "causal": True},
        {"gated": True, "key_frames": 2},
        {"fusion": "concat"},
        {"fusion": "concat_fsta"},
        {"fusion": "conv3d", "window": 4, "causal": True},
        {"fusion": "nonlocal", "window": 3},
        {"fusion": "none"},
    ],
    ids=["two levels", "causal", "gated", "concat", "both", "conv3d", "nonlocal", "none"],
)
def test_the_stream_is_the_clip(fields):
    model = make(**fields)
    clip = draw_clip(7, 9, 13)
    chex.assert_trees_all_close(stream(model, clip), restore(model, clip), atol=1e-5)


def test_a_window_longer_than_the_video_repeats_its_ends():
    clip = draw_clip(2)
    repeated = jnp.concatenate([clip[:, :1]] * 3 + [clip] + [clip[:, 1:]] * 3, axis=1)
    model = make(window=7)
    chex.assert_trees_all_close(restore(model, clip), restore(model, repeated)[:, 3:5], atol=1e-5)


def test_a_constant_image_stays_finite_and_constant_in_time():
    restored = restore(make(), jnp.full((1, 4, 8, 12, 3), 0.5))
    chex.assert_tree_all_finite(restored)
    constant = restored[:, :1] + jnp.zeros_like(restored)
    chex.assert_trees_all_close(constant, restored, rtol=0, atol=ROUNDING)


def test_an_untrained_network_is_near_the_identity():
    clip = draw_clip(3, 16, 16)
    assert 0 < float(jnp.abs(restore(make(), clip) - clip).mean()) < 0.1


@pytest.mark.parametrize("fusion", ["fsta", "concat", "conv3d", "nonlocal"])
@pytest.mark.parametrize(("causal", "reached"), [(False, range(2, 7)), (True, range(4, 9))])
def test_each_frame_sees_its_window_and_no_more(fusion, causal, reached):
    model = make(fusion=fusion, causal=causal)
    clip = draw_clip(9)
    changed = restore(model, clip.at[:, 4].add(0.3)) - restore(model, clip)
    reach = jnp.abs(changed).max(axis=(0, 2, 3, 4)) > 1e-7
    np.testing.assert_array_equal(np.flatnonzero(reach), reached)


def test_without_fusion_each_frame_is_on_its_own():
    clip = draw_clip(3)
    model = make(fusion="none")
    among_others, alone = restore(model, clip)[:, 1:2], restore(model, clip[:, 1:2])
    chex.assert_trees_all_close(among_others, alone, rtol=0, atol=ROUNDING)


def test_a_few_steps_of_training_in_bfloat16_lower_the_loss():
    graph, parameters = nnx.split(make(dtype="bfloat16"), nnx.Param)
    sharp = draw_clip(3, 16, 16)
    blurred = sum(jnp.roll(sharp, shift, axis=3) for shift in (-1, 0, 1)) / 3
    optimiser = optax.adam(3e-3)
    state = optimiser.init(parameters)

    @jax.jit
    def train(parameters, state):
        loss, gradients = jax.value_and_grad(
            lambda p: jnp.mean((nnx.merge(graph, p).restore_clip(blurred) - sharp) ** 2)
        )(parameters)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(parameters, updates), state, loss

    for _ in range(30):
        parameters, state, loss = train(parameters, state)
    assert float(loss) < 0.9 * float(jnp.mean((blurred - sharp) ** 2))


# --- The state of a stream ---


def state_bytes(config, height, width):
    def shapes():
        return Fsta(config, rngs=nnx.Rngs(0)).initial_state(1, height, width)

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(shapes)))


@pytest.mark.parametrize("size", [(96, 128), (360, 640)])
def test_a_long_causal_window_costs_a_few_hundred_kilobytes_at_any_size(size):
    def state(window):
        return state_bytes(dataclasses.replace(FSTA_LIVE, window=window), *size)

    assert state(256) - state(5) < 500_000
    # Only the vectors of eq. 2-3 grow with the window, by this much per frame.
    a_frame = (FSTA_LIVE.spatial_maps + 1) * FSTA_LIVE.widths[1] * 4
    assert state(256) - state(5) == 251 * a_frame


def test_look_ahead_alone_keeps_features():
    live = state_bytes(FSTA_LIVE, 96, 128)
    assert live == state_bytes(FSTA_LIVE, 192, 256)
    assert state_bytes(FSTA_SMALL, 192, 256) > 3 * state_bytes(FSTA_SMALL, 96, 128)


def test_the_first_frame_leaves_the_window_as_any_other():
    # Frame 0 stands in for the frames before it only while they are in the window.
    model = make(window=3, causal=True)
    clip = draw_clip(8)
    changed = stream(model, clip.at[:, 0].add(0.3)) - stream(model, clip)
    reach = jnp.abs(changed).max(axis=(0, 2, 3, 4)) > 1e-7
    np.testing.assert_array_equal(np.flatnonzero(reach), [0, 1, 2])


# --- Tiles ---


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.stress),
        pytest.param({"fusion": "concat"}, marks=pytest.mark.stress),
        {"fusion": "concat_fsta"},
    ],
    ids=["attention", "concat", "both"],
)
def test_a_frame_in_tiles_is_the_whole_frame(fields):
    model = make(window=3, **(TWO_LEVELS | fields))
    graph, parameters = nnx.split(model)
    clip = draw_clip(3, 64, 72)
    grid = TileGrid(16, 16)

    @jax.jit
    def step_tiled(p, state, frame):
        return grid.step(nnx.merge(graph, p), state, frame)

    @jax.jit
    def step_whole(p, state, frame):
        return nnx.merge(graph, p).step(state, frame)

    tiled = whole = model.initial_state(1, 64, 72)
    for t in range(3):
        tiled, from_tiles = step_tiled(parameters, tiled, clip[:, t])
        whole, expected = step_whole(parameters, whole, clip[:, t])
        chex.assert_trees_all_close(from_tiles, expected, atol=1e-5)
    chex.assert_trees_all_close(tiled, whole, atol=1e-5)


def test_nothing_local_reaches_beyond_the_receptive_radius():
    model = make(fusion="concat", window=3, **TWO_LEVELS)
    clip, radius = draw_clip(1, 96, 96), model.receptive_radius
    changed = restore(model, clip.at[:, :, 48, 48].add(1.0)) - restore(model, clip)
    rows, columns = np.nonzero(np.abs(changed).max(axis=(0, 1, 4)) > 0)
    reach = max(np.abs(rows - 48).max(), np.abs(columns - 48).max())
    assert reach <= radius
    assert reach >= radius // 2  # the bound is not loose


def test_the_full_affinity_does_not_run_in_tiles():
    with pytest.raises(UserError, match="fusion='nonlocal'"):
        _ = make(fusion="nonlocal").receptive_radius


@pytest.mark.parametrize("causal", [False, True])
def test_a_stream_of_years_goes_on_as_it_began(causal):
    """A camera at 60 frames per second reaches 2 ** 30 frames after seven months."""
    model = make(causal=causal)
    clip = draw_clip(20)
    step = jax.jit(model.step)
    state = model.initial_state(1, *clip.shape[2:4])
    for frame in clip[0, :8]:
        state, _ = step(state, frame[None])
    rings = 5 * max(model.lookahead, 1)
    old = state._replace(seen=state.seen + (2**30 - 12) // rings * rings)
    assert int(old.seen) < 2**30 < int(old.seen) + 12
    for frame in clip[0, 8:]:
        state, restored = step(state, frame[None])
        old, same = step(old, frame[None])
        np.testing.assert_array_equal(same, restored)
    assert int(old.seen) < 2**30


# --- Several devices ---

ON_FOUR_DEVICES = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from flax import nnx
from jaxdeblur import devices
from jaxdeblur.models.fsta import Fsta
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import split
from jaxdeblur.testing import float32_error

config = dataclasses.replace(
    FSTA_SMALL, window=3, widths=(4,), growths=(4,), dense_layers=1, encoder_blocks=(1,),
    decoder_blocks=(1,), attention_levels=(0,), spatial_maps=2, temporal_maps=2)
mesh = devices.make_mesh(4)
rebuild, parameters = split(Fsta(config, rngs=nnx.Rngs(0)))
clip = np.random.default_rng(0).random((4, 2, 8, 8, 3), np.float32)

def restore(parameters, clip, spread):
    model = rebuild(parameters)
    if spread:
        model.spread_over(mesh)
    restored = model.restore_clip(clip)
    return jnp.mean(restored**2), restored

shardings = devices.replicated(mesh), devices.clips_over(mesh)
gradient = jax.value_and_grad(restore, has_aux=True)
spread = jax.jit(lambda p, c: gradient(p, c, True), in_shardings=shardings)(parameters, clip)
alone = jax.jit(lambda p, c: gradient(p, c, False))(parameters, clip)
for ours, theirs in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
    rounding = float32_error(2 * 8 * 12 * 3, max(1, np.abs(theirs).max()))  # means over pixels
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=rounding)
"""


@pytest.mark.stress
def test_four_devices_give_the_result_of_one():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES], env=environment, cwd=root, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


# --- Maps of the attention ---


def test_explanation_has_the_maps_of_every_block():
    model = make(**TWO_LEVELS)
    clip = draw_clip(4, 10, 13)
    graph, parameters = nnx.split(model)
    explain = jax.jit(lambda p, clip: nnx.merge(graph, p).explain_clip(clip))
    explanation = explain(parameters, clip)
    assert len(explanation.attention) == 2
    for maps, height, width in zip(explanation.attention, (6, 3), (8, 4), strict=True):
        chex.assert_shape(maps.spatial_maps, (1, 4, 3, height, width))
        chex.assert_shape(maps.temporal_maps, (1, 4, 2, 5))
        chex.assert_shape(maps.pixel_mix, (1, 4, height, width, 6))
        assert maps.offsets == (-2, -1, 0, 1, 2)
        for total in (
            maps.spatial_maps.sum((-2, -1)),
            maps.temporal_maps.sum(-1),
            maps.pixel_mix.sum(-1),
        ):
            chex.assert_trees_all_close(total, jnp.ones_like(total), atol=1e-5)


def test_the_maps_explain_what_the_network_does():
    # y^R rebuilt from the maps alone equals the block's output.
    model = make(window=3)
    clip = draw_clip(3)
    maps = jax.jit(model.explain_clip)(clip).attention[0]
    features = jax.jit(model.encode)(clip)[0]
    x = features.reshape(1, 3, -1, 4)
    squeezed = spatial_squeeze(maps.spatial_maps.reshape(1, 3, 3, -1), x)
    window = temporal_squeeze(squeezed, maps.temporal_maps[:, 1])
    y = expand(maps.pixel_mix[:, 1].reshape(1, -1, 6), window)
    (memory,) = jax.jit(model.remember)((features,))
    expected = jax.jit(model.fusion[0].fusion.fuse)(features[:, 1], memory)
    chex.assert_trees_all_close(y.reshape(expected.shape), expected, atol=1e-5)


# --- Configurations ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spatial_maps": 0}, "--spatial-maps must be 1 or more, not 0"),
        ({"temporal_maps": -1}, "--temporal-maps must be 1 or more, not -1"),
        ({"window": 4}, "--window must be odd.*not 4"),
        ({"window": 0, "causal": True}, "--window must be 1 or more"),
        ({"temporal_kernel": 2}, "--temporal-kernel must be odd, not 2"),
        ({"growths": (4, 4)}, "--growths must be 1 numbers"),
        ({"attention_levels": (1,)}, "--attention-levels must be levels from 0 to 0"),
        ({"key_frames": 6}, "--key-frames must be 1 to 5"),
    ],
    ids=str,
)
def test_a_bad_configuration_is_refused_in_one_line(fields, message):
    # Bypasses __init__: the tests check its argument types before these checks run.
    config = object.__new__(FstaConfig)
    for name, value in {**dataclasses.asdict(TINY), **fields}.items():
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=message) as error:
        config.__post_init__()
    assert "\n" not in str(error.value)


def test_an_unknown_fusion_is_refused():
    with pytest.raises(UserError, match=r"--fusion must be one of .*nonlocal.*not 'flow'"):
        make(fusion="flow")


def test_an_affinity_that_does_not_fit_is_refused_before_anything_runs():
    model = make(fusion="nonlocal", nonlocal_bytes=2**20)
    with pytest.raises(UserError, match="nonlocal_bytes"):
        jax.eval_shape(model.restore_clip, jax.ShapeDtypeStruct((1, 5, 720, 1280, 3), jnp.float32))


@pytest.mark.parametrize("name", PRESETS)
def test_gating_and_key_frames_are_off_in_the_presets(name):
    assert not PRESETS[name].gated
    assert PRESETS[name].key_frames is None


def test_key_frames_change_no_parameter():
    shapes = [nnx.eval_shape(lambda k=k: make(key_frames=k)) for k in (None, 2)]
    chex.assert_trees_all_equal_shapes(*(nnx.to_pure_dict(nnx.state(s, nnx.Param)) for s in shapes))


def test_a_closed_gate_takes_nothing_of_the_window():
    model = make(gated=True)
    (block,) = model.fusion
    block.gate.kernel[...] = 0 * block.gate.kernel[...]
    block.gate.bias[...] = 0 * block.gate.bias[...] - 1e3
    clip = draw_clip(3)
    among_others, alone = restore(model, clip)[:, 1:2], restore(model, clip[:, 1:2])
    chex.assert_trees_all_close(among_others, alone, rtol=0, atol=ROUNDING)


def test_the_window_of_the_temporal_convolution():
    model = nnx.eval_shape(lambda: make(temporal_kernel=5))
    fusion = nnx.to_pure_dict(nnx.state(model, nnx.Param))["fusion"][0]["fusion"]
    assert fusion["f_t"].shape[0] == 5


def test_as_many_key_frames_take_part_as_was_asked_for():
    for count in (1, 3):
        (maps,) = jax.jit(make(key_frames=count).explain_clip)(draw_clip(6)).attention
        np.testing.assert_array_equal((maps.temporal_maps > 0).sum(-1), count)


def test_what_lies_beyond_the_border_is_mid_grey():
    """Without centred frames, zeros beyond the border mean black and cause a dark rim."""
    grey = jnp.full((1, 2, 8, 12, 3), 0.5)  # all features are 0, as biases start at 0
    restored = restore(make(fusion="none"), grey)
    np.testing.assert_allclose(restored, grey, rtol=0, atol=ROUNDING)
