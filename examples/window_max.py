"""An example extension: a way of fusing of one's own, in the attention network.

    python train.py --extension=examples/window_max.py --model=fsta_small --fusion=window_max

Each pixel takes the largest value of each channel in the window.
``docs/architecture.md`` goes through it.
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
    """The largest values of the window, through a 1x1 convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.mix = Conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.radius = self.mix.radius

    def remember(self, features: ClipFeatures) -> ClipFeatures:
        """What is kept of each frame: all of its features."""
        return features

    def fuse(self, features: Features, window: ClipFeatures) -> Features:
        """What the current frame takes from its window, ``B T h w C``."""
        return self.mix(window.max(axis=1))


def _make(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> WindowMax:
    return WindowMax(channels, dtype=jnp.dtype(config.dtype), rngs=rngs)


register_fusion("window_max", _make)
# A preset is not needed to train it; with one it keeps the contract of all models.
PRESETS["window_max"] = dataclasses.replace(
    PRESETS["fsta_small"],
    about="The example of a fusion: the largest values of the window.",
    network=dataclasses.replace(PRESETS["fsta_small"].network, fusion="window_max"),
)
