"""Array shapes and their names, which every annotation in the package uses.

B  batch          T  time (frames)      H, W  rows and columns of pixels
h, w  rows and columns of features      C  channels
S  channels of what a network sees: RGB, or the 14 maps of blur paths (models/path_maps.py)
M  spatial attention maps               N  temporal attention maps          K  the M*N combinations

Images are NHWC, RGB. Networks take floats in [0, 1]; files hold integers of 8 or 16 bits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Num, UInt8, UInt16

Frame: TypeAlias = Float[Array, "B H W 3"]
"""One frame of each video of a batch, in [0, 1]."""

Clip: TypeAlias = Float[Array, "B T H W 3"]
"""T consecutive frames of each video of a batch, in [0, 1]."""

SeenFrame: TypeAlias = Float[Array, "B H W S"]
"""What a network sees of one frame."""

SeenClip: TypeAlias = Float[Array, "B T H W S"]
"""What a network sees of T consecutive frames."""

ReducedClip: TypeAlias = Float[Array, "B T _ _ 3"]
"""A clip at one of several sizes."""

Features: TypeAlias = Float[Array, "B h w C"]
"""A feature map of one frame."""

ClipFeatures: TypeAlias = Float[Array, "B T h w C"]
"""The feature maps of T frames."""

Squeezed: TypeAlias = Float[Array, "B T M C"]
"""G_s: what the M spatial attention maps gather from each frame (attention, eq. 2)."""

SqueezedWindow: TypeAlias = Float[Array, "B K C"]
"""G_st: what the M spatial and N temporal maps gather from a window, K = M*N (attention, eq. 4)."""

Kernel: TypeAlias = Float[Array, "kh kw C_in C_out"]
"""A convolution kernel, HWIO."""

Parameters: TypeAlias = dict[str, Array]
"""Parameters, keyed by attribute path, such as ``encoder/0/first/kernel``."""

Batch: TypeAlias = dict[str, Any]
"""The clips of a training step: uint8 ``blurred``, ``B before+T+after H W S``, and ``sharp``,
``B T H W 3``."""

Frame8: TypeAlias = UInt8[np.ndarray, "H W 3"]
"""One 8-bit frame as a file holds it: NumPy, 0 to 255."""

Video8: TypeAlias = UInt8[np.ndarray, "T H W 3"]
"""All frames of an 8-bit video as files hold them: NumPy, 0 to 255."""

SeenVideo8: TypeAlias = UInt8[np.ndarray, "T H W S"]
"""What a network sees of all frames, as bytes."""

Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W 3"]
"""One frame as a file holds it, 8 or 16 bits a sample."""

PixelClip: TypeAlias = UInt8[np.ndarray, "T H W 3"] | UInt16[np.ndarray, "T H W 3"]
"""All frames of a video as a file holds them."""

DevicePixels: TypeAlias = UInt8[Array, "*shape"] | UInt16[Array, "*shape"]
"""Integer pixels on the device, of any shape."""

Plane: TypeAlias = UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]
"""One array of a frame as its file holds it: ``H W 3`` for packed RGB, else ``h w``."""

DevicePlane: TypeAlias = UInt8[Array, "..."] | UInt16[Array, "..."]
"""A ``Plane`` on the device."""

Image: TypeAlias = Num[np.ndarray, "H W 3"]
"""One NumPy image of any numeric dtype."""

GreyImage: TypeAlias = Num[np.ndarray, "H W"]
"""One single-channel NumPy image of any numeric dtype."""
