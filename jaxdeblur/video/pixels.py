"""Pixel layouts: the samples of a frame as its file holds them, to RGB in [0, 1] and back.

A frame is restored in the arrays ("planes") that its file holds: grey, RGB, or luma and chroma of
any sub-sampling, 8 to 16 bits. They are turned into RGB for the network, and what the network
changes is turned back and added to them. So there is no rounding on the way, and samples that the
network leaves alone come out bit for bit as they went in. All of it runs on the device.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.models.layers import enlarge_along
from jaxdeblur.shapes import DevicePlane, Plane


@dataclasses.dataclass(frozen=True)
class PixelLayout:
    """What the samples of a frame mean.

    Attributes:
      kind: "rgb" is one array of packed RGB; "gbr" three arrays in that order; "yuv" luma and
        two chroma arrays; "grey" luma alone.
      bits: significant bits of a sample, in uint8 or uint16.
      chroma: rows and columns of pixels that share a chroma sample: (2, 2) is 4:2:0.
      weights: what red and blue weigh in luma, which fixes the YUV matrix.
      full_range: luma is 0 to 255 (for 8 bits), else 16 to 235 and chroma 16 to 240.
    """

    kind: Literal["rgb", "gbr", "yuv", "grey"] = "rgb"
    bits: int = 8
    chroma: tuple[int, int] = (1, 1)
    weights: tuple[float, float] = (0.299, 0.114)
    full_range: bool = True

    @property
    def dtype(self) -> np.dtype:
        """Of the samples."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def plane_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """The shapes of the arrays of a frame."""
        if self.kind == "rgb":
            return [(height, width, 3)]
        if self.kind == "gbr":
            return [(height, width)] * 3
        if self.kind == "grey":
            return [(height, width)]
        rows, columns = self.chroma
        chroma = (-(-height // rows), -(-width // columns))
        return [(height, width), chroma, chroma]

    def to_rgb(self, planes: tuple[DevicePlane, ...]) -> Float[Array, "H W 3"]:
        """The frame as RGB, float32, clipped to [0, 1]."""
        if self.kind == "rgb":
            return self._unit(planes[0])
        if self.kind == "gbr":
            green, blue, red = map(self._unit, planes)
            return jnp.stack([red, green, blue], axis=-1)
        low, luma_span, chroma_span = self._levels
        luma = (planes[0].astype(jnp.float32) - low) / luma_span
        if self.kind == "grey":
            return jnp.clip(jnp.stack([luma] * 3, axis=-1), 0, 1)
        middle = float(2 ** (self.bits - 1))
        blueness, redness = (
            (_upsample(plane.astype(jnp.float32), self.chroma, luma.shape) - middle) / chroma_span
            for plane in planes[1:]
        )
        # Y = kr R + kg G + kb B, Cb = (B - Y) / (2 - 2 kb), Cr = (R - Y) / (2 - 2 kr).
        kr, kb = self.weights
        red = luma + (2 - 2 * kr) * redness
        blue = luma + (2 - 2 * kb) * blueness
        green = (luma - kr * red - kb * blue) / (1 - kr - kb)
        return jnp.clip(jnp.stack([red, green, blue], axis=-1), 0, 1)

    def add(
        self, planes: tuple[DevicePlane, ...], change: Float[Array, "H W 3"]
    ) -> tuple[DevicePlane, ...]:
        """The frame changed by ``change``, in units of RGB; rounded and clipped to the bits."""
        top = float(2**self.bits - 1)
        if self.kind == "rgb":
            return (self._quantised(planes[0], change * top),)
        red, green, blue = (change[..., channel] for channel in range(3))
        if self.kind == "gbr":
            changes = [green * top, blue * top, red * top]
        else:
            _, luma_span, chroma_span = self._levels
            kr, kb = self.weights
            luma = kr * red + (1 - kr - kb) * green + kb * blue
            changes = [luma * luma_span]
            if self.kind == "yuv":
                blueness, redness = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
                changes += [
                    _downsample(colour, self.chroma) * chroma_span for colour in (blueness, redness)
                ]
        return tuple(
            self._quantised(plane, change) for plane, change in zip(planes, changes, strict=True)
        )

    @property
    def _levels(self) -> tuple[float, float, float]:
        """The code of black, and how many codes luma and chroma span."""
        if self.full_range:
            return 0.0, float(2**self.bits - 1), float(2**self.bits - 1)
        unit = float(2 ** (self.bits - 8))
        return 16 * unit, 219 * unit, 224 * unit

    def _unit(self, plane: DevicePlane) -> Float[Array, "*shape"]:
        return plane.astype(jnp.float32) / (2**self.bits - 1)

    def _quantised(self, plane: DevicePlane, change: Float[Array, "*shape"]) -> DevicePlane:
        # The sample is an integer, so only the change is rounded: exact at 16 bits too.
        changed = plane.astype(jnp.int32) + jnp.round(change).astype(jnp.int32)
        return jnp.clip(changed, 0, 2**self.bits - 1).astype(plane.dtype)


RGB8 = PixelLayout()
"""Packed RGB of 8 bits."""


def layout_of(dtype: np.dtype) -> PixelLayout:
    """The layout of packed RGB in uint8 or uint16."""
    return PixelLayout("rgb", 8 * dtype.itemsize)


def _upsample(
    chroma: Float[Array, "h w"], factors: tuple[int, int], shape: tuple[int, ...]
) -> Float[Array, "H W"]:
    """Chroma at full size: linear between samples amid two pixels, those of more repeated."""
    for axis, factor in enumerate(factors):
        if factor == 2:
            chroma = enlarge_along(chroma, axis, factor)
        else:
            chroma = jnp.repeat(chroma, factor, axis=axis)
    return chroma[: shape[0], : shape[1]]


def _downsample(colour: Float[Array, "H W"], factors: tuple[int, int]) -> Float[Array, "h w"]:
    """The mean over the pixels of a chroma sample; at odd ends the last pixel counts again."""
    (rows, columns), (height, width) = factors, colour.shape
    padded = jnp.pad(colour, [(0, -height % rows), (0, -width % columns)], mode="edge")
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return blocks.mean(axis=(1, 3))


def to_packed_rgb(planes: tuple[Plane, ...], layout: PixelLayout, bits: int) -> Plane:
    """Packed RGB of 8 or 16 bits from the arrays of any layout."""
    if layout == PixelLayout("rgb", bits):
        return planes[0]
    return np.asarray(_packed_rgb(layout, bits, planes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _packed_rgb(layout: PixelLayout, bits: int, planes: tuple[DevicePlane, ...]) -> DevicePlane:
    rgb = jnp.round(layout.to_rgb(planes) * (2**bits - 1))
    return rgb.astype(jnp.uint8 if bits == 8 else jnp.uint16)
