"""The options of blur paths, and what the parts of a step keep and pass on (restorer.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.models.path_maps import at_pixels, path_maps
from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.estimate import filtered
from jaxdeblur.paths.light import Excess
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import STABILISED_DUTY, Stabiliser
from jaxdeblur.paths.window_fit import WINDOW, WindowFit
from jaxdeblur.shapes import Clip, Frame

EVERY = 8
"""Interval, in frames, at which frames give evidence on the shutter."""

FIRST = EVERY - WINDOW // 2
"""The first frames, which all do: those with their whole window in an opening of EVERY frames."""


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
        if float(stabiliser.stabilised):
            found["duty"] = self.duty or STABILISED_DUTY
        elif self.duty or float(shutter.tiles):
            found["duty"] = self.duty or round(float(shutter.duty), 3)
        if self.light != "found":
            found["light"] = self.light
        elif float(shutter.tiles):
            found["light"] = "linear" if float(shutter.linear) > 0 else "stored"
        if self.stabilised != "found":
            found["stabilised"] = self.stabilised == "yes"
        elif float(stabiliser.frames):
            found["stabilised"] = bool(stabiliser.stabilised)
        return found


class LastFrames(NamedTuple):
    """The state of the part that gathers frames."""

    frames: Clip
    """The last four frames, oldest first."""
    present: Float[Array, 4]
    """1 for each of these that belongs to the video, else 0."""

    @classmethod
    def none(cls, batch: int, height: int, width: int) -> LastFrames:
        """Returns the state before the first frame."""
        return cls(jnp.zeros((batch, WINDOW - 1, height, width, 3)), jnp.zeros(WINDOW - 1))


class Window(NamedTuple):
    """Five frames, and how their tiles move."""

    frames: Float[Array, "B 5 H W 3"]
    moves: Float[Array, "B N 4 2"] | None
    """None for frames too small for a tile."""
    present: Float[Array, "B 5"]
    """1 for a frame, 0 for one beyond the video's ends or a jump."""
    still: Float[Array, "B H W"]
    """1 where nothing changes, as text, bars and a still background, which are not blurred."""
    first: Bool[Array, ""]
    """Whether the last of them is the first of its video."""
    here: Bool[Array, ""]
    """Whether the middle one belongs to the video."""
    alone: Bool[Array, ""]
    """Whether it has no neighbours, and so no path."""


class WatchState(NamedTuple):
    """The state of the part that watches the shutter."""

    shutter: Shutter
    """What is known of each video's shutter."""
    seen: Int[Array, ""]
    """The number of frames watched, in whole EVERY after those of the opening."""


class Fitted(NamedTuple):
    """What a frame is filtered from."""

    frames: Float[Array, "B 3 H W 3"]
    """The frame, between the one before and the one after."""
    fit: WindowFit | None
    """Its paths; None for frames too small for any."""
    still: Float[Array, "B H W"]
    """As in ``Window``, and 0 in a stabilised video, where blur stands still."""
    here: Bool[Array, ""]
    alone: Bool[Array, ""]
    """Both as in ``Window``."""


class Told(NamedTuple):
    """The results for the middle frames."""

    maps: Float[Array, "*leading H W 14"]
    """The maps of models/path_maps.py."""
    gate: Float[Array, "*leading h w"]
    paths: Float[Array, "*leading N 9 2"]
    second: Float[Array, "*leading"]
    """The share of the second network's change (gate.py)."""


class OverPaths(NamedTuple):
    """What the second network restores a frame from."""

    told: Told | None
    """The results of the paths; None for frames too small for any."""
    base: Frame
    blurred: Frame
    still: Float[Array, "B H W"]
    """As in ``Fitted``."""
    here: Bool[Array, ""]
    alone: Bool[Array, ""]
    """Both as in ``Window``."""


def tell(
    frames: Float[Array, "3 H W 3"],
    fit: WindowFit,
    base: Float[Array, "H W 3"],
    last: Float[Array, "H W 3"],
    excess: Excess,
) -> Told:
    """Returns the results of the paths for the middle of three frames.

    Args:
      frames: the middle three of a window, in [0, 1].
      fit: their paths.
      base: the middle frame as a network restores it, or unchanged.
      last: the previous frame, restored, as the gate left it.
      excess: what linear light added to the frames.
    """
    found = filtered(frames, fit, base, last, excess)
    # Without evidence of an open shutter, what the network changed is taken back.
    shown = frames[1] + fit.base_share * (base - frames[1])
    evidence = at_pixels(found.cells, *base.shape[:2])
    maps = path_maps(frames[1], shown, found.sharp, found.unexplained, evidence)
    return Told(maps, found.cells[..., 0], found.paths, fit.second)


def for_each(work: Callable[[Any], Any], videos: Any) -> Any:
    """Applies ``work`` to each video in turn; for one, without a loop, which would copy frames."""
    if len(jax.tree.leaves(videos)[0]) > 1:
        return lax.map(work, videos)
    made = work(jax.tree.map(lambda leaf: leaf[0], videos))
    return jax.tree.map(lambda leaf: leaf[None], made)
