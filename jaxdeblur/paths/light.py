"""Converts frames averaged in linear light to frames as if averaged as stored.

A camera averages light, and its file holds about the 1/GAMMA-th power. Deconvolution in linear
light leaves errors that are uniform there, but multiplied in the dark by the conversion back. So
the effect of linear light is subtracted from the frames, and all else works on stored values:

    B'_j = B_j - [(K_j y^g)^(1/g) - K_j y]                                        g = GAMMA

for each colour. The luminance is first corrected with the base's luminance as y and deconvolved.
Then y is the base with that luminance. The bracket is blurred and differs little between tiles, so
tiles that hardly overlap are enough. Each takes the nearest path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.paths.motion import LUMA
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, frequencies, power, transfer
from jaxdeblur.paths.prior import Prior
from jaxdeblur.paths.tiles import Tiling, cut, inner, over_tiles, overlap_add, taper
from jaxdeblur.paths.wiener import Tiles, luminance


def as_stored(
    frames: Float[Array, "3 H W 3"], prior: Prior, tiles: Tiles, tiling: Tiling
) -> Float[Array, "3 H W 3"]:
    """Returns B', the frames as if averaged as stored.

    Args:
      frames: the previous, middle and next frame, as stored.
      prior: as stored, ``H W 3``.
      tiles: their paths, fitted in linear light.
      tiling: of the frames.
    """
    few = tiling._replace(stride=tiling.size, size=5 * tiling.size // 4)
    which = few.nearest(tiling)
    fit, offsets, weights = jax.tree.map(lambda x: x[which], tiles[:3])
    tiles = tiles._replace(fit=fit, offsets=offsets, weights=weights)

    def excess(sharp: Float[Array, "C H W"]) -> Float[Array, "3 C H W"]:
        y = jnp.clip(sharp, 0.0, 1.0)
        return jnp.stack([_excess(y, tiles, few, j) for j in range(len(frames))])

    base, bright = prior.base, prior.base @ LUMA
    corrected = frames @ LUMA - excess(bright[None])[:, 0]
    change = luminance(corrected, prior.map(lambda y: y @ LUMA), tiles, few).sharp - bright
    return frames - jnp.moveaxis(excess(jnp.moveaxis(base, -1, 0) + change), 1, -1)


def _excess(
    y: Float[Array, "C H W"], tiles: Tiles, tiling: Tiling, j: int
) -> Float[Array, "C H W"]:
    """Returns the bracket for frame j, at its position in that frame."""
    n = tiling.n
    path = jnp.einsum("jp,npc->njc", tiles.basis[j], tiles.fit.knots) - tiles.offsets[:, None, j]
    # Content at a tile in frame j lies at minus the offset in the middle frame.
    place = -jnp.round(tiles.offsets[:, j]).astype(int)
    patches = cut(jnp.concatenate([power(y, GAMMA), y]), tiling, place)

    def one(each: tuple[jax.Array, jax.Array]) -> Float[Array, "C size size"]:
        both, path = each
        kernel = transfer(path, SAMPLE_WEIGHTS[None], *frequencies(n))[0]
        spectra = lax.complex(kernel[0], kernel[1]) * jnp.fft.rfft2(both)
        linear, stored = jnp.split(inner(jnp.fft.irfft2(spectra, s=(n, n)), tiling), 2)
        return power(jnp.clip(linear, 0.0, 1.0), 1 / GAMMA) - stored

    made = over_tiles(one, (patches, path))
    return overlap_add(made * taper(tiling.size, tiling.size - tiling.stride), tiling)
