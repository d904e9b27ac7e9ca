"""Tiles restore the same frames as whole frames do, with no more halo than needed."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parts import start_parts
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.records import FusionInput
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.restoration.placement import compiled_for, frame_through, step_memory
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.restoration.tiling import TileGrid, parse_tiles
from jaxdeblur.video.pixels import RGB8

STRCNN = StrcnnConfig(m=1, width=4, blocks=1, head_width=4, residual=True)
CHOICE = dataclasses.replace(STRCNN, scales=(4, 2, 1))

ATTENTION = FstaConfig(
    window=3,
    widths=(8, 8),
    growths=(4, 4),
    dense_layers=1,
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    attention_levels=(1,),
    spatial_maps=4,
    temporal_maps=2,
)


@functools.cache
def model_of(config):
    """Returns a model whose parameters are large enough for any error to show."""
    model = models.build(config)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda leaf: 1.5 * leaf, state))
    return model


def restored(model, blurred: np.ndarray, tiles: TileGrid | None) -> np.ndarray:
    stream = Stream(model, *blurred.shape[1:3], tiles=tiles)
    frames = [stream.push((frame,)) for frame in blurred]
    frames = [frame for frame in frames if frame is not None]
    return np.stack([frame[0] for frame in [*frames, *stream.flush()]]).astype(int)


def clip(height: int, width: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("config", "size", "tile"),
    [
        pytest.param(STRCNN, (97, 101), (16, 32), marks=pytest.mark.stress),
        (CHOICE, (97, 101), (16, 32)),
        pytest.param(ATTENTION, (34, 150), (16, 24), marks=pytest.mark.stress),
    ],
)
def test_tiles_equal_the_whole_frame(config, size, tile):
    model, blurred = model_of(config), clip(*size)
    whole = restored(model, blurred, None)
    assert np.abs(restored(model, blurred, TileGrid(*tile)) - whole).max() <= 1
    assert np.abs(whole - blurred).max() > 8, "the model changes too little to show an error"


def test_the_networks_of_blur_paths_run_in_tiles():
    base = model_of(dataclasses.replace(CHOICE, m=2))
    fusion = model_of(dataclasses.replace(STRCNN, m=0, head_width=0, of_maps=True))
    model = PathRestorer(PathsConfig(duty=0.8, light="stored"), base, fusion)
    random = np.random.default_rng(0)
    frame, maps = (
        jnp.asarray(random.random((1, 96, 128, n), np.float32)) for n in (3, fusion.channels)
    )
    found = maps, jnp.zeros((1, 6, 8)), jnp.zeros((1, 20, 9, 2)), jnp.ones(1)
    shown = frame, frame, jnp.zeros(frame.shape[:3])
    given = FusionInput(*found, *shown, jnp.bool_(True), jnp.bool_(False))
    state = model.initial_state(1, 96, 128)

    def steps(step_of):
        step = {part.name: jax.jit(part.step) for part in model.parts(step_of)}
        of_base = state["base"]
        for _ in range(3):  # the first two frames come out unrestored
            of_base, below = step["base"](of_base, frame, False)
        return below, step["fusion"](state["fusion"], given)[1]

    chex.assert_trees_all_close(steps(TileGrid(48, 64).step), whole := steps(None), atol=1e-5)
    assert min(float(jnp.abs(made - frame).max()) for made in whole) > 0.01


def test_only_programs_of_networks_depend_on_the_tiles():
    """What fits and filters is compiled once for all sizes of tiles that are tried."""
    model = PathRestorer(PathsConfig(), model_of(dataclasses.replace(CHOICE, m=2)))
    what, parameters = compiled_for(model, 96, 128, RGB8, TileGrid(48, 64), keep=False)
    tiled = {}

    def run(part, by, parameters, state, given, due):
        tiled[part.name] = by.tiles is not None
        return state, None

    parts = what.parts(model)
    states = start_parts(parts, 1, 96, 128)
    frame_through(run, parts, what, parameters, states, None, None, repeated=False)
    assert {name for name, is_tiled in tiled.items() if is_tiled} == {"base", "fusion"}
    assert len(tiled) == 8


def test_the_halo_covers_what_a_step_reads_and_little_more():
    """The gradient of a block of outputs is non-zero exactly at the inputs that it reads."""
    model = model_of(STRCNN)
    halo, cell = model.halo, model.multiple
    width = 2 * halo + 9 * cell
    width -= width % cell
    height = 2 * cell
    key = jax.random.key(0)
    state = model.initial_state(1, height, width)
    counters = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jnp.floating)]
    settled = iter(
        [jnp.ones_like(x) * 9 if x.dtype != bool else jnp.array(False) for x in counters]
    )
    state = jax.tree.map(
        lambda x: (
            jax.random.uniform(key, x.shape, x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else next(settled)
        ),
        state,
    )
    frame = jax.random.uniform(key, (1, height, width, 3))
    floats, tree = jax.tree.flatten(state)
    index = [i for i, x in enumerate(floats) if jnp.issubdtype(x.dtype, jnp.floating)]

    def step(frame, chosen):
        leaves = list(floats)
        for i, x in zip(index, chosen, strict=True):
            leaves[i] = x
        new, image = model.step(tree.unflatten(leaves), frame)
        new = jax.tree.leaves(new)
        return [image, *(new[i] for i in index)]

    middle = width // cell // 2 * cell

    def only_the_middle(x):
        samples = x.shape[-2] * cell // width
        start = middle // cell * samples
        noise = jax.random.normal(key, x.shape, x.dtype)
        columns = jnp.arange(x.shape[-2])
        inside = (columns >= start) & (columns < start + samples)
        return noise * inside[:, None]

    @jax.jit
    def gradients_of(frame, chosen):
        outputs, pull = jax.vjp(step, frame, chosen)
        return pull([only_the_middle(x) for x in outputs])

    gradients = gradients_of(frame, [floats[i] for i in index])
    reach = 0
    for gradient in jax.tree.leaves(gradients):
        pixels = width // gradient.shape[-2]
        other = tuple(i for i in range(gradient.ndim) if i != gradient.ndim - 2)
        columns = np.flatnonzero(np.abs(np.asarray(gradient)).max(other)) * pixels
        if not columns.size:  # frames that leave the window in this step
            continue
        reach = max(reach, middle - columns.min(), columns.max() + pixels - middle - cell)
    assert reach <= halo
    assert reach >= 0.75 * halo


def test_models_that_need_whole_frames_refuse_tiles():
    whole_frames = dataclasses.replace(ATTENTION, fusion="nonlocal")
    with pytest.raises(UserError, match="tiles"):
        restored(models.build(whole_frames), clip(16, 16, 1), TileGrid(8, 8))


def test_tiles_take_less_memory():
    model = models.build(StrcnnConfig(m=1, width=32, blocks=1, head_width=32))
    whole = step_memory(model, 64, 2048)
    tiles = step_memory(model, 64, 2048, tiles=TileGrid(64, 64))
    assert tiles < 0.6 * whole


@pytest.mark.parametrize("text", ["", "512", "0x5", "5x0", "axb", "-1x5", "1e9x4", "auto"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="--tile="):
        parse_tiles(text)
    assert parse_tiles("none") is None
    assert str(parse_tiles("512x256")) == "512x256"
