"""Finds what a video's frames are to each other in time: duplicates, cuts, changes of brightness.

The restorers take frames as evenly spaced views of one scene, at one brightness. Players, editors
and lamps do otherwise. A frame that repeats the last one carries no motion. A frame beyond a cut
belongs to another scene. Mains flicker, fades and automatic exposure multiply a frame by a gain:
B_j = g_j K_j X.

All three are read from the luma of neighbouring frames, on the host, before any network sees them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdeblur.images import reduce_size
from jaxdeblur.shapes import Plane
from jaxdeblur.video.pixels import PixelLayout

_CELL = 8
"""Pixels: the side of a cell of a thumbnail, of which a motion by some pixels changes few."""

_SAME = 1.0 / 255
"""A frame repeats the last one if no cell differs by more, in the mean of its pixels: codecs change
a repeated frame by a fraction of a grey level."""

_ALIKE = 0.45
"""Two frames are of one scene if their thumbnails correlate at least so much at the best shift.
docs/lab/paths.md has the values of real videos and of their cuts."""

_LEAST, _MOST = 0.04, 0.96
"""Cells outside are too dark for a ratio, or clipped."""

_BLACK = 0.06
"""Luma: a bar is black in every pixel, but for a codec's errors."""

_INSIGNIFICANT = 0.03
"""Of a logarithm: what enters and leaves a frame changes it by up to 0.02, which does no harm."""

_MOST_GAIN = 8.0
"""A fade beyond it is a cut: too few grey levels are left."""

_FORGET = 0.99
"""A frame's share in what brightness frames are brought to: slow changes are kept."""


class InTime(NamedTuple):
    """A frame's place in time."""

    repeats: bool
    """Whether it repeats the last frame."""
    starts: bool
    """Whether it is the first of a scene."""
    gain: float
    """What its values are multiplied by, to be as bright as the scene's frames before."""
    inside: tuple[int, int, int, int]
    """The first row, the last, the first column and the last between black bars."""


class Timeline:
    """Compares each frame with the one before; counts what it finds.

    Attributes:
      duplicates, cuts: how many so far.
      brightened: how many frames had a gain that differs from the last one's.
    """

    def __init__(self, layout: PixelLayout) -> None:
        self._layout = layout
        self._last: Float[np.ndarray, "H W"] | None = None
        self._cells: Float[np.ndarray, "h w"] | None = None
        self._moved = 0.0
        self._inside: tuple[int, int, int, int] | None = None
        self._gain = 0.0  # Its logarithm.
        self.duplicates = self.cuts = self.brightened = 0

    def add(self, planes: tuple[Plane, ...]) -> InTime:
        """Returns the place of the next frame, given its planes."""
        luma = self._layout.luma(planes)
        inside = self._between_bars(luma)
        cells = _cell_means(luma)
        last, before = self._last, self._cells
        if last is None or before is None:
            self._last, self._cells = luma, cells
            return InTime(False, True, 1.0, inside)
        apart = float(_cell_means(np.abs(luma - last)).max())
        # A still scene without noise is no series of duplicates, unless they are equal.
        if apart == 0.0 or (apart < _SAME and self._moved > 4 * _SAME):
            self.duplicates += 1
            return InTime(True, False, float(np.exp(self._gain)), inside)
        self._last, self._cells, self._moved = luma, cells, apart
        # A handful of cells is too few to recognise a scene by.
        correlation, overlap = (
            _aligned(before, cells) if cells.size >= 64 else (1.0, (before, cells))
        )
        ratio = _log_ratio(*overlap)
        self._gain = _FORGET * self._gain - ratio
        starts = correlation < _ALIKE or abs(self._gain) > np.log(_MOST_GAIN)
        if starts:
            self.cuts, self._gain, self._moved = self.cuts + 1, 0.0, 0.0
        elif ratio:
            self.brightened += 1
        return InTime(False, starts, float(np.exp(self._gain)), inside)

    def _between_bars(self, luma: Float[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
        """Returns what lies between bars that were black in all frames so far."""
        ends = [*_bright(luma.max(1)), *_bright(luma.max(0))]
        if self._inside is not None:
            pairs = zip(ends, self._inside, (min, max, min, max), strict=True)
            ends = [wider(now, before) for now, before, wider in pairs]
        height, width = luma.shape
        # Most of the frame in the dark is a dark scene.
        if 2 * (ends[1] - ends[0] + 1) < height or 2 * (ends[3] - ends[2] + 1) < width:
            ends = [0, height - 1, 0, width - 1]
        self._inside = ends[0], ends[1], ends[2], ends[3]
        return self._inside

    def remarks(self) -> list[str]:
        """Returns what was found, a line each."""
        found = (
            (self.duplicates, "duplicate", "which got the result of the frame before"),
            (self.cuts, "cut", "at which restoration started again"),
            (self.brightened, "change of brightness", "removed for the restoration and put back"),
        )
        return [
            f"{count} {what if count == 1 else what.replace('change', 'changes')}"
            f"{'s' if count > 1 and what in ('duplicate', 'cut') else ''}, {how}"
            for count, what, how in found
            if count
        ]


def _bright(brightest: Float[np.ndarray, " n"]) -> tuple[int, int]:
    """Returns the first and the last row or column that is not black; both ends if all are."""
    bright = np.flatnonzero(brightest > _BLACK)
    return (int(bright[0]), int(bright[-1])) if len(bright) else (0, len(brightest) - 1)


def _cell_means(image: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "h w"]:
    """Returns the means of whole cells; of a smaller image, the mean."""
    rows, columns = (max(n // _CELL, 1) for n in image.shape)
    height, width = (
        min(n * _CELL, size) for n, size in zip((rows, columns), image.shape, strict=True)
    )
    cut = image[:height, :width]
    return reduce_size(cut, (height // rows, width // columns), axis=-2)


def _aligned(
    before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Returns the largest correlation of two thumbnails over all shifts by up to a quarter.

    Also returns both where they then overlap. Correlation does not depend on brightness.
    """
    most = [n // 4 for n in before.shape]
    sheet = [2 * n for n in before.shape]

    def spectrum(image: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(image, sheet)

    ones = np.ones_like(before)
    a, b, one = before - before.mean(), after - after.mean(), spectrum(ones)

    def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.fft.irfft2(np.conj(x) * y, sheet)

    fa, fb, faa, fbb = (spectrum(each) for each in (a, b, a * a, b * b))
    count = np.maximum(correlate(one, one), 1.0)
    sum_a, sum_b = correlate(fa, one), correlate(one, fb)
    variance_a = correlate(faa, one) - sum_a**2 / count
    variance_b = correlate(one, fbb) - sum_b**2 / count
    least = 1e-6 * count  # Of a flat picture: it correlates with anything.
    shared = correlate(fa, fb) - sum_a * sum_b / count
    surface = (shared + least) / np.sqrt(
        np.maximum(variance_a + least, least) * np.maximum(variance_b + least, least)
    )
    near = [np.r_[0 : m + 1, size - m : size] for m, size in zip(most, sheet, strict=True)]
    window = surface[np.ix_(*near)]
    at = np.unravel_index(window.argmax(), window.shape)
    y, x = (
        int(index[i]) - (size if index[i] > size // 2 else 0)
        for index, i, size in zip(near, at, sheet, strict=True)
    )
    of_before = tuple(
        slice(max(0, -d), n - max(0, d)) for d, n in zip((y, x), before.shape, strict=True)
    )
    of_after = tuple(
        slice(max(0, d), n - max(0, -d)) for d, n in zip((y, x), before.shape, strict=True)
    )
    return float(window.max()), (before[of_before], after[of_after])


def _log_ratio(before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]) -> float:
    """Returns the logarithm of the ratio of brightness; 0 if it is uncertain or insignificant."""
    used = (np.minimum(before, after) > _LEAST) & (np.maximum(before, after) < _MOST)
    if used.sum() < 16:
        return 0.0
    ratios = np.log(after[used] / before[used])
    middle = float(np.median(ratios))
    error = 1.86 * float(np.median(np.abs(ratios - middle))) / np.sqrt(len(ratios))
    return middle if abs(middle) > max(3 * error, _INSIGNIFICANT) else 0.0
