"""STFAN: the state dict of models/DeblurNet.py of its authors' repository."""

from __future__ import annotations

from jaxdeblur.models.peers.stfan import StfanConfig
from jaxdeblur.weights.reference_names import (
    CONV,
    TRANSPOSED,
    Layout,
    Names,
    Reference,
    Shapes,
    conv,
)


def _config(shapes: Shapes) -> StfanConfig:
    filters, quarter = shapes["fac_warp.3.0.weight"][:2]
    return StfanConfig(width=shapes["conv1_1.0.weight"][0], taps=round((filters / quarter) ** 0.5))


def _level(enter: str, blocks: tuple[str, str], ours: str, layout: Layout = CONV) -> Names:
    names = conv(f"{enter}.0", f"{ours}/enter", layout)
    for i, block in enumerate(blocks):
        names |= conv(f"{block}.stem.0", f"{ours}/blocks/{i}/first")
        names |= conv(f"{block}.stem.2", f"{ours}/blocks/{i}/second")
    return names


def _names(config: StfanConfig) -> Names:
    names: Names = {}
    for theirs, ours in (("conv", "encoder"), ("kconv", "three_frames")):
        for i in range(3):
            at = f"{theirs}{i + 1}"
            names |= _level(f"{at}_1", (f"{at}_2", f"{at}_3"), f"{ours}/{i}")
    for i, at in enumerate(("upconv2", "upconv1")):
        names |= _level(f"{at}_u", (f"{at}_2", f"{at}_1"), f"decoder/{i}", TRANSPOSED)
    for theirs, ours in (("fac_warp", "to_align"), ("fac_deblur", "to_deblur")):
        names |= _level(f"{theirs}.0", (f"{theirs}.1", f"{theirs}.2"), f"{ours}/level")
        names |= conv(f"{theirs}.3.0", f"{ours}/out")
    for theirs, ours in (("kconv4", "seen_filters"), ("fea", "past"), ("img_prd", "head")):
        names |= conv(f"{theirs}.0", ours)
    return names


REFERENCE = Reference(
    default=StfanConfig(),
    config=_config,
    names=_names,
    source="sczhou/STFAN (MIT)",
)
