"""IFI-RNN: a recurrent network that passes over each frame several times.

Source: Nah, Son and Lee, "Recurrent Neural Networks with Intra-frame Iterations for Video
Deblurring" (CVPR 2019), the model C2H3: cell 0 once and cell 1 three times a frame. Its authors
published neither code nor weights, so this is the re-implementation of zzh-tech/ESTRNN
(model/IFIRNN.py, MIT) with 1,635,683 parameters: 5x5 kernels in the layers next to the picture,
frames centred on zero, and a hidden state of 20 channels, initially zero.

What differs: ljzycmd/SimDeblur has only 3x3 kernels, a wider state that starts from the first
frame's features, and no centring. Only the paper has a random number of iterations and a
regularisation of the state in training. ESTRNN recomputes a frame's features in each pass of cell
1; here they are computed once, with the same result.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.models.layers import Conv, ResidualBlock
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import Count, check_ranges
from jaxdeblur.shapes import Clip, Features, Frame
from jaxdeblur.table1.layers import TransposedConv, torch_default, torch_transposed


@dataclasses.dataclass(frozen=True)
class IfiRnnConfig:
    """The fields of IFI-RNN; the defaults are ESTRNN's network.

    Attributes:
      widths: channels of a frame's features at full, 1/2 and 1/4 size.
      hidden: channels of the state, at 1/4 size.
      up_widths: channels of the decoder, at 1/2 and full size.
      blocks: residual blocks of a cell, as wide as features and state together.
      iterations: passes of cell 1 over each frame.
      dtype: type of the computation; parameters and output are float32.
    """

    widths: tuple[Count, Count, Count] = (20, 40, 60)
    hidden: Count = 20
    up_widths: tuple[Count, Count] = (40, 20)
    blocks: Count = 6
    iterations: Count = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)


CENTRE = 0.5
"""Subtracted from the frames and added to the result."""

Hidden: TypeAlias = Float[Array, "B h w C_hidden"]
"""The state, at 1/4 of the size."""

Known: TypeAlias = Float[Array, "B h w C_known"]
"""What a pass computes from a frame's features and the state together."""


class Cell(nnx.Module):
    """F_B, F_R and F_h of the paper's figure 2: a frame's features, and one pass with the state.

    The last cell also has F_L: maps a pass's features to the picture, without activations.
    """

    def __init__(self, config: IfiRnnConfig, *, last: bool, **options: Any) -> None:
        full, half, quarter = config.widths
        wide, hidden = quarter + config.hidden, config.hidden
        options["init"] = torch_default
        self.F_B = nnx.Sequential(
            Conv(3, full, 5, **options),
            Conv(full, half, 5, stride=2, **options),
            Conv(half, quarter, 5, stride=2, **options),
        )
        self.F_R = nnx.Sequential(*(ResidualBlock(wide, **options) for _ in range(config.blocks)))
        self.F_h = nnx.Sequential(
            Conv(wide, hidden, **options),
            ResidualBlock(hidden, **options),
            Conv(hidden, hidden, **options),
        )
        if last:
            up_half, up_full = config.up_widths
            up = {**options, "init": torch_transposed}
            self.F_L = nnx.Sequential(
                TransposedConv(wide, up_half, 3, **up),
                TransposedConv(up_half, up_full, 3, **up),
                Conv(up_full, 3, 5, **options),
            )

    def __call__(self, features: Features, hidden: Hidden) -> tuple[Known, Hidden]:
        """Runs one pass; returns its features of the frame and the new state."""
        known = self.F_R(jnp.concatenate([features, hidden], -1))
        return known, self.F_h(known)


class IfiRnn(VideoRestorer):
    """The dual-cell network: cell 0 takes in the past, cell 1 iterates over the frame."""

    multiple = 4
    lookahead = 0

    def __init__(self, config: IfiRnnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.rnncell0 = Cell(config, last=False, dtype=config.dtype, rngs=rngs)
        self.rnncell1 = Cell(config, last=True, dtype=config.dtype, rngs=rngs)

    def _restore_clip(self, clip: Clip) -> Clip:
        features = [rearrange(f, "b t ... -> t b ...") for f in self._features(clip)]
        _, known = lax.scan(
            self.rematerialised(lambda hidden, frame: self._recur(hidden, *frame)),
            self._initial_state(clip.shape[0], *clip.shape[2:4]),
            tuple(features),
        )
        return self._to_image(rearrange(known, "t b ... -> b t ..."))

    def _initial_state(self, batch: int, height: int, width: int) -> Hidden:
        shape = (batch, height // 4, width // 4, self.config.hidden)
        return jnp.zeros(shape, self.config.dtype)

    def _step(self, state: Hidden, frame: Frame, repeated: Bool[Array, ""]) -> tuple[Hidden, Frame]:
        state, known = self._recur(state, *self._features(frame))
        return state, self._to_image(known)

    def _features(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies F_B of both cells, ``... H W 3`` to ``... H/4 W/4 C``, without activations."""
        centred = frames - CENTRE
        return self.rnncell0.F_B(centred), self.rnncell1.F_B(centred)

    def _recur(self, hidden: Hidden, once: Features, again: Features) -> tuple[Hidden, Known]:
        """Runs all passes over a frame, with features ``once`` in cell 0, ``again`` in cell 1."""
        known, hidden = self.rnncell0(once, hidden)

        def pass_again(carry: tuple[Known, Hidden], _: None) -> tuple[tuple[Known, Hidden], None]:
            return self.rnncell1(again, carry[1]), None

        (known, hidden), _ = lax.scan(pass_again, (known, hidden), length=self.config.iterations)
        return hidden, known

    def _to_image(self, known: jax.Array) -> jax.Array:
        """Maps ``... h w C`` to RGB at full size, float32."""
        return self.rnncell1.F_L(known).astype(jnp.float32) + CENTRE

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side the new state reads in one step, more than the picture."""
        # Each pass: the residual blocks and the four convolutions of F_h.
        passes = (1 + self.config.iterations) * (2 * self.config.blocks + 4)
        # The three kernels of F_B, at full, full and half size; a value covers 4 pixels.
        return 4 * passes + 4 * 2 + 3
