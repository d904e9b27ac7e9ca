"""The frame without its blur: a Wiener filter over the three frames, tile by tile.

    X  = (sum_j w'_j conj(K_j) B_j + l Y) / (sum_j w'_j |K_j|^2 + l)                  l = LAM lam(f)
    X' = (sum_j w'_j conj(K_j) B_j + l Y + beta |grad|^2 Z)
         / (sum_j w'_j |K_j|^2 + l + beta |grad|^2)

with w'_0 = 1 and w'_j = NEIGHBOUR w_j. Y is the base: the frame as a network restores it, the mean
of the prior. Where the transfer functions are near zero, blurred frames tell nothing, and a filter
about zero would ring; about Y it shows what the network sees there. Z has the gradients of X but
for the small ones, which are ringing: one step of half-quadratic splitting for a sparse prior
(Krishnan and Fergus, "Fast image deconvolution using hyper-Laplacian priors", NIPS 2009), for the
luminance alone.

Each pixel lies in several tiles, whose paths differ where things move apart. A tile counts there by

    v = window / R^4

with R the mean over a cell of 8 x 8 pixels of (K_0 X - B)^2: a path that is another thing's leaves
much unexplained.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxdeblur.paths.likelihood import Fit, radial_shares
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, extent, frequencies, transfer
from jaxdeblur.paths.tiles import Tiling, cut, inner, over_tiles, overlap_add, taper

NEIGHBOUR = 0.5
"""Of a neighbour's trust: an error of its path hurts more than its share of the light helps."""

LAM = 0.375
"""Of the fitted ratio of noise to signal, which counts errors of the model near the borders of the
window as noise. Chosen on validation clips (docs/lab/paths.md)."""

THRESHOLD = 0.03
"""Gradients below it, of a range of 1, count as ringing."""

_CELL, _POWER = 8, 4
_FLOOR, _TYPICAL = 1e-6, 1e-4  # Of R; the latter only keeps its power in the range of float32.


class Luminance(NamedTuple):
    """What the filter makes of the luminance, images ``H W``."""

    sharp: Float[Array, "H W"]
    residual: Float[Array, "H W"]
    """K_0 X - B: what the path does not explain."""
    disagreement: Float[Array, "H W"]
    """X of the neighbours alone minus X of the frame alone."""
    shares: Float[Array, "N 1 size size"]
    """v of each tile, such that they add up to one."""


class Tiles(NamedTuple):
    """What is known of N tiles before they are filtered."""

    fit: Fit
    offsets: Float[Array, "N 3 2"]
    """Where the patches are cut, in even pixels of the whole image, (y, x)."""
    weights: Float[Array, "N 3"]
    """w'_j, 0 for a frame beyond the video's ends."""
    duty: Float[Array, ""]
    basis: Float[Array, "3 J P"]
    """The spline at the samples of the exposures (``path.exposures``)."""


def luminance(
    frames: Float[Array, "3 H W"], base: Float[Array, "H W"], tiles: Tiles, tiling: Tiling
) -> Luminance:
    """The middle frame's luminance without its blur, and how well it explains the three frames.

    Args:
      frames: luminances of the frames before, at and after.
      base: that of the prior's mean, Y.
      tiles: their paths.
      tiling: of the frames.
    """
    n = tiling.n
    steps = [1 - np.exp(-2j * np.pi * f) for f in (np.fft.fftfreq(n), np.fft.rfftfreq(n))]
    roughness = (np.abs(steps[0])[:, None] ** 2 + np.abs(steps[1]) ** 2).astype(np.float32)
    beta = jnp.clip(0.01 * extent(tiles.fit.knots, tiles.duty), 0.05, 0.3)

    def one(each: tuple[_Patches, jax.Array]) -> Float[Array, "3 size size"]:
        patches, beta = each
        terms = _terms(patches, tiles.basis, tiling, 1)
        numerator, energy = terms.numerator.sum(0) + terms.ratio * terms.base, terms.energy.sum(0)
        first = jnp.fft.irfft2(numerator / (energy + terms.ratio), s=(n, n))
        smooth = jnp.fft.rfft2(_without_small_gradients(first[0]))
        sharp = (numerator + beta * smooth) / (energy + terms.ratio + beta * roughness)
        own = terms.numerator[1] / (terms.energy[1] + terms.ratio)
        others = (terms.numerator[0] + terms.numerator[2]) / (
            terms.energy[0] + terms.energy[2] + terms.ratio
        )
        residual = terms.kernel * sharp - terms.spectrum
        parts = jnp.fft.irfft2(jnp.concatenate([sharp, residual, others - own]), s=(n, n))
        return inner(parts, tiling).at[0].add(terms.mean[0])

    made = over_tiles(one, (_patches(frames[:, None], base[None], tiles, tiling, 1), beta))
    shares = _shares(made[:, 1], tiling)
    sharp, residual, disagreement = overlap_add(made * shares, tiling)
    return Luminance(sharp, residual, disagreement, shares)


def chrominance(
    frames: Float[Array, "3 C H W"],
    base: Float[Array, "C H W"],
    tiles: Tiles,
    tiling: Tiling,
    shares: Float[Array, "N 1 size size"],
) -> Float[Array, "C H W"]:
    """Channels at half size without their blur: X.

    Args:
      frames: the channels of the three frames, reduced by 2.
      base: those of the prior's mean, reduced alike.
      tiles: the paths, in pixels of the whole frame.
      tiling: of the reduced frames.
      shares: of ``luminance``.
    """
    n = tiling.n

    def one(patches: _Patches) -> Float[Array, "C size size"]:
        terms = _terms(patches, tiles.basis, tiling, 2)
        numerator = terms.numerator.sum(0) + terms.ratio * terms.base
        sharp = numerator / (terms.energy.sum(0) + terms.ratio)
        return inner(jnp.fft.irfft2(sharp, s=(n, n)), tiling) + terms.mean

    made = over_tiles(one, _patches(frames, base, tiles, tiling, 2))
    return overlap_add(made * reduce(shares, "n c (y 2) (x 2) -> n c y x", "mean"), tiling)


def _shares(residual: Float[Array, "N size size"], tiling: Tiling) -> Float[Array, "N 1 size size"]:
    """v of each tile from what its path leaves unexplained."""
    cells = reduce(residual**2, "n (y a) (x b) -> n y x", "mean", a=_CELL, b=_CELL)
    value = (_TYPICAL / (cells + _FLOOR)) ** _POWER
    value = jax.image.resize(value, residual.shape, "linear")
    value = value[:, None] * taper(tiling.size, tiling.size - tiling.stride)
    total = overlap_add(value, tiling)
    return value / cut(total, tiling._replace(n=tiling.size))


class _Patches(NamedTuple):
    """Of one tile, or of N with a leading axis."""

    frames: Float[Array, "3 C n n"]
    base: Float[Array, "C n n"]
    fit: Fit
    offsets: Float[Array, "3 2"]
    weights: Float[Array, 3]


class _Terms(NamedTuple):
    numerator: Complex[Array, "3 C n m"]
    energy: Float[Array, "3 n m"]
    ratio: Float[Array, "n m"]
    base: Complex[Array, "C n m"]
    kernel: Complex[Array, "n m"]
    spectrum: Complex[Array, "C n m"]
    mean: Float[Array, "C 1 1"]


def _terms(patches: _Patches, basis: jax.Array, tiling: Tiling, scale: int) -> _Terms:
    """w'_j conj(K_j) B_j, w'_j |K_j|^2, l and Y at all frequencies of a tile."""
    n = tiling.n
    edge = taper(n, 3 * (n - tiling.size) // 8)
    at = frequencies(n, scale)
    mean = patches.frames.mean((-2, -1), keepdims=True)
    spectra = jnp.fft.rfft2((patches.frames - mean) * edge)
    path = jnp.einsum("mjp,pc->mjc", basis, patches.fit.knots) - patches.offsets[:, None]
    once = SAMPLE_WEIGHTS[None]
    kernel = jnp.stack([transfer(p, once, *at)[0] for p in path])
    energy = patches.weights[:, None, None] * (kernel**2).sum(1)
    k = lax.complex(kernel[:, 0], kernel[:, 1])
    numerator = patches.weights[:, None, None, None] * jnp.conj(k)[:, None] * spectra
    log_ratio = jnp.einsum("r,ryx->yx", patches.fit.spectrum, radial_shares(*at))
    base = jnp.fft.rfft2((patches.base - mean[1]) * edge)
    return _Terms(numerator, energy, LAM * jnp.exp(log_ratio), base, k[1], spectra[1], mean[1])


def _without_small_gradients(image: Float[Array, "n n"]) -> Float[Array, "1 n n"]:
    """Minus the divergence of what a shrinkage leaves of the gradients."""
    dy, dx = image - jnp.roll(image, 1, 0), image - jnp.roll(image, 1, 1)
    keep = jnp.maximum(1 - THRESHOLD**2 / (dy**2 + dx**2 + 1e-12), 0)
    dy, dx = dy * keep, dx * keep
    return (dy - jnp.roll(dy, -1, 0) + dx - jnp.roll(dx, -1, 1))[None]


def _patches(
    frames: Float[Array, "3 C H W"],
    base: Float[Array, "C H W"],
    tiles: Tiles,
    tiling: Tiling,
    scale: int,
) -> _Patches:
    whole = jnp.round(tiles.offsets / scale).astype(int)
    cuts = jnp.stack([cut(frame, tiling, whole[:, j]) for j, frame in enumerate(frames)], 1)
    return _Patches(cuts, cut(base, tiling), tiles.fit, tiles.offsets, tiles.weights)
