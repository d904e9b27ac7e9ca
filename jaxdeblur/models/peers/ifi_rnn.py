"""IFI-RNN: a recurrent network that passes over each frame several times.

Source: Nah, Son and Lee, "Recurrent Neural Networks with Intra-frame Iterations for Video
Deblurring" (CVPR 2019), the model C2H3: cell 0 once and cell 1 three times a frame. Its authors
published neither code nor weights, so two re-implementations stand for it, both under MIT:
zzh-tech/ESTRNN (model/IFIRNN.py; the defaults here, 1,635,683 parameters) and ljzycmd/SimDeblur
(ifirnn.py; ``SIMDEBLUR``, 4,106,307).

What differs: ESTRNN's has 5x5 kernels around the picture, a hidden state of 20 channels that
begins with zeros, and frames centred on zero; SimDeblur's has 3x3 kernels alone, a state of 64
channels, for which the features of the first frame stand in, and frames as they are. The paper
alone has a random number of iterations and a regularisation of the state in training. Both compute
the features of a frame anew in each pass of cell 1; here they are computed once, which is the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.peers.layers import (
    Conv,
    ResidualBlock,
    TransposedConv,
    apply,
    residual_blocks,
    torch_default,
    torch_transposed,
)
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Clip, Features, Frame


@dataclasses.dataclass(frozen=True)
class IfiRnnConfig:
    """The fields of IFI-RNN; the defaults are ESTRNN's network.

    Attributes:
      widths: channels of a frame's features at full, 1/2 and 1/4 of the size.
      hidden: channels of the state, at 1/4.
      up_widths: channels on the way back, at 1/2 and full size.
      blocks: residual blocks of a cell, as wide as features and state together.
      iterations: passes of cell 1 over each frame.
      kernel: size of the kernels of the features and of the last convolution.
      up_kernel: size of the transposed kernels, 3 or 4.
      first_state: what stands for the state before the first frame: zeros, or the features.
      centre: what is subtracted from the frames and added to the result.
      dtype: of the computation; parameters and output are float32.
    """

    widths: tuple[int, ...] = (20, 40, 60)
    hidden: int = 20
    up_widths: tuple[int, ...] = (40, 20)
    blocks: int = 6
    iterations: int = 3
    kernel: int = 5
    up_kernel: int = 3
    first_state: Literal["zeros", "features"] = "zeros"
    centre: float = 0.5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, count in (("widths", 3), ("up_widths", 2)):
            if len(getattr(self, name)) != count or min(getattr(self, name)) < 1:
                raise UserError(f"{name} is {count} numbers of channels, not {getattr(self, name)}")
        for name in ("hidden", "blocks", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.kernel not in (3, 5) or self.up_kernel not in (3, 4):
            raise UserError(
                f"kernel is 3 or 5 and up_kernel 3 or 4, not {self.kernel} and {self.up_kernel}"
            )
        if self.first_state == "features" and self.hidden != self.widths[2]:
            raise UserError(
                "first_state=features: the features stand for the state, so it has as many channels"
            )


SIMDEBLUR = IfiRnnConfig(
    widths=(16, 32, 64),
    hidden=64,
    up_widths=(64, 16),
    kernel=3,
    up_kernel=4,
    first_state="features",
    centre=0.0,
)
"""SimDeblur's network with 16 inner channels."""


Hidden: TypeAlias = Float[Array, "B h w C_hidden"]
"""The state, at 1/4 of the size."""

Known: TypeAlias = Float[Array, "B h w C_known"]
"""What a pass makes of a frame's features and the state together."""


class Recurrence(NamedTuple):
    """What passes from frame to frame."""

    hidden: Hidden
    """The state, at 1/4 of the size."""
    first: Bool[Array, ""]
    """True before the first frame."""


class Cell(nnx.Module):
    """F_B, F_R and F_h of the paper's figure 2: features of a frame, and a pass with the state."""

    def __init__(self, config: IfiRnnConfig, **options: Any) -> None:
        full, half, quarter = config.widths
        wide, hidden, kernel = quarter + config.hidden, config.hidden, config.kernel
        self.features = nnx.List(
            [
                Conv(3, full, kernel, **options),
                Conv(full, half, kernel, stride=2, **options),
                Conv(half, quarter, kernel, stride=2, **options),
            ]
        )
        self.blocks = residual_blocks(config.blocks, wide, **options)
        self.to_hidden = nnx.List(
            [
                Conv(wide, hidden, **options),
                ResidualBlock(hidden, **options),
                Conv(hidden, hidden, **options),
            ]
        )

    def __call__(self, features: Features, hidden: Hidden) -> tuple[Known, Hidden]:
        """One pass: what is known of the frame, and the new state."""
        known = apply(self.blocks, jnp.concatenate([features, hidden], -1))
        return known, apply(self.to_hidden, known)


class IfiRnn(VideoRestorer):
    """The dual-cell network: cell 0 takes the past in, cell 1 goes over the frame again."""

    multiple = 4
    lookahead = 0

    def __init__(self, config: IfiRnnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        options: dict[str, Any] = {"init": torch_default, "dtype": self.dtype, "rngs": rngs}
        self.cells = nnx.List([Cell(config, **options) for _ in range(2)])
        up: dict[str, Any] = {**options, "init": torch_transposed}
        half, full = config.up_widths
        self.up = nnx.List(
            [
                TransposedConv(config.widths[2] + config.hidden, half, config.up_kernel, **up),
                TransposedConv(half, full, config.up_kernel, **up),
            ]
        )
        self.head = Conv(full, 3, config.kernel, **options)

    def _restore_clip(self, clip: Clip) -> Clip:
        features = [rearrange(f, "b t ... -> t b ...") for f in self._features(clip)]
        _, known = lax.scan(
            self.in_backward_again(lambda past, frame: self._recur(past, *frame)),
            self._initial_state(clip.shape[0], *clip.shape[2:4]),
            tuple(features),
        )
        return self._to_image(rearrange(known, "t b ... -> b t ..."))

    def _initial_state(self, batch: int, height: int, width: int) -> Recurrence:
        shape = (batch, height // 4, width // 4, self.config.hidden)
        return Recurrence(jnp.zeros(shape, self.dtype), jnp.bool_(True))

    def _step(
        self, state: Recurrence, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[Recurrence, Frame]:
        state, known = self._recur(state, *self._features(frame))
        return state, self._to_image(known)

    def _features(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """F_B of both cells, ``... H W 3`` to ``... H/4 W/4 C``; no activation in between."""
        centred = frames - self.config.centre
        once, again = (apply(cell.features, centred) for cell in self.cells)
        return once, again

    def _recur(self, past: Recurrence, once: Features, again: Features) -> tuple[Recurrence, Known]:
        """All passes over one frame, whose features are ``once`` to cell 0, ``again`` to cell 1."""
        hidden = past.hidden
        if self.config.first_state == "features":
            hidden = jnp.where(past.first, once, hidden)
        known, hidden = self.cells[0](once, hidden)

        def pass_again(carry: tuple[Known, Hidden], _: None) -> tuple[tuple[Known, Hidden], None]:
            return self.cells[1](again, carry[1]), None

        (known, hidden), _ = lax.scan(pass_again, (known, hidden), length=self.config.iterations)
        return Recurrence(hidden, jnp.bool_(False)), known

    def _to_image(self, known: jax.Array) -> jax.Array:
        """F_L: ``... h w C`` to RGB at full size, float32; no activation in between."""
        image = self.head(apply(self.up, known))
        return image.astype(jnp.float32) + self.config.centre

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step reads, for the state, which reads farther."""
        # Each pass: the residual blocks, and the four convolutions that lead to the state.
        passes = (1 + self.config.iterations) * (2 * self.config.blocks + 4)
        # The features' three kernels, at full size, full size and a half; a value covers 4 pixels.
        return 4 * passes + 4 * (self.config.kernel // 2) + 3
