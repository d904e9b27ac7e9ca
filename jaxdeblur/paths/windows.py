"""Estimates blur paths for a batch of windows of five frames, each of its own video."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeblur.models.path_maps import at_pixels, gated, path_maps
from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.estimate import LEAST_SIDE, filtered
from jaxdeblur.paths.motion import connected, moves_of
from jaxdeblur.paths.prior import Past
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.watch import watch
from jaxdeblur.paths.window_fit import WINDOW, PastPaths, WindowFit, fit_window
from jaxdeblur.shapes import Frame

EVERY = 8
"""Interval, in frames, at which frames give evidence on the shutter."""

FIRST = EVERY - WINDOW // 2
"""The first frames, which all do: those with their whole window in an opening of EVERY frames."""


@dataclasses.dataclass(frozen=True)
class PathsConfig:
    """The configuration of a PathRestorer.

    Attributes:
      duty: the share of the time between frames that the shutter is open, above 0 and up to 1; 0
        finds it from the video.
      light: what the camera averaged, "stored" values or "linear" light; "found" finds it from the
        video.
    """

    duty: Share = 0.0
    light: Literal["found", "stored", "linear"] = "found"

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def asks(self) -> bool:
        """Whether the duty or the light is to be found from the video."""
        return not self.duty or self.light == "found"

    def found(self, shutters: Shutter) -> tuple[float, str] | None:
        """Returns duty and light of the first video, as given or as ``shutters`` know it.

        Without moving tiles nothing was found, and it returns None.
        """
        known = jax.tree.map(lambda leaf: leaf[0], shutters)
        if self.asks and not float(known.tiles):
            return None
        light = "linear" if float(known.linear) > 0 else "stored"
        light = light if self.light == "found" else self.light
        return self.duty or round(float(known.duty), 3), light


class Told(NamedTuple):
    """The results for the middle frames."""

    maps: Float[Array, "*leading H W 14"]
    """The maps of models/path_maps.py."""
    gate: Float[Array, "*leading h w"]
    paths: Float[Array, "*leading N 9 2"]


class Movement(NamedTuple):
    """How the tiles of windows of five frames move."""

    moves: Float[Array, "B N 4 2"]
    """From ``moves_of``."""
    present: Float[Array, "B 5"]
    """1 for each frame with the scene of the middle one, without a jump between (``connected``)."""


def watch_clips(
    config: PathsConfig,
    frames: Float[Array, "B 5 H W 3"],
    present: Float[Array, 5],
    shutter: Shutter,
    seen: Int[Array, ""],
) -> tuple[Movement | None, Shutter]:
    """Returns how tiles move, or None if frames are too small for tiles, and the updated shutters.

    Args:
      config: of the paths.
      frames: in [0, 1].
      present: 1 for a frame, 0 for one beyond the videos' ends.
      shutter: what is known from previous frames.
      seen: the number of previous frames.
    """
    if min(frames.shape[2:4]) < LEAST_SIDE:
        return None, shutter
    moves = _for_each(moves_of, frames)
    motion = Movement(moves, jax.vmap(connected, (0, None))(moves, present))
    if not config.asks:
        return motion, shutter
    observe = (seen < FIRST) | (seen % EVERY == EVERY - 1)
    known: Shutter = _for_each(
        lambda each: watch(each[0], *each[1], each[2], observe), (frames, motion, shutter)
    )
    return motion, known


def fit_clips(
    config: PathsConfig,
    frames: Float[Array, "B 5 H W 3"],
    motion: Movement,
    shutter: Shutter,
    past: PastPaths,
) -> WindowFit:
    """Returns the paths of the middle frames.

    Args:
      config, frames: as in ``watch_clips``.
      motion, shutter: its results.
      past: the paths of the previous frames.
    """
    light, duty = config.light, config.duty or None
    linear = None if light == "found" else light == "linear"

    def one(each: tuple[jax.Array, Movement, Shutter, PastPaths]) -> WindowFit:
        window, (moves, present), known, before = each
        return fit_window(window, moves, present, known, before, duty, linear)

    fit: WindowFit = _for_each(one, (frames, motion, shutter, past))
    return fit


def tell(
    frames: Float[Array, "B 3 H W 3"], fit: WindowFit, below: Frame, past: Past
) -> tuple[Told, Past]:
    """Returns the results of the paths for the middle frames, and what these pass on.

    Args:
      frames: the middle three of each window, in [0, 1].
      fit: from ``fit_clips``.
      below: the base.
      past: what the previous frames pass on.
    """

    def one(each: tuple[jax.Array, WindowFit, jax.Array, Past]) -> tuple[Told, Past]:
        window, fit, base, before = each
        found = filtered(window, fit, base, before)
        evidence = at_pixels(found.cells, *base.shape[:2])
        maps = path_maps(window[1], found.base, found.sharp, found.unexplained, evidence)
        told = Told(maps, found.cells[..., 0], found.paths)
        return told, Past(gated(maps), found.excess)

    made: tuple[Told, Past] = _for_each(one, (frames, fit, below, past))
    return made


def _for_each(work: Callable[[Any], Any], videos: Any) -> Any:
    """Applies ``work`` to each video in turn; for one, without a loop, which would copy frames."""
    if len(jax.tree.leaves(videos)[0]) > 1:
        return lax.map(work, videos)
    made = work(jax.tree.map(lambda leaf: leaf[0], videos))
    return jax.tree.map(lambda leaf: leaf[None], made)
