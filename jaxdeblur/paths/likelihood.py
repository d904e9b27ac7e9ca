"""The negative log-likelihood of three frames' blurred patches given their path, in nats.

    B_j = K_j X + N_j,    X ~ CN(0, s_r / lam(f)),    N_j ~ CN(0, s_r / w_j)

    D   = lam(f) + sum_j w_j |K_j|^2
    Q_r = sum over f in ring r of [sum_j w_j |B_j|^2 - |sum_j w_j conj(K_j) B_j|^2 / D + m rho]
    L   = 1/n {sum_r m n_r log Q_r + sum_f [log D - log lam]} - sum_{j != 0} log w_j

for m frames and n frequencies, n_r of them in ring r. The sharp patch X is integrated out under a
Gaussian prior: the covariance of the B_j is ``s_r (K K^H / lam + W^-1)``, whose determinant is
``s_r^m D / (lam prod_j w_j)``. Each ring takes its likeliest noise power, ``s_r = Q_r / (m n_r)``.
lam(f) is the noise-to-signal ratio, log-linear between RADII, so that the radial spectrum of X is
fitted with the path: a fixed one, as of natural images, attributes all spectral decay to blur and
prefers longer paths. w_j is the weight of frame j.

rho is the power of rounding to 8 bits, which keeps s_r from falling below it. An error of
uniform distribution has the variance ``1 / (12 . 255^2)``; a mean of c x c pixels divides it by
c^2, and the window h of a patch makes ``rho = sum h^2 / (12 . 255^2 c^2)`` of it at each frequency.

**Gradient.** By the derivative of K_j, where M_jp is the transfer function with the samples
weighted by the spline of knot p, and c an axis, with the X and ``R_j = B_j - K_j X`` below:

    K_j' = -2 pi i f_c M_jp
    dL/dp_c = 2/n sum_f sum_j w_j Re [conj(K_j / D - conj(X) R_j / s_r) K_j']

**Curvature.** Up to m rho, Q_r is the least value over X of ``sum_f |y - A X|^2``, where A stacks
``sqrt(w_j) K_j`` and ``sqrt(lam)``, and y stacks ``sqrt(w_j) B_j`` and 0. So the residual is
``P y``, where ``P = 1 - A A^H / D`` projects out X (variable projection: Golub and Pereyra, SIAM
Journal on Numerical Analysis 10, 1973). Its derivative is ``-P A' X``, minus a term that contains
the residual and is left out (Kaufman, BIT 15, 1975). That is

    H_pc,qe = 2/n sum_f 4 pi^2 f_c f_e |X|^2 / s_r
              Re [sum_j w_j conj(M_jp) M_jq - conj(A_p) A_q / D],    A_p = sum_j w_j conj(K_j) M_jp

It is positive semidefinite, because s_r is held and the curvature of log D is left out as well.

**M-steps.** lam and w follow by expectation-maximisation. Given the path, the posterior of X has
the mean ``X = sum_j w_j conj(K_j) B_j / D`` and the variance ``s_r / D``. The M-step multiplies lam
by one factor in each ring and replaces w_j:

    lam <- lam / {1/n_r sum over f in ring r of lam (|X|^2 / s_r + 1 / D)}
    w_j <- 1 / {1/n sum_f (|B_j - K_j X|^2 / s_r + |K_j|^2 / D)}

The factor of a ring moves log lam at its radius. A ring without frequencies in the band takes the
factor of the nearest ring with some. Dempster, Laird and Rubin, Journal of the Royal Statistical
Society B 39, 1977.

The marginal likelihood is used instead of the joint mode of path and X: Levin et al.,
"Understanding and evaluating blind deconvolution algorithms", CVPR 2009.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdeblur.images import halved
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, phases, weighted
from jaxdeblur.paths.tiles import Tiling, cut, hann, over_tiles

RADII = np.array([0.012, 0.025, 0.045, 0.075, 0.12, 0.18, 0.26, 0.36], np.float32)
"""Radii at which lam is fitted, in cycles per pixel."""

START = np.log(0.02 * (2 * np.sin(np.pi * RADII)) ** 2 + 1e-5).astype(np.float32)
"""Initial log lam: that of natural images, whose power falls with f^2."""

LOG_NSR_LIMITS = -10.0, 3.0
"""Of log lam."""

HALF_SIZE_BANDS = 0.08, 0.16, 0.24
"""The highest frequencies of a fit's stages at half size, in cycles per pixel of the full size."""

FULL_SIZE_BANDS = HALF_SIZE_BANDS[-1], 0.4
"""The same at full size."""

LEAST_LOG_WEIGHT = -4.0
"""Lower limit of log w: a frame ignored completely could not come back."""

_ROUNDING = 1 / 12 / 255**2  # Variance of rounding to uint8.


class Band(NamedTuple):
    """The frequencies of a patch that are compared, and their weights."""

    rows: np.ndarray
    columns: np.ndarray
    floor: float
    """rho: the power of rounding to 8 bits at each frequency, the least possible noise."""
    fy: Float[np.ndarray, " Y"]
    fx: Float[np.ndarray, " X"]
    weight: Float[np.ndarray, "Y X"]
    """1, or 1/2 where the spectrum of a real image holds a frequency twice; 0 outside."""
    radial: Float[np.ndarray, "R Y X"]
    """The share of each of RADII in log lam."""
    rings: Float[np.ndarray, "R Y X"]
    """``weight`` where the frequency belongs to the ring around that radius, else 0."""


def band(n: int, top: float, scale: int = 2) -> Band:
    """Returns the frequencies up to ``top`` that a Hann window separates from 0.

    They are in cycles per pixel of the full-size image, whose pixels paths have too. The spectra
    have ``n`` rows and come from the image at ``1/scale`` of its size.
    """
    most = min(int(top * n * scale), n // 2 - 1)
    indices, columns = np.r_[0 : most + 1, n - most : n], np.arange(most + 1)
    fy, fx = np.fft.fftfreq(n)[indices] / scale, columns / n / scale
    radius = np.hypot(fy[:, None], fx)
    inside = (radius <= top) & (radius > 0.75 / n / scale)
    weight = inside * np.where(columns == 0, 0.5, 1.0)
    radial = radial_shares(fy, fx)
    nearest = np.rint(np.einsum("r,ryx->yx", np.arange(len(RADII)), radial))
    rings = (nearest == np.arange(len(RADII))[:, None, None]) * weight
    arrays = (array.astype(np.float32) for array in (fy, fx, weight, radial, rings))
    # The patch has twice as many rows as its spectrum, which holds every second frequency.
    floor = float((hann(2 * n) ** 2).sum()) * _ROUNDING / scale**2
    return Band(indices, columns, floor, *arrays)


def radial_shares(fy: np.ndarray, fx: np.ndarray) -> Float[np.ndarray, "R Y X"]:
    """Returns the share of each of RADII at frequencies (cycles per pixel), linear in their log."""
    radius = np.maximum(np.hypot(fy[:, None], fx), 1e-4)
    at = np.interp(np.log(radius), np.log(RADII), np.arange(len(RADII)))
    return np.maximum(1 - np.abs(at - np.arange(len(RADII))[:, None, None]), 0).astype(np.float32)


class Observed(NamedTuple):
    """The observations of one tile, or of N with a leading axis."""

    spectra: Float[Array, "3 2 Y X"]
    """B_j of the patches."""
    offsets: Float[Array, "3 2"]
    """Where each patch was cut, in pixels from the tile, plus the frame's shift w_j."""
    present: Float[Array, 3]
    """1 for a frame, 0 for one beyond the video's ends."""

    def up_to(self, top: float, scale: int = 2) -> tuple[Observed, Band]:
        """Returns only the frequencies up to ``top``, and their band; arguments as in ``band``."""
        where = band(self.spectra.shape[-2], top, scale)
        return self._replace(spectra=self.spectra[..., where.rows, :][..., where.columns]), where


class Fit(NamedTuple):
    """The parameters fitted to one tile, or to N with a leading axis."""

    knots: Float[Array, "P 2"]
    """The path at its free knots, in pixels (y, x)."""
    log_nsr: Float[Array, " R"]
    """log lam at RADII: the logarithm of the noise-to-signal ratio."""
    log_weights: Float[Array, 3]
    """log w_j, 0 for the middle frame."""


class Likelihood(NamedTuple):
    """L of one tile, its derivatives, and the M-steps."""

    value: Float[Array, ""]
    gradient: Float[Array, " Q"]
    """With respect to the knots, (y, x) of each in turn."""
    curvature: Float[Array, "Q Q"]
    """H, the Gauss-Newton matrix in Kaufman's form."""
    log_nsr: Float[Array, " R"]
    """Likelier values of log lam and, in ``log_weights``, of log w, given the path."""
    log_weights: Float[Array, 3]


def observed(
    luminance: Float[Array, "3 H W"],
    tiling: Tiling,
    offsets: Float[Array, "N 3 2"],
    present: Float[Array, 5],
    inward: Int[Array, "N 2"] | None = None,
    only: Int[Array, " n"] | None = None,
    scale: int = 2,
    shifts: Float[Array, "N 3 2"] | float = 0.0,
) -> Observed:
    """Returns the observations of tiles: every second frequency of Hann-windowed patches.

    The window correlates neighbouring frequencies, so half of them in each direction suffice.
    Folding the patch before the transform keeps these, at a quarter of the work.

    Args:
      luminance: of the previous, middle and next frame, under the light model being tested.
      tiling: of these frames.
      offsets: where the patches are cut, in even pixels.
      present: 1 for each of the five frames that exists, else 0.
      inward: what moves patches at the borders inside (``tiling.inward``); None for nothing.
      only: which tiles; None for all.
      scale: 1, or 2 for the image at half its size.
      shifts: of the frames, by a stabiliser (stabiliser.py).
    """
    reduced = tiling.reduced(scale)
    half, window = reduced.n // 2, hann(reduced.n)
    offsets = offsets if only is None else offsets[only]
    whole = jnp.round(offsets / scale).astype(int)
    inward = None if inward is None else inward // scale

    def folded(patch: Float[Array, "1 n n"]) -> Float[Array, "2 h m"]:
        patch = (patch[0] - patch.mean()) * window
        spectrum = jnp.fft.rfft2(patch.reshape(2, half, 2, half).sum((0, 2)))
        return jnp.stack([spectrum.real, spectrum.imag])

    def of_frame(frame: tuple[Float[Array, "H W"], Int[Array, "N 2"]]) -> Float[Array, "N 2 h m"]:
        patches = cut(frame[0][None], reduced, frame[1], only=only, inward=inward)
        spectra: Float[Array, "N 2 h m"] = over_tiles(folded, patches)
        return spectra

    images = halved(luminance) if scale == 2 else luminance
    spectra = over_tiles(of_frame, (images, jnp.swapaxes(whole, 0, 1)))
    here = jnp.broadcast_to(present[1:4], (len(offsets), 3))
    return Observed(jnp.swapaxes(spectra, 0, 1), offsets + shifts, here)


def _conj_times(a: Float[Array, "... 2 Y X"], b: Float[Array, "... 2 Y X"]) -> jax.Array:
    ar, ai, br, bi = a[..., 0, :, :], a[..., 1, :, :], b[..., 0, :, :], b[..., 1, :, :]
    return jnp.stack([ar * br + ai * bi, ar * bi - ai * br], -3)


def texture(seen: Observed) -> Float[Array, " N"]:
    """Returns how much texture the middle frame's tiles, at half size, hold where blur shows."""
    where = band(seen.spectra.shape[-2], HALF_SIZE_BANDS[1])
    energy = (seen.spectra[:, 1][..., where.rows, :][..., where.columns] ** 2).sum(1)
    return (energy * where.weight * np.hypot(where.fy[:, None], where.fx)).sum((-2, -1))


def likelihood(fit: Fit, seen: Observed, where: Band, basis: Float[Array, "M J P"]) -> Likelihood:
    """Returns L of one tile, its path derivatives, and the M-steps.

    Args:
      fit: the path, lam and w.
      seen: the blurred patches, within the band.
      where: the frequencies compared.
      basis: the spline at the samples of the M exposures (``path.exposures``): of three frames, or
        of one.
    """
    points = basis.shape[-1]

    path = jnp.einsum("mjp,pc->mjc", basis, fit.knots) - seen.offsets[:, None]
    each = jax.vmap(phases, (0, None, None))(path, where.fy, where.fx)
    kernel = jax.vmap(lambda of: weighted(of, SAMPLE_WEIGHTS[None])[0])(each)
    w = (seen.present * jnp.exp(fit.log_weights))[:, None, None, None]
    log_lam = jnp.einsum("r,ryx->yx", fit.log_nsr, where.radial)
    lam = jnp.exp(log_lam)
    den = lam + (w * kernel**2).sum((0, 1))
    sharp = (w * _conj_times(kernel, seen.spectra)).sum(0) / den
    power = (sharp**2).sum(0)
    misfit = (w * seen.spectra**2).sum((0, 1)) - power * den
    m, size = seen.present.sum(), where.rings.sum((1, 2))
    energy = jnp.einsum("ryx,yx->r", where.rings, misfit) + where.floor * m * size
    n = where.weight.sum()
    energy = jnp.where(size > 0, energy, 1.0)
    value = (
        m * (size * jnp.log(energy)).sum() + (where.weight * (jnp.log(den) - log_lam)).sum()
    ) / n
    value = value - (seen.present * fit.log_weights).sum()

    # 1 / s_r at the frequencies of each ring, times their weight.
    precision = jnp.einsum("r,ryx->yx", m * size / energy, where.rings)
    conj_sharp = sharp * jnp.array([1.0, -1.0])[:, None, None]
    predicted = _conj_times(conj_sharp, kernel)  # K X
    residual = seen.spectra - predicted
    by_kernel = w * (where.weight * kernel / den - precision * _conj_times(sharp, residual))

    # d K / d knot = -2 pi i f M, where M weighs the samples by the spline.
    splines = jnp.swapaxes(basis * SAMPLE_WEIGHTS[:, None], 1, 2)
    slopes = jax.vmap(weighted, out_axes=1)(each, splines)
    f = 2 * np.pi * jnp.stack(jnp.broadcast_arrays(where.fy[:, None], where.fx))
    turned = jnp.stack([-by_kernel[:, 1], by_kernel[:, 0]], 1)
    gradient = jnp.einsum("pmryx,mryx->pyx", slopes, turned).reshape(points, -1)
    gradient = (2 / n * gradient @ f.reshape(2, -1).T).reshape(-1)
    along = (w * _conj_times(kernel, slopes)).sum(1) / jnp.sqrt(den)
    rate = f * jnp.sqrt(2 / n * precision * power)

    def gram(a: jax.Array) -> jax.Array:
        flat = (a[:, None] * rate[:, None]).reshape(2 * points, -1)
        return flat @ flat.T

    curvature = gram((jnp.sqrt(w) * slopes).reshape(points, -1, *den.shape)) - gram(along)

    # The M-step.
    ratio = where.weight * lam / den + precision * lam * power
    expected = jnp.einsum("yx,ryx->r", ratio * (where.weight > 0), (where.rings > 0) * 1.0)
    step = -jnp.log(expected / np.maximum(size, 1e-3) + 1e-6)[_nearest(size > 0)]
    misfits = (residual**2).sum(1) * precision + (kernel**2).sum(1) * where.weight / den
    next_log_weights = -jnp.log(jnp.maximum(misfits.sum((1, 2)) / n, 1e-6))
    return Likelihood(value, gradient, curvature, fit.log_nsr + step, next_log_weights)


def _nearest(measured: np.ndarray) -> np.ndarray:
    """Returns for each ring the nearest one with frequencies in the band, whose step it shares."""
    known = np.flatnonzero(measured)
    return known[np.abs(np.arange(len(measured))[:, None] - known).argmin(1)]
