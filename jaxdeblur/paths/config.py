"""The options of blur paths."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import Stabiliser
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

    def found(self, shutters: Shutter, stabilisers: Stabiliser) -> dict[str, Any]:
        """Returns duty, light and stabilisation of the first video, as given or as known by now.

        What cannot be known yet, since nothing moves, is left out.
        """
        first: tuple[Shutter, Stabiliser]
        first = jax.tree.map(lambda leaf: leaf[0], (shutters, stabilisers))
        shutter, stabiliser = first
        found: dict[str, Any] = {}
        if bool(stabiliser.stabilised):
            found["duty"] = self.duty or STABILISED_DUTY
        elif self.duty or float(shutter.tiles):
            found["duty"] = self.duty or round(float(shutter.duty), 3)
        if self.light != "found":
            found["light"] = self.light
        elif float(shutter.tiles):
            found["light"] = "linear" if bool(shutter.linear) else "stored"
        if self.stabilised != "found":
            found["stabilised"] = self.stabilised == "yes"
        elif float(stabiliser.frames):
            found["stabilised"] = bool(stabiliser.stabilised)
        return found
