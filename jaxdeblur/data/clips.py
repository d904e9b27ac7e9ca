"""Clips of videos: their options, and how they are cut from frames on disk or in memory."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.data.exposure import MAX_TAU, average
from jaxdeblur.data.videos import (
    Dataset,
    HighSpeedVideo,
    PairedVideo,
    Video,
    pack_dataset,
    refuse,
    video_frames,
)
from jaxdeblur.errors import UserError
from jaxdeblur.options import Count, Range, Share, check_ranges
from jaxdeblur.shapes import SeenVideo8, Video8


@dataclasses.dataclass(frozen=True)
class ClipVariety:
    """The options that determine which clips a data set yields.

    Attributes:
      taus: for high-speed frames: how many are averaged into a blurred frame, drawn for each clip.
      duty: for high-speed frames: range of the share of the period that the shutter is open.
      linear: for high-speed frames: share of clips averaged in linear light.
      least_blur: a clip of a data set is drawn again if its blurred and sharp frames differ by
        less, in grey levels of 255.
      keep_still: share of clips exempt from --least-blur.
      sharp_input: share of clips whose input frames are the sharp ones, returned unchanged; they
        move as fast as the blurred ones.
      degraded: share of clips that undergo what cameras, phones and codecs do to frames: noise,
        denoising, tone, sharpening, changing brightness, stabilising, H.264 or HEVC
        (data/degradation.py).
      single: share of clips that repeat one frame, as when a photograph is restored.
      ends: share of clips that imitate the start or end of a video: as in use, the first or last
        frame is repeated as the context beyond it; other clips have their real context.
    """

    taus: tuple[Annotated[int, Range(1, MAX_TAU)], ...] = (5, 7, 9, 11)
    duty: tuple[float, float] = (0.6, 1.0)
    linear: Share = 0.0
    least_blur: float = 2.0
    keep_still: Share = 0.1
    sharp_input: Share = 0.0
    degraded: Share = 0.0
    single: Share = 0.0
    ends: Share = 0.1

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 < self.duty[0] <= self.duty[1] <= 1:
            raise UserError(f"--duty must be a range within (0, 1], not {self.duty}")
        if bad := [tau for tau in self.taus if np.subtract(*self.whole_periods(tau)) > 0]:
            raise UserError(
                f"--duty={self.duty}: no whole number of frames T puts {bad[0]} / T in this range; "
                f"widen the range or remove {bad[0]} from --taus"
            )

    def whole_periods(self, tau: int) -> tuple[int, int]:
        """Returns the least and the greatest period T for which tau / T is within ``duty``."""
        rounding = 1e-9  # 7 / 0.7 is a little more than 10
        return math.ceil(tau / self.duty[1] - rounding), math.floor(tau / self.duty[0] + rounding)


@dataclasses.dataclass(frozen=True)
class ClipOptions(ClipVariety):
    """The options of a clip.

    Attributes:
      frames: scored frames: ``sharp`` of a batch.
      before: blurred context frames before them, for a network's window. Beyond the ends of the
        video its first or last frame is repeated, as in use.
      after: blurred context frames after them.
      crop: side of the square crop, pixels.
      augment: mirrors, rotates by 90 degrees and reverses time, each for half of the clips: an
        average of frames has no direction.
    """

    frames: Count = 13
    before: Annotated[int, Range(0)] = 0
    after: Annotated[int, Range(0)] = 0
    ends: Share = 0.0
    crop: Count = 128
    augment: bool = True

    @property
    def length(self) -> int:
        """The number of blurred frames in a clip: the scored ones and their context."""
        return self.before + self.frames + self.after


class SourceClip(NamedTuple):
    """A clip in the order of its source, with its context."""

    blurred: SeenVideo8
    sharp: Video8
    sharp_backwards: Video8
    """The sharp frames for playing the clip backwards, still in source order. For an even tau, each
    is the other of the two middle frames, so that it is always the one played first."""


class ClipSource:
    """A data set as a numbered list of clips."""

    def __init__(self, dataset: Dataset, options: ClipOptions) -> None:
        dataset, self.errors = pack_dataset(dataset)
        self.options = options
        self.videos = dataset.videos
        counts = [self._count(video) for video in self.videos]
        refuse(
            f"{dataset.name}: too short or too small for clips of {options.frames} frames of "
            f"{options.crop}x{options.crop} pixels",
            [
                f"{video.name} ({len(video_frames(video)[-1])} frames of "
                f"{video.width}x{video.height})"
                for video, count in zip(self.videos, counts, strict=True)
                if count < 1 or min(video.height, video.width) < options.crop
            ],
        )
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def clip(self, number: int, rng: np.random.Generator, backwards: bool = False) -> SourceClip:
        """Returns a random crop of a clip; high-speed video is given random exposures.

        ``backwards`` says whether the caller will reverse the clip, which is in source order.
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
        assert isinstance(video, PairedVideo)
        start = number - self.ends[index] + self._count(video)
        end = start + self.options.frames
        there = slice(max(0, start - before), min(len(video), end + after))
        missing = there.start - (start - before), end + after - there.stop
        sharp = _repeat_ends(video.sharp_frames.read(there, *area), *missing)
        blurred = _repeat_ends(video.blurred_frames.read(there, *area), *missing)
        return SourceClip(blurred, sharp, sharp)

    def _count(self, video: Video) -> int:
        """Returns how many clips a video counts as; for a high-speed one, its exposures."""
        if isinstance(video, HighSpeedVideo):
            return max(1, len(video)) if self._fitting_taus(video) else 0
        return len(video) - self.options.frames + 1

    def _fitting_taus(self, video: HighSpeedVideo) -> list[int]:
        """Returns the options' taus for which the video is long enough."""
        beyond = self.options.frames - 1  # Exposures of a short video may overlap.
        return [tau for tau in self.options.taus if tau + beyond <= len(video.frames)]

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
        longest = max(1, (length - tau) // max(1, o.frames - 1))
        least, most = (min(period, longest) for period in o.whole_periods(tau))
        period = int(rng.integers(least, most + 1))
        needed = tau + (o.frames - 1) * period
        start = int(rng.integers(length - needed + 1))
        linear = bool(rng.random() < o.linear)
        # As much context as the video has.
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
    """Prepends ``before`` copies of the first frame and appends ``after`` copies of the last."""
    return np.pad(clip, ((before, after), (0, 0), (0, 0), (0, 0)), mode="edge")
