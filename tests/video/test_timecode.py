"""Time codes move by frames; where codes are dropped, they keep to the clock."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from jaxdeblur.video.timecode import later

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("code", "frames", "rate", "expected"),
    [
        ("10:00:00:00", 25, Fraction(25), "10:00:01:00"),
        ("23:59:59:24", 1, Fraction(25), "00:00:00:00"),
        ("00:00:00:00", 30, NTSC, "00:00:01:00"),
        ("00:00:59;29", 1, NTSC, "00:01:00;02"),  # SMPTE's example: codes 0 and 1 are dropped
        ("00:09:59;29", 1, NTSC, "00:10:00;00"),
        ("01:00:00;00", 107892, NTSC, "02:00:00;00"),  # an hour of the clock
        ("00:00:59;59", 1, 2 * NTSC, "00:01:00;04"),
        ("00:00:59.29", 1, NTSC, "00:01:00.02"),
    ],
)
def test_a_later_frame(code: str, frames: int, rate: Fraction, expected: str) -> None:
    assert later(code, frames, rate) == expected


def test_each_frame_of_a_day_has_a_code_of_its_own() -> None:
    codes = {later("00:00:00;00", number, NTSC) for number in range(0, 24 * 107892, 9973)}
    assert len(codes) == len(range(0, 24 * 107892, 9973))
    steps = [later("00:00:00;00", number, NTSC) for number in range(1700, 3700)]
    assert all(later(one, 1, NTSC) == two for one, two in itertools.pairwise(steps))
    dropped = [code for code in steps if code and code[4] != "0" and code[6:] in ("00;00", "00;01")]
    assert dropped == []


@pytest.mark.parametrize("code", ["", "10:00:00", "10:00:00:25", "10:99:00:00", "one"])
def test_what_is_no_time_code_of_the_rate_is_refused(code: str) -> None:
    assert later(code, 1, Fraction(25)) is None
