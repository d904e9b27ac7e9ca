"""Measures how far each tile moved from one blurred frame to another, by phase correlation.

The method is Kuglin and Hines, "The phase correlation image alignment method", 1975, on tiles of
frames at quarter size. The correlations of neighbouring tiles are summed before the peak search.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxdeblur.paths.tiles import Tiling, cut, hann, over_tiles

_SIGMA = 0.1  # Of the low-pass filter, in cycles per pixel: blur leaves nothing above to correlate.


def phase_spectra(image: Float[Array, "H W"], tiling: Tiling) -> Complex[Array, "N n m"]:
    """Returns the spectrum of each tile, of which ``displacement`` uses the phase."""
    window = hann(tiling.n)

    def one(patch: Float[Array, "1 n n"]) -> Complex[Array, "n m"]:
        return jnp.fft.rfft2((patch[0] - patch.mean()) * window)

    # Zeros beyond the borders: a mirrored image moves the opposite way.
    return over_tiles(one, cut((image - image.mean())[None], tiling, mirrored=False))


def displacement(
    start: Complex[Array, "N n m"], end: Complex[Array, "N n m"], tiling: Tiling
) -> Float[Array, "N 2"]:
    """Returns how far each tile's content moved from ``start`` to ``end``, in their pixels."""
    n = tiling.n
    f2 = np.fft.fftfreq(n)[:, None] ** 2 + np.fft.rfftfreq(n) ** 2
    low = (np.exp(-f2 / (2 * _SIGMA**2)) * (f2 > 0)).astype(np.float32)

    def correlation(pair: tuple[jax.Array, jax.Array]) -> Float[Array, "n n"]:
        cross = jnp.conj(pair[0]) * pair[1]
        return jnp.fft.irfft2(cross / (jnp.abs(cross) + 1e-9) * low, s=(n, n))

    surface = over_tiles(correlation, (start, end)).reshape(*tiling.shape, n, n)
    surface = jnp.pad(surface, ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
    surface = surface[2:] + surface[1:-1] + surface[:-2]
    surface = (surface[:, 2:] + surface[:, 1:-1] + surface[:, :-2]).reshape(-1, n * n)
    peak = jnp.argmax(surface, 1)
    y, x = peak // n, peak % n

    def at(y: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(surface, ((y % n) * n + x % n)[:, None], 1)[:, 0]

    def vertex(before: jax.Array, top: jax.Array, after: jax.Array) -> jax.Array:
        bend = jnp.minimum(before - 2 * top + after, -1e-9)
        return jnp.clip(0.5 * (before - after) / bend, -0.5, 0.5)

    top = at(y, x)
    whole = (jnp.stack([y, x], -1) + n // 2) % n - n // 2
    part = [vertex(at(y - 1, x), top, at(y + 1, x)), vertex(at(y, x - 1), top, at(y, x + 1))]
    return whole + jnp.stack(part, -1)
