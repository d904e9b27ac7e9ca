"""EDVR against BasicSR's layers in plain NumPy, and the details that a port must have."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import count, outline
from jaxdeblur.restoration.tiling import TileGrid
from jaxdeblur.table1.edvr import DeformableConv, EdvrConfig, deformable_conv2d

SMALL = EdvrConfig(m=1, width=4, groups=2, extract_blocks=1, blocks=1, head_width=2)


def loops(x: np.ndarray, offsets: np.ndarray, mask: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Computes the convolution tap by tap and corner by corner."""
    height, width, channels = x.shape
    groups = offsets.shape[2]
    each = channels // groups
    out = np.zeros((height, width, kernel.shape[-1]))
    for row, column, group, tap in itertools.product(
        range(height), range(width), range(groups), range(9)
    ):
        y = row + tap // 3 - 1 + offsets[row, column, group, tap, 0]
        z = column + tap % 3 - 1 + offsets[row, column, group, tap, 1]
        value = np.zeros(each)
        for i, j in itertools.product(
            (np.floor(y), np.floor(y) + 1), (np.floor(z), np.floor(z) + 1)
        ):
            if 0 <= i < height and 0 <= j < width:
                share = (1 - abs(y - i)) * (1 - abs(z - j))
                value += share * x[int(i), int(j), group * each : (group + 1) * each]
        weights = kernel[tap // 3, tap % 3, group * each : (group + 1) * each]
        out[row, column] += mask[row, column, group, tap] * value @ weights
    return out


def reference(plain: Any, w: dict[str, np.ndarray], window: np.ndarray, groups: int) -> np.ndarray:
    """Runs BasicSR's EDVR on frames N C H W, with weights by its names."""

    def lrelu(x: np.ndarray) -> np.ndarray:
        return plain.relu(x, 0.1)

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        return plain.conv(x, w[f"{name}.weight"], w[f"{name}.bias"], stride)

    def res(x: np.ndarray, name: str) -> np.ndarray:
        return x + conv(plain.relu(conv(x, f"{name}.conv1")), f"{name}.conv2")

    def predeblur(x: np.ndarray) -> np.ndarray:
        l1 = lrelu(conv(x, "predeblur.conv_first"))
        l1 = lrelu(conv(l1, "predeblur.stride_conv_hr1", 2))
        l1 = lrelu(conv(l1, "predeblur.stride_conv_hr2", 2))
        l2 = lrelu(conv(l1, "predeblur.stride_conv_l2", 2))
        l3 = lrelu(conv(l2, "predeblur.stride_conv_l3", 2))
        l3 = plain.up(res(l3, "predeblur.resblock_l3"))
        l2 = res(l2, "predeblur.resblock_l2_1") + l3
        l2 = plain.up(res(l2, "predeblur.resblock_l2_2"))
        for i in range(5):
            l1 = res(l1, f"predeblur.resblock_l1.{i}")
            l1 = l1 + l2 if i == 1 else l1
        return l1

    def deformable(x: np.ndarray, features: np.ndarray, name: str) -> np.ndarray:
        o1, o2, mask = np.split(conv(features, f"{name}.conv_offset"), 3)
        offsets = np.concatenate([o1, o2]).reshape(groups, 9, 2, *x.shape[1:])
        mask = plain.sigmoid(mask).reshape(groups, 9, *x.shape[1:])
        made = loops(
            x.transpose(1, 2, 0),
            offsets.transpose(3, 4, 0, 1, 2),
            mask.transpose(2, 3, 0, 1),
            w[f"{name}.weight"].transpose(2, 3, 1, 0),
        )
        return made.transpose(2, 0, 1) + w[f"{name}.bias"][:, None, None]

    def align(frame: list[np.ndarray], centre: list[np.ndarray]) -> np.ndarray:
        below, aligned = np.zeros(0), np.zeros(0)
        for level in (3, 2, 1):
            name, x = f"l{level}", frame[level - 1]
            offset = np.concatenate([x, centre[level - 1]])
            offset = lrelu(conv(offset, f"pcd_align.offset_conv1.{name}"))
            if level < 3:
                offset = np.concatenate([offset, below])
            offset = lrelu(conv(offset, f"pcd_align.offset_conv2.{name}"))
            if level < 3:
                offset = lrelu(conv(offset, f"pcd_align.offset_conv3.{name}"))
            made = deformable(x, offset, f"pcd_align.dcn_pack.{name}")
            if level < 3:
                made = conv(np.concatenate([made, aligned]), f"pcd_align.feat_conv.{name}")
            if level > 1:
                made = lrelu(made)
                below, aligned = 2 * plain.up(offset), plain.up(made)
        offset = lrelu(conv(np.concatenate([made, centre[0]]), "pcd_align.cas_offset_conv1"))
        offset = lrelu(conv(offset, "pcd_align.cas_offset_conv2"))
        return lrelu(deformable(made, offset, "pcd_align.cas_dcnpack"))

    def pools(x: np.ndarray) -> np.ndarray:
        _, height, width = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        seen = [
            [padded[:, i : i + 3, j : j + 3] for j in range(0, width, 2)]
            for i in range(0, height, 2)
        ]
        return np.concatenate(
            [np.array(np.nanmax(seen, (3, 4))), np.array(np.nansum(seen, (3, 4))) / 9], -1
        ).transpose(2, 0, 1)

    def fuse(frames: np.ndarray) -> np.ndarray:
        query = conv(frames[len(frames) // 2], "fusion.temporal_attn1")
        weighed = np.concatenate(
            [x * plain.sigmoid((conv(x, "fusion.temporal_attn2") * query).sum(0)) for x in frames]
        )
        fused = lrelu(conv(weighed, "fusion.feat_fusion"))
        a = lrelu(conv(weighed, "fusion.spatial_attn1"))
        a = lrelu(conv(pools(a), "fusion.spatial_attn2"))
        level = pools(lrelu(conv(a, "fusion.spatial_attn_l1")))
        level = lrelu(conv(level, "fusion.spatial_attn_l2"))
        level = plain.up(lrelu(conv(level, "fusion.spatial_attn_l3")))
        a = lrelu(conv(a, "fusion.spatial_attn3")) + level
        a = plain.up(lrelu(conv(a, "fusion.spatial_attn4")))
        a = conv(a, "fusion.spatial_attn5")
        added = conv(lrelu(conv(a, "fusion.spatial_attn_add1")), "fusion.spatial_attn_add2")
        return fused * plain.sigmoid(a) * 2 + added

    def shuffle(x: np.ndarray) -> np.ndarray:
        c, height, width = x.shape
        x = x.reshape(c // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
        return x.reshape(c // 4, 2 * height, 2 * width)

    pyramids = []
    for frame in window:
        l1 = res(conv(predeblur(frame), "conv_1x1"), "feature_extraction.0")
        l2 = lrelu(conv(lrelu(conv(l1, "conv_l2_1", 2)), "conv_l2_2"))
        l3 = lrelu(conv(lrelu(conv(l2, "conv_l3_1", 2)), "conv_l3_2"))
        pyramids.append([l1, l2, l3])
    centre = len(window) // 2
    aligned = np.stack([align(frame, pyramids[centre]) for frame in pyramids])
    if "fusion.weight" in w:
        x = conv(aligned.reshape(-1, *aligned.shape[2:]), "fusion")
    else:
        x = fuse(aligned)
    x = res(x, "reconstruction.0")
    x = lrelu(shuffle(conv(x, "upconv1")))
    x = lrelu(shuffle(conv(x, "upconv2")))
    return window[centre] + conv(lrelu(conv(x, "conv_hr")), "conv_last")


@pytest.mark.parametrize("tsa", [True, pytest.param(False, marks=pytest.mark.stress)])
def test_it_is_basicsrs_network(plain: Any, imported: Any, tsa: bool) -> None:
    config = EdvrConfig(**{**vars(SMALL), "tsa": tsa})
    loaded, weights = imported("edvr", config)
    clip = np.random.default_rng(1).random((2, 30, 17, 3), np.float32)
    restored = jax.jit(loaded.model.restore_clip)(jnp.asarray(clip)[None])[0]
    padded = np.pad(clip, ((1, 1), (0, 2), (0, 15), (0, 0)), mode="edge").transpose(0, 3, 1, 2)
    expected = reference(plain, weights, padded[:3], config.groups).transpose(1, 2, 0)[:30, :17]
    assert np.abs(expected - clip[0]).max() > 0.3
    np.testing.assert_allclose(restored[0], expected, atol=2e-5 * np.ptp(expected))


@pytest.mark.stress
def test_its_gradient_is_the_references(plain: Any, check_gradient: Any) -> None:
    def restore(weights: Any, clip: np.ndarray) -> np.ndarray:
        padded = np.pad(clip, ((1, 1), (0, 13), (0, 6), (0, 0)), mode="edge")
        padded = padded.transpose(0, 3, 1, 2)
        windows = [padded[t : t + 3] for t in range(3)]
        made = np.stack([reference(plain, weights, each, SMALL.groups) for each in windows])
        return made.transpose(0, 2, 3, 1)[:, :19, :26]

    clip = np.random.default_rng(1).random((3, 19, 26, 3), np.float32)
    check_gradient("edvr", SMALL, clip, restore)


def test_parameters_of_the_published_networks() -> None:
    for config, number in (
        (EdvrConfig(), 4_042_851),
        (EdvrConfig(tsa=False), 3_738_979),
        (EdvrConfig(width=128, blocks=40), 23_602_019),
    ):
        _, parameters = outline(lambda config=config: models.build(config))
        assert count(parameters) == number


def test_offsets_begin_at_zero() -> None:
    layer = DeformableConv(4, 2, dtype="float32", rngs=nnx.Rngs(0))
    assert not np.any(layer.conv_offset.kernel[...])
    assert np.any(layer.kernel[...])


def test_tiles_are_refused_with_the_reason() -> None:
    rebuild, template = outline(lambda: models.build(SMALL))
    model = rebuild({name: jnp.zeros(array.shape) for name, array in template.items()})
    state = model.initial_state(1, 64, 64)
    with pytest.raises(UserError, match=r"EDVR can't restore a frame in tiles: .* not limited"):
        TileGrid(32, 32).step(model, state, jnp.zeros((1, 64, 64, 3)))


def drawn(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    offsets = 3 * rng.normal(size=(1, 5, 6, 2, 9, 2))
    offsets[0, 0, 0] *= 1e4  # far outside
    offsets[0, 1, 1] = rng.integers(-2, 3, (2, 9, 2))  # on pixels
    return [
        rng.normal(size=(1, 5, 6, 4)).astype(np.float32),
        offsets.astype(np.float32),
        rng.random((1, 5, 6, 2, 9), np.float32),
        rng.normal(size=(3, 3, 4, 3)).astype(np.float32),
    ]


def test_the_deformable_convolution_equals_loops() -> None:
    given = drawn()
    made = jax.jit(deformable_conv2d)(*map(jnp.asarray, given))
    expected = loops(*(array[0] for array in given[:3]), given[3])
    np.testing.assert_allclose(made[0], expected, atol=1e-4)


def test_without_offsets_it_is_a_plain_convolution() -> None:
    x, offsets, mask, kernel = drawn()
    given = (x, np.zeros_like(offsets), np.ones_like(mask), kernel)
    made = jax.jit(deformable_conv2d)(*map(jnp.asarray, given))
    plain = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(made, plain, atol=1e-4)


def test_the_gradients_of_a_deformable_convolution() -> None:
    given = drawn(1)
    given[1] = np.where(np.abs(given[1]) > 100, 0.3, given[1])
    given[1] += 0.01 * (np.abs(given[1] - np.round(given[1])) < 0.01)  # away from the kinks
    weight = np.random.default_rng(2).normal(size=(5, 6, 3))

    def loss(*given: jax.Array) -> jax.Array:
        return (deformable_conv2d(*given)[0] * weight).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*map(jnp.asarray, given))
    rng = np.random.default_rng(3)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=given[i].shape) * (rng.random(given[i].shape) < 0.1)
        values = []
        for sign in (1, -1):
            moved = [np.float64(array) for array in given]
            moved[i] = moved[i] + sign * 1e-4 * direction
            made = loops(*(array[0] for array in moved[:3]), moved[3])
            values.append((made * weight).sum())
        slope = (values[0] - values[1]) / 2e-4
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3, atol=1e-2)
