"""Batches made by the devices that train on them: rendered scenes, exposures of high-speed frames.

The frames of all high-speed videos lie in the memory of every device as uint8, and each clip is cut
out of them, averaged, mirrored, turned and reversed there: what :mod:`jaxdeblur.data.pipeline` does
on the host, but for the redrawing of clips that are hardly blurred. Nothing passes through the host
but a key and the numbers of the clips' sources.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, Int32, Int64, Key, PRNGKeyArray, UInt8

from jaxdeblur.data.datasets import Dataset, HighSpeedVideo, refuse
from jaxdeblur.data.photographs import cut_textures, find_photographs
from jaxdeblur.data.pipeline import ClipOptions, MotionLimit, Source
from jaxdeblur.data.scenes import SceneConfig, render_clip, texture_size
from jaxdeblur.data.sources import RENDERED, DataConfig, check_scene_size, training_sources
from jaxdeblur.data.synthesis import light_of_stored, to_stored
from jaxdeblur.errors import UserError

# A thousand textures of 512x512 are 0.8 GB on a GPU, and more than a scene of every step needs.
_TEXTURES = 512
_MOST_OF_MEMORY = 0.5  # The share of a device's memory for frames: the network needs the rest.
_OWN_DRAW = 2**31  # No clip splits its key so often, and fold_in gives the keys that split gives.
_FINEST_SHARE = 10**6  # Shares are whole parts of at most so many, so that int64 counts them.

ClipPair = tuple[UInt8[Array, "T H W 3"], UInt8[Array, "T H W 3"]]
"""The blurred and the sharp frames of one clip."""


class FrameCache(NamedTuple):
    """The frames of high-speed videos in a device's memory, and which exposures fit each video.

    The rows of pixels of all frames lie under each other, video after video: the rows of a frame
    are neighbours, so that a crop is one slice, and no index comes near 2 ** 31. Videos narrower
    than the widest are filled up with black, which no crop reaches.
    """

    lines: UInt8[Array, "lines bytes"]
    first: Int32[Array, " videos"]
    """The first line of each video."""
    length: Int32[Array, " videos"]
    """High-speed frames of each video."""
    height: Int32[Array, " videos"]
    width: Int32[Array, " videos"]
    ends: Int32[Array, " videos"]
    """Clips that the videos up to each hold: longer videos are drawn more often."""
    numbers: Int32[Array, "sources 2"]
    """The first clip of each source, and the one after its last."""
    choices: Int32[Array, " videos"]
    """How many of the taus fit each video."""
    exposures: Int32[Array, "videos taus 3"]
    """Of each tau that fits: its place among the options' taus, the least and the most period."""


class Cut(NamedTuple):
    """Where a clip lies in a :class:`FrameCache`, and how its frames are exposed."""

    video: Int[Array, ""]
    tau: Int[Array, ""]
    """The place of tau among the options' taus."""
    period: Int[Array, ""]
    start: Int[Array, ""]
    """The first high-speed frame of the first exposure."""
    top: Int[Array, ""]
    left: Int[Array, ""]
    linear: Bool[Array, ""]
    """Whether light is averaged, or the values as they are stored."""


def batches_on_device(
    config: DataConfig,
    sharding: NamedSharding,
    *,
    frames: int,
    crop: int,
    batch_size: int,
    seed: int,
    start_step: int,
    motion_limit: MotionLimit | None,
) -> Iterator[dict[str, jax.Array]]:
    """An endless iterator over the batches from ``start_step`` on, made where they are trained on.

    Batch k (``blurred`` and ``sharp``, uint8 ``B T H W 3``) is a function of the seed and k: it
    depends neither on the number of devices nor on where the run began.

    Args:
      config: rendered scenes, high-speed folders or both, with their shares.
      sharding: of the batches; its first axis shares out the clips.
      frames, crop: of a clip, and the side of its frames in pixels.
      motion_limit: of rendered scenes, pixels a frame; the motion of real frames is not known.

    Raises:
      UserError: a video cannot be read or holds no clip, or the frames need too much memory.
    """
    shares = _shares(config)
    options = config.clip_options(frames, crop)
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    cache = None
    if len(shares) > 1:
        real = dataclasses.replace(
            config, data=tuple(shares)[1:], mix=tuple(shares.values())[1:], photos=None
        )
        opened = [data for data, _ in training_sources(real, seed) if isinstance(data, Dataset)]
        cache = copy_frames(opened, options, replicated)
    scene = dataclasses.replace(config.scenes_of(RENDERED), frames=frames, size=(crop, crop))
    textures = None
    if shares[RENDERED]:
        check_scene_size(crop)
        photographs = find_photographs("train", config.photos)
        cut = cut_textures(photographs, _TEXTURES, texture_size(scene), seed).pixels
        textures = jax.make_array_from_callback(cut.shape, replicated, lambda part: cut[part])
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
    [Array | None, FrameCache | None, Array, np.ndarray, np.float32], tuple[Array, Array]
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
        cache: FrameCache | None,
        keys: Key[Array, " clips"],
        sources: Int32[Array, " clips"],
        limit: Float[Array, ""],
    ) -> tuple[UInt8[Array, "clips T H W 3"], UInt8[Array, "clips T H W 3"]]:
        order = jnp.argsort(sources, stable=True)  # rendered ones, of source 0, come first
        keys, sources = keys[order], sources[order]

        def render(key: PRNGKeyArray) -> ClipPair:
            assert textures is not None  # or no clip has their source
            blurred, sharp = render_clip(key, textures, scene, limit)
            return _as_bytes(blurred), _as_bytes(sharp)

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
        if options.sharp_input:
            draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _OWN_DRAW)))
            as_it_is = (draw(keys) < options.sharp_input)[:, None, None, None, None]
            blurred = jnp.where(as_it_is, sharp, blurred)
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
        textures: Array | None, cache: FrameCache | None, key: Array, sources: Array, limit: Array
    ) -> tuple[Array, Array]:
        return by_device(textures, cache, jax.random.split(key, batch_size), sources, limit)

    return make


def _as_bytes(clip: Float[Array, "T H W 3"]) -> UInt8[Array, "T H W 3"]:
    return jnp.round(clip * 255).astype(jnp.uint8)


def _each(
    function: Callable[..., ClipPair], values: object, count: int
) -> tuple[UInt8[Array, "clips T H W 3"], UInt8[Array, "clips T H W 3"]]:
    """Clips one after the other on a CPU, where each stays in its cache; else all at once."""
    at_a_time = None if jax.default_backend() == "cpu" else count
    return jax.lax.map(function, values, batch_size=at_a_time)


def draw_cut(
    key: PRNGKeyArray, cache: FrameCache, source: Int[Array, ""], options: ClipOptions
) -> Cut:
    """Draws a clip of a source (counted from 0) as the pipeline does, but for its redrawing."""
    keys = iter(jax.random.split(key, 7))

    def below(least: Array | int, end: Array | int) -> Array:
        return jax.random.randint(next(keys), (), least, end)

    number = below(cache.numbers[source, 0], cache.numbers[source, 1])
    video = jnp.searchsorted(cache.ends, number, side="right")
    tau, least, most = cache.exposures[video, below(0, cache.choices[video])]
    period = below(least, most + 1)
    needed = jnp.array(options.taus)[tau] + (options.frames - 1) * period
    return Cut(
        video=video,
        tau=tau,
        period=period,
        start=below(0, cache.length[video] - needed + 1),
        top=below(0, cache.height[video] - options.crop + 1),
        left=below(0, cache.width[video] - options.crop + 1),
        linear=jax.random.uniform(next(keys)) < options.linear,
    )


def read_cut(
    cache: FrameCache, cut: Cut, options: ClipOptions, backwards: Bool[Array, ""] | bool = False
) -> ClipPair:
    """(blurred, sharp) of a drawn clip: uint8 ``T H W 3``, the very values of the host's average.

    Every exposure takes as long as the longest: frames beyond its tau are read and not added.

    Args:
      backwards: whether the clip will be reversed, for which an even tau has another sharp frame
        (``pipeline.SourceClip``); here it is still in its own order.
    """
    crop, longest = options.crop, max(options.taus)
    tau = jnp.array(options.taus)[cut.tau]
    values, levels = (jnp.asarray(table) for table in _averaging(options.taus))
    value, level = values[cut.linear.astype(int)], levels[cut.linear.astype(int), cut.tau]

    def frame(index: Array) -> Array:
        line = cache.first[cut.video] + index * cache.height[cut.video] + cut.top
        return jax.lax.dynamic_slice(cache.lines, (line, 3 * cut.left), (crop, 3 * crop))

    def expose(start: Array) -> tuple[Array, Array]:
        def add(index: Array, total: Array) -> Array:
            stored = frame(start + jnp.minimum(index, tau - 1)).astype(jnp.int32)
            return total + jnp.where(index < tau, value[stored], 0)

        total = jax.lax.fori_loop(0, longest, add, jnp.zeros((crop, 3 * crop)))
        blurred = jnp.searchsorted(level, total, side="right").astype(jnp.uint8)
        return blurred, frame(start + jnp.where(backwards, tau // 2, (tau - 1) // 2))

    blurred, sharp = jax.vmap(expose)(cut.start + cut.period * jnp.arange(options.frames))
    shape = (options.frames, crop, crop, 3)
    return blurred.reshape(shape), sharp.reshape(shape)


@functools.cache
def _averaging(
    taus: tuple[int, ...],
) -> tuple[Float[np.ndarray, "2 256"], Float[np.ndarray, "2 taus 255"]]:
    """What a stored value adds to a sum, and the least sum for each stored value of the average.

    As stored, and in light. Powers differ between a host and a device in their last bits, and an
    average near the middle between two grey levels would with them; but sums are the same on both,
    and so are averages looked up by the least float32 that the host rounds to each level.
    """
    values = np.stack([np.arange(256, dtype=np.float32), light_of_stored()])
    levels = np.empty((2, len(taus), 255), np.float32)
    wanted = np.arange(1, 256)
    for place, tau in enumerate(taus):
        levels[0, place] = wanted * tau - tau // 2
        # Positive floats are ordered as the integers of their bits are.
        low, high = np.zeros(255, np.int32), np.full(255, np.float32(tau).view(np.int32))
        while (low < high).any():
            middle = low + (high - low) // 2
            enough = to_stored(middle.view(np.float32), tau) >= wanted
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        levels[1, place] = high.view(np.float32)
    return values, levels


def draw_ways(key: PRNGKeyArray) -> Bool[Array, " 4"]:
    """Whether a clip is reversed, mirrored down and across, and turned, each half of the time."""
    return jax.random.bernoulli(key, 0.5, (4,))


def vary(
    key: PRNGKeyArray,
    blurred: UInt8[Array, "T H W 3"],
    sharp: UInt8[Array, "T H W 3"],
    options: ClipOptions,
) -> ClipPair:
    """The same mirroring, turning and reversal of both, as drawn from ``key``."""
    backwards, down, across, turned = draw_ways(key)
    pair = jnp.stack([blurred, sharp])
    for axis, chosen, allowed in (
        (1, backwards, options.reversal),
        (2, down, options.flips),
        (3, across, options.flips),
    ):
        if allowed:
            pair = jnp.where(chosen, jnp.flip(pair, axis), pair)
    if options.rotations:
        pair = jnp.where(turned, jnp.rot90(pair, axes=(2, 3)), pair)
    return pair[0], pair[1]


def copy_frames(
    datasets: Sequence[Dataset], options: ClipOptions, sharding: NamedSharding
) -> FrameCache:
    """Copies the frames of high-speed data sets to the devices, each frame to each device.

    Args:
      datasets: the sources, of high-speed videos only.
      sharding: replicated over the devices that are to hold the frames.

    Raises:
      UserError: a video is shorter or smaller than a clip, a frame cannot be read, or all frames
        need more than half of a device's memory.
    """
    _check_memory(datasets)
    sources = [Source(data, options) for data in datasets]
    # Black would stand in for such frames: which of them a clip takes is known on the device only.
    refuse(
        "unreadable frames (--render=device cannot skip them)",
        [reason for source in sources for reason in source.unreadable],
    )
    places = [(s, v) for s in sources for v in s.videos if isinstance(v, HighSpeedVideo)]
    videos = [video for _, video in places]
    lines = [len(video.frames) * video.height for video in videos]
    first = np.cumsum([0, *lines[:-1]])
    counts = [np.diff(source.ends, prepend=0) for source in sources]
    bounds = np.cumsum([0, *(source.ends[-1] for source in sources)])
    exposures = np.zeros((len(videos), len(options.taus), 3), np.int32)
    choices = []
    for number, (source, video) in enumerate(places):
        fitting = source.fitting_taus(video)
        choices.append(len(fitting))
        for choice, tau in enumerate(fitting):
            exposures[number, choice] = options.taus.index(tau), *source.periods(video, tau)

    empty = jax.jit(
        lambda: jnp.zeros((sum(lines), 3 * max(v.width for v in videos)), jnp.uint8),
        out_shardings=sharding,
    )
    add = jax.jit(_with_frame, donate_argnums=0, out_shardings=sharding)
    copied = empty()
    for video, line in zip(videos, first, strict=True):
        for index in range(len(video.frames)):
            (frame,) = video.frames.read(slice(index, index + 1))
            rows = frame.reshape(video.height, 3 * video.width)
            copied = add(copied, rows, np.int32(line + index * video.height))
    tables = {
        "first": first,
        "length": [len(video.frames) for video in videos],
        "height": [video.height for video in videos],
        "width": [video.width for video in videos],
        "ends": np.cumsum(np.concatenate(counts)),
        "numbers": np.stack([bounds[:-1], bounds[1:]], axis=1),
        "choices": choices,
        "exposures": exposures,
    }
    return FrameCache(
        copied, **{name: jnp.asarray(table, jnp.int32) for name, table in tables.items()}
    )


def _with_frame(
    lines: UInt8[Array, "lines bytes"], rows: UInt8[Array, "H row"], line: Int[Array, ""]
) -> UInt8[Array, "lines bytes"]:
    return jax.lax.dynamic_update_slice(lines, rows, (line, jnp.int32(0)))


def _check_memory(datasets: Sequence[Dataset]) -> None:
    """UserError if the frames need more than their share of a device's memory, where it tells."""
    memory = _device_memory()
    videos = [v for data in datasets for v in data.videos if isinstance(v, HighSpeedVideo)]
    lines = sum(len(video.frames) * video.height for video in videos)
    needed = lines * 3 * max(video.width for video in videos)
    if memory is not None and needed > _MOST_OF_MEMORY * memory:
        raise UserError(
            f"{', '.join(data.name for data in datasets)}: the frames need {needed / 1e9:.3g} GB "
            f"on each device and may have {_MOST_OF_MEMORY * memory / 1e9:.3g} GB, half of its "
            "memory; take fewer by --only, or train with --render=pool"
        )


def _device_memory() -> int | None:
    """The bytes of the device of this process that has the fewest; None where none tells."""
    known = [device.memory_stats() for device in jax.local_devices()]
    sizes = [stats["bytes_limit"] for stats in known if stats and "bytes_limit" in stats]
    return min(sizes, default=None)
