"""Works on frames at half size where their blur is too long for a patch.

Such a frame is reduced, and mirrored beyond its borders up to its former size. So one program fits
and filters both, with the same tiles. Those beyond the reduced frame count for nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.images import reduce_size
from jaxdeblur.paths import motion
from jaxdeblur.paths.tiles import Tiling

MOST = 28.0
"""Pixels of blur in the median tile, above which patches at full size are too small."""


class Places(NamedTuple):
    """Where the N tiles of a tiling lie in a frame that fills the canvas or is reduced."""

    inward: Int[Array, "N 2"]
    """As ``Tiling.inward``, for the borders of the frame."""
    around: Float[Array, "N 2"]
    """As ``around_of``, for the middle of the frame."""
    near: Int[Array, " N"]
    """The tile itself, and for one beyond the frame the nearest that is not."""

    @property
    def inside(self) -> Float[Array, " N"]:
        """1 for the tiles of the frame, 0 beyond."""
        return (self.near == jnp.arange(len(self.near))) * 1.0

    @classmethod
    def of(cls, tiling: Tiling, reduced: Bool[Array, ""]) -> Places:
        """Returns the places in a frame that is ``reduced``, or not."""
        small = tiling._replace(height=-(-tiling.height // 2), width=-(-tiling.width // 2))
        rows, columns = (
            np.minimum(np.arange(n), m - 1) for n, m in zip(tiling.shape, small.shape, strict=True)
        )
        in_small = (rows[:, None] * small.shape[1] + columns).ravel()
        near = (rows[:, None] * tiling.shape[1] + columns).ravel()
        whole = tiling.inward, around_of(tiling), np.arange(len(near))
        half = small.inward[in_small], around_of(small)[in_small], near
        chosen = (jnp.where(reduced, a, b) for a, b in zip(half, whole, strict=True))
        return cls(*chosen)


def around_of(tiling: Tiling) -> Float[np.ndarray, "N 2"]:
    """Returns the direction (y, x) in which a turn by one radian moves each tile, in pixels."""
    size = np.array([tiling.height, tiling.width])
    y, x = (tiling.centres + tiling.inward - size / 2).T
    return np.stack([x, -y], 1).astype(np.float32)


def at_octave(images: Any, large: Bool[Array, ""], size: tuple[int, ...], axis: int = -2) -> Any:
    """Returns images as they are, or reduced if the blur is ``large``.

    Args:
      images: ``*leading H W``, or with rows and columns elsewhere.
      large: whether the median tile's blur exceeds MOST.
      size: of the frame, which may be too small to be reduced.
      axis: which one counts the rows; the next one counts the columns.
    """
    if motion.is_small(*size):
        return images

    def reduced(image: jax.Array) -> jax.Array:
        small = reduce_size(image, 2, axis)
        for along in (axis, axis + 1):
            n, whole = small.shape[along], image.shape[along]
            small = jnp.take(small, np.pad(np.arange(n), (0, whole - n), "symmetric"), along)
        return small

    return lax.cond(large, lambda: jax.tree.map(reduced, images), lambda: images)


def at_full_size(images: Any, large: Bool[Array, ""], size: tuple[int, ...]) -> Any:
    """Returns images ``*leading H W`` as they are, or enlarged if they were reduced."""
    if motion.is_small(*size):
        return images
    return lax.cond(large, lambda: jax.tree.map(enlarged, images), lambda: images)


def enlarged(images: Float[Array, "*leading H W"]) -> Float[Array, "*leading H W"]:
    """Returns images of a reduced frame, mirrored beyond it, at the frame's size."""
    *leading, height, width = images.shape
    rows, columns = -(-height // 2), -(-width // 2)
    whole = jax.image.resize(
        images[..., :rows, :columns], (*leading, 2 * rows, 2 * columns), "cubic"
    )
    return whole[..., :height, :width]
