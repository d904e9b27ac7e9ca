"""The options of a run's data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import jax

from jaxdeblur.data.clips import ClipOptions, ClipVariety
from jaxdeblur.data.layouts import RENDERED
from jaxdeblur.data.scenes import SCENES, SceneConfig
from jaxdeblur.errors import UserError
from jaxdeblur.options import Range, Share

MotionLimit = Callable[[int], float]
"""The fastest motion (pixels a frame) of rendered scenes at a step: a curriculum."""


@dataclass(frozen=True)
class DataConfig(ClipVariety):
    """The data of a run.

    Attributes:
      data: data sets to train on: rendered, or rendered:SCENES in place of what --scenes says, a
        folder (its layout is recognised), or LAYOUT:FOLDER with LAYOUT one of gopro, dvd, bsd,
        reds, pairs, highspeed.
      mix: their shares of the clips, one number each; none gives them equal shares.
      variant: of the blurred frames where a data set has several, as blur or blur_gamma of GOPRO.
      only: trains on the videos whose names begin so; all without.
      exclude: leaves the videos whose names begin so out of training.
      scenes: the rendered scenes: narrow (small motion, for short trainings), small (small motion,
        all else varied), clean (small motion, either light, little else), swift (the same with
        motion of 1.5 to 36 pixels a frame), wide (1 to 28, all else varied), or handheld (up to
        40, as hands do it: fast and slow phases, frames that are nearly sharp, any shutter).
      render: where scenes are rendered, anew for every clip. host: by the threads that read.
        device: by the device that trains. auto: by the device if that is no CPU.
      photos: a folder of photographs for the scenes, besides those that come with packages.
      curriculum: the motion of rendered scenes is limited at first; the limit grows over this share
        of the steps. 0 for none.
      curriculum_start: the first limit, pixels a frame.
      workers: threads that read ahead.
      max_bad_samples: unreadable clips that are skipped, each with a warning, before the run stops.
      validate_on: the data set of the validation during the run; empty: what trains, of which the
        first data set's own validation videos, or every ninth that trains, is held out.
      validate_only: of it, the videos whose names begin so; all without.
    """

    data: tuple[str, ...] = (RENDERED,)
    mix: tuple[Annotated[float, Range(0, below=math.inf)], ...] = ()
    variant: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scenes: Literal["narrow", "small", "clean", "swift", "wide", "handheld"] = "narrow"
    render: Literal["auto", "host", "device"] = "auto"
    photos: str | None = None
    curriculum: Share = 0.0
    curriculum_start: Annotated[float, Range(above=0, below=math.inf)] = 6.0
    workers: Annotated[int, Range(1, 256)] = 1
    max_bad_samples: Annotated[int, Range(0)] = 0
    validate_on: str = ""
    validate_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UserError("--data names at least one data set")
        if self.mix and len(self.mix) != len(self.data):
            raise UserError(f"--mix has {len(self.mix)} shares for {len(self.data)} data sets")
        if self.mix and not any(self.mix):
            raise UserError("--mix is shares of which one is above 0")
        if all(map(is_rendered, self.data)) and (self.only or self.exclude):
            raise UserError(
                "--only and --exclude choose among the videos of a folder, and "
                f"--data={' '.join(self.data)} is rendered"
            )
        if self.photos and not any(map(is_rendered, self.data)):
            raise UserError(
                f"--photos are for rendered scenes, and --data={' '.join(self.data)} has none"
            )

    @property
    def on_device(self) -> bool:
        """Whether the device that trains renders the scenes; without scenes it has nothing to."""
        if self.render == "auto" and jax.default_backend() == "cpu":
            return False
        return self.render != "host" and any(map(is_rendered, self.data))

    def scenes_of(self, spec: str) -> SceneConfig:
        """The configuration of the scenes that an entry of ``data`` renders."""
        return SCENES[spec.partition(":")[2] or self.scenes]

    def clip_options(
        self, frames: int, crop: int, context: tuple[int, int] = (0, 0)
    ) -> ClipOptions:
        """What a clip of the pipeline is; ``context`` is of the network (``VideoRestorer``)."""
        # A photograph is restored alone: the network repeats it where it wants neighbours.
        before, after = (0, 0) if self.single == 1 else context
        shared = {field.name: getattr(self, field.name) for field in fields(ClipVariety)}
        return ClipOptions(**shared, frames=frames, before=before, after=after, crop=crop)

    def motion_limit(self, steps: int) -> MotionLimit | None:
        """The curriculum over a run of ``steps``: the fastest motion at each, pixels a frame."""
        if not self.curriculum:
            return None
        start = self.curriculum_start
        ranges = [self.scenes_of(spec).motion for spec in self.data if is_rendered(spec)]
        most = max((fastest for _, fastest in ranges), default=start)
        full = self.curriculum * steps

        def limit(step: int) -> float:
            return float("inf") if step >= full else start + (most - start) * step / full

        return limit


def is_rendered(spec: str) -> bool:
    """Whether an entry of ``data`` is rendered scenes.

    Raises:
      UserError: scenes of that kind do not train.
    """
    name, _, kind = spec.partition(":")
    if name == RENDERED and kind and kind not in SCENES:
        raise UserError(f"--data={spec}: scenes to train on are {', '.join(SCENES)}, not {kind!r}")
    return name == RENDERED
