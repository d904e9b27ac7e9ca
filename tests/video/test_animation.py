"""Animations play at the speed of the video, in delays that formats hold and browsers keep."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from jaxdeblur.video.animation import AnimationWriter
from jaxdeblur.video.picture import Picture, VideoInfo, rgb8_info


def delays(path: Path, info: VideoInfo, times: list[int]) -> list[int]:
    """Writes pictures with these timestamps; returns the milliseconds of each frame."""
    rng = np.random.default_rng(0)
    with AnimationWriter(path, info, max_frames=12) as writer:
        for time in times:
            pixels = rng.integers(0, 256, (8, 12, 3), np.uint8)
            writer.write(Picture((pixels,), pts=time))
    apart = [what for what in writer.lost if "ms apart" in what]
    with Image.open(path) as animation:
        found = []
        for frame in ImageSequence.Iterator(animation):
            frame.load()  # sets WebP's duration
            found.append(frame.info["duration"])
    assert len(apart) == (len(found) < min(12, len(times)))
    return found


@pytest.mark.parametrize(
    ("rate", "suffix", "expected"),
    [
        (30, ".gif", [30, 30, 40] * 4),
        (60, ".gif", [30, 30, 40] * 2),  # of every second frame
        (120, ".gif", [20, 30] * 2),
        (30, ".webp", [33, 33, 34] * 4),
        (120, ".webp", [16, 17, 17] * 2),
    ],
)
def test_an_animation_lasts_as_long_as_the_video(rate, suffix, expected, tmp_path):
    info = rgb8_info(8, 12, Fraction(rate))
    assert delays(tmp_path / f"a{suffix}", info, list(range(12))) == expected


def test_frames_of_a_camera_last_until_the_next(tmp_path):
    info = dataclasses.replace(rgb8_info(8, 12, Fraction(30)), time_base=Fraction(1, 1000))
    times = [0, 83, 200, 250]
    assert delays(tmp_path / "a.webp", info, times) == [83, 117, 50, 33]
