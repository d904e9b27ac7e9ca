"""Sizes, luma and gamma of images, on the device and, with NumPy, on the host."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

ImageT = TypeVar("ImageT", jax.Array, np.ndarray)

GAMMA = 2.2
"""Relates stored values to light: stored = light ** (1 / 2.2), as in GOPRO's ``blur_gamma``."""

REC_601 = 0.299, 0.587, 0.114
"""The weights of red, green and blue in luma (ITU-R BT.601)."""

LUMA = np.array(REC_601, np.float32)


def reduce_size(images: ImageT, factor: int | tuple[int, int], axis: int = -3) -> ImageT:
    """Averages blocks of pixels; the last row and column repeat to fill the last blocks.

    Args:
      images: ``... H W C``, of any floating dtype, on the device or the host.
      factor: the side of a block, or its rows and columns.
      axis: which axis counts the rows; the next one counts the columns.

    Returns:
      Images with ``ceil(H / rows)`` rows and ``ceil(W / columns)`` columns.
    """
    rows, columns = (factor, factor) if isinstance(factor, int) else factor
    if (rows, columns) == (1, 1):
        return images
    axis %= images.ndim
    height, width = images.shape[axis : axis + 2]
    ends = [(0, 0)] * images.ndim
    ends[axis : axis + 2] = (0, -height % rows), (0, -width % columns)
    blocks = [*images.shape]
    blocks[axis : axis + 2] = -(-height // rows), rows, -(-width // columns), columns
    if any(end for _, end in ends):  # Else JAX would add arrays of size 0, which ONNX misreads.
        pad = jnp.pad if isinstance(images, jax.Array) else np.pad
        images = pad(images, ends, mode="edge")
    return images.reshape(blocks).mean((axis + 1, axis + 3))


def halved(image: Float[Array, "*leading H W"]) -> Float[Array, "*leading h w"]:
    """Averages 2 x 2 pixels of an image without channels; an odd border is repeated."""
    return reduce_size(image, 2, axis=-2)


def enlarge(images: Float[Array, "*leading h w C"], factor: int) -> Float[Array, "*leading H W C"]:
    """Enlarges bilinearly by an integer factor; pixels are areas, edges are replicated."""
    if factor == 1:
        return images
    wider = enlarge_along(images, images.ndim - 2, factor)
    return enlarge_along(wider, images.ndim - 3, factor)


def enlarge_along(x: Float[Array, "*in"], axis: int, factor: int) -> Float[Array, "*out"]:
    """Enlarges one axis as ``enlarge`` does; it becomes ``factor`` times as long."""
    # Computed as weighted sums of neighbours: jax.image.resize multiplies by a matrix of size rows
    # and size * factor columns, ten times the work on a CPU (640x360 to 1280x720).
    size = x.shape[axis]
    inside = [
        lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, 1), (0, size), (size - 1, size))
    ]
    padded = jnp.concatenate(inside, axis)
    before, after = (lax.slice_in_dim(padded, k, k + size, axis=axis) for k in (0, 2))
    parts = []
    for part in range(factor):
        # From the centre of a pixel to the centre of this part of it, in pixels.
        way = (part + 0.5) / factor - 0.5
        parts.append((1 - abs(way)) * x + abs(way) * (before if way < 0 else after))
    shape = list(x.shape)
    shape[axis] *= factor
    return jnp.stack(parts, axis + 1).reshape(shape)


def power(base: Float[Array, "*S"], exponent: jax.Array | float) -> Float[Array, "*S"]:
    """Returns ``base ** exponent``, 0 for a base below 0; on a CPU, XLA's own takes longer."""
    positive = base > 0
    # The inner choice keeps the slope of the logarithm at 0, which is infinite, out of gradients.
    return jnp.where(positive, jnp.exp(jnp.log(jnp.where(positive, base, 1)) * exponent), 0)


def smoothstep(x: jax.Array, low: float, high: float) -> jax.Array:
    """Returns 0 below ``low``, 1 above ``high`` and a smooth transition between."""
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
