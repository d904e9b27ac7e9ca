"""Pixel layouts: conversion to RGB and back, by the definitions and without loss."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.video.pixels import PixelLayout

REC_709 = (0.2126, 0.0722)
LAYOUTS = {
    "rgb": PixelLayout(),
    "rgb 16": PixelLayout("rgb", 16),
    "4:2:0": PixelLayout("yuv", 8, (2, 2), REC_709, full_range=False),
    "4:2:0 10": PixelLayout("yuv", 10, (2, 2), REC_709, full_range=False),
    "4:2:2 full": PixelLayout("yuv", 8, (1, 2), REC_709),
    "4:4:4 12": PixelLayout("yuv", 12, (1, 1), REC_709, full_range=False),
    "grey": PixelLayout("grey", 8, full_range=False),
}


def planes_of(layout: PixelLayout, size=(7, 9)) -> tuple:
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.integers(0, 2**layout.bits, shape), layout.dtype)
        for shape in layout.plane_shapes(*size)
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_change_is_no_change_bit_for_bit(name):
    layout = LAYOUTS[name]
    planes = planes_of(layout)
    rgb = layout.to_rgb(planes)
    assert rgb.shape == (7, 9, 3)
    assert 0 <= rgb.min() <= rgb.max() <= 1, "codes beyond black and white are shown as these"
    for before, after in zip(planes, layout.add(planes, jnp.zeros_like(rgb)), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


# Rec. 709, limited range, 8 bits: white, black and the colour bars of ITU-R BT.709 at 75 %, whose
# colours are not clipped.
@pytest.mark.parametrize(
    ("codes", "colour"),
    [
        ((235, 128, 128), (1, 1, 1)),
        ((16, 128, 128), (0, 0, 0)),
        ((51, 109, 212), (0.75, 0, 0)),
        ((134, 63, 52), (0, 0.75, 0)),
        ((28, 212, 120), (0, 0, 0.75)),
    ],
)
def test_codes_of_the_colour_bars(codes, colour):
    layout = LAYOUTS["4:2:0"]
    planes = tuple(
        jnp.full(shape, code, jnp.uint8)
        for code, shape in zip(codes, layout.plane_shapes(4, 6), strict=True)
    )
    np.testing.assert_allclose(layout.to_rgb(planes)[1, 1], colour, atol=0.006)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "grey"])
def test_a_change_of_colour_arrives(name):
    """Tests a flat frame, where subsampling does not matter, to about a level of the samples."""
    layout = LAYOUTS[name]
    middle = 2 ** (layout.bits - 1)
    planes = tuple(jnp.full(s, middle, layout.dtype) for s in layout.plane_shapes(7, 9))
    rgb = layout.to_rgb(planes)
    change = jnp.broadcast_to(jnp.array([0.11, -0.07, 0.2]), rgb.shape)
    changed = layout.to_rgb(layout.add(planes, change))
    np.testing.assert_allclose(changed, rgb + change, atol=3 / 2**layout.bits)


def test_a_change_of_grey_is_its_luma():
    layout = PixelLayout("grey", 8, weights=REC_709, full_range=True)
    planes = (jnp.full((1, 2), 100, jnp.uint8),)
    red = jnp.array([[0.55, -0.55]])  # 29.8 grey levels, to be rounded, not truncated
    (after,) = layout.add(planes, red[..., None] * jnp.array([1.0, 0, 0]))
    assert after.tolist() == [[100 + round(0.55 * 0.2126 * 255), 100 - round(0.55 * 0.2126 * 255)]]


def test_changes_beyond_the_codes_are_clipped():
    layout = PixelLayout("yuv", 10, (2, 2), full_range=False)
    planes = planes_of(layout)
    for sign in (-5.0, 5.0):
        for plane in layout.add(planes, jnp.full((7, 9, 3), sign)):
            assert 0 <= plane.min() <= plane.max() <= 1023


def test_chroma_is_linear_between_samples():
    layout = PixelLayout("yuv", 8, (1, 2), REC_709)
    chroma = jnp.array([[100, 140]], jnp.uint8)
    luma = jnp.full((1, 4), 128, jnp.uint8)
    red = layout.to_rgb((luma, jnp.full((1, 2), 128, jnp.uint8), chroma))[0, :, 0]
    steps = np.diff(np.asarray(red))
    np.testing.assert_allclose(steps / steps[1], [0.5, 1, 0.5], atol=1e-4)


def test_a_change_of_chroma_is_the_mean_of_its_pixels():
    layout = PixelLayout("yuv", 8, (2, 2))
    planes = tuple(jnp.full(shape, 128, jnp.uint8) for shape in layout.plane_shapes(2, 2))
    for pixel in np.ndindex(2, 2):
        blue = jnp.zeros((2, 2, 3)).at[(*pixel, 2)].set(0.4)
        # (B - Y) / (2 - 2 kb), with Y = kb B, is half of B; a quarter of that is 12.75 codes.
        assert layout.add(planes, blue)[1].tolist() == [[128 + 13]]
