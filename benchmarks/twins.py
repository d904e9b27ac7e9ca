"""The systems of Table 1 in PyTorch, to compare times and gradients with; torch is needed.

Each is a function of a config of ours, weights under the reference's names and a clip
``B T H W 3``, and gives what the loss compares, of which the last is the restored clip. They
follow the same descriptions as ``jaxdeblur/models/peers/``, in PyTorch's own operators and order of
axes; EDVR's needs torchvision for its deformable convolution. No code is the references'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from jaxdeblur.models.peers.dbn import DbnConfig
from jaxdeblur.models.peers.edvr import EdvrConfig
from jaxdeblur.models.peers.ifi_rnn import IfiRnnConfig
from jaxdeblur.models.peers.rdn import RdnConfig
from jaxdeblur.models.peers.srn import GREY, SrnConfig
from jaxdeblur.models.peers.stfan import StfanConfig
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights.references import REFERENCES

SYSTEMS = {
    SrnConfig: "srn",
    DbnConfig: "dbn",
    RdnConfig: "rdn",
    IfiRnnConfig: "ifi_rnn",
    EdvrConfig: "edvr",
    StfanConfig: "stfan",
}
"""The name of each system's reference, by the type of its config."""

Weights = dict[str, Any]
"""Tensors under the reference's names."""


def weights_of(config: Any, parameters: Parameters, dtype: Any = torch.float32) -> Weights:
    """Our parameters as the reference would hold them; all but statistics get gradients."""
    tensors = {}
    for theirs, (ours, axes, _) in REFERENCES[SYSTEMS[type(config)]].names(config).items():
        array = np.array(parameters[ours]).transpose(np.argsort(axes))
        tensor = torch.tensor(np.ascontiguousarray(array), dtype=dtype)
        tensors[theirs] = tensor.requires_grad_("running" not in theirs)
    return tensors


def outputs(config: Any, weights: Weights, clip: Any, train: bool = False) -> list[Any]:
    """What the twin of a config makes of a clip, ends replicated; in ``train`` as for its loss."""
    height, width = clip.shape[2:4]
    frames = _padded(clip.permute(0, 1, 4, 2, 3), *_FILLED[type(config)])
    made = _TWINS[type(config)](config, weights, frames, train)
    return [x[..., :height, :width].permute(0, 1, 3, 4, 2) for x in made]


def targets(config: Any, sharp: Any, number: int) -> list[Any]:
    """What each of ``number`` outputs in training should be."""
    if type(config) is not SrnConfig:
        return [sharp] * number
    if config.srn != "color":
        sharp = (sharp @ sharp.new_tensor(GREY))[..., None].expand(sharp.shape)
    return [sharp[:, :, ::step, ::step] for step in (4, 2, 1)]


def _padded(frames: Any, multiple: int, mode: str) -> Any:
    below, right = (-size % multiple for size in frames.shape[-2:])
    flat = F.pad(frames.flatten(0, 1), (0, right, 0, below), mode=mode)
    return flat.unflatten(0, frames.shape[:2])


def _conv(w: Weights, name: str, x: Any, stride: int = 1) -> Any:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], stride, weight.shape[-1] // 2)


def _windows(frames: Any, m: int) -> Any:
    """``B T C H W`` to ``B T N C H W``, the ends replicated."""
    time = frames.shape[1]
    return torch.stack(
        [frames[:, np.clip(np.arange(time) + i, 0, time - 1)] for i in range(-m, m + 1)], 2
    )


def _fast(x: Any) -> Any:
    return x.contiguous(memory_format=torch.channels_last)


# SRN


def _srn(config: SrnConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    def kernel(name: str) -> Any:
        return w[f"g_net/{name}/weights"].permute(3, 2, 0, 1).contiguous()

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        weight, bias = kernel(name), w[f"g_net/{name}/biases"]
        before, zeros = (weight.shape[-1] - stride) // 2, weight.shape[-1] - stride
        if stride > 1:  # TensorFlow's SAME
            x = F.pad(x, (before, zeros - before, before, zeros - before))
        return F.conv2d(x, weight, bias, stride, before if stride == 1 else 0)

    def up(x: Any, name: str) -> Any:
        return F.conv_transpose2d(x, kernel(name), w[f"g_net/{name}/biases"], 2, 1)

    def blocks(x: Any, *names: str) -> Any:
        for name in names:
            x = x + conv(F.relu(conv(x, f"{name}/conv1")), f"{name}/conv2")
        return x

    def double(x: Any) -> Any:
        for axis in (2, 3):
            size = x.shape[axis]
            following = x.index_select(axis, torch.arange(1, size + 1).clamp(max=size - 1))
            x = torch.stack([x, (x + following) / 2], axis + 1).flatten(axis, axis + 1)
        return x

    grey = train and config.srn != "color"
    if grey:
        frames = (frames * frames.new_tensor(GREY)[:, None, None]).sum(2, keepdim=True)
    pictures = frames.flatten(0, 1 if config.srn == "color" or grey else 2)
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    made: list[Any] = []
    state = None
    for step in (4, 2, 1):
        here = pictures[..., ::step, ::step]
        coarser = double(made[-1]).detach() if made else here
        x = _fast(torch.cat([here, coarser], 1))
        e1 = blocks(F.relu(conv(x, "enc1_1")), "enc1_2", "enc1_3", "enc1_4")
        e2 = blocks(F.relu(conv(e1, "enc2_1", 2)), "enc2_2", "enc2_3", "enc2_4")
        x = blocks(F.relu(conv(e2, "enc3_1", 2)), "enc3_2", "enc3_3", "enc3_4")
        if config.srn == "lstm":
            state = torch.zeros_like(torch.cat([x, x], 1)) if state is None else double(state)
            cell, hidden = state.chunk(2, 1)
            i, j, f, o = conv(torch.cat([x, hidden], 1), "convLSTM/LSTM_conv").chunk(4, 1)
            cell = cell * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(j)
            x = torch.tanh(cell) * torch.sigmoid(o)
            state = torch.cat([cell, x], 1)
        x = blocks(x, "dec3_3", "dec3_2", "dec3_1")
        x = blocks(F.relu(up(x, "dec2_4")) + e2, "dec2_3", "dec2_2", "dec2_1")
        x = blocks(F.relu(up(x, "dec1_4")) + e1, "dec1_3", "dec1_2", "dec1_1")
        made.append(conv(x, "dec1_0"))
    batch, time = frames.shape[:2]
    levels = made if train else made[-1:]
    found = [x.reshape(batch, time, -1, *x.shape[2:]) for x in levels]
    return [x.expand(-1, -1, 3, -1, -1) for x in found]


# DBN


def _dbn(config: DbnConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    stacked = _windows(frames, config.m).flatten(2, 3).flatten(0, 1)

    def norm(name: str, x: Any) -> Any:
        at = f"blocks.{name}.1"
        mean, variance = w[f"{at}.running_mean"], w[f"{at}.running_var"]
        if train:  # on copies: a step is repeated
            mean, variance = mean.clone(), variance.clone()
        scale, bias = w[f"{at}.weight"], w[f"{at}.bias"]
        return F.batch_norm(x, mean, variance, scale, bias, train, 0.1, config.epsilon)

    def down(x: Any, *names: str) -> Any:
        for name in names:
            x = F.relu(norm(name, _conv(w, f"blocks.{name}.0", x, 2 if name[0] == "D" else 1)))
        return x

    def up(x: Any, name: str, skip: Any) -> Any:
        at = f"blocks.{name}.0"
        x = F.conv_transpose2d(x, w[f"{at}.weight"], w[f"{at}.bias"], 2, 1)
        return F.relu(norm(name, x) + skip)

    f0 = down(_fast(stacked), "F0")
    f2 = down(f0, "D1", "F1", "F2")
    f5 = down(f2, "D2", "F3", "F4", "F5")
    x = down(f5, "D3", "F6", "F7", "F8")
    x = down(up(x, "U1", f5), "F9", "F10", "F11")
    x = down(up(x, "U2", f2), "F12", "F13")
    x = down(up(x, "U3", f0), "F14")
    middle = stacked[:, 3 * config.m : 3 * config.m + 3]
    image = middle + norm("F15", _conv(w, "blocks.F15.0", x))
    image = torch.sigmoid(image) if config.sigmoid else image
    return [image.unflatten(0, frames.shape[:2])]


# RDN


def _rdn(config: RdnConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    def layer(x: Any, name: str) -> Any:
        x = F.relu(x)
        weight, bias = w[f"{name}.conv.weight"], w[f"{name}.conv.bias"]
        if name.endswith("deconv"):
            x = F.conv_transpose2d(x, weight, bias, 2, 1)
        elif name in ("d1_0_conv", "d3_0_conv", "d4_0_conv"):  # TensorFlow's SAME
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)
        else:
            x = F.conv2d(x, weight, bias, 1, weight.shape[-1] // 2)
        scale, shift = w[f"{name}.gamma"], w[f"{name}.beta"]
        return F.batch_norm(x, None, None, scale, shift, True, 0.1, 1.001e-5)

    def layers(x: Any, *names: str) -> Any:
        for name in names:
            x = layer(x, name)
        return x

    def merged(x: Any, name: str, before: Any) -> Any:
        return x if before is None else layer(torch.cat([x, before], 1), name)

    def down(x: Any, block: str) -> Any:
        return x + layers(x, *(f"{block}_{i}_conv" for i in (1, 2, 3)))

    def up(x: Any, block: str, merge: str, before: Any) -> Any:
        after = merged(x, merge, before)
        return x + layers(after, *(f"{block}_{i}_conv" for i in (1, 2, 3)))

    bgr = frames.flip(2) * (255 / 128) - 1
    made: list[list[Any]] = [[] for _ in range(4)]
    for t in range(frames.shape[1]):
        estimate = bgr[:, t]
        s0 = s1 = s2 = None
        for k in range(1, 5):
            x = layer(_fast(torch.cat([bgr[:, max(t - k, 0)], estimate], 1)), "d0_conv")
            x = down(layer(x, "d1_0_conv"), "d1")
            half = down(layer(x, "d2_0_conv"), "d2")
            quarter = down(layer(half, "d3_0_conv"), "d3")
            s0 = up(layer(quarter, "d4_0_conv"), "d4", "d41_s_conv", s0)
            s1 = up(layer(s0, "u1_0_deconv") + quarter, "u1", "u1_s_conv", s1)
            s2 = up(layer(s1, "u2_0_deconv") + half, "u2", "u2_s_conv", s2)
            last = [f"u3_{i}_conv" for i in (1, 2, 3, 4)]
            estimate = estimate + layers(s2, "u3_0_deconv", *last)
            made[k - 1].append((estimate + 1).flip(1) * (128 / 255))
    return [torch.stack(each, 1) for each in (made if train else made[-1:])]


# IFI-RNN


def _ifi_rnn(config: IfiRnnConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    def block(name: str, x: Any) -> Any:
        inside = F.relu(_conv(w, f"{name}.main_branch.0", x))
        return x + _conv(w, f"{name}.main_branch.2", inside)

    def features(cell: str, x: Any) -> Any:
        for i in range(3):
            x = _conv(w, f"{cell}.F_B.{i}", x, 2 if i else 1)
        return x

    def go_over(cell: str, features: Any, hidden: Any) -> tuple[Any, Any]:
        x = torch.cat([features, hidden], 1)
        for i in range(config.blocks):
            x = block(f"{cell}.F_R.{i}", x)
        h = block(f"{cell}.F_h.1", _conv(w, f"{cell}.F_h.0", x))
        return x, _conv(w, f"{cell}.F_h.2", h)

    flat = _fast(frames.flatten(0, 1) - 0.5)
    once, again = (features(f"rnncell{k}", flat).unflatten(0, frames.shape[:2]) for k in (0, 1))
    hidden = torch.zeros_like(once[:, 0, : config.hidden])
    known = []
    for t in range(frames.shape[1]):
        x, hidden = go_over("rnncell0", once[:, t], hidden)
        for _ in range(config.iterations):
            x, hidden = go_over("rnncell1", again[:, t], hidden)
        known.append(x)
    x = torch.stack(known, 1).flatten(0, 1)
    for i in range(2):
        at = f"rnncell1.F_L.{i}"
        x = F.conv_transpose2d(x, w[f"{at}.weight"], w[f"{at}.bias"], 2, 1, 1)
    return [(_conv(w, "rnncell1.F_L.2", x) + 0.5).unflatten(0, frames.shape[:2])]


# EDVR


def _edvr(config: EdvrConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    from torchvision.ops import deform_conv2d

    def lrelu(x: Any) -> Any:
        return F.leaky_relu(x, 0.1)

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        return _conv(w, name, x, stride)

    def res(x: Any, *names: str) -> Any:
        for name in names:
            x = x + conv(F.relu(conv(x, f"{name}.conv1")), f"{name}.conv2")
        return x

    def up(x: Any) -> Any:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def deformable(x: Any, features: Any, name: str) -> Any:
        o1, o2, mask = conv(features, f"{name}.conv_offset").chunk(3, 1)
        offset, mask = torch.cat([o1, o2], 1), torch.sigmoid(mask)
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return deform_conv2d(x.contiguous(), offset, weight, bias, 1, 1, 1, mask)

    def pyramid(x: Any) -> list[Any]:
        at = "predeblur."
        l1 = lrelu(conv(x, at + "conv_first"))
        l1 = lrelu(conv(lrelu(conv(l1, at + "stride_conv_hr1", 2)), at + "stride_conv_hr2", 2))
        l2 = lrelu(conv(l1, at + "stride_conv_l2", 2))
        l3 = res(lrelu(conv(l2, at + "stride_conv_l3", 2)), at + "resblock_l3")
        l2 = res(res(l2, at + "resblock_l2_1") + up(l3), at + "resblock_l2_2")
        l1 = res(l1, at + "resblock_l1.0", at + "resblock_l1.1") + up(l2)
        l1 = conv(res(l1, *(f"{at}resblock_l1.{i}" for i in (2, 3, 4))), "conv_1x1")
        l1 = res(l1, *(f"feature_extraction.{i}" for i in range(config.extract_blocks)))
        l2 = lrelu(conv(lrelu(conv(l1, "conv_l2_1", 2)), "conv_l2_2"))
        return [l1, l2, lrelu(conv(lrelu(conv(l2, "conv_l3_1", 2)), "conv_l3_2"))]

    def align(frame: list[Any], centre: list[Any]) -> Any:
        at, below, made = "pcd_align.", None, None
        for level in (3, 2, 1):
            name, x = f"l{level}", frame[level - 1]
            offset = torch.cat([x, centre[level - 1]], 1)
            offset = lrelu(conv(offset, f"{at}offset_conv1.{name}"))
            if level < 3:
                offset = torch.cat([offset, 2 * up(below)], 1)
            offset = lrelu(conv(offset, f"{at}offset_conv2.{name}"))
            if level < 3:
                offset = lrelu(conv(offset, f"{at}offset_conv3.{name}"))
            new = deformable(x, offset, f"{at}dcn_pack.{name}")
            if level < 3:
                new = conv(torch.cat([new, up(made)], 1), f"{at}feat_conv.{name}")
            below, made = offset, lrelu(new) if level > 1 else new
        offset = lrelu(conv(torch.cat([made, centre[0]], 1), f"{at}cas_offset_conv1"))
        offset = lrelu(conv(offset, f"{at}cas_offset_conv2"))
        return lrelu(deformable(made, offset, f"{at}cas_dcnpack"))

    def pools(x: Any) -> Any:
        return torch.cat([F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1)], 1)

    def fuse(aligned: list[Any]) -> Any:
        query = conv(aligned[config.m], "fusion.temporal_attn1")
        weighed = torch.cat(
            [
                x * torch.sigmoid((conv(x, "fusion.temporal_attn2") * query).sum(1, keepdim=True))
                for x in aligned
            ],
            1,
        )
        fused = lrelu(conv(weighed, "fusion.feat_fusion"))
        a = lrelu(conv(weighed, "fusion.spatial_attn1"))
        a = lrelu(conv(pools(a), "fusion.spatial_attn2"))
        level = lrelu(
            conv(pools(lrelu(conv(a, "fusion.spatial_attn_l1"))), "fusion.spatial_attn_l2")
        )
        level = up(lrelu(conv(level, "fusion.spatial_attn_l3")))
        a = lrelu(conv(a, "fusion.spatial_attn3")) + level
        a = conv(up(lrelu(conv(a, "fusion.spatial_attn4"))), "fusion.spatial_attn5")
        added = conv(lrelu(conv(a, "fusion.spatial_attn_add1")), "fusion.spatial_attn_add2")
        return fused * torch.sigmoid(a) * 2 + added

    batch, time = frames.shape[:2]
    each = [x.unflatten(0, (batch, time)) for x in pyramid(_fast(frames.flatten(0, 1)))]
    restored = []
    for t in range(time):
        window = np.clip(np.arange(t - config.m, t + config.m + 1), 0, time - 1)
        centre = [x[:, t] for x in each]
        aligned = [align([x[:, i] for x in each], centre) for i in window]
        x = fuse(aligned) if config.tsa else conv(torch.cat(aligned, 1), "fusion")
        x = res(x, *(f"reconstruction.{i}" for i in range(config.blocks)))
        x = lrelu(F.pixel_shuffle(conv(x, "upconv1"), 2))
        x = lrelu(F.pixel_shuffle(conv(x, "upconv2"), 2))
        restored.append(frames[:, t] + conv(lrelu(conv(x, "conv_hr")), "conv_last"))
    return [torch.stack(restored, 1)]


# STFAN


def _stfan(config: StfanConfig, w: Weights, frames: Any, train: bool) -> list[Any]:
    def leaky(x: Any) -> Any:
        return F.leaky_relu(x, 0.1)

    def conv(name: str, x: Any, stride: int = 1) -> Any:
        return leaky(_conv(w, f"{name}.0", x, stride))

    def up(name: str, x: Any) -> Any:
        weight, bias = w[f"{name}.0.weight"], w[f"{name}.0.bias"]
        return leaky(F.conv_transpose2d(x, weight, bias, 2, 1))

    def res(x: Any, *names: str) -> Any:
        for name in names:
            x = x + _conv(w, f"{name}.stem.2", leaky(_conv(w, f"{name}.stem.0", x)))
        return x

    def encode(prefix: str, x: Any) -> Any:
        for i in (1, 2, 3):
            at = f"{prefix}{i}_"
            x = res(conv(f"{at}1", x, 1 if i == 1 else 2), f"{at}2", f"{at}3")
        return x

    def filters(name: str, x: Any) -> Any:
        return conv(f"{name}.3", res(conv(f"{name}.0", x), f"{name}.1", f"{name}.2"))

    def adapt(x: Any, made: Any) -> Any:
        """As the authors' plain replacement of their CUDA layer: by unfolding."""
        b, c, h, wd = x.shape
        near = F.pad(x, (config.taps // 2,) * 4, mode="replicate")
        near = near.unfold(2, config.taps, 1).unfold(3, config.taps, 1)
        taps = made.view(b, c, config.taps, config.taps, h, wd).permute(0, 1, 4, 5, 2, 3)
        return (near * taps).sum((4, 5))

    bgr = frames.flip(2)
    blurred, fed, features = bgr[:, 0], bgr[:, 0], None
    restored = []
    for frame in bgr.unbind(1):
        k3 = encode("kconv", _fast(torch.cat([frame, blurred, fed], 1)))
        warp = filters("fac_warp", k3)
        deblur = filters("fac_deblur", torch.cat([k3, conv("kconv4", warp)], 1))
        e3 = encode("conv", _fast(frame))
        past = torch.cat([e3, e3], 1) if features is None else features
        features = torch.cat([adapt(e3, deblur), adapt(conv("fea", past), warp)], 1)
        x = res(up("upconv2_u", features), "upconv2_2", "upconv2_1")
        x = res(up("upconv1_u", x), "upconv1_2", "upconv1_1")
        image = conv("img_prd", x) + frame
        blurred, fed = frame, image.clamp(0, 1)
        if train and config.detach:
            fed, features = fed.detach(), features.detach()
        restored.append(image.flip(1))
    return [torch.stack(restored, 1)]


_TWINS: dict[type, Callable[..., list[Any]]] = {
    SrnConfig: _srn,
    DbnConfig: _dbn,
    RdnConfig: _rdn,
    IfiRnnConfig: _ifi_rnn,
    EdvrConfig: _edvr,
    StfanConfig: _stfan,
}

_FILLED: dict[type, tuple[int, str]] = {
    SrnConfig: (16, "replicate"),
    DbnConfig: (8, "constant"),
    RdnConfig: (8, "replicate"),
    IfiRnnConfig: (4, "replicate"),
    EdvrConfig: (16, "replicate"),
    StfanConfig: (4, "replicate"),
}
"""What sizes are filled up to, and how."""
