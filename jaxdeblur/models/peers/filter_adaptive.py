"""Filter-adaptive convolution: every pixel of every channel has a filter of its own.

Source: Zhou et al., "Spatio-Temporal Filter Adaptive Network for Video Deblurring" (ICCV 2019),
section 3.2; sczhou/STFAN, models/FAC/kernelconv2d (a CUDA layer) and models/submodules.py (the
same in PyTorch's operators, which agrees), MIT.
"""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jaxdeblur.shapes import Features


def filter_adaptive_convolution(
    x: Features, filters: Float[Array, "B h w C_filters"], size: int
) -> Features:
    """Correlates ``x`` with filters of ``size x size`` taps that are given for each value of it.

    Args:
      x: ``B h w C``; beyond the border its first and last rows and columns are repeated.
      filters: ``B h w size*size*C``; tap (row i, column j) of channel c is channel
        ``size*size*c + size*i + j``.
      size: of the filters, odd.

    Returns:
      ``y[h, w, c] = sum_ij x[h + i - r, w + j - r, c] filters[h, w, (c, i, j)]``, r = size // 2,
      summed in float32, in the type of ``x``.
    """
    reach = size // 2
    height, width = x.shape[1:3]
    wide = x.astype(jnp.float32)
    padded = jnp.pad(wide, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    # All neighbours of a value in a row: as products of slices the gradient of the filters would
    # be a sum of 25 arrays as large as they are.
    neighbours = jnp.stack(
        [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)], -1
    )
    taps = rearrange(filters, "b h w (c k) -> b h w c k", k=size * size)
    summed = jnp.einsum("bhwck,bhwck->bhwc", neighbours, taps.astype(jnp.float32))
    return summed.astype(x.dtype)
