"""The legend of array shapes: every annotation in the package takes its names from here.

B  batch          T  time (frames)      H, W  rows and columns of pixels
h, w  rows and columns of features      C  channels
M  spatial attention maps               N  temporal attention maps          K  the M*N combinations

Images are NHWC, RGB. Inside the networks they are floats in [0, 1]; at a file they are uint8.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Num, UInt8

Frame: TypeAlias = Float[Array, "B H W 3"]
"""One frame of each video of a batch, in [0, 1]."""

Clip: TypeAlias = Float[Array, "B T H W 3"]
"""T consecutive frames of each video of a batch, in [0, 1]."""

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

Frame8: TypeAlias = UInt8[np.ndarray, "H W 3"]
"""One frame as it stands in a file: NumPy, 0 to 255."""

Video8: TypeAlias = UInt8[np.ndarray, "T H W 3"]
"""All frames of a video as they stand in files: NumPy, 0 to 255."""

Image: TypeAlias = Num[np.ndarray, "H W 3"]
"""One image of any number type in NumPy."""
