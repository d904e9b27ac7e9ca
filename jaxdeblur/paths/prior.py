"""The mean of the prior: what is known of the middle frame besides the three blurred frames.

    Y = Y' + m (conj(S) L - Y'),    m = r_Y'^(1/4) / (r_Y'^(1/4) + r_L^(1/4))

Y' is the base: the frame as a network restores it. L is the last frame as the gate left it, which
conj(S), the shift along the path, moves to the middle frame. L passes on information from frames
before these three. r is the energy of K_0 (.) - B_0: in each tile, the image that explains the
blurred frame better has more weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Complex, Float

from jaxdeblur.paths.path import times


class Past(NamedTuple):
    """What a frame passes on to the next."""

    restored: Float[Array, "*leading H W 3"]
    """The frame as the gate left it."""
    excess: Float[Array, "*leading H W 3"]
    """What averaging in linear light added to it (light.py); zeros if it was averaged as stored."""


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


def mean_of(
    prior: Prior, kernel: Complex[Array, "n m"], blurred: Complex[Array, "C n m"]
) -> tuple[Complex[Array, "C n m"], Float[Array, ""]]:
    """Returns Y and m.

    Args:
      prior: the spectra of a tile, ``C n m``, with the last frame's already shifted.
      kernel: K_0.
      blurred: the spectrum of the blurred frame, B_0.
    """
    base, last, has_last = prior
    r_base, r_last = (_energy(kernel * y - blurred) for y in (base, last))
    share = has_last * r_base**0.25 / (r_base**0.25 + r_last**0.25)
    return base + times(last - base, share), share


def _energy(spectrum: Complex[Array, "C n m"]) -> Float[Array, ""]:
    return (spectrum.real**2 + spectrum.imag**2).sum() + 1e-6  # Avoids 0 / 0 for a black patch.
