"""A network of your own in a few lines, checked as every network here is.

    python examples/own_model.py

Ends with its number of parameters. examples/temporal_mean.py has memory, and a preset for train.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdeblur import models
from jaxdeblur.data.config import DataConfig
from jaxdeblur.models.layers import LEAK, Conv, activation
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.presets import Preset
from jaxdeblur.testing import check_model
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class SharpenConfig:
    """The config: each field becomes an option of train.py."""

    width: int = 8
    dtype: str = "float32"


class Sharpen(VideoRestorer):
    """Adds what two convolutions make of each frame alone."""

    lookahead, multiple = 0, 1  # not late, and frames of any size

    def __init__(self, config: SharpenConfig, *, rngs: nnx.Rngs) -> None:
        self.config, self.dtype = config, jnp.dtype(config.dtype)
        self.first = Conv(3, config.width, 5, dtype=self.dtype, rngs=rngs)
        self.last = Conv(config.width, 3, gain=0.05, dtype=self.dtype, rngs=rngs)

    def _restore_clip(self, clip: jax.Array) -> jax.Array:  # B T H W 3, all at once
        return clip + self.last(activation(LEAK)(self.first(clip - 0.5))).astype(jnp.float32)

    def _initial_state(self, batch: int, height: int, width: int) -> tuple[()]:
        return ()

    def _step(self, state: tuple[()], frame: jax.Array, repeated: jax.Array):
        return state, self._restore_clip(frame[:, None])[:, 0]  # one frame of a stream


models.register(SharpenConfig, Sharpen)
check_model(Preset("an example", SharpenConfig(), TrainingConfig(), DataConfig()))
parameters = nnx.state(models.build(SharpenConfig()), nnx.Param)
print(f"passed; {sum(leaf.size for leaf in jax.tree.leaves(parameters))} parameters")
