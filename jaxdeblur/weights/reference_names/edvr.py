"""EDVR: the names of BasicSR's state dict (for deblurring: ``hr_in`` and ``with_predeblur``)."""

from __future__ import annotations

from jaxdeblur.models.peers.edvr import EdvrConfig
from jaxdeblur.weights.reference_names import (
    SHUFFLED_CONV,
    Names,
    Reference,
    Shapes,
    conv,
    count,
)

_FUSION = {
    "temporal_attn1": "query", "temporal_attn2": "key", "feat_fusion": "fuse",
    "spatial_attn1": "spatial1", "spatial_attn2": "spatial2", "spatial_attn3": "spatial3",
    "spatial_attn4": "spatial4", "spatial_attn5": "spatial5", "spatial_attn_l1": "level1",
    "spatial_attn_l2": "level2", "spatial_attn_l3": "level3", "spatial_attn_add1": "add1",
    "spatial_attn_add2": "add2",
}  # fmt: skip

_ALONE = {
    "predeblur.conv_first": "predeblur/first", "predeblur.stride_conv_hr1": "predeblur/half",
    "predeblur.stride_conv_hr2": "predeblur/quarter", "predeblur.stride_conv_l2": "predeblur/to_l2",
    "predeblur.stride_conv_l3": "predeblur/to_l3", "conv_1x1": "to_features",
    "conv_l2_1": "l2_down", "conv_l2_2": "l2", "conv_l3_1": "l3_down", "conv_l3_2": "l3",
    "pcd_align.cas_offset_conv1": "alignment/cascade1",
    "pcd_align.cas_offset_conv2": "alignment/cascade2", "conv_hr": "full_size",
    "conv_last": "image",
}  # fmt: skip

_PREDEBLUR = {
    "resblock_l3": "l3/0", "resblock_l2_1": "l2_before/0", "resblock_l2_2": "l2_after/0",
    "resblock_l1.0": "l1_before/0", "resblock_l1.1": "l1_before/1", "resblock_l1.2": "l1_after/0",
    "resblock_l1.3": "l1_after/1", "resblock_l1.4": "l1_after/2",
}  # fmt: skip


def _config(shapes: Shapes) -> EdvrConfig:
    width = shapes["conv_1x1.weight"][0]
    tsa = "fusion.feat_fusion.weight" in shapes
    fused = shapes["fusion.feat_fusion.weight" if tsa else "fusion.weight"][1]
    return EdvrConfig(
        m=(fused // width - 1) // 2,
        width=width,
        groups=shapes["pcd_align.cas_dcnpack.conv_offset.weight"][0] // 27,
        extract_blocks=count(shapes, "feature_extraction.{}.conv1.weight"),
        blocks=count(shapes, "reconstruction.{}.conv1.weight"),
        head_width=shapes["conv_hr.weight"][0],
        tsa=tsa,
    )


def _names(config: EdvrConfig) -> Names:
    names: Names = {}
    for theirs, ours in _ALONE.items():
        names |= conv(theirs, ours)
    blocks = {f"predeblur.{theirs}": f"predeblur/{ours}" for theirs, ours in _PREDEBLUR.items()}
    blocks |= {f"feature_extraction.{i}": f"extraction/{i}" for i in range(config.extract_blocks)}
    blocks |= {f"reconstruction.{i}": f"reconstruction/{i}" for i in range(config.blocks)}
    for theirs, ours in blocks.items():
        names |= conv(f"{theirs}.conv1", f"{ours}/first")
        names |= conv(f"{theirs}.conv2", f"{ours}/second")
    deformable = {"cas_dcnpack": "cascade"}
    for i, level in enumerate(("l3", "l2", "l1")):
        deformable[f"dcn_pack.{level}"] = f"deformable/{i}"
        names |= conv(f"pcd_align.offset_conv1.{level}", f"alignment/offset1/{i}")
        names |= conv(f"pcd_align.offset_conv2.{level}", f"alignment/offset2/{i}")
        if i:
            names |= conv(f"pcd_align.offset_conv3.{level}", f"alignment/offset3/{i - 1}")
            names |= conv(f"pcd_align.feat_conv.{level}", f"alignment/feature/{i - 1}")
    for theirs, ours in deformable.items():
        names |= conv(f"pcd_align.{theirs}", f"alignment/{ours}")
        names |= conv(f"pcd_align.{theirs}.conv_offset", f"alignment/{ours}/offset")
    if config.tsa:
        for theirs, ours in _FUSION.items():
            names |= conv(f"fusion.{theirs}", f"fusion/{ours}")
    else:
        names |= conv("fusion", "fusion")
    names |= conv("upconv1", "up1", SHUFFLED_CONV) | conv("upconv2", "up2", SHUFFLED_CONV)
    return names


REFERENCE = Reference(
    default=EdvrConfig(),
    config=_config,
    names=_names,
    source="XPixelGroup/BasicSR (Apache-2.0)",
)
