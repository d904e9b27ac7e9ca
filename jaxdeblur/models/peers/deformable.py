"""Modulated deformable convolution: each tap of a kernel reads where an offset sends it.

Source: "Deformable ConvNets v2" (Zhu et al., CVPR 2019), section 3.1; offsets and masks ordered as
in the operators of mmcv, BasicSR (Apache-2.0) and torchvision. It is a gather and a contraction, so
no operator has to be built; ``tests/models/peers/test_deformable.py`` has a version with loops.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jaxdeblur.shapes import Features, Kernel


def deformable_conv2d(
    x: Features,
    offsets: Float[Array, "B h w groups taps 2"],
    mask: Float[Array, "B h w groups taps"],
    kernel: Kernel,
) -> Float[Array, "B h w C_out"]:
    """Computes y(p) = sum over taps k of w_k . mask_k(p) x(p + k + offset_k(p)), without bias.

    Args:
      x: features; their channels are divided evenly among the groups.
      offsets: in pixels, (row, column), for each tap of each group of channels. Taps are numbered
        row by row; an offset of 0 reads a tap at its regular position.
      mask: factor of each tap's value.
      kernel: kernel of odd size, centred.

    Returns:
      The sum, computed in the dtype of ``x``. Values are bilinear between pixels and 0 outside.
    """
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    groups = offsets.shape[3]
    taps = jnp.asarray(
        list(
            itertools.product(
                range(-(rows // 2), rows // 2 + 1), range(-(columns // 2), columns // 2 + 1)
            )
        ),
        jnp.float32,
    )
    here = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    # In float32: bfloat16 cannot represent every pixel position beyond 256.
    places = here[:, :, None, None].astype(jnp.float32) + taps + offsets.astype(jnp.float32)
    sampled = (_sample(x, places) * mask.astype(jnp.float32)[..., None]).astype(x.dtype)
    columns_of = rearrange(sampled, "b h w g k c -> b h w (g k c)")
    weights = rearrange(kernel, "i j (g c) o -> (g i j c) o", g=groups).astype(x.dtype)
    return jnp.einsum("bhwk,ko->bhwo", columns_of, weights)


def _sample(
    x: Features, places: Float[Array, "B h w groups taps 2"]
) -> Float[Array, "B h w groups taps c"]:
    """Samples each group's channels bilinearly at (row, column), in float32; 0 outside x."""
    height, width = x.shape[1:3]
    groups = places.shape[3]
    # Everything far outside is 0. Clipping keeps indices within int32 and in the zero padding.
    places = jnp.clip(places, -2.0, jnp.asarray([height + 1.0, width + 1.0]))
    low = jnp.floor(places)
    down, right = jnp.moveaxis(places - low, -1, 0)[..., None]
    row, column = jnp.moveaxis(low.astype(jnp.int32) + 2, -1, 0)
    # The four pixels around a position form one row of a table: on a CPU the gradient of a gather
    # processes rows one by one, and this way it has a quarter as many.
    padded = jnp.pad(x, [(0, 0), (2, 3), (2, 3), (0, 0)])
    table = jnp.stack(
        [
            padded[:, i : i + height + 4, j : j + width + 4]
            for i, j in itertools.product((0, 1), repeat=2)
        ],
        axis=3,
    )
    table = rearrange(table, "b h w n (g c) -> b g (h w) (n c)", g=groups)
    index = rearrange(row * (width + 4) + column, "b h w g k -> b g (h w k) 1")
    around = jnp.take_along_axis(table, index, axis=2, mode="clip")
    around = rearrange(
        around, "b g (h w k) (n c) -> n b h w g k c", h=places.shape[1], w=places.shape[2], n=4
    )
    above = around[0] * (1 - right) + around[1] * right
    below = around[2] * (1 - right) + around[3] * right
    return above * (1 - down) + below * down
