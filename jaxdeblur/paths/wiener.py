"""Restores a frame with a Wiener filter over three frames, tile by tile.

    X  = (sum_j w'_j conj(K_j) B_j + l Y) / (sum_j w'_j |K_j|^2 + l)
    X' = (sum_j w'_j conj(K_j) B_j + l Y + beta sum_d conj(G_d) Z_d)
         / (sum_j w'_j |K_j|^2 + l + beta sum_d |G_d|^2)

where w'_0 = 1, w'_j = NEIGHBOUR w_j and l = LAM u lam(f), with u from gate.py. Where
the transfer functions are near zero, blurred frames carry no information: a filter with prior mean
0 would ring, and one with mean Y yields Y.

X' is for the luminance only. ``G_d = 1 - exp(-2 pi i f_d)`` takes differences g_d along y and x of
neighbouring pixels of X, and Z_d is the spectrum of

    z_d = g_d max(0, 1 - THRESHOLD^2 / (g_y^2 + g_x^2)),    beta = min(max(.01 e, .05), .3)

with e the length of the path during the exposure, in pixels. Small gradients count as ringing, and
the longer the blur, the more it rings. X' minimises ``sum_j w'_j |K_j X' - B_j|^2 + l |X' - Y|^2 +
beta sum_d |G_d X' - Z_d|^2``: one step of half-quadratic splitting for a sparse prior (Krishnan and
Fergus, "Fast image deconvolution using hyper-Laplacian priors", NIPS 2009), whose shrinkage is the
nonnegative garrote (Gao, Journal of Computational and Graphical Statistics 7, 1998).

The mean of the prior is what is known of the middle frame besides the three blurred frames:

    Y = (Y' + conj(S) L) / 2,    or Y' where there is no last frame

Y' is the base: the frame as a network restores it. L is the last frame as the gate left it, which
conj(S), the shift along the path, moves to the middle frame. L passes on information from frames
before these three.

Each pixel lies in several tiles, whose paths differ where objects move apart. A tile has the weight

    v = window / R^4

where R is the mean of (K_0 X - B)^2 over a cell of 8 x 8 pixels: the path of another object leaves
much unexplained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from jaxdeblur.paths.likelihood import Fit, radial_shares
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, blur_length, frequencies, otf, spline, times
from jaxdeblur.paths.tiles import Tiling, cut, cutter, inner, over_tiles, overlap_add, taper

NEIGHBOUR = 0.5
"""Factor of a neighbour's weight: errors of its path hurt more than its light helps."""

LAM = 0.42
"""Factor of the fitted noise-to-signal ratio, which counts model errors near the borders of the
window as noise. X4K prefers less, its frames after H.264 more: .04 dB from .375 to .47, on scenes
that docs/results.md reports."""

THRESHOLD = 0.03
"""Gradients below it, for values in [0, 1], count as ringing."""

_CELL, _POWER = 8, 4
_FLOOR, _TYPICAL = 1e-6, 1e-4  # Of R; the latter only keeps R^4 in the range of float32.


class Prior(NamedTuple):
    """Two images of one shape."""

    base: jax.Array
    """Y': the middle frame as a network restores it, or unchanged."""
    last: jax.Array
    """L: the previous frame, restored."""
    has_last: Float[Array, ""]
    """1, or 0 without a previous frame."""

    def map(self, of: Callable[[jax.Array], jax.Array]) -> Prior:
        """Returns the prior with ``of`` applied to both images."""
        return Prior(of(self.base), of(self.last), self.has_last)


class Luminance(NamedTuple):
    """The filter's results for the luminance."""

    sharp: Float[Array, "H W"]
    residual: Float[Array, "H W"]
    """K_0 X - B: what the path does not explain."""
    disagreement: Float[Array, "H W"]
    """X of the neighbours alone minus X of the frame alone."""
    shares: Float[Array, "N 1 size size"]
    """v of each tile, normalised to sum to one."""


class Tiles(NamedTuple):
    """The parameters of N tiles to be filtered."""

    fit: Fit
    offsets: Float[Array, "N 3 2"]
    """Where the patches are cut, in even pixels of the full-size image, (y, x)."""
    shifts: Float[Array, "N 3 2"]
    """Of the frames, by a stabiliser (stabiliser.py)."""
    weights: Float[Array, "N 3"]
    """w'_j, 0 for a frame beyond the video's ends."""
    duty: Float[Array, ""]
    basis: Float[Array, "3 J P"]
    """The spline at the samples of the exposures (``path.exposures``)."""


def luminance(
    frames: Float[Array, "3 H W"], prior: Prior, tiles: Tiles, tiling: Tiling
) -> Luminance:
    """Restores the middle frame's luminance, and rates how well it explains the three frames.

    Args:
      frames: luminances of the previous, middle and next frame.
      prior: those of the prior, ``H W``.
      tiles: their paths.
      tiling: of the frames.
    """
    n = tiling.n
    steps = [1 - np.exp(-2j * np.pi * f) for f in (np.fft.fftfreq(n), np.fft.rfftfreq(n))]
    roughness = (np.abs(steps[0])[:, None] ** 2 + np.abs(steps[1]) ** 2).astype(np.float32)
    beta = jnp.clip(0.01 * blur_length(tiles.fit.knots, tiles.duty), 0.05, 0.3)

    terms_of = _terms_of(frames[:, None], prior.map(lambda y: y[None]), tiles.basis, tiling, 1)

    def one(each: tuple[Any, ...]) -> Float[Array, "3 size size"]:
        *tile, beta = each
        terms = terms_of(*tile)
        numerator = terms.numerator.sum(0) + times(terms.mean_of_prior, terms.ratio)
        denominator = terms.energy.sum(0) + terms.ratio
        first = jnp.fft.irfft2(times(numerator, 1 / denominator), s=(n, n))
        smooth = jnp.fft.rfft2(_without_small_gradients(first[0]))
        numerator = numerator + times(smooth, beta)
        sharp = times(numerator, 1 / (denominator + beta * roughness))
        own = times(terms.numerator[1], 1 / (terms.energy[1] + terms.ratio))
        others = times(
            terms.numerator[0] + terms.numerator[2],
            1 / (terms.energy[0] + terms.energy[2] + terms.ratio),
        )
        residual = terms.kernel * sharp - terms.spectrum
        parts = jnp.fft.irfft2(jnp.concatenate([sharp, residual, others - own]), s=(n, n))
        return inner(parts, tiling).at[0].add(terms.mean[0])

    made = over_tiles(one, (jnp.asarray(tiling.centres), *tiles[:4], beta))
    shares = _shares(made[:, 1], tiling)
    sharp, residual, disagreement = overlap_add(made * shares, tiling)
    return Luminance(sharp, residual, disagreement, shares)


def filtered_channels(
    frames: Float[Array, "3 C H W"],
    prior: Prior,
    tiles: Tiles,
    tiling: Tiling,
    shares: Float[Array, "#N 1 size size"],
    scale: int = 1,
) -> Float[Array, "C H W"]:
    """Restores channels: X.

    Args:
      frames: the channels of the three frames, reduced by ``scale``.
      prior: those of the prior, ``C H W``, reduced alike.
      tiles: the paths, in pixels of the full-size frame.
      tiling: of the reduced frames.
      shares: the share of each tile in each of its pixels.
      scale: by which images and tiling are reduced.
    """
    n, terms_of = tiling.n, _terms_of(frames, prior, tiles.basis, tiling, scale)

    def one(tile: tuple[Any, ...]) -> Float[Array, "C size size"]:
        terms = terms_of(*tile)
        numerator = terms.numerator.sum(0) + times(terms.mean_of_prior, terms.ratio)
        sharp = times(numerator, 1 / (terms.energy.sum(0) + terms.ratio))
        return inner(jnp.fft.irfft2(sharp, s=(n, n)), tiling) + terms.mean

    made = over_tiles(one, (jnp.asarray(tiling.centres), *tiles[:4]))
    return overlap_add(made * shares, tiling)


def _shares(residual: Float[Array, "N size size"], tiling: Tiling) -> Float[Array, "N 1 size size"]:
    """Returns v of each tile, from what its path leaves unexplained."""
    cells = reduce(residual**2, "n (y a) (x b) -> n y x", "mean", a=_CELL, b=_CELL)
    value = (_TYPICAL / (cells + _FLOOR)) ** _POWER
    value = jax.image.resize(value, residual.shape, "linear")
    value = value[:, None] * taper(tiling.size, tiling.size - tiling.stride)
    total = overlap_add(value, tiling)
    return value / cut(total, tiling._replace(n=tiling.size))


class _Terms(NamedTuple):
    numerator: Complex[Array, "3 C n m"]
    energy: Float[Array, "3 n m"]
    ratio: Float[Array, "n m"]
    mean_of_prior: Complex[Array, "C n m"]
    kernel: Complex[Array, "n m"]
    spectrum: Complex[Array, "C n m"]
    mean: Float[Array, "C 1 1"]


def _terms_of(
    frames: Float[Array, "3 C H W"],
    prior: Prior,
    basis: Float[Array, "3 J P"],
    tiling: Tiling,
    scale: int,
) -> Callable[..., _Terms]:
    """Returns a function from a tile to w'_j conj(K_j) B_j, w'_j |K_j|^2, l and Y at each f."""
    n = tiling.n
    edge, where = taper(n, 3 * (n - tiling.size) // 8), frequencies(n, scale)
    cut_base, cut_last, *cut_frames = (
        cutter(image, tiling) for image in (prior.base, prior.last, *frames)
    )
    before = spline(jnp.float32(-1.0))

    def terms(
        centre: Int[Array, 2],
        fit: Fit,
        offsets: Float[Array, "3 2"],
        shifts: Float[Array, "3 2"],
        weights: Float[Array, 3],
    ) -> _Terms:
        whole = jnp.round(offsets / scale).astype(int)
        patches = jnp.stack([one(centre, at) for one, at in zip(cut_frames, whole, strict=True)])
        mean = patches.mean((-2, -1), keepdims=True)
        spectra = jnp.fft.rfft2((patches - mean) * edge)
        seen = offsets + shifts
        path = jnp.einsum("mjp,pc->mjc", basis, fit.knots) - seen[:, None]
        kernel = jnp.stack([otf(p, SAMPLE_WEIGHTS[None], *where)[0] for p in path])
        energy = weights[:, None, None] * (kernel**2).sum(1)
        k = lax.complex(kernel[:, 0], kernel[:, 1])
        numerator = times(jnp.conj(k)[:, None] * spectra, weights[:, None, None, None])
        log_ratio = jnp.einsum("r,ryx->yx", fit.log_nsr, radial_shares(*where))
        below = jnp.fft.rfft2((cut_base(centre, 0) - mean[1]) * edge)
        last = jnp.fft.rfft2((cut_last(centre, whole[0]) - mean[0]) * edge)
        since = seen[:1] - before @ fit.knots
        shift = otf(since, np.ones((1, 1), np.float32), *where)[0]
        last = lax.complex(shift[0], shift[1]) * last
        known = below + times(last - below, prior.has_last / 2)
        ratio = LAM * jnp.exp(log_ratio)
        return _Terms(numerator, energy, ratio, known, k[1], spectra[1], mean[1])

    return terms


def _without_small_gradients(image: Float[Array, "n n"]) -> Float[Array, "1 n n"]:
    """Returns the image whose spectrum is sum_d conj(G_d) Z_d."""
    dy, dx = image - jnp.roll(image, 1, 0), image - jnp.roll(image, 1, 1)
    keep = jnp.maximum(1 - THRESHOLD**2 / (dy**2 + dx**2 + 1e-12), 0)
    dy, dx = dy * keep, dx * keep
    return (dy - jnp.roll(dy, -1, 0) + dx - jnp.roll(dx, -1, 1))[None]
