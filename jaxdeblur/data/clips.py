"""Clips of videos: what one is, and how it is cut out of frames that are on disk or in memory."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.data.exposure import MAX_TAU, average
from jaxdeblur.data.frames import PackedFrames
from jaxdeblur.data.videos import (
    Dataset,
    HighSpeedVideo,
    PairedVideo,
    pack_dataset,
    refuse,
    video_frames,
)
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import SeenVideo8, Video8


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """What a clip is and how it is varied."""

    frames: int = 13
    """Frames that are scored: ``sharp`` of a batch."""
    before: int = 0
    """More blurred frames before them, the context of the first: a network's window reaches there.
    Where a video does not, its first frame is repeated, as in use; so is the last one after it."""
    after: int = 0
    """And after them."""
    ends: float = 0.0
    """The share of clips that begin or end as a video does, its frame repeated for the context."""
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
    single: float = 0.0
    """The share of clips of one frame, repeated: a photograph."""

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
        for name in ("before", "after"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} is negative")
        for name in ("keep_still", "linear", "sharp_input", "single", "ends"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not a share, 0 to 1")

    @property
    def length(self) -> int:
        """The blurred frames of a clip: those that are scored and their context."""
        return self.before + self.frames + self.after

    def whole_periods(self, tau: int) -> tuple[int, int]:
        """The least and the most period T that gives exposures of ``tau`` frames the duty cycle."""
        rounding = 1e-9  # 7 / 0.7 is a little more than 10
        return math.ceil(tau / self.duty[1] - rounding), math.floor(tau / self.duty[0] + rounding)


class SourceClip(NamedTuple):
    """One clip as it lies in its source, with its context."""

    blurred: SeenVideo8
    sharp: Video8
    sharp_backwards: Video8
    """What is sharp if the clip is played backwards, still in its own order. Of an even tau that is
    the other one of the two frames in the middle: so it is always the one that is played first."""


class ClipSource:
    """One data set as a numbered list of clips."""

    def __init__(self, dataset: Dataset, options: ClipOptions) -> None:
        dataset = pack_dataset(dataset)
        self.options = options
        self.unreadable = [
            reason
            for video in dataset.videos
            for frames in video_frames(video)
            if isinstance(frames, PackedFrames)
            for reason in frames.unreadable.values()
        ]
        self.videos = [v for v in dataset.videos if isinstance(v, PairedVideo | HighSpeedVideo)]
        if len(self.videos) < len(dataset.videos):
            raise TypeError("clips are read from PairedVideo and HighSpeedVideo only")
        counts = [self._count(video) for video in self.videos]
        fast = any(isinstance(video, HighSpeedVideo) for video in self.videos)
        refuse(
            f"{dataset.name}{', taken for high-speed frames' if fast else ''}: "
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

    def clip(self, number: int, rng: np.random.Generator, backwards: bool = False) -> SourceClip:
        """A random crop of a clip, and of high-speed video random exposures.

        ``backwards``: whether it will be played so; here it is still in its own order.
        """
        index = bisect.bisect_right(self.ends, number)
        video = self.videos[index]
        crop = self.options.crop
        top = rng.integers(video.height - crop + 1)
        left = rng.integers(video.width - crop + 1)
        area = slice(top, top + crop), slice(left, left + crop)
        before, after = self.options.before, self.options.after
        if backwards:
            before, after = after, before
        if isinstance(video, HighSpeedVideo):
            return self._expose(video, area, rng, before, after)
        start = number - self.ends[index] + self._count(video)
        end = start + self.options.frames
        there = slice(max(0, start - before), min(len(video), end + after))
        missing = there.start - (start - before), end + after - there.stop
        sharp = _repeat_ends(video.sharp_frames.read(there, *area), *missing)
        blurred = _repeat_ends(video.blurred_frames.read(there, *area), *missing)
        return SourceClip(blurred, sharp, sharp)

    def _count(self, video: PairedVideo | HighSpeedVideo) -> int:
        """How many clips a video holds; of high-speed frames, how many exposures it is worth."""
        if isinstance(video, HighSpeedVideo):
            return max(1, len(video)) if self._fitting_taus(video) else 0
        return len(video) - self.options.frames + 1

    def _fitting_taus(self, video: HighSpeedVideo) -> list[int]:
        """The options' taus for which the video is long enough."""
        o, length = self.options, len(video.frames)
        shortest = {tau: 1 if o.overlap else o.whole_periods(tau)[0] for tau in o.taus}
        return [tau for tau in o.taus if tau + (o.frames - 1) * shortest[tau] <= length]

    def _periods(self, video: HighSpeedVideo, tau: int) -> tuple[int, int]:
        """The least and the most period for exposures of ``tau`` frames, one that fits."""
        o = self.options
        longest = max(1, (len(video.frames) - tau) // max(1, o.frames - 1))
        least, most = o.whole_periods(tau)
        return min(least, longest), min(most, longest)

    def _expose(
        self,
        video: HighSpeedVideo,
        area: tuple[slice, slice],
        rng: np.random.Generator,
        before: int,
        after: int,
    ) -> SourceClip:
        o, length = self.options, len(video.frames)
        tau = int(rng.choice(self._fitting_taus(video)))
        least, most = self._periods(video, tau)
        period = int(rng.integers(least, most + 1))
        needed = tau + (o.frames - 1) * period
        start = int(rng.integers(length - needed + 1))
        linear = bool(rng.random() < o.linear)
        # As much of the context as the video has.
        earlier = min(before, start // period)
        later = min(after, (length - needed - start) // period)
        first, count = start - earlier * period, earlier + o.frames + later
        frames = video.frames.read(slice(first, first + tau + (count - 1) * period), *area)
        exposures = [frames[n * period :][:tau] for n in range(count)]
        blurred, sharp, backwards = (
            _repeat_ends(np.stack(made), before - earlier, after - later)
            for made in (
                [average(exposure, linear) for exposure in exposures],
                [exposure[(tau - 1) // 2] for exposure in exposures],
                [exposure[tau // 2] for exposure in exposures],
            )
        )
        return SourceClip(blurred, sharp, backwards)


def _repeat_ends(clip: SeenVideo8, before: int, after: int) -> UInt8[np.ndarray, "_ H W S"]:
    """The first frame repeated so often before the clip, the last one after it."""
    return np.pad(clip, ((before, after), (0, 0), (0, 0), (0, 0)), mode="edge")


def _length(video: PairedVideo | HighSpeedVideo) -> int:
    return len(video.frames) if isinstance(video, HighSpeedVideo) else len(video)
