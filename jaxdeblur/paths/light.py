"""Frames that were averaged in linear light, as if they had been averaged as stored.

A camera averages light, and its file holds about the 1/GAMMA-th power of it. Deconvolved in linear
light, a frame would have errors that are even there: in the dark, the conversion back multiplies
them. So what linear light changes is taken off the frames, and all else is done as stored:

    B'_j = B_j - [(K_j y^g)^(1/g) - K_j y]                                        g = GAMMA

with y the frame as deconvolved in linear light, on every second tile in each direction: the bracket
is blurred, and differs little between tiles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, frequencies, transfer
from jaxdeblur.paths.tiles import Tiling, cut, inner, over_tiles, overlap_add, taper
from jaxdeblur.paths.wiener import Tiles, luminance


def as_stored(
    frames: Float[Array, "3 H W"], base: Float[Array, "H W"], tiles: Tiles, tiling: Tiling
) -> Float[Array, "3 H W"]:
    """The frames' luminances as if they had been averaged as stored, B'.

    Args:
      frames: as stored, of the frames before, at and after.
      base: the prior's mean, as stored.
      tiles: their paths, fitted in linear light.
      tiling: of the frames.
    """
    few = tiling._replace(stride=2 * tiling.stride, size=5 * tiling.stride // 2)
    rows, columns = (
        np.minimum(2 * np.arange(n), m - 1) for n, m in zip(few.shape, tiling.shape, strict=True)
    )
    which = (rows[:, None] * tiling.shape[1] + columns).ravel()
    fit, offsets, weights = jax.tree.map(lambda x: x[which], tiles[:3])
    tiles = tiles._replace(fit=fit, offsets=offsets, weights=weights)
    made = luminance(frames**GAMMA, base**GAMMA, tiles, few)
    sharp = jnp.clip(made.sharp, 0.0, 1.0)
    excess = [_excess(sharp, tiles, few, j) for j in range(len(frames))]
    return frames - jnp.stack(excess)


def _excess(
    sharp: Float[Array, "H W"], tiles: Tiles, tiling: Tiling, j: int
) -> Float[Array, "H W"]:
    """The bracket for frame j, where it is in that frame; y is linear here."""
    n = tiling.n
    path = jnp.einsum("jp,npc->njc", tiles.basis[j], tiles.fit.knots) - tiles.offsets[:, None, j]
    # What is at a tile in frame j was as far from it in the middle frame.
    patches = cut(sharp[None], tiling, -jnp.round(tiles.offsets[:, j]).astype(int))

    def one(each: tuple[jax.Array, jax.Array]) -> Float[Array, "1 size size"]:
        patch, path = each
        kernel = transfer(path, SAMPLE_WEIGHTS[None], *frequencies(n))[0]
        both = jnp.concatenate([patch, patch ** (1 / GAMMA)])
        spectra = lax.complex(kernel[0], kernel[1]) * jnp.fft.rfft2(both)
        linear, stored = jnp.fft.irfft2(spectra, s=(n, n))
        return inner((jnp.clip(linear, 0.0, 1.0) ** (1 / GAMMA) - stored)[None], tiling)

    made = over_tiles(one, (patches, path))
    return overlap_add(made * taper(tiling.size, tiling.size - tiling.stride), tiling)[0]
