"""Batches made by the devices that train on them: rendered scenes, and cuts of high-speed frames.

Nothing passes through the host but a key and the numbers of the clips' sources.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Int32, Int64, Key, PRNGKeyArray, UInt8

from jaxdeblur.data.batches import MotionLimit
from jaxdeblur.data.clips import ClipOptions
from jaxdeblur.data.datasets import RENDERED
from jaxdeblur.data.device_frames import (
    DeviceFrames,
    copy_frames,
    draw_cut,
    draw_ways,
    read_cut,
    vary,
)
from jaxdeblur.data.render import ClipPair, render_clip
from jaxdeblur.data.scenes import SceneConfig
from jaxdeblur.data.sources import DataConfig, open_training
from jaxdeblur.data.textures import open_scenes

_OWN_DRAW = 2**31  # No clip splits its key so often, and fold_in gives the keys that split gives.
_FINEST_SHARE = 10**6  # Shares are whole parts of at most so many, so that int64 counts them.


def batches_on_device(
    config: DataConfig,
    options: ClipOptions,
    sharding: NamedSharding,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    motion_limit: MotionLimit | None,
) -> Iterator[dict[str, jax.Array]]:
    """An endless iterator over the batches from ``start_step`` on, made where they are trained on.

    Batch k is a function of the seed and k: it depends neither on the number of devices nor on
    where the run began. It holds ``blurred``, uint8 ``B before+T+after H W 3``, and ``sharp``.

    Args:
      config: rendered scenes, high-speed folders or both, with their shares.
      options: of the clips.
      sharding: of the batches; its first axis shares out the clips.
      motion_limit: of rendered scenes, pixels a frame; the motion of real frames is not known.

    Raises:
      UserError: a video cannot be read or holds no clip, or the frames need too much memory.
    """
    shares = _shares(config)
    crop = options.crop
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    cache = None
    if len(shares) > 1:
        opened = [open_training(config, spec) for spec in list(shares)[1:]]
        cache = copy_frames(opened, options, replicated)
    scene = config.scenes_of(RENDERED).at_least(crop)
    textures = None
    if shares[RENDERED]:
        cut = open_scenes(scene, crop, config.photos).textures
        textures = jax.make_array_from_callback(
            cut.shape, replicated, lambda part: np.asarray(cut[part])
        )
    make = _compiled(sharding, tuple(shares.values()), batch_size, scene, options)

    def endless() -> Iterator[dict[str, jax.Array]]:
        key = jax.random.key(seed)
        for step in itertools.count(start_step):
            limit = motion_limit(step) if motion_limit else float("inf")
            clips = np.arange(step * batch_size, (step + 1) * batch_size)
            sources = source_of_clips(clips, tuple(shares.values()))
            step_key = jax.random.fold_in(key, step)
            blurred, sharp = make(textures, cache, step_key, sources, np.float32(limit))
            yield {"blurred": blurred, "sharp": sharp}

    return endless()


def source_of_clips(
    clips: Int64[np.ndarray, " clips"], shares: Sequence[float]
) -> Int32[np.ndarray, " clips"]:
    """Which source each clip of a run is of, by the clip's number in the run.

    Clip g is of the first source, with the share p, if floor((g + 1) p) > floor(g p); the others
    are shared out likewise among the other sources. So any n clips in a row hold n p of the first
    source, rounded down or up. Were each clip's source drawn by chance, programs of fixed shapes
    would have to render every clip, also where it is then taken from real frames.
    """
    sources = np.full(len(clips), len(shares) - 1, np.int32)
    places, numbers = np.arange(len(clips)), clips
    for source in range(len(shares) - 1):
        part = _part(shares[source:])
        before, after = (n * part.numerator // part.denominator for n in (numbers, numbers + 1))
        mine = after > before
        sources[places[mine]] = source
        places, numbers = places[~mine], (numbers - before)[~mine]
    return sources


def _part(shares: Sequence[float]) -> Fraction:
    """The first of the shares as a part of them all."""
    return Fraction(shares[0] / sum(shares)).limit_denominator(_FINEST_SHARE)


def _shares(config: DataConfig) -> dict[str, float]:
    """The share of each data set that has one; first, and be it 0, that of rendered scenes."""
    shares = {RENDERED: 0.0}
    for spec, share in zip(config.data, config.mix or (1.0,) * len(config.data), strict=True):
        if share:
            shares[spec] = shares.get(spec, 0.0) + share
    return shares


_Make = Callable[
    [Array | None, DeviceFrames | None, Array, np.ndarray, np.float32], tuple[Array, Array]
]


def _compiled(
    sharding: NamedSharding,
    shares: tuple[float, ...],
    batch_size: int,
    scene: SceneConfig,
    options: ClipOptions,
) -> _Make:
    """The program that makes a batch, each device its own clips and none of another's."""
    data = sharding.spec[0]
    local = batch_size // sharding.mesh.shape[data]
    expected = local * _part(shares)
    counts = range(math.floor(expected), math.ceil(expected) + 1)

    def make_mine(
        textures: UInt8[Array, "n S S 3"] | None,
        cache: DeviceFrames | None,
        keys: Key[Array, " clips"],
        sources: Int32[Array, " clips"],
        limit: Float[Array, ""],
    ) -> tuple[UInt8[Array, "clips length H W 3"], UInt8[Array, "clips T H W 3"]]:
        order = jnp.argsort(sources, stable=True)  # rendered ones, of source 0, come first
        keys, sources = keys[order], sources[order]

        def render(key: PRNGKeyArray) -> ClipPair:
            assert textures is not None  # or no clip has their source
            return render_clip(key, textures, scene, options.length, options.crop, limit)

        def cut(key_and_source: tuple[PRNGKeyArray, Int[Array, ""]]) -> ClipPair:
            assert cache is not None
            key, source = key_and_source
            cut_key, way_key = jax.random.split(key)
            drawn = draw_cut(cut_key, cache, source - 1, options)
            backwards = draw_ways(way_key)[0] & options.reversal
            return vary(way_key, *read_cut(cache, drawn, options, backwards), options)

        def make(rendered: int) -> tuple[Array, Array]:
            parts = []
            if rendered:
                parts.append(_each(render, keys[:rendered], rendered))
            if rendered < local:
                real = (keys[rendered:], sources[rendered:])
                parts.append(_each(cut, real, local - rendered))
            blurred, sharp = zip(*parts, strict=True)
            return jnp.concatenate(blurred), jnp.concatenate(sharp)

        # A device's clips hold one of two numbers of rendered ones, and a switch runs one branch:
        # no clip is made in vain.
        branch = jnp.sum(sources == 0) - counts[0]
        branches = [functools.partial(make, count) for count in counts]
        blurred, sharp = jax.lax.switch(branch, branches)
        blurred, sharp = jax.vmap(functools.partial(_as_drawn, options=options))(
            keys, blurred, sharp
        )
        back = jnp.argsort(order)
        return blurred[back], sharp[back]

    everywhere, mine = PartitionSpec(), PartitionSpec(data)
    # Unchecked, as the loops of the renderer start from constants, which do not vary over devices.
    by_device = jax.shard_map(
        make_mine,
        mesh=sharding.mesh,
        in_specs=(everywhere, everywhere, mine, mine, everywhere),
        out_specs=(mine, mine),
        check_vma=False,
    )

    @functools.partial(jax.jit, out_shardings=(sharding, sharding))
    def make(
        textures: Array | None, cache: DeviceFrames | None, key: Array, sources: Array, limit: Array
    ) -> tuple[Array, Array]:
        return by_device(textures, cache, jax.random.split(key, batch_size), sources, limit)

    return make


def _as_drawn(
    key: PRNGKeyArray,
    blurred: UInt8[Array, "length H W 3"],
    sharp: UInt8[Array, "length H W 3"],
    options: ClipOptions,
) -> tuple[UInt8[Array, "length H W 3"], UInt8[Array, "T H W 3"]]:
    """A clip as it is, or of sharp frames, of a single one, or with an end of a video."""
    o = options
    first, last = o.before, o.before + o.frames - 1
    as_it_is, single, ends, which = jax.random.uniform(jax.random.fold_in(key, _OWN_DRAW), (4,))
    blurred = jnp.where(as_it_is < o.sharp_input, sharp, blurred)
    frame = jnp.arange(o.length)
    if o.before + o.after:
        at_start = which < o.before / (o.before + o.after)
        end = jnp.where(at_start, jnp.maximum(frame, first), jnp.minimum(frame, last))
        frame = jnp.where(ends < o.ends, end, frame)
    one = first + jnp.floor(which * o.frames).astype(int)
    frame = jnp.where(single < o.single, one, frame)
    return blurred[frame], sharp[frame][first : last + 1]


def _each(
    function: Callable[..., ClipPair], values: object, count: int
) -> tuple[UInt8[Array, "clips T H W 3"], UInt8[Array, "clips T H W 3"]]:
    """Clips one after the other on a CPU, where each stays in its cache; else all at once."""
    at_a_time = None if jax.default_backend() == "cpu" else count
    return jax.lax.map(function, values, batch_size=at_a_time)
