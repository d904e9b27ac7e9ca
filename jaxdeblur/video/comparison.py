"""Pictures that show input and result side by side, with a label on each."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import Picture, VideoInfo, without_alpha

LABELS = ("input", "restored")

_BOX, _TEXT = 1, 2
_READABLE = 12  # font size in pixels, as displayed


class Comparison:
    """Makes the pictures, in the pixel layout of the input.

    Attributes:
      info: the format of the pictures.
    """

    def __init__(self, info: VideoInfo, shown_width: int | None = None) -> None:
        """Prepares pictures for ``info``, viewed at a width of ``shown_width`` if that is less."""
        # Players rotate the picture. With one or three quarter turns the halves are stacked in the
        # file; with two or three the file's second half is displayed on the left.
        self._turns = info.quarter_turns
        self._axis = 1 - self._turns % 2
        size = [info.height, info.width]
        # The halves are sized so that they share no chroma sample (RGB may become 4:2:0).
        unit = max(2, info.layout.chroma[self._axis])
        size[self._axis] = 2 * -(-size[self._axis] // unit) * unit
        self.info = dataclasses.replace(without_alpha(info), height=size[0], width=size[1], lost=())
        reduced = max(1.0, size[self._axis] / (shown_width or math.inf))
        self._labels = [self._label(text, info.height, info.width, reduced) for text in LABELS]

    def __call__(self, picture: Picture, restored: tuple[Plane, ...]) -> Picture:
        """Returns a picture that shows both; ``picture`` is the input with its timestamps."""
        halves = [
            self._labelled(planes, label)
            for planes, label in zip((picture.planes, restored), self._labels, strict=True)
        ]
        shapes = self.info.layout.plane_shapes(self.info.height, self.info.width)
        pairs = zip(*(reversed(halves) if self._turns >= 2 else halves), strict=True)
        planes = tuple(
            self._beside(first, second, shape)
            for (first, second), shape in zip(pairs, shapes, strict=True)
        )
        return dataclasses.replace(picture, planes=planes, alpha=None)

    def _beside(self, first: Plane, second: Plane, shape: tuple[int, ...]) -> Plane:
        margin = [(0, 0)] * first.ndim
        margin[self._axis] = (0, shape[self._axis] // 2 - first.shape[self._axis])
        halves = [np.pad(half, margin, mode="edge") for half in (first, second)]
        return np.concatenate(halves, axis=self._axis)

    def _labelled(
        self, planes: tuple[Plane, ...], label: UInt8[np.ndarray, "H W"]
    ) -> tuple[Plane, ...]:
        """Draws the label in white on black; with luma and chroma, both have neutral chroma."""
        layout = self.info.layout
        top, grey = 2**layout.bits - 1, 2 ** (layout.bits - 1)
        shown = []
        for index, plane in enumerate(planes):
            rows, columns = layout.chroma if layout.kind == "yuv" and index else (1, 1)
            marked = label[::rows, ::columns]
            dark, bright = (grey, grey) if layout.kind == "yuv" and index else (top // 16, top)
            plane = plane.copy()
            plane[marked == _BOX] = dark
            plane[marked == _TEXT] = bright
            shown.append(plane)
        return tuple(shown)

    def _label(
        self, text: str, height: int, width: int, reduced: float
    ) -> UInt8[np.ndarray, "H W"]:
        """Returns where box and text are in a stored frame, to be displayed at the top left.

        A frame has neither if they would take more than half of its width or height.
        """
        size = (height, width) if self._turns % 2 else (width, height)
        font = ImageFont.load_default(max(10, min(size) // 24, round(_READABLE * reduced)))
        _, upper, _, lower = font.getbbox("".join(LABELS))  # one height for both
        left, _, right, _ = font.getbbox(text)
        pad = (lower - upper) // 2
        wide, high = right - left + 2 * pad, lower - upper + 2 * pad
        if wide > size[0] / 2 or high > size[1] / 2:
            return np.zeros((height, width), np.uint8)
        drawn = pillow.new("L", size, 0)
        ImageDraw.Draw(drawn).rectangle((0, 0, wide, high), fill=_BOX)
        mask = pillow.new("L", size, 0)
        ImageDraw.Draw(mask).text((pad - left, pad - upper), text, fill=255, font=font)
        found = np.where(np.asarray(mask) > 127, _TEXT, np.asarray(drawn)).astype(np.uint8)
        return np.rot90(found, -self._turns)
