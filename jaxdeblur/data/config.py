"""The data options of a run."""

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
"""A curriculum: the fastest motion (pixels per frame) of rendered scenes at a step."""


@dataclass(frozen=True)
class DataConfig(ClipVariety):
    """The data of a run.

    Attributes:
      data: data sets to train on: rendered, rendered:SCENES (overrides --scenes), a folder (its
        layout is recognised), or LAYOUT:FOLDER with LAYOUT one of gopro, dvd, bsd, reds, pairs,
        highspeed, paths.
      mix: shares of the clips, one number per data set; equal by default.
      variant: which blurred frames to use if there are several, as blur or blur_gamma of GOPRO.
      only: trains only on videos whose names begin with one of these; on all by default.
      exclude: leaves videos whose names begin with one of these out of training.
      scenes: kind of rendered scenes: narrow (small motion, for short trainings), small (small
        motion, all else varied), clean (small motion, linear light or stored values, little else),
        swift (the same with motion of 1.5 to 36 pixels per frame), wide (1 to 28, all else varied),
        or handheld (up to 40: fast and slow phases, some frames nearly sharp, any shutter).
      render: where a new scene is rendered for every clip. host: in the reading threads. device: on
        the training device. auto: on the device unless it is a CPU or clips are --degraded, which
        happens in the reading threads.
      photos: folder of photographs for the scenes, besides those that come with packages.
      curriculum: share of the steps over which the motion limit of rendered scenes grows; 0 for no
        limit.
      curriculum_start: the first limit, pixels per frame.
      workers: threads that read ahead.
      max_bad_samples: unreadable clips to skip, each with a warning, before the run stops.
      validate_on: data set for validation during the run; by default the first training data set's
        own validation videos, or every ninth of its training videos, held out.
      validate_only: validates only on videos whose names begin with one of these; all by default.
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
            raise UserError("--data must name at least one data set")
        if self.mix and len(self.mix) != len(self.data):
            raise UserError(f"--mix has {len(self.mix)} shares for {len(self.data)} data sets")
        if self.mix and not any(self.mix):
            raise UserError("--mix must have at least one share above 0")
        if self.degraded and self.render == "device":
            raise UserError("--degraded needs --render=host: codecs run in the reading threads")
        others, rendered = self.folders, len(self.folders) < len(self.data)
        for option, has_effect in {
            "only": others,
            "exclude": others,
            "variant": others or self.validate_on,
            "validate_only": self.data[0] in others or self.validate_on,
            "photos": rendered,
        }.items():
            if getattr(self, option) and not has_effect:
                raise UserError(
                    f"--{option.replace('_', '-')} has no effect on --data={' '.join(self.data)}"
                )

    @property
    def folders(self) -> list[str]:
        """The entries of ``data`` that are not rendered scenes."""
        return [spec for spec in self.data if not is_rendered(spec)]

    @property
    def on_device(self) -> bool:
        """Whether the training device renders the scenes; False without rendered scenes."""
        if self.render == "auto" and (self.degraded or jax.default_backend() == "cpu"):
            return False
        return self.render != "host" and len(self.folders) < len(self.data)

    def scenes_of(self, spec: str) -> SceneConfig:
        """Returns the configuration of the scenes that an entry of ``data`` renders."""
        return SCENES[spec.partition(":")[2] or self.scenes]

    def clip_options(
        self, frames: int, crop: int, context: tuple[int, int] = (0, 0)
    ) -> ClipOptions:
        """Returns the options of clips; ``context`` is the network's (``VideoRestorer``)."""
        # A photograph is restored alone: the network repeats it in place of its neighbours.
        before, after = (0, 0) if self.single == 1 else context
        shared = {field.name: getattr(self, field.name) for field in fields(ClipVariety)}
        return ClipOptions(**shared, frames=frames, before=before, after=after, crop=crop)

    def motion_limit(self, steps: int) -> MotionLimit:
        """Returns the curriculum of a run of ``steps``; without one, motion is not limited."""
        start = self.curriculum_start
        ranges = [self.scenes_of(spec).motion for spec in self.data if is_rendered(spec)]
        most = max((fastest for _, fastest in ranges), default=start)
        full = self.curriculum * steps
        return lambda step: math.inf if step >= full else start + (most - start) * step / full


def is_rendered(spec: str) -> bool:
    """Returns whether an entry of ``data`` names rendered scenes.

    Raises:
      UserError: there are no training scenes of that kind.
    """
    name, _, kind = spec.partition(":")
    if name == RENDERED and kind and kind not in SCENES:
        raise UserError(
            f"--data={spec}: scenes to train on must be one of {', '.join(SCENES)}, not {kind!r}"
        )
    return name == RENDERED
