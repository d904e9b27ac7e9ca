"""Explanation: maps of what a model blended, attended to or followed in each frame.

A model that can explain itself has a method ``explain_clip(clip: Clip) -> Explanation``. It runs on
a clip with the same padding and the same parameters as ``restore_clip``. The maps have the size of
the features; the report (``jaxdeblur/evaluation/report.py``) overlays them on the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxdeblur.shapes import Clip


@dataclass(frozen=True)
class AttentionMaps:
    """The maps of one factorised spatio-temporal attention block (attention, eq. 1, 3 and 5).

    All are softmax weights in [0, 1]. ``K = M * N``; combination ``k = m * N + n`` pairs spatial
    map m with temporal map n.

    Attributes:
      name: the block's place in the network, as the report prints it: "level 1, 1/4 of the size".
      spatial_maps: A_s of each frame; each map sums to 1 over its ``h w`` pixels.
      temporal_maps: A_t of the window around each frame; sums to 1 over the window. A model whose
        temporal maps differ between the spatial maps gives their mean over M.
      pixel_mix: A_p of each frame; sums to 1 over K at every pixel.
      offsets: the frame at each place of the window, relative to the current one: (-2, ..., 2).
    """

    name: str
    spatial_maps: Float[Array, "B T M h w"]
    temporal_maps: Float[Array, "B T N window"]
    pixel_mix: Float[Array, "B T h w K"]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """A model's maps for every frame of a clip; those that it does not have are empty.

    Attributes:
      blending_weights: w_n of dynamic temporal blending (eq. 2), averaged over channels, in [0, 1]:
        0 keeps the blended past, 1 takes the new frame.
      attention: the maps of each attention block, first block first.
      gate: weight of the frame deconvolved along its blur paths, in [0, 1], in cells of 16 pixels
        from the frame's corner (jaxdeblur/paths/gate.py).
      paths: for each of N tiles, S points (y, x) in frame pixels: the tile's centre, moved as the
        image moves there during the exposure, at evenly spaced times.
    """

    blending_weights: Float[Array, "B T h w"] | None = None
    attention: tuple[AttentionMaps, ...] = ()
    gate: Float[Array, "B T rows columns"] | None = None
    paths: Float[Array, "B T N S 2"] | None = None


def _register(cls: Any, *static: str) -> None:
    """Makes a dataclass a pytree, so that ``explain_clip`` can be jitted.

    Unflattening bypasses ``__init__``, whose checked annotations would reject JAX's placeholders.
    """
    arrays = tuple(field.name for field in fields(cls) if field.name not in static)

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, n) for n in arrays], tuple(getattr(value, n) for n in static)

    def unflatten(meta: tuple[Any, ...], leaves: Any) -> Any:
        value = object.__new__(cls)
        value.__dict__.update(zip((*static, *arrays), (*meta, *leaves), strict=True))
        return value

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)


_register(AttentionMaps, "name", "offsets")
_register(Explanation)


def explainer(model: Any) -> Callable[[Clip], Explanation] | None:
    """Returns the model's ``explain_clip``, or None if it has none."""
    return getattr(model, "explain_clip", None)
