"""The labels of ``--compare``: on both halves, upright, without colour."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from jaxdeblur.video.comparison import Comparison
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import RGB8, PixelLayout

GREY = 90


# Cosine and sine of the players' rotation, by quarter turns counter-clockwise.
COSINE_SINE = {0: (1, 0), 1: (0, -1), 2: (-1, 0), 3: (0, 1)}


def compared(layout: PixelLayout, turns: int = 0) -> list[np.ndarray]:
    """Returns the planes that show a grey frame of 320x240 beside itself."""
    rate = Fraction(25)
    cosine, sine = (65536 * value for value in COSINE_SINE[turns])
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    info = VideoInfo(240, 320, "any", layout, False, rate, 1 / rate, display_matrix=matrix)
    planes = tuple(np.full(shape, GREY, layout.dtype) for shape in layout.plane_shapes(240, 320))
    return list(Comparison(info)(Picture(planes), planes).planes)


@pytest.mark.parametrize("turns", COSINE_SINE)
def test_labels_stand_at_the_top_left_of_both_halves_as_they_are_shown(turns: int) -> None:
    upright = compared(RGB8)[0][:, :320, 0]
    assert (upright[60:] == GREY).all()
    assert (upright[:, 160:] == GREY).all()
    assert upright[0, 0] < 30
    assert (upright == 255).sum() > 50
    shown = np.rot90(compared(RGB8, turns)[0][..., 0], turns)
    first, second = np.split(shown, 2, axis=1)
    for half in (first, second):
        assert half[0, 0] < 30
        assert (half[: half.shape[0] // 3, : half.shape[1] // 2] == 255).any()
        assert (half[half.shape[0] // 3 :] == GREY).all()
    if turns in (0, 2):
        np.testing.assert_array_equal(first, upright)


def test_labels_have_no_colour_and_know_the_bits() -> None:
    luma, blueness, redness = compared(PixelLayout("yuv", 10, (2, 2), full_range=False))
    assert luma.max() == 1023
    for chroma in (blueness, redness):
        assert set(np.unique(chroma)) == {GREY, 512}
        assert (chroma[0, 0], chroma[-1, 0]) == (512, GREY)
