"""Pictures that show input and result: side by side, or with a divider that moves."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxdeblur.pixels import Plane
from jaxdeblur.video import Picture, VideoInfo, without_alpha

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
        size = [info.height, info.width]
        if style == "side-by-side":
            # Each half has an even size, so that no chroma sample belongs to both.
            size[self._axis] = 2 * (size[self._axis] + size[self._axis] % 2)
        self.info = dataclasses.replace(without_alpha(info), height=size[0], width=size[1], lost=())
        self._count = 0
        self._period = max(2, round(_PERIOD_S * info.rate))

    def __call__(self, picture: Picture, restored: tuple[Plane, ...]) -> Picture:
        """The picture that shows both; ``picture`` is the input with its timestamps."""
        info = self.info
        shapes = info.layout.plane_shapes(info.height, info.width, grey=len(restored) == 1)
        show = self._beside if self._style == "side-by-side" else self._divided
        planes = tuple(
            show(before, after, shape, marked=not index or info.layout.kind != "yuv")
            for index, (before, after, shape) in enumerate(
                zip(picture.planes, restored, shapes, strict=True)
            )
        )
        self._count += 1
        return dataclasses.replace(picture, planes=planes, alpha=None, packets=[])

    def _beside(
        self, before: Plane, after: Plane, shape: tuple[int, ...], *, marked: bool
    ) -> Plane:
        margin = [(0, 0)] * before.ndim
        margin[self._axis] = (0, shape[self._axis] // 2 - before.shape[self._axis])
        halves = [np.pad(half, margin, mode="edge") for half in (before, after)]
        return np.concatenate(halves, axis=self._axis)

    def _divided(
        self, before: Plane, after: Plane, shape: tuple[int, ...], *, marked: bool
    ) -> Plane:
        place = 0.5 - 0.4 * np.cos(2 * np.pi * self._count / self._period)
        at = max(1, round(shape[self._axis] * place))
        along = (slice(None),) * self._axis
        shown = before.copy()
        shown[(*along, slice(at, None))] = after[(*along, slice(at, None))]
        if marked:  # a white line, by luma alone
            shown[(*along, slice(at - 1, at))] = 2**self.info.layout.bits - 1
        return shown
