"""Pixel layouts: convert the samples of a frame as stored in its file to RGB in [0, 1] and back.

A frame is restored in the arrays ("planes") of its file: grey, RGB, or luma and chroma with any
sub-sampling, 8 to 16 bits. They are converted to RGB for the network, and the network's change is
converted back and added to them. So nothing is rounded on the way, and samples that the network
does not change are reproduced bit for bit. All of this runs on the device.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.images import enlarge_along, reduce_size
from jaxdeblur.shapes import DevicePlane, Plane


@dataclasses.dataclass(frozen=True)
class PixelLayout:
    """The meaning of a frame's samples.

    Attributes:
      kind: "rgb" is one array of packed RGB; "yuv" luma and two chroma arrays; "grey" luma alone.
      bits: significant bits of a sample, in uint8 or uint16.
      chroma: rows and columns of pixels that share a chroma sample: (2, 2) is 4:2:0.
      weights: weights of red and blue in luma, which determine the YUV matrix.
      full_range: whether 8-bit luma is 0 to 255; else it is 16 to 235, and chroma 16 to 240.
    """

    kind: Literal["rgb", "yuv", "grey"] = "rgb"
    bits: int = 8
    chroma: tuple[int, int] = (1, 1)
    weights: tuple[float, float] = (0.299, 0.114)
    full_range: bool = True

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the samples."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def plane_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Returns the shapes of the arrays of a frame."""
        if self.kind == "rgb":
            return [(height, width, 3)]
        if self.kind == "grey":
            return [(height, width)]
        rows, columns = self.chroma
        chroma = (-(-height // rows), -(-width // columns))
        return [(height, width), chroma, chroma]

    def to_rgb(self, planes: tuple[DevicePlane, ...]) -> Float[Array, "H W 3"]:
        """Converts a frame to float32 RGB, clipped to [0, 1]."""
        if self.kind == "rgb":
            return planes[0].astype(jnp.float32) / (2**self.bits - 1)
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

    def luma(self, planes: tuple[Plane, ...]) -> Float[np.ndarray, "H W"]:
        """Returns the luma of a frame on the host, 0 for black and 1 for white."""
        if self.kind == "rgb":
            red, blue = self.weights
            return np.asarray(planes[0], np.float32) @ (
                np.array([red, 1 - red - blue, blue], np.float32) / (2**self.bits - 1)
            )
        low, span, _ = self._levels
        return (np.asarray(planes[0], np.float32) - np.float32(low)) / np.float32(span)

    def add(
        self, planes: tuple[DevicePlane, ...], change: Float[Array, "H W 3"]
    ) -> tuple[DevicePlane, ...]:
        """Adds ``change``, in units of RGB, to a frame; rounds and clips to the bit depth."""
        if self.kind == "rgb":
            return (self._quantised(planes[0], change * float(2**self.bits - 1)),)
        red, green, blue = (change[..., channel] for channel in range(3))
        _, luma_span, chroma_span = self._levels
        kr, kb = self.weights
        luma = kr * red + (1 - kr - kb) * green + kb * blue
        changes = [luma * luma_span]
        if self.kind == "yuv":
            blueness, redness = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
            changes += [
                reduce_size(colour, self.chroma, axis=-2) * chroma_span
                for colour in (blueness, redness)
            ]
        return tuple(
            self._quantised(plane, change) for plane, change in zip(planes, changes, strict=True)
        )

    @property
    def _levels(self) -> tuple[float, float, float]:
        """The code of black, and the numbers of codes that luma and chroma span."""
        if self.full_range:
            return 0.0, float(2**self.bits - 1), float(2**self.bits - 1)
        unit = float(2 ** (self.bits - 8))
        return 16 * unit, 219 * unit, 224 * unit

    def _quantised(self, plane: DevicePlane, change: Float[Array, "*shape"]) -> DevicePlane:
        # Samples are integers, so only the change is rounded, which is exact at 16 bits too.
        changed = plane.astype(jnp.int32) + jnp.round(change).astype(jnp.int32)
        return jnp.clip(changed, 0, 2**self.bits - 1).astype(plane.dtype)


RGB8 = PixelLayout()
"""Packed 8-bit RGB."""


def layout_of(dtype: np.dtype) -> PixelLayout:
    """Returns the layout of packed RGB in uint8 or uint16."""
    return PixelLayout("rgb", 8 * dtype.itemsize)


def _upsample(
    chroma: Float[Array, "h w"], factors: tuple[int, int], shape: tuple[int, ...]
) -> Float[Array, "H W"]:
    """Enlarges chroma linearly, with samples midway between pixels."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            chroma = enlarge_along(chroma, axis, factor)
    return chroma[: shape[0], : shape[1]]


def to_packed_rgb(planes: tuple[Plane, ...], layout: PixelLayout, bits: int) -> Plane:
    """Converts the arrays of any layout to packed RGB of 8 or 16 bits."""
    if layout == PixelLayout("rgb", bits):
        return planes[0]
    return np.asarray(_packed_rgb(layout, bits, planes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _packed_rgb(layout: PixelLayout, bits: int, planes: tuple[DevicePlane, ...]) -> DevicePlane:
    rgb = jnp.round(layout.to_rgb(planes) * (2**bits - 1))
    return rgb.astype(jnp.uint8 if bits == 8 else jnp.uint16)
