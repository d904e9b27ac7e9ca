"""The mean of the prior: what is known of the middle frame beside the three blurred ones.

    Y = Y' + m (conj(S) L - Y'),    m = r_Y'^(1/4) / (r_Y'^(1/4) + r_L^(1/4))

Y' is the base: the frame as a network restores it. L is the last frame as the gate left it, which
conj(S), the shift along the path, takes to this one: it hands on what the frames before these three
have told. r is the energy of K_0 (.) - B_0: what explains the blurred frame better counts more, in
each tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Complex, Float

from jaxdeblur.paths.path import times


class Prior(NamedTuple):
    """Two images of one shape."""

    base: jax.Array
    """Y': the middle frame as a network restores it, or as it is."""
    last: jax.Array
    """L: the frame before, restored."""
    has_last: Float[Array, ""]
    """1, or 0 where there is none."""

    def map(self, of: Callable[[jax.Array], jax.Array]) -> Prior:
        """The same of other images."""
        return Prior(of(self.base), of(self.last), self.has_last)


def mean_of(
    prior: Prior, kernel: Complex[Array, "n m"], blurred: Complex[Array, "C n m"]
) -> tuple[Complex[Array, "C n m"], Float[Array, ""]]:
    """Y, and m.

    Args:
      prior: the spectra of a tile, ``C n m``, the last frame's shifted.
      kernel: K_0.
      blurred: the spectrum of the blurred frame, B_0.
    """
    base, last, has_last = prior
    r_base, r_last = (_energy(kernel * y - blurred) for y in (base, last))
    share = has_last * r_base**0.25 / (r_base**0.25 + r_last**0.25)
    return base + times(last - base, share), share


def _energy(spectrum: Complex[Array, "C n m"]) -> Float[Array, ""]:
    return (spectrum.real**2 + spectrum.imag**2).sum() + 1e-6  # Not 0 / 0 of a black patch.
