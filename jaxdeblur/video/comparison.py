"""Pictures that show input and result side by side, with a label on each."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import UNSPECIFIED, Picture, VideoInfo
from jaxdeblur.video.pixels import RGB8, to_packed_rgb

LABELS = ("input", "restored")

_READABLE = 12  # font size in pixels, as displayed


class Comparison:
    """Makes the pictures, upright and in 8-bit RGB.

    Attributes:
      info: the format of the pictures.
    """

    def __init__(self, info: VideoInfo, shown_width: int | None = None) -> None:
        """Prepares pictures for ``info``, viewed at a width of ``shown_width`` if that is less."""
        self._given = info
        height, width, aspect = info.height, info.width, info.sample_aspect
        if info.quarter_turns % 2:
            height, width, aspect = width, height, aspect and 1 / aspect
        self._padding = width % 2  # so that the halves share no chroma sample
        _, _, primaries, transfer = info.colour
        self.info = dataclasses.replace(
            info,
            height=height,
            width=2 * (width + self._padding),
            pixel_format="rgb24",
            layout=RGB8,
            has_alpha=False,
            sample_aspect=aspect,
            colour=(0, UNSPECIFIED, primaries, transfer),
            display_matrix=None,
            lost=(),
        )
        reduced = max(1.0, self.info.width / (shown_width or math.inf))
        self._labels = [_label(text, height, width, reduced) for text in LABELS]

    def __call__(self, picture: Picture, restored: tuple[Plane, ...]) -> Picture:
        """Returns a picture that shows both; ``picture`` is the input with its timestamps."""
        halves = []
        for planes, label in zip((picture.planes, restored), self._labels, strict=True):
            rgb = to_packed_rgb(planes, self._given.layout, 8)
            upright = self._given.upright(rgb)
            half = np.pad(upright, ((0, 0), (0, self._padding), (0, 0)), mode="edge")
            half[: label.shape[0], : label.shape[1]] = label[..., None]
            halves.append(half)
        return dataclasses.replace(picture, planes=(np.concatenate(halves, axis=1),), alpha=None)


def _label(text: str, height: int, width: int, reduced: float) -> UInt8[np.ndarray, "h w"]:
    """Draws a label in white on black; it is empty if it took more than half of a side."""
    font = ImageFont.load_default(max(10, min(height, width) // 24, round(_READABLE * reduced)))
    _, upper, _, lower = font.getbbox("".join(LABELS))  # one height for both
    left, _, right, _ = font.getbbox(text)
    pad = round((lower - upper) / 2)
    size = (round(right - left) + 2 * pad, round(lower - upper) + 2 * pad)
    if size[0] > width / 2 or size[1] > height / 2:
        return np.zeros((0, 0), np.uint8)
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).text((pad - left, pad - upper), text, fill=255, font=font)
    return np.asarray(drawn)
