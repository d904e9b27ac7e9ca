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
      data: rendered, rendered:SCENES or rendered:20px (1280x720 with 2, 5, 10, 20 or 40 pixels of
        blur), a folder (its layout is recognised), or LAYOUT:FOLDER; by default the test or
        held-out videos of what the run trains on, and rendered for weights without a run.
      split: the part of the data set: test, or validation where no test set is published (REDS).
      variant: which blurred frames to use if a data set has several: blur or blur_gamma.
      only: restores only videos with this name or prefix; by default all.
      exclude: leaves out videos with this name or prefix.
      tau: for high-speed frames: how many are averaged into a blurred one.
      period: for high-speed frames: how many from the start of one exposure to the next.
      light: for rendered and high-speed frames: averages linear light or stored values; by default
        as the scenes define, and stored values for high-speed frames.
      sharp_input: restores the sharp frames, which should come out unchanged.
      single: restores each frame on its own, as a photograph.
      max_frames: restores only this many frames of each video.
      protocol: the protocol of the scores; see docs/results.md.
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
        """The exposure of high-speed frames; None, which other data sets need, if the default."""
        exposure = Exposure(self.tau, self.period)
        return exposure if exposure != Exposure() else None

    def __post_init__(self) -> None:
        protocol(self.protocol)
        check_ranges(self)
        if self.single and self.explain:
            raise UserError(
                "--explain shows what passes between frames, but each is restored alone"
            )
