"""Batches of clips for training, by Grain: which clip comes when depends on seed and step alone.

Element i of the mixed sources is drawn from a random generator made of (seed, i); batch k holds the
elements k*B to (k+1)*B - 1. So any number of processes reads the same global batches (process p the
p-th slice of each), and a run resumes by starting at its step: there is no state to save.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxdeblur.data.exposure import MAX_TAU, average
from jaxdeblur.data.frames import PackedFrames, show_packing
from jaxdeblur.data.scene_pool import ScenePool
from jaxdeblur.data.videos import (
    Dataset,
    HighSpeedVideo,
    PairedVideo,
    pack_dataset,
    pool_dataset,
    refuse,
    video_frames,
)
from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder
from jaxdeblur.shapes import Batch, Video8

_log = logging.getLogger(__name__)

MotionLimit = Callable[[int], float]
"""The fastest motion (pixels a frame) that training sees at a step: a curriculum."""

# Grain shuffles in time that falls with the number of elements, 2 ms for 20 and 10 us for 4096, so
# a small source is shuffled several epochs at a time.
_SHUFFLED_AT_A_TIME = 4096
_MOST_FAILURES = 20  # Bad samples in a row, drawn at random, after which the data is at fault.


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """What a clip is and how it is varied."""

    frames: int = 13
    crop: int = 128
    """Side of the square that is cut out, in pixels."""
    flips: bool = True
    """Mirror, left to right and top to bottom, each half of the time."""
    rotations: bool = True
    """Turn by 90 degrees half of the time."""
    reversal: bool = True
    """Play backwards half of the time: an average of frames has no direction."""
    least_blur: float = 2.0
    """A clip whose blurred and sharp frames differ by less in the mean (grey levels of 255) teaches
    little and is drawn anew ..."""
    keep_still: float = 0.1
    """... but for this share of the clips, which teach the network to leave sharp frames alone."""
    draws: int = 5
    """How often it is drawn at most; the last draw is taken as it is."""
    taus: tuple[int, ...] = (5, 7, 9, 11)
    """High-speed frames: how many are averaged, drawn for each clip."""
    duty: tuple[float, float] = (0.6, 1.0)
    """High-speed frames: the range of tau / T."""
    overlap: bool = True
    """High-speed frames: where a video is too short for ``frames`` exposures, they may overlap. No
    camera does that, but each frame is still a true pair. Otherwise such a tau is not used."""
    linear: float = 0.0
    """High-speed frames: the share of clips averaged in linear light."""
    sharp_input: float = 0.0
    """The share of clips whose sharp frames go in as well, to come out as they went in: what moves
    fast is not always blurred."""

    def __post_init__(self) -> None:
        for name in ("frames", "crop", "draws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not positive")
        if not self.taus or min(self.taus) < 1 or max(self.taus) > MAX_TAU:
            raise UserError(f"taus: {self.taus} are not from 1 to {MAX_TAU}")
        if not 0 < self.duty[0] <= self.duty[1] <= 1:
            raise UserError(f"duty: {self.duty} is not a range within (0, 1]")
        for tau in self.taus:
            least, most = self.whole_periods(tau)
            if least > most:
                raise UserError(
                    f"duty: no whole number of frames T lets {tau} / T lie in {self.duty}; widen "
                    f"the range or leave {tau} out of taus"
                )
        for name in ("keep_still", "linear", "sharp_input"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not a share, 0 to 1")

    def whole_periods(self, tau: int) -> tuple[int, int]:
        """The least and the most period T that gives exposures of ``tau`` frames the duty cycle."""
        rounding = 1e-9  # 7 / 0.7 is a little more than 10
        return math.ceil(tau / self.duty[1] - rounding), math.floor(tau / self.duty[0] + rounding)


def batches(
    sources: Sequence[tuple[Dataset | ScenePool, float]],
    options: ClipOptions,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
    max_bad_samples: int = 0,
    motion_limit: MotionLimit | None = None,
) -> Batches:
    """An endless iterator over this process's part of the batches from ``start_step`` on.

    Frames in image files are decoded into the cache folder first, once, and read from there.

    Args:
      sources: data sets with their shares of the samples (in any unit, 0 leaves one out).
      batch_size: clips in the global batch; each process gets ``batch_size / process_count``.
      workers: threads that read ahead (the crops are copied and averaged outside Python's lock);
        with 0 a batch is made when it is asked for.
      max_bad_samples: how many clips with unreadable frames are replaced by others, each with a
        warning that names the frame, before the next one ends the run.
      motion_limit: restricts videos of known motion to those that are slow enough at a step.

    Raises:
      UserError: a video is shorter or smaller than a clip, the batch does not divide among the
        processes, or (from the iterator) a frame cannot be read.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch size: {batch_size} does not divide among {process_count} processes")
    if any(not (math.isfinite(weight) and weight >= 0) for _, weight in sources):
        raise UserError(f"shares of the data sets: {[w for _, w in sources]} are not 0 or above")
    used = [(Source(data, options), weight) for data, weight in sources if weight]
    if not used:
        raise UserError("no data set has a share above 0")
    if max_bad_samples == 0:  # known now, so not to be found after hours
        refuse(
            "unreadable frames (see --max-bad-samples)",
            [reason for source, _ in used for reason in source.unreadable],
        )
    sampler = _Sampler([source for source, _ in used], options, batch_size, motion_limit)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(len(used) + 1)]
    shuffled = [
        _shuffled(n, len(source), own)
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
    return Batches(iter(mine.to_iter_dataset(reading)), max_bad_samples)


class Batches(Iterator[Batch]):
    """The iterator that :func:`batches` returns. ``close`` stops its threads."""

    def __init__(self, iterator: Any, max_bad_samples: int) -> None:
        self._iterator = iterator
        self._max_bad_samples = max_bad_samples
        self.bad_samples = 0
        """Clips replaced so far because a frame could not be read."""

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        for problem in batch.pop("problems"):
            self.bad_samples += 1
            if self.bad_samples > self._max_bad_samples:
                raise UserError(
                    f"{problem} (bad sample {self.bad_samples}; "
                    f"--max-bad-samples={self._max_bad_samples})"
                )
            _log.warning("bad sample %d skipped: %s", self.bad_samples, problem)
        return batch

    def close(self) -> None:
        """Stops the threads that read ahead."""
        self._iterator.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SourceClip(NamedTuple):
    """One clip as it lies in its source."""

    blurred: Video8
    sharp: Video8
    sharp_backwards: Video8
    """What is sharp if the clip is played backwards, still in its own order. Of an even tau that is
    the other one of the two frames in the middle: so it is always the one that is played first."""


class Source:
    """One data set as a numbered list of clips, those of slow videos first."""

    def __init__(self, data: Dataset | ScenePool, options: ClipOptions) -> None:
        dataset = pool_dataset(data) if isinstance(data, ScenePool) else data
        self.dataset = dataset = pack_dataset(dataset, cache_folder(), show_packing())
        self.options = options
        self.unreadable = [
            reason
            for video in dataset.videos
            for frames in video_frames(video)
            if isinstance(frames, PackedFrames)
            for reason in frames.unreadable.values()
        ]
        videos = [v for v in self.dataset.videos if isinstance(v, PairedVideo | HighSpeedVideo)]
        if len(videos) < len(self.dataset.videos):
            raise TypeError("clips are read from PairedVideo and HighSpeedVideo only")
        self.videos = sorted(videos, key=_motion)
        self.motion = [_motion(video) for video in self.videos]
        counts = [self._count(video) for video in self.videos]
        fast = any(isinstance(video, HighSpeedVideo) for video in self.videos)
        refuse(
            f"{self.dataset.name}{', taken for high-speed frames' if fast else ''}: "
            f"clips of {options.frames} frames of "
            f"{options.crop}x{options.crop} pixels do not fit",
            [
                f"{video.name} ({_length(video)} frames of {video.width}x{video.height})"
                for video, count in zip(self.videos, counts, strict=True)
                if count < 1 or min(video.height, video.width) < options.crop
            ],
        )
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def allowed(self, limit: float) -> int:
        """How many of the clips are of videos that move no faster than ``limit``."""
        videos = bisect.bisect_right(self.motion, limit)
        return self.ends[videos - 1] if videos else 0

    def clip(self, number: int, rng: np.random.Generator) -> SourceClip:
        """A random crop of a clip, and of high-speed video random exposures."""
        index = bisect.bisect_right(self.ends, number)
        video = self.videos[index]
        crop = self.options.crop
        top = rng.integers(video.height - crop + 1)
        left = rng.integers(video.width - crop + 1)
        area = slice(top, top + crop), slice(left, left + crop)
        if isinstance(video, HighSpeedVideo):
            return self._expose(video, area, rng)
        start = number - self.ends[index] + self._count(video)
        times = slice(start, start + self.options.frames)
        sharp = video.sharp_frames.read(times, *area)
        return SourceClip(video.blurred_frames.read(times, *area), sharp, sharp)

    def _count(self, video: PairedVideo | HighSpeedVideo) -> int:
        """How many clips a video holds; of high-speed frames, how many exposures it is worth."""
        if isinstance(video, HighSpeedVideo):
            return max(1, len(video)) if self.fitting_taus(video) else 0
        return len(video) - self.options.frames + 1

    def fitting_taus(self, video: HighSpeedVideo) -> list[int]:
        """The options' taus for which the video is long enough."""
        o, length = self.options, len(video.frames)
        shortest = {tau: 1 if o.overlap else o.whole_periods(tau)[0] for tau in o.taus}
        return [tau for tau in o.taus if tau + (o.frames - 1) * shortest[tau] <= length]

    def periods(self, video: HighSpeedVideo, tau: int) -> tuple[int, int]:
        """The least and the most period for exposures of ``tau`` frames, one that fits."""
        o = self.options
        longest = (len(video.frames) - tau) // max(1, o.frames - 1)
        least, most = o.whole_periods(tau)
        return min(least, longest), min(most, longest)

    def _expose(
        self, video: HighSpeedVideo, area: tuple[slice, slice], rng: np.random.Generator
    ) -> SourceClip:
        o, length = self.options, len(video.frames)
        tau = int(rng.choice(self.fitting_taus(video)))
        least, most = self.periods(video, tau)
        period = int(rng.integers(least, most + 1))
        needed = tau + (o.frames - 1) * period
        start = int(rng.integers(length - needed + 1))
        linear = bool(rng.random() < o.linear)
        frames = video.frames.read(slice(start, start + needed), *area)
        exposures = [frames[n * period :][:tau] for n in range(o.frames)]
        blurred = np.stack([average(exposure, linear) for exposure in exposures])
        sharp = np.stack([exposure[(tau - 1) // 2] for exposure in exposures])
        if tau % 2:
            return SourceClip(blurred, sharp, sharp)
        return SourceClip(blurred, sharp, np.stack([e[tau // 2] for e in exposures]))


class _Sampler:
    """Turns a clip's number and a random generator into a sample."""

    def __init__(
        self,
        sources: list[Source],
        options: ClipOptions,
        batch_size: int,
        motion_limit: MotionLimit | None,
    ) -> None:
        self.sources = sources
        self.options = options
        self.batch_size = batch_size
        self.motion_limit = motion_limit

    def sample(self, place: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Any]:
        """``place``: the sample's index in the run, its source, and its clip's number in that."""
        index, source_number, number = place
        source = self.sources[source_number]
        allowed = len(source)
        if self.motion_limit:
            step = index // self.batch_size
            allowed = source.allowed(self.motion_limit(step))
            if not allowed:
                raise UserError(
                    f"motion limit: {self.motion_limit(step):g} pixels a frame at step {step} is "
                    f"below the slowest video of {source.dataset.name}, {source.motion[0]:.3g}"
                )
        problems: list[str] = []
        draws = 1 if rng.random() < self.options.keep_still else self.options.draws
        # Not drawn where it is not asked for: else every clip after it would be another.
        as_it_is = self.options.sharp_input and rng.random() < self.options.sharp_input
        if as_it_is:
            draws = 1  # how far it would be blurred does not matter
        while draws:
            if number >= allowed:
                number = int(rng.integers(allowed))
            try:
                clip = source.clip(number, rng)
            except UserError as error:
                problems.append(str(error))
                if len(problems) == _MOST_FAILURES:
                    raise UserError(f"{_MOST_FAILURES} bad samples in a row: {error}") from error
                number = allowed
                continue
            number = allowed  # another one, should this one be too still
            draws -= 1
            if _difference(clip.blurred, clip.sharp) >= self.options.least_blur:
                break
        blurred, sharp = self._vary(clip, rng)
        if as_it_is:
            blurred = sharp
        return {"blurred": blurred, "sharp": sharp, "problems": problems}

    def _vary(self, clip: SourceClip, rng: np.random.Generator) -> tuple[Video8, Video8]:
        """(blurred, sharp) with the same mirroring, turning and reversal of both."""
        o = self.options
        backwards, down, across, turned = rng.random(4) < 0.5
        way = (
            slice(None, None, -1 if o.reversal and backwards else 1),
            slice(None, None, -1 if o.flips and down else 1),
            slice(None, None, -1 if o.flips and across else 1),
        )
        sharp = clip.sharp_backwards if o.reversal and backwards else clip.sharp
        blurred, sharp = clip.blurred[way], sharp[way]
        if o.rotations and turned:
            blurred, sharp = (np.rot90(clip, axes=(1, 2)) for clip in (blurred, sharp))
        return blurred, sharp


def _shuffled(source: int, clips: int, seed: int) -> grain.MapDataset:
    """Endlessly (source, number of a clip), each clip as often as any other."""
    epochs = -(-_SHUFFLED_AT_A_TIME // clips)
    numbers = grain.MapDataset.range(epochs * clips).shuffle(seed=seed).repeat()
    return numbers.map(lambda number: (source, number % clips))


def _motion(video: PairedVideo | HighSpeedVideo) -> float:
    known = None if isinstance(video, HighSpeedVideo) else video.motion
    return -math.inf if known is None else known


def _length(video: PairedVideo | HighSpeedVideo) -> int:
    return len(video.frames) if isinstance(video, HighSpeedVideo) else len(video)


def _difference(blurred: Video8, sharp: Video8) -> float:
    """The mean absolute difference in grey levels, on every second row and column."""
    a, b = (clip[:, ::2, ::2].astype(np.int16) for clip in (blurred, sharp))
    return float(np.abs(a - b).mean())


def _stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    stacked: dict[str, Any] = {
        name: np.stack([sample[name] for sample in samples]) for name in ("blurred", "sharp")
    }
    return {**stacked, "problems": list(itertools.chain(*(s["problems"] for s in samples)))}
