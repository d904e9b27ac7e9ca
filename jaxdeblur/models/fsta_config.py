"""The config of the attention network, its fusions by name, and the configs of its presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import kernels
from jaxdeblur.errors import UserError
from jaxdeblur.options import Count, check_ranges


@dataclasses.dataclass(frozen=True)
class FstaConfig:
    """The config of the attention network.

    Level 0 has half the height and width of the frame, level 1 a quarter, and so on.

    Attributes:
      window: T, the frames that the attention sees; odd, with the current frame in the middle,
        unless ``causal``.
      causal: the window is the current frame and the T-1 before it, without look-ahead.
      widths: channels of each level.
      growths: channels that each convolution of a dense block adds, for each level.
      dense_layers: 3x3 convolutions in a dense block.
      encoder_blocks, decoder_blocks: dense blocks of each level.
      attention_levels: levels at which the window is fused.
      fusion: fsta (factorised attention), an alternative to compare it with (nonlocal, concat,
        conv3d, none; models/fusion.py), concat_fsta (the sum of concat and fsta), or a fusion that
        an extension adds (``register_fusion``).
      spatial_maps, temporal_maps: M and N.
      temporal_kernel: size of f_t.
      gated: weight the fusion's output per pixel and channel before it is merged (CVPR 2021; the
        form of the gate is our choice).
      key_frames: frames of the window that take part (CVPR 2021; how they are chosen is our
        choice); None for all; can be changed after training.
      nonlocal_bytes: memory limit of fusion="nonlocal", in bytes.
      implementation: how eq. 1-2 and 5-6 are computed (``kernels``).
      dtype: dtype of the computation; parameters and output are float32.
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
    gated: bool = False
    key_frames: int | None = None
    nonlocal_bytes: Count = 2**30
    implementation: kernels.Implementation = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, what: str) -> None:
            if not holds:
                option = "--" + field.replace("_", "-")
                raise UserError(f"{option} must be {what}, not {getattr(self, field)!r}")

        check_ranges(self)
        if not self.causal and self.window % 2 == 0:
            raise UserError(
                "--window must be odd, so that the current frame is in the middle, not "
                f"{self.window}; with --causal it may be even"
            )
        require(self.temporal_kernel % 2 == 1, "temporal_kernel", "odd")
        require(len(self.widths) > 0, "widths", "the number of channels of each level")
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
            f"levels from 0 to {len(self.widths) - 1} in increasing order",
        )
        require(
            self.key_frames is None or 1 <= self.key_frames <= self.window,
            "key_frames",
            f"1 to {self.window} (the window), or none",
        )


FUSIONS: dict[str, Callable[..., Any]] = {}
"""What makes each fusion (models/fusion.py)."""


def register_fusion(name: str, make: Callable[..., Any]) -> None:
    """Makes ``fusion=name`` use ``make(config, channels, rngs=rngs)``; see docs/architecture.md."""
    FUSIONS[name] = make


FSTA = FstaConfig()
"""The paper's own network, with our sizes."""

FSTA_CONCAT = FstaConfig(fusion="concat_fsta")
"""The quality network: concatenated neighbours and the attention."""

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
"""The same, small enough for two CPU cores."""

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
"""The paper's own network without look-ahead, at a tenth of the work."""
