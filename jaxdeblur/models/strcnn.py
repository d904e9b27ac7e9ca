"""STRCNN and STRCNN+DTB: the spatio-temporal recurrent network with dynamic temporal blending.

Source: "Online Video Deblurring via Dynamic Temporal Blending Network" (Kim, Lee, Schoelkopf,
Hirsch, ICCV 2017), section 4 and figure 4. docs/lab/papers.md lists what the paper leaves open and
what we chose.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.layers import Conv, ResidualBlock, activation, depth_to_space
from jaxdeblur.models.path_maps import CELL, MADE, restored_of
from jaxdeblur.models.restorer import VideoRestorer, push, replicate_ends
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import MAP_CHANNELS, Clip, ClipFeatures, Features, Frame, SeenClip, SeenFrame


@dataclasses.dataclass(frozen=True)
class StrcnnConfig:
    """The config of STRCNN; the defaults are the paper's network.

    Attributes:
      m: frames before and after the current one that the network sees; also the look-ahead.
      width: channels of the residual blocks; F_n and the stem have half as many.
      blocks: residual blocks in the encoder, and as many in the decoder.
      blending: where dynamic temporal blending sits: between encoder and decoder ("middle", the
        paper's best), halfway through the encoder or through the decoder, or nowhere (STRCNN).
      beta0: initial beta (eq. 3), which the paper does not give; with 0.5 a frame five back makes
        up at most 3 % of the blended features, with 0.1 at most 59 %.
      distance: initialise B as -A, so that A h~_{n-1} + B h_n is a distance from the first step on,
        as the paper says that it should become (below eq. 3); with independent A and B it is none.
      recurrent: pass F_{n-1} from frame to frame; without it, and without blending, this is the
        plain CNN of figure 3, whose stem has as many channels as the blocks.
      head_width: channels at full size before the last convolution; 0 goes directly to RGB.
      residual: add the network's output to the blurred frame.
      leak: slope of the ReLU for negative values.
      dtype: dtype of the computation; parameters and output are float32.
      of_maps: each input frame is the 14 maps from blur paths, and the output corrects their
        restored frame (models/path_maps.py).
      scales: factors by which frames are reduced for the network, such as 8 4 2 1; gates choose
        between several cell by cell (models/scale_choice.py).
    """

    m: Annotated[int, Range(0)] = 2
    width: Annotated[int, Range(2)] = 64
    blocks: Count = 5
    blending: Literal["none", "encoder", "middle", "decoder"] = "middle"
    beta0: Annotated[float, Range(above=0, below=1)] = 0.5
    distance: bool = False
    recurrent: bool = True
    head_width: Annotated[int, Range(0)] = 64
    residual: bool = False
    leak: float = 0.0
    dtype: str = "float32"
    of_maps: bool = False
    scales: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % 2:
            raise UserError(f"--width must be an even number of channels, not {self.width}")
        if not self.recurrent and self.blending != "none":
            raise UserError("--no-recurrent requires --blending=none")
        if self.of_maps and (self.m or not self.residual or self.scales != (1,)):
            raise UserError("--of-maps requires --m=0, --residual and a single scale")


HalfFeatures: TypeAlias = Float[Array, "B h w C_half"]
"""Features with half the channels: those of the stem and F_n."""


class TemporalBlending(nnx.Module):
    """Mixes the current features with the blended features of the previous frame, per pixel.

    Eq. 3 as printed is circular: B acts on the blended features that it helps to compute. We read
    h_n there, as every re-implementation does. A and B are one 5x5 convolution of both maps,
    concatenated, without bias, so that w = beta exactly where the two responses cancel.
    """

    def __init__(self, config: StrcnnConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.compare = Conv(2 * width, width, 5, gain=0.5, bias=None, dtype=config.dtype, rngs=rngs)
        if config.distance:  # B = -A, so that equal maps get w = beta
            a = self.compare.kernel[...][:, :, :width]
            self.compare.kernel[...] = jnp.concatenate([a, -a], axis=2)
        # Stored as an unbounded logit, so that training can't leave 0 <= beta <= 1.
        beta = jnp.float32(config.beta0)
        self.beta_logit = nnx.Param(jnp.log(beta) - jnp.log1p(-beta))

    @property
    def beta(self) -> jax.Array:
        """The smallest weight of the current frame, 0 to 1."""
        return jax.nn.sigmoid(self.beta_logit[...])

    def weights(self, blended: Features, current: Features) -> Features:
        """Returns w_n, the weight of the current frame, beta to 1."""
        # Eq. 3: w_n = min(1, |tanh(A h~_{n-1} + B h_n)| + beta)
        response = self.compare(jnp.concatenate([blended, current], axis=-1))
        # Broadcast in float32, like a convolution's bias (``add_bias``).
        beta = jnp.broadcast_to(self.beta, response.shape).astype(response.dtype)
        return jnp.minimum(1.0, jnp.abs(jnp.tanh(response)) + beta)

    def __call__(
        self, blended: Features, current: Features, first: jax.Array
    ) -> tuple[Features, Features]:
        """Returns h~_n and w_n from h~_{n-1} and h_n; where ``first`` is true, w_n = 1."""
        w = jnp.where(first, jnp.ones((), current.dtype), self.weights(blended, current))
        # Eq. 2: h~_n = w_n * h_n + (1 - w_n) * h~_{n-1}
        return w * current + (1 - w) * blended, w


class Recurrence(NamedTuple):
    """The state that passes from frame to frame."""

    features: HalfFeatures
    """F_{n-1}."""
    blended: Features
    """h~_{n-1}."""
    begun: jax.Array
    """False before the first frame."""


class StreamState(NamedTuple):
    """The state of a stream: the window of frames and the recurrence."""

    frames: SeenClip
    """The last 2m+1 frames."""
    seen: jax.Array
    """Number of frames received, counted up to m+1."""
    recurrence: Recurrence


class Strcnn(VideoRestorer):
    """STRCNN, with or without dynamic temporal blending.

    Each step sees 2m+1 blurred frames and F_{n-1}, the half-size features of the previous step, so
    that the receptive field grows with time (section 4.1).
    """

    def __init__(self, config: StrcnnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = config.m
        self.multiple = CELL if config.of_maps else 2
        width, half = config.width, config.width // 2
        self.feature_channels = width
        self.carried = half if config.recurrent else 0  # channels of F_{n-1}
        self.dtype = dtype = jnp.dtype(config.dtype)

        def residual_blocks() -> Any:
            block = functools.partial(ResidualBlock, width, leak=config.leak, dtype=dtype)
            return nnx.List([block(rngs=rngs) for _ in range(config.blocks)])

        self.trains_on_maps = config.of_maps
        self.channels = MAP_CHANNELS if config.of_maps else 3
        self.stem = Conv(self.channels * (2 * config.m + 1), width, 5, dtype=dtype, rngs=rngs)
        self.down = Conv(width, width - self.carried, 3, stride=2, dtype=dtype, rngs=rngs)
        self.encoder = residual_blocks()
        blends = config.blending != "none"
        self.blending = TemporalBlending(config, rngs=rngs) if blends else None
        self.decoder = residual_blocks()
        self.feedback = Conv(width, half, 3, dtype=dtype, rngs=rngs) if config.recurrent else None
        # The last layer starts small, which with a global residual is near the identity; short
        # trainings never left an exact zero. Without a residual, it starts at mid-grey.
        gain, bias = (0.05, 0.0) if config.residual else (0.3, 0.45)
        full, made = config.head_width, MADE if config.of_maps else 3
        self.up = Conv(width, 4 * full, 3, dtype=dtype, rngs=rngs) if full else None
        self.head = Conv(
            full or width, made if full else 4 * made, gain=gain, bias=bias, dtype=dtype, rngs=rngs
        )

    def _restore_clip(self, clip: SeenClip) -> Clip:
        return self.restore_with_features(clip)[0]

    def _restore_inside(self, clip: Float[Array, "B length H W S"]) -> Clip:
        m = self.config.m
        features, _ = self._recur_inside(clip)
        return self.rematerialised(self._to_image)(features, clip[:, m : clip.shape[1] - m])

    def restore_with_features(self, clip: SeenClip) -> tuple[Clip, ClipFeatures]:
        """Restores a clip and also returns the features from which the images are made."""
        features, _ = self._recur_inside(replicate_ends(clip, *self.context))
        return self.rematerialised(self._to_image)(features, clip), features

    def explain_clip(self, clip: SeenClip) -> Explanation:
        """Returns the blending weights w_n of every frame, averaged over channels, at half size."""
        _, weights = self._recur_inside(replicate_ends(self.pad(clip), *self.context))
        if self.blending is None:
            return Explanation()
        return Explanation(blending_weights=weights.mean(axis=-1).astype(jnp.float32))

    def _recur_inside(
        self, clip: Float[Array, "B length H W S"]
    ) -> tuple[ClipFeatures, ClipFeatures]:
        """Returns the last features and blending weights of each frame with m to each side."""
        batch, length, height, width, _ = clip.shape
        m = self.config.m
        time = length - 2 * m
        windows = jnp.stack([clip[:, i : i + time] for i in range(2 * m + 1)], axis=-2)
        stem = self.rematerialised(self._stem)(rearrange(windows, "b t h w n c -> b t h w (n c)"))
        recur = self.rematerialised(self._recur)
        if not self.config.recurrent:  # all frames at once
            start = self._recurrence(batch * time, height, width)
            _, made = recur(start, rearrange(stem, "b t ... -> (b t) ..."))
            features, weights = (rearrange(x, "(b t) ... -> b t ...", b=batch) for x in made)
            return features, weights
        start = self._recurrence(batch, height, width)
        _, (features, weights) = lax.scan(recur, start, rearrange(stem, "b t ... -> t b ..."))
        return rearrange(features, "t b ... -> b t ..."), rearrange(weights, "t b ... -> b t ...")

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        frames = jnp.zeros((batch, 2 * self.config.m + 1, height, width, self.channels))
        return StreamState(frames, jnp.int32(0), self._recurrence(batch, height, width))

    def _step(
        self, state: StreamState, frame: SeenFrame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        return self.step_with_features(state, frame, repeated)[:2]

    def step_with_features(
        self, state: StreamState, frame: SeenFrame, repeated: jax.Array
    ) -> tuple[StreamState, Frame, Features]:
        """Steps and also returns the features from which the output frame is made."""
        m = self.config.m
        frames = push(state.frames, frame, state.seen)

        def restore(recurrence: Recurrence) -> tuple[Recurrence, Frame, Features]:
            window = rearrange(frames, "b n h w c -> b h w (n c)")
            recurrence, (features, _) = self._recur(recurrence, self._stem(window))
            return recurrence, self._to_image(features, frames[:, m]), features

        def wait(recurrence: Recurrence) -> tuple[Recurrence, Frame, Features]:
            nothing = jnp.zeros_like(recurrence.blended)
            return recurrence, frame[..., :3].astype(jnp.float32), nothing

        recurrence, restored, features = lax.cond(state.seen >= m, restore, wait, state.recurrence)
        state = StreamState(frames, jnp.minimum(state.seen + 1, m + 1), recurrence)
        return state, restored, features

    def _recurrence(self, batch: int, height: int, width: int) -> Recurrence:
        """Returns the state before the first frame, in which F and h~ are zeros."""
        size = (batch, height // 2, width // 2)
        return Recurrence(
            features=jnp.zeros((*size, self.carried), self.dtype),
            blended=jnp.zeros((*size, self.config.width), self.dtype),
            begun=jnp.bool_(False),
        )

    def _stem(self, windows: jax.Array) -> jax.Array:
        """Maps 2m+1 frames, ``... H W S(2m+1)``, to ``... H/2 W/2 width/2`` (CNN: width)."""
        relu = activation(self.config.leak)
        # Centred on zero, so that the zero padding at the border is mid-grey, not black.
        return relu(self.down(relu(self.stem(windows.astype(self.dtype) - 0.5))))

    def _recur(
        self, past: Recurrence, stem: HalfFeatures
    ) -> tuple[Recurrence, tuple[Features, Features]]:
        """Runs a step of the recurrence, from (F_{n-1}, h~_{n-1}) and a frame to (F_n, h~_n)."""
        blocks = self.config.blocks
        blend_at = {"encoder": blocks // 2, "middle": blocks, "decoder": blocks + blocks // 2}
        blended, weights = past.blended, jnp.ones_like(past.blended)
        h = jnp.concatenate([stem, past.features], axis=-1)
        for i, block in enumerate([*self.encoder, *self.decoder]):
            if self.blending is not None and i == blend_at[self.config.blending]:
                h, weights = self.blending(past.blended, h, ~past.begun)
                blended = h
            h = block(h)
        features = past.features
        if self.feedback is not None:  # F_n
            features = activation(self.config.leak)(self.feedback(h))
        return Recurrence(features, blended, jnp.bool_(True)), (h, weights)

    def _to_image(self, features: jax.Array, blurred: jax.Array) -> jax.Array:
        """Maps half-size features to full-size RGB, float32."""
        if self.up is not None:
            relu = activation(self.config.leak)
            image = self.head(relu(depth_to_space(self.up(features), 2)))
        else:
            image = depth_to_space(self.head(features), 2)
        image = image.astype(jnp.float32)
        if self.config.of_maps:
            return restored_of(blurred, image)
        return blurred + image if self.config.residual else image

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step of the stream reads, of frames and of state."""
        at_half_size = sum(block.radius for block in [*self.encoder, *self.decoder])
        if self.blending is not None:
            at_half_size += self.blending.compare.radius
        image = (self.up or self.head).radius
        at_half_size += max(self.feedback.radius if self.feedback else 0, image)
        at_full_size = self.stem.radius + self.down.radius
        if self.up is not None:
            at_full_size += self.head.radius
        # A pixel of a half-size map covers two, and may lie one pixel off the centre.
        return at_full_size + 2 * at_half_size + (2 * CELL if self.config.of_maps else 1)
