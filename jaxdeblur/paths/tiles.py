"""Cuts an image into overlapping patches, applies work to each, and reassembles the image.

Shapes: N tiles in rows and columns, patches of ``n`` x ``n`` pixels, P free knots, Q = 2 P numbers
per path. All coordinates are (y, x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

REACH = 64
"""The largest offset of a patch from its tile, in pixels of the image that is cut."""


class Tiling(NamedTuple):
    """Tiles ``size`` pixels wide and ``stride`` pixels apart, in patches ``n`` pixels wide."""

    height: int
    width: int
    stride: int
    size: int
    n: int

    @property
    def shape(self) -> tuple[int, int]:
        """The number of tiles in a column and in a row."""
        return -(-self.height // self.stride) + 1, -(-self.width // self.stride) + 1

    @property
    def centres(self) -> Int[np.ndarray, "N 2"]:
        """The centre of each tile, row by row."""
        rows, columns = self.shape
        places = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        return np.stack(places, -1).reshape(-1, 2) * self.stride

    @property
    def inward(self) -> Int[np.ndarray, "N 2"]:
        """The offset that moves each patch into the image, except for an eighth of its side."""
        size = np.array([self.height, self.width])
        border = np.minimum(3 * self.n // 8, size // 2)
        return np.clip(self.centres, border, size - border) - self.centres

    def reduced(self, scale: int) -> Tiling:
        """Returns the same tiles for the image at ``1/scale`` of its size."""
        size = -(-self.height // scale), -(-self.width // scale)
        return Tiling(*size, self.stride // scale, self.size // scale, self.n // scale)

    def nearest(self, other: Tiling, scale: int = 1) -> Int[np.ndarray, " N"]:
        """Returns the tiles of ``other``, which cuts the image at ``1/scale``, nearest to these."""
        rows, columns = (
            np.minimum(np.rint(np.arange(n) * self.stride / (scale * other.stride)), m - 1)
            for n, m in zip(self.shape, other.shape, strict=True)
        )
        return (rows[:, None] * other.shape[1] + columns).ravel().astype(int)


def cutter(
    image: Float[Array, "C H W"], tiling: Tiling, mirrored: bool = True
) -> Callable[[Int[Array, 2], Int[Array, 2] | int], Float[Array, "C n n"]]:
    """Returns a function from a tile's centre and the patch's integer offset to the patch.

    Beyond its borders, the image continues mirrored or as zeros.
    """
    rows, columns = tiling.shape
    border = tiling.n // 2 + REACH
    below = (rows - 1) * tiling.stride + border - tiling.height
    right = (columns - 1) * tiling.stride + border - tiling.width
    if mirrored:  # By indices: ``jnp.pad`` takes longer, above all to compile.
        at_row = np.pad(np.arange(tiling.height), (border, below), "symmetric")
        at_column = np.pad(np.arange(tiling.width), (border, right), "symmetric")
        padded = image[:, at_row[:, None], at_column]
    else:
        padded = jnp.pad(image, ((0, 0), (border, below), (border, right)))

    def one(centre: Int[Array, 2], offset: Int[Array, 2] | int) -> Float[Array, "C n n"]:
        corner = centre + REACH + jnp.clip(offset, -REACH, REACH)
        return lax.dynamic_slice(padded, (0, *corner), (len(image), tiling.n, tiling.n))

    return one


def cut(
    image: Float[Array, "C H W"],
    tiling: Tiling,
    offsets: Int[Array, "N 2"] | None = None,
    mirrored: bool = True,
    only: Int[Array, " N"] | None = None,
    inward: Int[Array, "M 2"] | None = None,
) -> Float[Array, "N C n n"]:
    """Cuts the patch of each tile, moved by an integer offset of at most REACH.

    Args:
      image, tiling, mirrored: as in ``cutter``.
      offsets: (y, x) of each patch; None for zero.
      only: which tiles; None for all.
      inward: what moves patches at the borders inside (``Tiling.inward``), besides.
    """
    one, centres = cutter(image, tiling, mirrored), jnp.asarray(tiling.centres)
    centres = centres if inward is None else centres + inward
    centres = centres if only is None else centres[only]
    offsets = jnp.zeros_like(centres) if offsets is None else offsets
    return over_tiles(lambda each: one(*each), (centres, offsets))


def inner(patches: Float[Array, "C n n"], tiling: Tiling) -> Float[Array, "C size size"]:
    """Crops a patch to its tile."""
    margin = (tiling.n - tiling.size) // 2
    return patches[:, margin : tiling.n - margin, margin : tiling.n - margin]


def overlap_add(tiles: Float[Array, "N C size size"], tiling: Tiling) -> Float[Array, "C H W"]:
    """Sums overlapping tiles at their positions."""
    rows, columns = tiling.shape
    stride, over = tiling.stride, -(-tiling.size // tiling.stride)
    channels, spare = tiles.shape[1], over * tiling.stride - tiling.size
    tiles = jnp.pad(tiles, ((0, 0), (0, 0), (0, spare), (0, spare)))
    tiles = tiles.reshape(rows, columns, channels, over, stride, over, stride)
    sheet = jnp.float32(0)
    for a in range(over):
        for b in range(over):
            part = tiles[:, :, :, a, :, b].transpose(2, 0, 3, 1, 4)
            rest = [(0, 0), (a, over - 1 - a), (0, 0), (b, over - 1 - b), (0, 0)]
            sheet = sheet + jnp.pad(part, rest)  # Compiles faster than ``at[].add``.
    image = sheet.reshape(channels, (rows + over - 1) * stride, (columns + over - 1) * stride)
    top = tiling.size // 2
    return image[:, top : top + tiling.height, top : top + tiling.width]


def hann(n: int) -> Float[np.ndarray, "n n"]:
    """Returns a window that is a squared sine over the whole patch."""
    return _outer(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2)


def taper(n: int, ramp: int) -> Float[np.ndarray, "n n"]:
    """Returns a window of ones with squared-sine ramps at the borders."""
    rise = np.sin(0.5 * np.pi * (np.arange(ramp) + 0.5) / ramp) ** 2
    return _outer(np.concatenate([rise, np.ones(n - 2 * ramp), rise[::-1]]))


def _outer(v: np.ndarray) -> Float[np.ndarray, "n n"]:
    return (v[:, None] * v).astype(np.float32)


def over_tiles(work: Callable[[Any], Any], tiles: Any) -> Any:
    """Applies ``work`` to each tile: in turn on a CPU, whose caches hold one, else all at once."""
    traced_once = jax.jit(work)
    return lax.platform_dependent(
        tiles, cpu=lambda each: lax.map(traced_once, each), default=jax.vmap(traced_once)
    )
