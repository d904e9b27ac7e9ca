"""The options of evaluate.py: what is restored, how it is scored and shown."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.metrics import protocol
from jaxdeblur.options import Count, check_ranges


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is restored, and how it is scored and shown.

    Attributes:
      data: by default what the run trains on, its test or held-out videos, and rendered for weights
        that are no run; rendered, rendered:SCENES or rendered:20px (1280x720 with 2, 5, 10, 20 or
        40 pixels of blur), a folder (its layout is recognised), or LAYOUT:FOLDER.
      split: the part of the data set: test, or validation where no test set is published (REDS).
      variant: which blurred frames, where a data set has several: blur or blur_gamma.
      only: only the videos with this name or beginning; all by default.
      exclude: leaves out the videos with this name or beginning.
      tau: high-speed frames: how many are averaged to a blurred one.
      period: high-speed frames: from the start of one exposure to the next.
      light: rendered and high-speed frames: averages linear light or stored values; by default as
        the scenes say, and high-speed frames as stored.
      sharp_input: the sharp frames go in, which should come out as they are.
      single: restores each frame by itself, as a photograph.
      max_frames: restores only so many frames of each video.
      protocol: how it is scored; docs/results.md.
      frames: writes the restored frames as PNG.
      preview: also writes preview.webp, an animation of the first video's blurred and restored
        frames side by side.
      explain: shows what the network blended or attended to, or its blur paths, in the first frames
        of each video.
    """

    data: str = "rendered"
    split: Literal["train", "validation", "test"] = "test"
    variant: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tau: int = 11
    period: int = 12
    light: Literal["linear", "stored"] | None = None
    sharp_input: bool = False
    single: bool = False
    max_frames: Count | None = None
    protocol: str = "jaxdeblur"
    frames: bool = False
    preview: bool = False
    explain: bool = False

    @property
    def exposure(self) -> Exposure | None:
        """Of high-speed frames; None, which other data sets take, where it is the usual one."""
        exposure = Exposure(self.tau, self.period)
        return exposure if exposure != Exposure() else None

    def __post_init__(self) -> None:
        protocol(self.protocol)
        check_ranges(self)
        if self.single and self.explain:
            raise UserError("--explain shows what goes from frame to frame, and --single has none")
