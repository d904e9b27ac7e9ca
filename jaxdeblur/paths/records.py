"""What the parts of a step keep and pass on to each other (restorer.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.models.path_maps import at_pixels, path_maps
from jaxdeblur.paths.estimate import filtered
from jaxdeblur.paths.light import ResponseCorrection
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.window_fit import WINDOW, WindowFit
from jaxdeblur.shapes import Clip, Frame

EVERY = 8
"""Interval, in frames, at which frames give evidence on the shutter, besides those that may tell
more than all before."""

FIRST = EVERY - WINDOW // 2
"""The first frames, which all do: those with their whole window in an opening of EVERY frames."""


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
    """The frame, between the one before and the one after, without what is written on them."""
    blurred: Frame
    """The frame as it is."""
    marked: Float[Array, "B H W"]
    """Where that was taken out: text, say (``motion.marked_of``)."""
    fit: WindowFit | None
    """Its paths; None for frames too small for any."""
    still: Float[Array, "B H W"]
    """As in ``Window``, and 0 in a stabilised video, where blur stands still."""
    here: Bool[Array, ""]
    alone: Bool[Array, ""]
    """Both as in ``Window``."""


class FusionInput(NamedTuple):
    """What the second network restores a frame from."""

    maps: Float[Array, "*leading H W 14"] | None
    """The maps of models/path_maps.py; None, like the next three, for frames too small for any."""
    gate: Float[Array, "*leading h w"] | None
    paths: Float[Array, "*leading N 9 2"] | None
    second: Float[Array, "*leading"] | None
    """The share of the second network's change (gate.py)."""
    base: Frame
    blurred: Frame
    still: Float[Array, "B H W"]
    """As in ``Fitted``."""
    here: Bool[Array, ""]
    alone: Bool[Array, ""]
    """Both as in ``Window``."""


def maps_of(
    frames: Float[Array, "3 H W 3"],
    fit: WindowFit,
    base: Float[Array, "H W 3"],
    last: Float[Array, "H W 3"],
    correction: ResponseCorrection,
) -> tuple[Float[Array, "H W 14"], Float[Array, "h w"], Float[Array, "N 9 2"], Float[Array, ""]]:
    """Filters the middle of three frames; returns its maps, gate, paths and the second share.

    Args:
      frames: the middle three of a window, in [0, 1].
      fit: their paths.
      base: the middle frame as a network restores it, or unchanged.
      last: the previous frame, restored, as the gate left it.
      correction: of the frames, from ``response_correction``.
    """
    found = filtered(frames, fit, base, last, correction)
    cells = at_pixels(found.cells, *base.shape[:2])
    maps = path_maps(frames[1], base, found.sharp, found.unexplained, cells)
    return maps, found.cells[..., 0], found.paths, fit.second


def for_each(work: Callable[[Any], Any], videos: Any) -> Any:
    """Applies ``work`` to each video in turn; for one, without a loop, which would copy frames."""
    if len(jax.tree.leaves(videos)[0]) > 1:
        return lax.map(work, videos)
    made = work(jax.tree.map(lambda leaf: leaf[0], videos))
    return jax.tree.map(lambda leaf: leaf[None], made)
