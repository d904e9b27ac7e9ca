"""Finds what averaging in linear light added to frames, so that it can be subtracted.

A camera averages light, and its file holds about the 1/GAMMA-th power. Deconvolution in linear
light leaves errors that are uniform there, but multiplied in the dark by the conversion back. So
all else works on frames as if averaged as stored:

    B'_j = B_j - [(K_j y^g)^(1/g) - K_j y]                                        g = GAMMA

for each colour. The luminance is first corrected with the base's luminance as y and deconvolved,
without the restored frame before, so that this can run beside its filter. Then y is the base with
that luminance. The previous frame reuses the bracket computed when it was the middle frame. It
differs little between neighbouring tiles, so tiles that hardly overlap are enough. Each takes the
nearest path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeblur.images import GAMMA, LUMA, halved, power
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, frequencies, otf
from jaxdeblur.paths.tiles import Tiling, cutter, inner, over_tiles, overlap_add, taper
from jaxdeblur.paths.wiener import Prior, Tiles, filtered_channels

_RAMP, _MARGIN = 16, 8  # Pixels by which a tile of the bracket overlaps others, and a patch a tile.


class ResponseCorrection(NamedTuple):
    """What the camera's response to light added to frames: the bracket in B'; zeros if none."""

    luminance: Float[Array, "*frames H W"]
    colours: Float[Array, "*frames 2 h w"]
    """Of red and blue, minus that of the luminance, at half size."""

    @classmethod
    def unknown(cls, height: int, width: int, *leading: int) -> ResponseCorrection:
        """Returns zeros for one frame; for several frames or videos, with those leading axes."""
        half = -(-height // 2), -(-width // 2)
        return cls(jnp.zeros((*leading, height, width)), jnp.zeros((*leading, 2, *half)))


def corrections_of(
    frames: Float[Array, "3 H W"],
    base: Float[Array, "3 H W"],
    known: ResponseCorrection,
    tiles: Tiles,
    tiling: Tiling,
) -> ResponseCorrection:
    """Returns the brackets of three frames averaged in linear light.

    Args:
      frames: luminances of the previous, middle and next frame, as stored.
      base: the middle frame as a network restores it, or unchanged, in [0, 1].
      known: the bracket of the previous frame; zeros if unknown.
      tiles: their paths, fitted in linear light.
      tiling: of the frames.
    """
    few = tiling._replace(stride=tiling.size, size=5 * tiling.size // 4)
    which = few.nearest(tiling)
    fit, offsets, shifts, weights = jax.tree.map(lambda x: x[which], tiles[:4])
    tiles = tiles._replace(fit=fit, offsets=offsets, shifts=shifts, weights=weights)
    size = few.stride + _RAMP
    close = few._replace(size=size, n=size + 2 * _MARGIN)
    # Without a previous frame, its bracket is not needed.
    unknown = (weights[0, 0] > 0) & ~jnp.any(known.luminance != 0)

    def of_frames(of: Callable[[Int[Array, ""]], Any], before: Any) -> Any:
        """Stacks what ``of`` returns for each frame, or ``before`` for the first if it is known."""
        one_of = jax.jit(of)
        return lax.map(
            lambda j: lax.cond(unknown | (j > 0), lambda: one_of(j), lambda: before), jnp.arange(3)
        )

    def bracket(y: Float[Array, "C H W"], j: Int[Array, ""]) -> Float[Array, "C H W"]:
        return _bracket(jnp.clip(y, 0.0, 1.0), tiles, close, j)

    def correction(j: Int[Array, ""]) -> ResponseCorrection:
        made = bracket(y, j)
        luminance = jnp.einsum("c,chw->hw", LUMA, made)
        return ResponseCorrection(luminance, halved(made[jnp.array([0, 2])] - luminance))

    bright = jnp.einsum("c,chw->hw", LUMA, base)[None]
    seen = frames[:, None] - of_frames(lambda j: bracket(bright, j), known.luminance[None])
    prior = Prior(bright, bright, jnp.float32(0))
    window = jnp.asarray(taper(few.size, few.size - few.stride))[None, None]
    y = base + filtered_channels(seen, prior, tiles, few, window) - bright
    corrections: ResponseCorrection = of_frames(correction, known)
    return corrections


def _bracket(
    y: Float[Array, "C H W"], tiles: Tiles, tiling: Tiling, j: Int[Array, ""]
) -> Float[Array, "C H W"]:
    """Returns the bracket for frame j, at its position in that frame."""
    n = tiling.n
    seen = (tiles.offsets + tiles.shifts)[:, None, j]
    path = jnp.einsum("jp,npc->njc", tiles.basis[j], tiles.fit.knots) - seen
    # Content at a tile in frame j lies at minus the offset in the middle frame.
    place = -jnp.round(tiles.offsets[:, j]).astype(int)
    patch = cutter(jnp.concatenate([power(y, GAMMA), y]), tiling)

    def one(each: tuple[jax.Array, jax.Array, jax.Array]) -> Float[Array, "C size size"]:
        centre, place, path = each
        kernel = otf(path, SAMPLE_WEIGHTS[None], *frequencies(n))[0]
        spectra = lax.complex(kernel[0], kernel[1]) * jnp.fft.rfft2(patch(centre, place))
        linear, stored = jnp.split(inner(jnp.fft.irfft2(spectra, s=(n, n)), tiling), 2)
        return power(jnp.clip(linear, 0.0, 1.0), 1 / GAMMA) - stored

    made = over_tiles(one, (jnp.asarray(tiling.centres), place, path))
    return overlap_add(made * taper(tiling.size, tiling.size - tiling.stride), tiling)
