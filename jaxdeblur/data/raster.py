"""What rendering a scene needs at one moment: textures, the view, outlines, compression."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8, UInt32


def pack_texels(textures: UInt8[Array, "n S S 3"]) -> UInt32[Array, "n S*S"]:
    """Three bytes in one word, so that a texel is one read and not three."""
    words = textures.astype(jnp.uint32)
    packed = words[..., 0] | words[..., 1] << 8 | words[..., 2] << 16
    return packed.reshape(packed.shape[0], -1)


def look_up(texture: UInt32[Array, " texels"], y: Array, x: Array) -> Float[Array, "3 h w"]:
    """The packed square ``texture`` at (y, x) by bilinear interpolation, mirrored at its edges."""
    side = math.isqrt(texture.shape[0])
    period = 2.0 * (side - 1)

    def mirror(u: Array) -> tuple[Array, Array]:
        u = u - period * jnp.floor(u / period)
        u = (side - 1) - jnp.abs(u - (side - 1))
        whole = jnp.clip(jnp.floor(u), 0, side - 2)
        return whole.astype(jnp.int32), u - whole

    (y, v), (x, u) = mirror(y), mirror(x)
    index = y * side + x
    weighted = [
        (weight, texture.at[index + step].get(mode="promise_in_bounds"))
        for step, weight in (
            (0, (1 - v) * (1 - u)),
            (1, (1 - v) * u),
            (side, v * (1 - u)),
            (side + 1, v * u),
        )
    ]

    def channel(shift: int) -> Array:
        # By way of int32, for which CPUs have a conversion to float that uint32 lacks.
        bytes_ = [((word >> shift) & 255).astype(jnp.int32) for _, word in weighted]
        terms = [w * b.astype(jnp.float32) for (w, _), b in zip(weighted, bytes_, strict=True)]
        return (terms[0] + terms[1]) + (terms[2] + terms[3])

    return jnp.stack([channel(0), channel(8), channel(16)]) / 255


class View(NamedTuple):
    """The camera at one moment: maps pixels to the plane at the background's distance."""

    matrix: Float[Array, "2 2"]
    slope: Float[Array, " 2"]
    camera: Float[Array, " 2"]
    centre: Float[Array, " 2"]

    def plane(self, y: Array, x: Array) -> tuple[Array, Array]:
        """Where pixels lie in that plane, counted from where the camera points."""
        y, x = y - self.centre[0], x - self.centre[1]
        scale = 1 / (1 + self.slope[0] * y + self.slope[1] * x)
        m = self.matrix
        return (m[0, 0] * y + m[0, 1] * x) * scale, (m[1, 0] * y + m[1, 1] * x) * scale

    def pixel(self, point: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """The inverse of ``plane`` for one point."""
        c, s = self.matrix[0, 0], self.matrix[1, 0]
        straight = jnp.array([[c, s], [-s, c]]) @ point / (c * c + s * s)
        return straight / (1 - self.slope @ straight) + self.centre


def view_at(
    scene: Any, camera: Float[Array, " 2"], time: Float[Array, ""], size: tuple[int, int]
) -> View:
    """How a camera sees a scene at one moment.

    Args:
      scene: has ``tilt``, ``turning``, ``zooming`` and ``slope``, as of ``scenes.Scene``.
      camera: where it points: rows, columns in pixels.
      time: in frames, 0 in the middle of the clip.
      size: height and width of the whole frame.
    """
    angle = scene.tilt + swinging(scene.turning, time)
    scale = jnp.exp(swinging(scene.zooming, time))
    c, s = scale * jnp.cos(angle), scale * jnp.sin(angle)
    return View(
        matrix=jnp.array([[c, -s], [s, c]]),
        slope=scene.slope,
        camera=camera,
        centre=(jnp.array(size, jnp.float32) - 1) / 2,
    )


def swinging(rate_cycles_phase: Float[Array, " 3"], time: Float[Array, ""]) -> Float[Array, ""]:
    """The integral of a rate that swings: bounded, however long the clip."""
    rate, cycles, phase = rate_cycles_phase
    return rate / (2 * jnp.pi * cycles) * jnp.sin(2 * jnp.pi * cycles * time + phase)


class Outline(NamedTuple):
    """What an object looks like from the front; lengths are in pixels."""

    radius: Float[Array, ""]
    swing: Float[Array, " 3"]
    """How far the outline strays from a circle, in three waves around it."""
    swing_phase: Float[Array, " 3"]
    is_box: Float[Array, ""]
    aspect: Float[Array, ""]
    """Width of a box as a share of its height."""
    edge: Float[Array, ""]
    """Width of the soft edge."""


def coverage(thing: Outline, y: Array, x: Array) -> Array:
    """How much of each pixel a thing covers, 0 to 1, its edge soft; (y, x) from its middle."""
    distance = jnp.sqrt(y * y + x * x + 1e-6)
    c, s = x / distance, y / distance
    # cos and sin of 2, 3 and 5 times the direction, by addition: no arctan.
    c2, s2 = c * c - s * s, 2 * c * s
    c3, s3 = c * c2 - s * s2, c * s2 + s * c2
    c5, s5 = c2 * c3 - s2 * s3, c2 * s3 + s2 * c3
    waves = thing.swing * jnp.cos(thing.swing_phase), thing.swing * jnp.sin(thing.swing_phase)
    outline = jnp.ones_like(c)
    for i, (cosine, sine) in enumerate(((c2, s2), (c3, s3), (c5, s5))):
        outline = outline + waves[0][i] * cosine - waves[1][i] * sine
    blob = thing.radius * outline - distance
    box = jnp.minimum(thing.radius - jnp.abs(y), thing.radius * thing.aspect - jnp.abs(x))
    inside = jnp.where(thing.is_box > 0, box, blob)
    return jnp.clip(inside / thing.edge + 0.5, 0, 1)


def power(values: Array, exponent: Array) -> Array:
    """Like ``**`` for values in [0, 1], in under a third of its time: without special cases."""
    return jnp.exp(exponent * jnp.log(jnp.maximum(values, 1e-6)))


def to_light(scene: Any, image: Array) -> Array:
    """Stored values to what a scene averages: light, or these values; white may exceed 1."""
    light = jax.lax.cond(scene.gamma > 1, lambda v: power(v, scene.gamma), lambda v: v, image)
    return light + scene.highlights * 10 * jnp.maximum(light - 0.9, 0)


_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def compress(
    frames: Float[Array, "T H W 3"], strength: Float[Array, ""] | float
) -> Float[Array, "T H W 3"]:
    """What a mild JPEG does: rounds the 8x8 cosine transform of luma and chroma.

    The steps grow with frequency, from 2 to 18 grey levels for luma at ``strength`` 1, twice that
    for chroma (about quality 90).
    """
    _, height, width, _ = frames.shape
    padding = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
    n = np.arange(8)
    cosine = np.sqrt(2 / 8) * np.cos(np.pi * (2 * n + 1) * n[:, None] / 16)
    cosine[0] /= np.sqrt(2)
    step = (2 + 8 * (n[:, None] + n) / 7)[:, :, None] * np.array([1, 2, 2]) / 255
    colours = jnp.einsum("thwc,dc->thwd", jnp.pad(frames, padding, mode="edge"), _FROM_RGB)
    t, h, w, _ = colours.shape
    blocks = colours.reshape(t, h // 8, 8, w // 8, 8, 3)
    c = jnp.asarray(cosine, jnp.float32)
    spectrum = jnp.einsum("tyiljc,ui,vj->tyluvc", blocks, c, c)
    size = strength * jnp.asarray(step, jnp.float32)
    spectrum = jnp.round(spectrum / size) * size
    blocks = jnp.einsum("tyluvc,ui,vj->tyiljc", spectrum, c, c)
    decoded = jnp.einsum("thwd,cd->thwc", blocks.reshape(t, h, w, 3), np.linalg.inv(_FROM_RGB))
    return decoded[:, :height, :width]
