"""Converts frames averaged in linear light to frames as if averaged as stored.

A camera averages light, and its file holds about the 1/GAMMA-th power. Deconvolution in linear
light leaves errors that are uniform there, but multiplied in the dark by the conversion back. So
the effect of linear light is subtracted from the frames, and all else works on stored values:

    B'_j = B_j - [(K_j y^g)^(1/g) - K_j y]                                        g = GAMMA

for each colour. The previous frame keeps the bracket found when it was the middle one, from its
own base and path. The luminance is first corrected with the base's luminance as y and deconvolved.
Then y is the base with that luminance. The bracket is blurred and differs little between tiles, so
tiles that hardly overlap are enough. Each takes the nearest path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.paths.motion import LUMA
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, frequencies, power, transfer
from jaxdeblur.paths.tiles import Tiling, cut, inner, over_tiles, overlap_add, taper
from jaxdeblur.paths.wiener import Prior, Tiles, luminance


def as_stored(
    frames: Float[Array, "3 H W 3"],
    known: Float[Array, "H W 3"],
    prior: Prior,
    tiles: Tiles,
    tiling: Tiling,
) -> Float[Array, "3 H W 3"]:
    """Returns B', the frames as if averaged as stored.

    Args:
      frames: the previous, middle and next frame, as stored.
      known: the bracket of the previous frame, from when it was the middle one; zeros if unknown.
      prior: as stored, ``H W 3``.
      tiles: their paths, fitted in linear light.
      tiling: of the frames.
    """
    few = tiling._replace(stride=tiling.size, size=5 * tiling.size // 4)
    which = few.nearest(tiling)
    fit, offsets, weights = jax.tree.map(lambda x: x[which], tiles[:3])
    tiles = tiles._replace(fit=fit, offsets=offsets, weights=weights)

    # Without a previous frame, its bracket is not needed.
    first = jnp.where(jnp.any(known != 0) | (prior.has_last == 0), 1, 0)

    def excess(
        sharp: Float[Array, "C H W"], of_previous: Float[Array, "C H W"]
    ) -> Float[Array, "3 C H W"]:
        y = jnp.clip(sharp, 0.0, 1.0)

        def with_frame(j: Int[Array, ""], made: Float[Array, "3 C H W"]) -> Float[Array, "3 C H W"]:
            return made.at[j].set(_excess(y, tiles, few, j))

        start = jnp.zeros((len(frames), *y.shape)).at[0].set(of_previous)
        return lax.fori_loop(first, len(frames), with_frame, start)

    base, bright = jnp.moveaxis(prior.base, -1, 0), prior.base @ LUMA
    corrected = frames @ LUMA - excess(bright[None], (known @ LUMA)[None])[:, 0]
    change = luminance(corrected, prior.map(lambda y: y @ LUMA), tiles, few).sharp - bright
    return frames - jnp.moveaxis(excess(base + change, jnp.moveaxis(known, -1, 0)), 1, -1)


def _excess(
    y: Float[Array, "C H W"], tiles: Tiles, tiling: Tiling, j: Int[Array, ""]
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
