"""Modulated deformable convolution: each tap of a kernel reads where an offset sends it.

Source: "Deformable ConvNets v2" (Zhu et al., CVPR 2019), section 3.1; offsets and masks ordered as
in the operators of mmcv, BasicSR (Apache-2.0) and torchvision. A gather and one contraction, with
no operator to build; ``tests/models/peers/test_deformable.py`` has it as loops.
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
    """y(p) = sum over taps k of w_k . mask_k(p) x(p + k + offset_k(p)), without bias.

    Args:
      x: the features, whose channels are shared out evenly over the groups.
      offsets: in pixels, rows then columns, for each tap of each group of channels; a tap is
        counted row by row, and read at its usual place where its offset is 0.
      mask: what each tap's value is multiplied with.
      kernel: of odd size, centred.

    Returns:
      The sum, computed in x's type. Between pixels, values are bilinear, and outside they are 0.
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
    # In float32: bfloat16 has no pixel's place beyond 256.
    places = here[:, :, None, None].astype(jnp.float32) + taps + offsets.astype(jnp.float32)
    sampled = (_sample(x, places) * mask.astype(jnp.float32)[..., None]).astype(x.dtype)
    columns_of = rearrange(sampled, "b h w g k c -> b h w (g k c)")
    weights = rearrange(kernel, "i j (g c) o -> (g i j c) o", g=groups).astype(x.dtype)
    return jnp.einsum("bhwk,ko->bhwo", columns_of, weights)


def _sample(
    x: Features, places: Float[Array, "B h w groups taps 2"]
) -> Float[Array, "B h w groups taps c"]:
    """Bilinear values of each group's channels at (row, column), float32; 0 outside x."""
    height, width = x.shape[1:3]
    groups = places.shape[3]
    # Far outside everything is 0: so whole numbers stay within int32 and on the zeros around.
    places = jnp.clip(places, -2.0, jnp.asarray([height + 1.0, width + 1.0]))
    low = jnp.floor(places)
    down, right = jnp.moveaxis(places - low, -1, 0)[..., None]
    row, column = jnp.moveaxis(low.astype(jnp.int32) + 2, -1, 0)
    # The four pixels around a place are a row of one table: on a CPU the gradient of a gather takes
    # its rows one by one, and so there are a quarter of them.
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
