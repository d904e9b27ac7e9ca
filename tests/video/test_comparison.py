"""The labels of ``--compare``: on both halves, upright, without colour."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from jaxdeblur.video.comparison import Comparison
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import RGB8, PixelLayout, to_packed_rgb

GREY = 90


# Cosine and sine of the players' rotation, by quarter turns counter-clockwise.
COSINE_SINE = {0: (1, 0), 1: (0, -1), 2: (-1, 0), 3: (0, 1)}


def compared(layout: PixelLayout, turns: int = 0) -> np.ndarray:
    """Returns the picture that shows a grey frame of 320x240 beside itself."""
    rate = Fraction(25)
    cosine, sine = (65536 * value for value in COSINE_SINE[turns])
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    info = VideoInfo(240, 320, "any", layout, False, rate, 1 / rate, display_matrix=matrix)
    planes = tuple(np.full(shape, GREY, layout.dtype) for shape in layout.plane_shapes(240, 320))
    comparison = Comparison(info)
    (shown,) = comparison(Picture(planes), planes).planes
    assert shown.shape == (comparison.info.height, comparison.info.width, 3)
    assert comparison.info.quarter_turns == 0
    return shown


@pytest.mark.parametrize("turns", COSINE_SINE)
def test_labels_stand_at_the_top_left_of_both_halves(turns: int) -> None:
    shown = compared(RGB8, turns)[..., 0]
    assert shown.shape == ((240, 640) if turns % 2 == 0 else (320, 480))
    for half in np.split(shown, 2, axis=1):
        assert half[0, 0] < 30
        assert (half > 127).sum() > 50
        assert (half[60:] == GREY).all()
        assert (half[:, 160:] == GREY).all()


def test_labels_have_no_colour_and_10_bits_become_8() -> None:
    layout = PixelLayout("yuv", 10, (2, 2), full_range=False)
    shown = compared(layout)
    assert np.ptp(shown[:20, :20], axis=-1).max() == 0
    assert np.ptp(shown[100], axis=0).max() == 0
    planes = tuple(np.full(shape, GREY, layout.dtype) for shape in layout.plane_shapes(2, 2))
    np.testing.assert_array_equal(shown[100, 100], to_packed_rgb(planes, layout, 8)[0, 0])


def test_pixels_of_a_turned_video_keep_their_aspect() -> None:
    rate = Fraction(25)
    info = VideoInfo(
        *(240, 321, "any", RGB8, False, rate, 1 / rate),
        sample_aspect=Fraction(4, 3),
        display_matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    )
    shown = Comparison(info).info
    assert (shown.height, shown.width, shown.sample_aspect) == (321, 480, Fraction(3, 4))
