"""Paths: the motion of the image within a tile, and the filter that follows from it by eq. 1.

A path p(t) is a natural cubic spline through KNOTS, in pixels (y, x), with t in frames and
p(0) = 0. A frame is the mean of sharp frames over its exposure (dynamic temporal blending, eq. 1).
In Fourier space, frame j is ``B_j = K_j X`` with the transfer function

    K_j(f) = mean over t in [j - d/2, j + d/2] of exp(-2 pi i f.(p(t) - o_j))

where d is the duty cycle, the share of the time between frames that the shutter is open, and o_j
the offset at which the patch of frame j was cut. Complex numbers are pairs (real, imaginary).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

FRAMES = (-1, 0, 1)
"""The frames that a path is fitted to, relative to the restored one."""

KNOTS = np.linspace(-1.5, 1.5, 7)
FREE = np.flatnonzero(KNOTS)  # All but p(0).

USUAL_DUTY = 0.9
"""The duty cycle where nothing tells it, as of most video."""

_SAMPLES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
SAMPLE_WEIGHTS = (_WEIGHTS / 2).astype(np.float32)
"""The weights of the nodes of an exposure, which sum to one."""


def _pieces() -> Float[np.ndarray, "4 I P"]:
    """Returns the cubics between the I + 1 knots, highest power first, for each free knot of one.

    ``scipy.interpolate.CubicSpline`` gives them too, and takes half a second to import.
    """
    values, h, inner = np.eye(len(KNOTS))[:, FREE], KNOTS[1] - KNOTS[0], len(KNOTS) - 2
    # A natural spline has no second derivative at its ends; its first one is continuous.
    continuous = 4 * np.eye(inner) + np.eye(inner, k=1) + np.eye(inner, k=-1)
    second = np.linalg.solve(continuous, 6 / h**2 * np.diff(values, 2, axis=0))
    left, right = (np.pad(second, ((1, 1), (0, 0)))[each] for each in (slice(-1), slice(1, None)))
    slopes = np.diff(values, axis=0) / h - h * (2 * left + right) / 6
    return np.stack([(right - left) / (6 * h), left / 2, slopes, values[:-1]]).astype(np.float32)


_PIECES = _pieces()

_TURNS = np.linspace(1e-4, 0.25, 1000)
_COS, _SIN = (
    np.polyfit(_TURNS**2, values, 6).astype(np.float32)
    for values in (np.cos(2 * np.pi * _TURNS), np.sin(2 * np.pi * _TURNS) / _TURNS)
)
"""Cosine, and sine over its argument, as polynomials in the square of up to a quarter turn."""


def spline(times: Float[Array, "*S"]) -> Float[Array, "*S P"]:
    """Returns the share of each free knot in the path at ``times``, in frames from the middle."""
    piece = jnp.clip(jnp.floor((times - KNOTS[0]) * 2).astype(int), 0, len(KNOTS) - 2)
    since = times - jnp.asarray(KNOTS, jnp.float32)[piece]
    powers = jnp.stack([since**3, since**2, since, jnp.ones_like(since)], -1)
    return jnp.einsum("...k,k...p->...p", powers, jnp.asarray(_PIECES)[:, piece])


def sample_times(
    duty: Float[Array, ""] | float, apart: Float[Array, ""] | float = 0.0
) -> Float[Array, " J"]:
    """Returns the J Gauss-Legendre nodes of an exposure, in frames from its middle.

    Two exposures that an editor blended have half of the nodes each.

    Args:
      duty: the duration of an exposure, in frames.
      apart: how far the middles of two blended exposures lie apart, in frames; 0 for one exposure.
    """
    once = jnp.asarray(_SAMPLES / 2, jnp.float32)
    half = jnp.asarray(np.sign(_SAMPLES) / 2, jnp.float32)
    twice = duty * (2 * once - half) + apart * half
    return jnp.where(jnp.asarray(apart) > 0, twice, duty * once)


def exposures(
    duty: Float[Array, ""] | float, apart: Float[Array, ""] | float = 0.0
) -> Float[Array, "3 J P"]:
    """Returns the spline at the J nodes of each frame's exposure (``sample_times``)."""
    return spline(jnp.asarray(np.array(FRAMES)[:, None] + sample_times(duty, apart)))


def with_shifts(basis: Float[Array, "3 J P"]) -> Float[Array, "3 J P2"]:
    """Appends the shifts of frames -1 and 1 to the numbers of a path, which they are taken from."""
    shifts = np.zeros((3, 1, 2), np.float32)
    shifts[0, 0, 0] = shifts[2, 0, 1] = -1.0
    return jnp.concatenate([basis, jnp.broadcast_to(shifts, (*basis.shape[:2], 2))], -1)


def exposed(
    knots: Float[Array, "*N P 2"], duty: Float[Array, ""] | float
) -> Float[Array, "*N 9 2"]:
    """Returns the path at evenly spaced times of the middle exposure."""
    return jnp.einsum("sp,...pc->...sc", spline(duty * jnp.linspace(-0.5, 0.5, 9)), knots)


def blur_length(
    knots: Float[Array, "*N P 2"], duty: Float[Array, ""] | float
) -> Float[Array, "*N"]:
    """Returns the length of the path during the middle exposure, in pixels."""
    return jnp.linalg.norm(jnp.diff(exposed(knots, duty), axis=-2), axis=-1).sum(-1)


def through(
    displacements: Float[Array, "N 4 2"], present: Float[Array, 5]
) -> Float[Array, "N P 2"]:
    """Fits a cubic to the displacements of frames -2, -1, 1 and 2, as the initial path.

    Displacements of blurred frames are those of the means of their exposures, here whole periods.
    Residuals of the outer frames count half, and frames of the five that are not ``present`` do not
    count. With few frames the degree falls, down to a straight path from one displacement.
    """
    known = present[jnp.array([0, 1, 3, 4])]
    frames = jnp.array([-2.0, -1.0, 1.0, 2.0])
    mean = jnp.stack([frames, frames**2, frames**3 + frames / 4], -1)
    weight = known * jnp.array([0.25, 1.0, 1.0, 0.25])
    normal = mean.T @ (weight[:, None] * mean) + jnp.diag(jnp.array([1e-6, 1e-2, 1e-1]))
    cubic = jnp.linalg.solve(normal, mean.T * weight)
    at = KNOTS[FREE]
    powers = jnp.asarray(np.stack([at, at**2, at**3], -1), jnp.float32)
    return jnp.einsum("pf,nfc->npc", powers @ cubic, displacements)


def frequencies(n: int, scale: int = 1) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Returns rFFT frequencies (y, x), in cycles per pixel of an image ``scale`` times as large."""
    fy, fx = (f(n).astype(np.float32) / scale for f in (np.fft.fftfreq, np.fft.rfftfreq))
    return fy, fx


@jax.custom_jvp
def cos_sin(turns: Float[Array, "*S"]) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """Returns cosine and sine of ``2 pi turns``; on a CPU, XLA's own take many times as long."""
    turns = turns - jnp.round(turns)
    far = jnp.abs(turns) > 0.25
    near = jnp.where(far, jnp.sign(turns) * 0.5 - turns, turns)
    cos, sin = (jnp.polyval(each, near**2, unroll=len(each)) for each in (_COS, _SIN))
    return jnp.where(far, -cos, cos), near * sin


@cos_sin.defjvp
def _turned(primals, tangents):  # type: ignore[no-untyped-def]
    cos, sin = cos_sin(*primals)
    rate = 2 * np.pi * tangents[0]
    return (cos, sin), (-sin * rate, cos * rate)


@jax.jit  # It is called in many places; only the first is traced.
def phases(
    path: Float[Array, "J 2"], fy: Float[Array, " Y"], fx: Float[Array, " X"]
) -> tuple[Float[Array, "2 Y J2"], Float[Array, "J2 X"]]:
    """Returns exp(-2 pi i f.p) at the samples of a path, by its factors in y and x.

    Those in y are of the real and the imaginary part, by which cosines and sines in x are
    multiplied.

    Args:
      path: its samples minus the patch's offset, in pixels.
      fy, fx: the frequencies, in cycles per pixel.
    """
    cos, sin = cos_sin(jnp.concatenate([fy[:, None] * path[:, 0], fx[:, None] * path[:, 1]]))
    (cos, cos_x), (sin, sin_x) = (jnp.split(each, [len(fy)]) for each in (cos, sin))
    of_y = jnp.stack([jnp.concatenate([cos, -sin], 1), jnp.concatenate([-sin, -cos], 1)])
    return of_y, jnp.concatenate([cos_x, sin_x], 1).T


@jax.jit
def weighted(
    factors: tuple[Float[Array, "2 Y J2"], Float[Array, "J2 X"]], weights: Float[Array, "L J"]
) -> Float[Array, "L 2 Y X"]:
    """Sums the phases of the samples, with L sets of weights.

    The phases are separable in y and x, so the sums are one real matrix product. The weights of the
    mean give K, and these times the spline its derivatives with respect to the knots, up to the
    factor -2 pi i f.
    """
    of_y, of_x = factors
    left = of_y * jnp.concatenate([weights, weights], -1)[:, None, None]
    product = left.reshape(-1, len(of_x)) @ of_x
    return product.reshape(len(weights), 2, of_y.shape[1], of_x.shape[1])


@jax.jit
def otf(
    path: Float[Array, "J 2"],
    weights: Float[Array, "L J"],
    fy: Float[Array, " Y"],
    fx: Float[Array, " X"],
) -> Float[Array, "L 2 Y X"]:
    """Returns the optical transfer function of a path, with L sets of weights of its samples.

    The other arguments are those of ``phases``.
    """
    return weighted(phases(path, fy, fx), weights)


def times(spectrum: Complex[Array, "*F"], real: jax.Array) -> Complex[Array, "*F"]:
    """Returns the product; XLA would convert the real factor to a complex one."""
    return lax.complex(spectrum.real * real, spectrum.imag * real)
