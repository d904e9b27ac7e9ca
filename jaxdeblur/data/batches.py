"""Batches of training clips, read with Grain; the seed and the step alone determine a batch.

Element i of the mixed sources is drawn by a random generator seeded with (seed, i). Batch k holds
elements k*B to (k+1)*B - 1. So any number of processes read the same global batches (process p
reads the p-th slice of each), and a run resumes at its step without any saved state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from jaxdeblur.data.clips import ClipOptions, ClipSource, SourceClip
from jaxdeblur.data.config import MotionLimit
from jaxdeblur.data.degradation import degrade, draw_degradation
from jaxdeblur.data.render import HostRenderer
from jaxdeblur.data.textures import RenderedScenes
from jaxdeblur.data.videos import Dataset, refuse
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Batch, SeenVideo8, Video8

_log = logging.getLogger(__name__)

# Grain's time to shuffle an index falls with the number of elements, from 2 ms for 20 to 10 us for
# 4096, so several epochs of a small source are shuffled together.
_SHUFFLED_AT_A_TIME = 4096
_MOST_DRAWS = 5  # Draws until a clip has enough blur; the last one is used in any case.
_MOST_FAILURES = 20  # Bad random samples in a row after which the data is considered faulty.


@contextlib.contextmanager
def batches(
    sources: Sequence[tuple[Dataset | RenderedScenes, float]],
    options: ClipOptions,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
    max_bad_samples: int = 0,
    motion_limit: MotionLimit = lambda step: math.inf,
    render: bool = True,
) -> Iterator[Iterator[Batch]]:
    """Yields an endless iterator over this process's part of the batches from ``start_step`` on.

    A batch holds ``blurred``, uint8 ``B before+T+after H W 3``, and ``sharp``, ``B T H W 3``.
    Frames in image files are first decoded into the cache folder, once, and then read from there.

    Args:
      sources: data sets and rendered scenes with their shares of the samples (in any unit; 0
        leaves one out). The reading threads render a new scene for every clip.
      batch_size: clips in the global batch, a multiple of ``process_count``.
      workers: threads that read ahead (they copy crops and render scenes outside Python's lock);
        with 0, each batch is made on demand.
      max_bad_samples: how many clips with unreadable frames are replaced by others, each with a
        warning that names the frame, before the next one ends the run.
      motion_limit: the limit for rendered scenes at a step; the motion of videos is unknown.
      render: whether scenes are rendered here; otherwise their clips are black (``on_device``).

    Raises:
      UserError: a video is shorter or smaller than a clip, or a frame cannot be read.
    """
    import grain  # takes a second to load

    used = [(_source(data, options, render), weight) for data, weight in sources if weight]
    if max_bad_samples == 0:  # already known, so not reported hours later
        clips = [source for source, _ in used if isinstance(source, ClipSource)]
        refuse("cannot be decoded (see --max-bad-samples)", [e for c in clips for e in c.errors])
    sampler = _Sampler([source for source, _ in used], options, batch_size, motion_limit)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(len(used) + 1)]
    shuffled = [
        # Rendered scenes count as one clip, which differs each time.
        _shuffled(n, len(source) if isinstance(source, ClipSource) else 1, own)
        for n, ((source, _), own) in enumerate(zip(used, seeds[1:], strict=True))
    ]
    mine = (
        grain.MapDataset.mix(shuffled, [weight for _, weight in used])
        .map_with_index(lambda index, place: (index, *place))
        .random_map(sampler.sample, seed=seeds[0])
        # Process p of P takes slices p, P + p, ...: the p-th slice of each global batch.
        .batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)[
            start_step * process_count + process_index :: process_count
        ]
    )
    reading = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    iterator = iter(mine.to_iter_dataset(reading))
    try:
        yield _readable(iterator, max_bad_samples)
    finally:
        iterator.close()  # stops the threads


def _readable(batches: Iterator[Batch], max_bad_samples: int) -> Iterator[Batch]:
    """Yields the batches and warns of each clip replaced because of an unreadable frame."""
    bad_samples = 0
    for batch in batches:
        for problem in batch.pop("problems"):
            bad_samples += 1
            if bad_samples > max_bad_samples:
                raise UserError(
                    f"{problem} (bad sample {bad_samples}; --max-bad-samples={max_bad_samples})"
                )
            _log.warning("bad sample %d skipped: %s", bad_samples, problem)
        yield batch


def source_of_clips(
    clips: Int64[np.ndarray, " clips"], shares: Sequence[float]
) -> Int64[np.ndarray, " clips"]:
    """Returns the source of each numbered clip of a run, as ``batches`` mixes them."""
    used = [n for n, share in enumerate(shares) if share]
    if len(used) == 1:
        return np.full(len(clips), used[0])
    import grain  # not needed on a machine that renders one kind of scenes

    each = [grain.MapDataset.source([n]).repeat() for n in used]
    mixed = grain.MapDataset.mix(each, [shares[n] for n in used])
    return np.array([mixed[int(clip)] for clip in clips])


def _source(
    data: Dataset | RenderedScenes, options: ClipOptions, render: bool
) -> ClipSource | HostRenderer | None:
    if isinstance(data, Dataset):
        return ClipSource(data, options)
    if not render:
        return None
    return HostRenderer(data, options.length, options.crop)


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """Turns a clip's number and a random generator into a sample."""

    sources: Sequence[ClipSource | HostRenderer | None]
    """None for scenes that the device renders."""
    options: ClipOptions
    batch_size: int
    motion_limit: MotionLimit

    def sample(self, place: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Any]:
        """Makes the sample at ``place``: (index in the run, source, clip number in the source)."""
        index, source_number, number = place
        source, o = self.sources[source_number], self.options
        problems: list[str] = []
        if source is None:
            black = np.zeros((o.length, o.crop, o.crop, 3), np.uint8)
            return {"blurred": black, "sharp": black[: o.frames], "problems": problems}
        # Drawn only if the option is set: the draw would change all later random choices.
        as_it_is = bool(o.sharp_input) and rng.random() < o.sharp_input
        if isinstance(source, ClipSource):
            blurred, sharp, problems = self._read(source, number, rng, as_it_is)
        else:
            limit = self.motion_limit(index // self.batch_size)
            blurred, sharp = source.clip(int(rng.integers(2**32)), limit)
        if as_it_is:
            blurred = sharp
        if o.degraded and rng.random() < o.degraded:
            blurred, sharp = degrade(blurred, sharp, draw_degradation(rng, len(sharp)), rng)
            if as_it_is:  # Sharp video comes back as its file has it.
                sharp = blurred
        blurred, sharp = self._with_ends(blurred, sharp, rng)
        sharp = sharp[o.before : o.before + o.frames]
        return {"blurred": blurred, "sharp": sharp, "problems": problems}

    def _read(
        self, source: ClipSource, number: int, rng: np.random.Generator, as_it_is: bool
    ) -> tuple[SeenVideo8, Video8, list[str]]:
        """Returns (blurred, sharp) of the clip, or of another if too still, and the problems."""
        problems: list[str] = []
        draws = 1 if rng.random() < self.options.keep_still else _MOST_DRAWS
        if as_it_is:
            draws = 1  # the amount of blur does not matter
        backwards = bool(self.options.augment and rng.random() < 0.5)
        while draws:
            try:
                clip = source.clip(number, rng, backwards)
            except UserError as error:
                problems.append(str(error))
                if len(problems) == _MOST_FAILURES:
                    raise UserError(f"{_MOST_FAILURES} bad samples in a row: {error}") from error
                number = int(rng.integers(len(source)))
                continue
            number = int(rng.integers(len(source)))  # for the next draw, if this clip is too still
            draws -= 1
            if _difference(clip.blurred, clip.sharp) >= self.options.least_blur:
                break
        return *self._vary(clip, backwards, rng), problems

    def _vary(
        self, clip: SourceClip, backwards: bool, rng: np.random.Generator
    ) -> tuple[SeenVideo8, Video8]:
        """Applies the same random mirroring, rotation and reversal to blurred and sharp frames."""
        o = self.options
        down, across, turned = o.augment & (rng.random(3) < 0.5)
        way = tuple(slice(None, None, -1 if turn else 1) for turn in (backwards, down, across))
        blurred, sharp = clip.blurred[way], (clip.sharp_backwards if backwards else clip.sharp)[way]
        if turned:
            blurred, sharp = (np.rot90(clip, axes=(1, 2)) for clip in (blurred, sharp))
        return blurred, sharp

    def _with_ends(
        self, blurred: SeenVideo8, sharp: Video8, rng: np.random.Generator
    ) -> tuple[SeenVideo8, Video8]:
        """Repeats one frame, or imitates the start or end of a video, in its share of the clips."""
        o = self.options
        if o.single and rng.random() < o.single:
            frame = np.full(o.length, o.before + int(rng.integers(o.frames)))
        elif o.before + o.after and o.ends and rng.random() < o.ends:
            frame, first = np.arange(o.length), rng.random() < o.before / (o.before + o.after)
            last = o.before + o.frames - 1
            frame = np.maximum(frame, o.before) if first else np.minimum(frame, last)
        else:
            return blurred, sharp
        return blurred[frame], sharp[frame]


def _shuffled(source: int, clips: int, seed: int) -> Any:
    """Returns an endless Grain data set of (source, clip number), with all clips equally often."""
    import grain

    epochs = -(-_SHUFFLED_AT_A_TIME // clips)
    numbers = grain.MapDataset.range(epochs * clips).shuffle(seed=seed).repeat()
    return numbers.map(lambda number: (source, number % clips))


def _difference(blurred: SeenVideo8, sharp: Video8) -> float:
    """Returns the mean absolute difference in grey levels over every second row and column."""
    # In maps of blur paths, the first three channels are the blurred frame.
    a, b = (clip[:, ::2, ::2, :3].astype(np.int16) for clip in (blurred, sharp))
    return float(np.abs(a - b).mean())


def _stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    stacked = {name: np.stack([s[name] for s in samples]) for name in ("blurred", "sharp")}
    return {**stacked, "problems": [problem for s in samples for problem in s["problems"]]}
