"""An example extension: your own fusion in the attention network.

    python train.py --extension=examples/window_max.py --model=fsta_small --fusion=window_max

Each pixel takes the maximum of each channel over the window. ``docs/architecture.md`` explains it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdeblur.models.fsta_config import FstaConfig, register_fusion
from jaxdeblur.models.fusion import Fusion
from jaxdeblur.models.layers import Conv
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import ClipFeatures, Features


class WindowMax(Fusion):
    """A 1x1 convolution of the maxima over the window."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.mix = Conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.radius = self.mix.radius

    def remember(self, features: ClipFeatures) -> ClipFeatures:
        """Returns the memory of each frame: all of its features."""
        return features

    def fuse(self, features: Features, window: ClipFeatures) -> Features:
        """Returns what the current frame takes from its window, ``B T h w C``."""
        return self.mix(window.max(axis=1))


def _make(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> WindowMax:
    return WindowMax(channels, dtype=jnp.dtype(config.dtype), rngs=rngs)


register_fusion("window_max", _make)
# Training needs no preset; with one, the contract tests cover the fusion.
PRESETS["window_max"] = dataclasses.replace(
    PRESETS["fsta_small"],
    about="The example fusion: the maxima of the window.",
    network=dataclasses.replace(PRESETS["fsta_small"].network, fusion="window_max"),
)
