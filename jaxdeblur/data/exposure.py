"""Blur as the average of high-speed frames over an exposure: eq. 1 of the paper (ICCV 2017)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.errors import UserError
from jaxdeblur.images import GAMMA

MAX_TAU = 256
"""The longest exposure in high-speed frames: the sum of that many bytes fits 16 bits."""

# The light, 0 to 1, of each of the 256 stored values.
_LIGHT = (np.arange(256) / 255).astype(np.float32) ** np.float32(GAMMA)


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How high-speed frames X become blurred frames B and sharp frames S.

    B_n is the average of the ``tau`` frames from X_{nT} on. S_n is the middle one of these (for an
    even tau, the earlier of the two). Eq. 1 as printed takes S_n one frame earlier when tau is
    odd; then a perfectly restored middle frame would not score as perfect.
    """

    tau: int = 11
    """High-speed frames in an exposure; more of them give more blur."""
    period: int = 12
    """T: high-speed frames from the start of an exposure to the start of the next. The video's rate
    is the high-speed rate divided by T. A camera has T > tau; T = tau uses every frame once."""
    linear: bool = False
    """Whether light (gamma 2.2) is averaged instead of stored values."""

    def __post_init__(self) -> None:
        if not 1 <= self.tau <= MAX_TAU:
            raise UserError(f"tau must be 1 to {MAX_TAU}, not {self.tau}")
        if self.period < 1:
            raise UserError(f"period must be positive, not {self.period}")

    @property
    def middle(self) -> int:
        """The index of an exposure's sharp frame, counted from 0."""
        return (self.tau - 1) // 2

    def count(self, frames: int) -> int:
        """Returns how many whole exposures ``frames`` high-speed frames hold."""
        return max(0, (frames - self.tau) // self.period + 1)


def average(
    frames: UInt8[np.ndarray, " tau *shape"], linear: bool = False
) -> UInt8[np.ndarray, "*shape"]:
    """Averages an exposure over its first axis and rounds to the nearest value (halves up)."""
    tau = len(frames)
    if not linear:
        return ((frames.sum(axis=0, dtype=np.uint16) + tau // 2) // tau).astype(np.uint8)
    light = _LIGHT[frames].sum(axis=0, dtype=np.float32) / tau
    return (255 * light ** np.float32(1 / GAMMA) + np.float32(0.5)).astype(np.uint8)
