"""Array shapes and their names, which every annotation in the package uses.

B  batch          T  time (frames)      H, W  rows and columns of pixels
h, w  rows and columns of features      C  channels
S  channels of what a network sees: RGB, or MAP_CHANNELS of blur paths (models/path_maps.py)
M  spatial attention maps               N  temporal attention maps          K  the M*N combinations

Images are NHWC, RGB. Networks take floats in [0, 1]; files hold integers of 8 or 16 bits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Float, Num, UInt8, UInt16

MAP_CHANNELS = 14
"""Channels of the maps of blur paths, which a network over paths sees in place of RGB."""

# What networks take and make: on the device, in [0, 1].

Frame: TypeAlias = Float[Array, "B H W 3"]  # one frame of each video of a batch
Clip: TypeAlias = Float[Array, "B T H W 3"]  # T consecutive frames of each
SeenFrame: TypeAlias = Float[Array, "B H W S"]  # what a network sees of one frame
SeenClip: TypeAlias = Float[Array, "B T H W S"]  # what it sees of T consecutive frames
ReducedClip: TypeAlias = Float[Array, "B T _ _ 3"]  # a clip at one of several sizes

# Within networks.

Features: TypeAlias = Float[Array, "B h w C"]  # a feature map of one frame
ClipFeatures: TypeAlias = Float[Array, "B T h w C"]  # the feature maps of T frames
Squeezed: TypeAlias = Float[Array, "B T M C"]
"""G_s: what the M spatial attention maps gather from each frame (attention, eq. 2)."""
SqueezedWindow: TypeAlias = Float[Array, "B K C"]
"""G_st: what the M spatial and N temporal maps gather from a window, K = M*N (attention, eq. 4)."""
Kernel: TypeAlias = Float[Array, "kh kw C_in C_out"]  # of a convolution, HWIO
Parameters: TypeAlias = dict[str, Array]  # by attribute path, such as encoder/0/first/kernel
Batch: TypeAlias = dict[str, Any]
"""The clips of a training step: uint8 ``blurred``, ``B before+T+after H W S``, and ``sharp``,
``B T H W 3``."""

# As files hold them: NumPy, 8 bits a sample, or 8 or 16.

Frame8: TypeAlias = UInt8[np.ndarray, "H W 3"]
Video8: TypeAlias = UInt8[np.ndarray, "T H W 3"]
SeenVideo8: TypeAlias = UInt8[np.ndarray, "T H W S"]  # what a network sees of all frames
Pixels: TypeAlias = UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W 3"]
PixelClip: TypeAlias = UInt8[np.ndarray, "T H W 3"] | UInt16[np.ndarray, "T H W 3"]
Plane: TypeAlias = UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]
"""One array of a frame as its file holds it: ``H W 3`` for packed RGB, else ``h w``."""
DevicePlane: TypeAlias = UInt8[Array, "..."] | UInt16[Array, "..."]  # a Plane on the device
Image: TypeAlias = Num[np.ndarray, "H W 3"]  # of any numeric dtype
GreyImage: TypeAlias = Num[np.ndarray, "H W"]  # with a single channel
