"""An example extension: your own model in one file, with a preset, trained like any other.

    python train.py --extension=examples/temporal_mean.py --model=temporal_mean

The model is deliberately small: a convolution over the features of the current frame and the
running mean of all features so far. ``docs/architecture.md`` explains it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax

from jaxdeblur import models
from jaxdeblur.data.config import DataConfig
from jaxdeblur.models.layers import LEAK, Conv, activation
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.presets import PRESETS, Preset
from jaxdeblur.shapes import Clip, Features, Frame
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class TemporalMeanConfig:
    """The config of the model.

    Attributes:
      width: channels.
      memory: weight of the past in the running mean.
      dtype: dtype of the computation.
      scales: factors by which frames are reduced for the network; gates choose between several.
    """

    width: int = 16
    memory: float = 0.5
    dtype: str = "float32"
    scales: tuple[int, ...] = (1,)


class StreamState(NamedTuple):
    """The state of a stream."""

    mean: Features
    begun: jax.Array


class TemporalMean(VideoRestorer):
    """Predicts a residual from the features of a frame and their running mean."""

    lookahead = 0
    multiple = 1

    def __init__(self, config: TemporalMeanConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        self.encoder = Conv(3, config.width, 5, dtype=self.dtype, rngs=rngs)
        self.head = Conv(2 * config.width, 3, gain=0.05, dtype=self.dtype, rngs=rngs)

    def _restore_clip(self, clip: Clip) -> Clip:
        # What does not depend on the past runs on all frames at once ...
        features = activation(LEAK)(self.encoder(clip - 0.5))
        # ... and only the recurrence is in the scan.
        start = StreamState(jnp.zeros_like(features[:, 0]), jnp.bool_(False))
        _, means = lax.scan(self._remember, start, rearrange(features, "b t ... -> t b ..."))
        return self._to_image(features, rearrange(means, "t b ... -> b t ..."), clip)

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        size = (batch, height, width, self.config.width)
        return StreamState(jnp.zeros(size, self.dtype), jnp.bool_(False))

    def _step(
        self, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        features = activation(LEAK)(self.encoder(frame - 0.5))
        state, mean = self._remember(state, features)
        return state, self._to_image(features, mean, frame)

    def _remember(self, past: StreamState, features: Features) -> tuple[StreamState, Features]:
        share = jnp.where(past.begun, self.config.memory, 0).astype(features.dtype)
        mean = share * past.mean + (1 - share) * features
        return StreamState(mean, jnp.bool_(True)), mean

    def _to_image(self, features: jax.Array, mean: jax.Array, blurred: jax.Array) -> jax.Array:
        residual = self.head(jnp.concatenate([features, mean], axis=-1))
        return blurred + residual.astype(jnp.float32)

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step of the stream reads."""
        return self.encoder.radius + self.head.radius


models.register(TemporalMeanConfig, TemporalMean)
PRESETS["temporal_mean"] = Preset(
    about="The example extension: a running mean of features.",
    network=TemporalMeanConfig(),
    training=TrainingConfig(
        steps=1000, batch_size=2, frames=4, crop=96, learning_rate=1e-3, validate_every=250
    ),
    data=DataConfig(scenes="narrow"),
)
