"""The options of blur paths."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.velocities import STABILISED_DUTY


@dataclasses.dataclass(frozen=True)
class PathsConfig:
    """The configuration of a PathRestorer.

    Attributes:
      base: of the network that restores the base; None for the blurred frames.
      fusion: of the network over the maps of models/path_maps.py; None for the gate alone.
      duty: the share of the time between frames that the shutter is open, above 0 and up to 1; 0
        finds it from the video.
      light: what the camera averaged, "stored" values or "linear" light; "found" finds it from the
        video.
      stabilised: whether a stabiliser took the camera's motion from the frames, but not their blur;
        "found" finds it from the video.
    """

    base: Any = None
    fusion: Any = None
    duty: Share = 0.0
    light: Literal["found", "stored", "linear"] = "found"
    stabilised: Literal["found", "yes", "no"] = "found"

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def asks(self) -> bool:
        """Whether the duty or the light is to be found from the video."""
        return None in self.given

    @property
    def given(self) -> tuple[float | None, bool | None]:
        """The duty, and whether light is linear; None for what is to be found."""
        return self.duty or None, None if self.light == "found" else self.light == "linear"

    def found(self, known: dict[str, float]) -> dict[str, Any]:
        """Returns duty, light and stabilisation of a video, as given or as known by now.

        ``known`` are its facts (gate.py). What cannot be known yet, since nothing moves, is left
        out.
        """
        found: dict[str, Any] = {}
        if known["stabilised"]:
            found["duty"] = self.duty or STABILISED_DUTY
        elif self.duty or known["tiles"]:
            found["duty"] = self.duty or round(known["duty"], 3)
        if self.light != "found":
            found["light"] = self.light
        elif known["tiles"]:
            found["light"] = "linear" if known["linear"] else "stored"
        if self.stabilised != "found":
            found["stabilised"] = self.stabilised == "yes"
        elif known["searched"]:
            found["stabilised"] = bool(known["stabilised"])
        return found
