"""Pictures that show input and result: side by side, or with a divider that moves."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import Picture, VideoInfo, without_alpha

_PERIOD_S = 4
"""Seconds until the divider is back where it began."""


class Comparison:
    """Makes the pictures, in the arrays that the input has.

    Attributes:
      info: what the pictures are.
    """

    def __init__(self, info: VideoInfo, style: Literal["side-by-side", "divider"]) -> None:
        self._style = style
        # Players turn the picture; side by side is then one above the other in the file.
        self._axis = 0 if info.turned else 1
        # Where they turn or mirror it so that the file's first half comes out on the right, the
        # halves change places.
        matrix = info.display_matrix or (1, 0, 0, 0)
        self._swapped = matrix[3 if info.turned else 0] < 0
        size = [info.height, info.width]
        if style == "side-by-side":
            # Halves of such a size that no chroma sample belongs to both (RGB may become 4:2:0).
            unit = max(2, info.layout.chroma[self._axis])
            size[self._axis] = 2 * -(-size[self._axis] // unit) * unit
        self.info = dataclasses.replace(without_alpha(info), height=size[0], width=size[1], lost=())
        self._count = 0
        self._period = max(2, round(_PERIOD_S * info.rate))

    def __call__(self, picture: Picture, restored: tuple[Plane, ...]) -> Picture:
        """The picture that shows both; ``picture`` is the input with its timestamps."""
        info = self.info
        shapes = info.layout.plane_shapes(info.height, info.width)
        show = self._beside if self._style == "side-by-side" else self._divided
        pair = (restored, picture.planes) if self._swapped else (picture.planes, restored)
        planes = tuple(
            show(first, second, shape, marked=not index or info.layout.kind != "yuv")
            for index, (first, second, shape) in enumerate(zip(*pair, shapes, strict=True))
        )
        self._count += 1
        return dataclasses.replace(picture, planes=planes, alpha=None, packets=[])

    def _beside(
        self, first: Plane, second: Plane, shape: tuple[int, ...], *, marked: bool
    ) -> Plane:
        margin = [(0, 0)] * first.ndim
        margin[self._axis] = (0, shape[self._axis] // 2 - first.shape[self._axis])
        halves = [np.pad(half, margin, mode="edge") for half in (first, second)]
        return np.concatenate(halves, axis=self._axis)

    def _divided(
        self, first: Plane, second: Plane, shape: tuple[int, ...], *, marked: bool
    ) -> Plane:
        place = 0.5 - 0.4 * np.cos(2 * np.pi * self._count / self._period)
        at = max(1, round(shape[self._axis] * place))
        along = (slice(None),) * self._axis
        shown = first.copy()
        shown[(*along, slice(at, None))] = second[(*along, slice(at, None))]
        if marked:  # a white line, by luma alone
            shown[(*along, slice(at - 1, at))] = 2**self.info.layout.bits - 1
        return shown
