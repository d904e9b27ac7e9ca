"""High-speed frames in the memory of the devices that train: clips are cut out of them there.

The frames of all videos lie in the memory of every device as uint8, and each clip is cut out of
them, averaged, mirrored, turned and reversed there: what :mod:`jaxdeblur.data.clips` does on the
host, but for the redrawing of clips that are hardly blurred.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Int, Int32, PRNGKeyArray, UInt8

from jaxdeblur.data.clips import ClipOptions, Source
from jaxdeblur.data.exposure import light_of_stored, to_stored
from jaxdeblur.data.render import ClipPair
from jaxdeblur.data.videos import Dataset, HighSpeedVideo, refuse
from jaxdeblur.errors import UserError

_MOST_OF_MEMORY = 0.5  # The share of a device's memory for frames: the network needs the rest.


class DeviceFrames(NamedTuple):
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
    """Where a clip lies in a :class:`DeviceFrames`, and how its frames are exposed."""

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


def draw_cut(
    key: PRNGKeyArray, cache: DeviceFrames, source: Int[Array, ""], options: ClipOptions
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
    cache: DeviceFrames, cut: Cut, options: ClipOptions, backwards: Bool[Array, ""] | bool = False
) -> ClipPair:
    """(blurred, sharp) of a drawn clip and its context, the very values of the host's average.

    uint8 ``before+T+after H W 3``. Every exposure takes as long as the longest: frames beyond its
    tau are read and not added.

    Args:
      backwards: whether the clip will be reversed, for which an even tau has another sharp frame
        (``clips.SourceClip``); here it is still in its own order.
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

    before = jnp.where(backwards, options.after, options.before)
    number = jnp.arange(options.length) - before
    # Where the video has no whole exposure any more, its first and last ones are repeated.
    later = (cache.length[cut.video] - tau - cut.start) // cut.period
    number = jnp.clip(number, -(cut.start // cut.period), later)
    blurred, sharp = jax.vmap(expose)(cut.start + cut.period * number)
    shape = (options.length, crop, crop, 3)
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
) -> DeviceFrames:
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
    return DeviceFrames(
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
            "memory; take fewer by --only, or train with --render=host"
        )


def _device_memory() -> int | None:
    """The bytes of the device of this process that has the fewest; None where none tells."""
    known = [device.memory_stats() for device in jax.local_devices()]
    sizes = [stats["bytes_limit"] for stats in known if stats and "bytes_limit" in stats]
    return min(sizes, default=None)
