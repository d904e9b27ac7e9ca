"""STRCNN+DTB: the names of SimDeblur's state dict."""

from __future__ import annotations

from jaxdeblur.models.peers.strcnn_simdeblur import SimDeblurStrcnnConfig
from jaxdeblur.weights.reference_names import (
    AS_IT_IS,
    TRANSPOSED,
    Names,
    Reference,
    Shapes,
    conv,
    count,
    norm,
)

_CELL = "strcnn_cell"


def _config(shapes: Shapes) -> SimDeblurStrcnnConfig:
    width, stacked, *_ = shapes[f"{_CELL}.encoder.feature_extract.0.weight"]
    encoder, decoder = (
        count(shapes, f"{_CELL}.{part}.feature_fuse.{{}}.conv1.0.weight")
        for part in ("encoder", "decoder")
    )
    return SimDeblurStrcnnConfig((stacked // 3 - 1) // 2, width, encoder, decoder)


def _names(config: SimDeblurStrcnnConfig) -> Names:
    names = conv(f"{_CELL}.encoder.feature_extract.0", "stem")
    names |= conv(f"{_CELL}.encoder.feature_extract.2", "down")
    for part, blocks in (("encoder", config.encoder_blocks), ("decoder", config.decoder_blocks)):
        fuse = f"{_CELL}.{part}.feature_fuse"
        for i in range(blocks):
            for theirs, ours in (("conv1", "first"), ("conv2", "second")):
                names |= conv(f"{fuse}.{i}.{theirs}.0", f"{part}/{i}/{ours}")
                names |= norm(f"{fuse}.{i}.{theirs}.1", f"{part}/{i}/{ours}_norm")
        names |= conv(f"{fuse}.{blocks}", f"{part[:-1]}d")
    names |= conv(f"{_CELL}.dtb.conv", "compare") | {f"{_CELL}.dtb.beta": ("beta", AS_IT_IS)}
    names |= conv(f"{_CELL}.decoder.feature_extract.0", "feedback")
    names |= conv(f"{_CELL}.decoder.reconstruct.0", "up", TRANSPOSED)
    return names | conv(f"{_CELL}.decoder.reconstruct.2", "image")


REFERENCE = Reference(
    default=SimDeblurStrcnnConfig(),
    config=_config,
    names=_names,
    source="ljzycmd/SimDeblur (MIT)",
)
