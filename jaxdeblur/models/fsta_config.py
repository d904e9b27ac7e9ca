"""The fields of the attention network, the ways of fusing that it names, and three sizes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx

from jaxdeblur.errors import UserError
from jaxdeblur.models.attention import ConcatAttention, FactorisedAttention
from jaxdeblur.models.fusion import Concat, Conv3d, Fusion, NonLocal
from jaxdeblur.options import Count, Range, check_ranges

Implementation = Literal["auto", "mosaic", "einsum"]


@dataclasses.dataclass(frozen=True)
class FstaConfig:
    """The fields of the attention network.

    Level 0 has half the height and width of the frame, level 1 a quarter, and so on.

    Attributes:
      window: T, the frames that the attention sees. Odd, the current frame in the middle, unless
        ``causal``.
      causal: the window is the current frame and the T-1 before it: no look-ahead.
      widths: channels of each level.
      growths: channels that each convolution of a dense block adds, of each level.
      dense_layers: 3x3 convolutions in a dense block.
      encoder_blocks, decoder_blocks: dense blocks of each level.
      attention_levels: where the window is fused.
      fusion: how: fsta (factorised attention), what it is compared with (nonlocal, concat, conv3d,
        none; models/fusion.py), concat_fsta (concat and fsta added), or one of an extension
        (``register_fusion``).
      spatial_maps, temporal_maps: M and N.
      temporal_kernel: size of f_t.
      logit_gain: scale of the kernels of f_s, f_t and f_p at the start, times He's; at 1 all maps
        begin nearly uniform and gather nearly the same.
      squeeze: what eq. 1-3 see of the features x: "features", x itself, as the paper has it, or
        "energy", the activations and the log of the local energy of x, mixed to as many channels.
        Ours: means of x over a frame tell its colours, means of these how sharp it is.
      merge: how y^R is taken in: "sum", x + W [x, y], or "product", x (1 + W1 y) + W2 y. Ours, as
        the paper ends at y^R; a sum is nearly a bias for the frame, a product selects filters.
      gated: what the window gives is weighted by pixel and channel before it is taken in (CVPR
        2021; how, is our choice).
      key_frames: how many frames of the window take part (CVPR 2021; how they are chosen, is our
        choice); None for all. Can be changed after training.
      nonlocal_bytes: what fusion="nonlocal" may take.
      implementation: of eq. 1-2 and 5-6 (``kernels``).
      dtype: of the computation; parameters and output are float32.
    """

    window: Count = 5
    causal: bool = False
    widths: tuple[Count, ...] = (64, 96, 128)
    growths: tuple[Count, ...] = (32, 48, 64)
    dense_layers: Count = 4
    encoder_blocks: tuple[Count, ...] = (2, 2, 2)
    decoder_blocks: tuple[Count, ...] = (2, 2, 2)
    attention_levels: tuple[int, ...] = (0, 1, 2)
    fusion: str = "fsta"
    spatial_maps: Count = 16
    temporal_maps: Count = 8
    temporal_kernel: Count = 3
    logit_gain: Annotated[float, Range(above=0)] = 1.0
    squeeze: Literal["features", "energy"] = "features"
    merge: Literal["sum", "product"] = "sum"
    gated: bool = False
    key_frames: int | None = None
    nonlocal_bytes: Count = 2**30
    implementation: Implementation = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, what: str) -> None:
            if not holds:
                option = "--" + field.replace("_", "-")
                raise UserError(f"{option} is {what}, not {getattr(self, field)!r}")

        check_ranges(self)
        if not self.causal and self.window % 2 == 0:
            raise UserError(
                f"--window is odd, to have the current frame in its middle, or --causal is given; "
                f"not {self.window}"
            )
        require(self.temporal_kernel % 2 == 1, "temporal_kernel", "odd")
        require(len(self.widths) > 0, "widths", "a number of channels for each level")
        for field in ("growths", "encoder_blocks", "decoder_blocks"):
            require(
                len(getattr(self, field)) == len(self.widths),
                field,
                f"{len(self.widths)} numbers, one for each of --widths",
            )
        require(
            set(self.attention_levels) <= set(range(len(self.widths)))
            and list(self.attention_levels) == sorted(set(self.attention_levels)),
            "attention_levels",
            f"rising levels from 0 to {len(self.widths) - 1}",
        )
        require(
            self.fusion == "none" or self.fusion in FUSIONS,
            "fusion",
            f"one of {', '.join(FUSIONS)}, none or one of an extension (--extension=FILE)",
        )
        require(
            self.implementation in get_args(Implementation),
            "implementation",
            f"one of {get_args(Implementation)}",
        )
        require(
            self.key_frames is None or 1 <= self.key_frames <= self.window,
            "key_frames",
            f"1 to {self.window} (window), or none",
        )


FusionFactory = Callable[..., Fusion]
"""``(config, channels, rngs=rngs)`` to the way of fusing maps of ``channels`` channels."""


def _attention_of(config: FstaConfig) -> dict[str, Any]:
    return {
        "spatial": config.spatial_maps,
        "temporal": config.temporal_maps,
        "temporal_kernel": config.temporal_kernel,
        "logit_gain": config.logit_gain,
        "squeeze": config.squeeze,
        "key_frames": config.key_frames,
        "implementation": config.implementation,
        "dtype": jnp.dtype(config.dtype),
    }


def _fsta(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> Fusion:
    return FactorisedAttention(channels, rngs=rngs, **_attention_of(config))


def _concat_fsta(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> Fusion:
    return ConcatAttention(channels, window=config.window, rngs=rngs, **_attention_of(config))


def _nonlocal(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> Fusion:
    dtype = jnp.dtype(config.dtype)
    return NonLocal(channels, limit_bytes=config.nonlocal_bytes, dtype=dtype, rngs=rngs)


def _concat(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> Fusion:
    return Concat(channels, config.window, dtype=jnp.dtype(config.dtype), rngs=rngs)


def _conv3d(config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> Fusion:
    return Conv3d(channels, config.window, dtype=jnp.dtype(config.dtype), rngs=rngs)


FUSIONS: dict[str, FusionFactory] = {
    "fsta": _fsta,
    "concat_fsta": _concat_fsta,
    "nonlocal": _nonlocal,
    "concat": _concat,
    "conv3d": _conv3d,
}


def register_fusion(name: str, make: FusionFactory) -> None:
    """Makes ``fusion=name`` fuse by ``make(config, channels, rngs=rngs)``: docs/architecture.md."""
    FUSIONS[name] = make


FSTA = FstaConfig()
"""The paper's own network, in our sizes."""

FSTA_CONCAT = FstaConfig(fusion="concat_fsta")
"""The quality network: neighbours beside the attention."""

FSTA_SMALL = FstaConfig(
    fusion="concat_fsta",
    widths=(24, 48),
    growths=(12, 24),
    dense_layers=3,
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 2),
    attention_levels=(0, 1),
    spatial_maps=8,
    temporal_maps=4,
)
"""The same for two CPU cores."""

FSTA_LIVE = FstaConfig(
    window=16,
    causal=True,
    widths=(32, 48, 96),
    growths=(16, 24, 48),
    dense_layers=3,
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    attention_levels=(1,),
    spatial_maps=8,
    temporal_maps=4,
)
"""The paper's own without look-ahead, and a tenth of the work."""
