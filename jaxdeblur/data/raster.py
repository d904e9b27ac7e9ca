"""Parts of the renderers: textures, the camera's view, outlines, light and compression."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8, UInt32

from jaxdeblur.images import REC_601, power


def pack_texels(textures: UInt8[Array, "n S S 3"]) -> UInt32[Array, "n S*S"]:
    """Packs three bytes into one word, so that a texel takes one read instead of three."""
    words = textures.astype(jnp.uint32)
    packed = words[..., 0] | words[..., 1] << 8 | words[..., 2] << 16
    return packed.reshape(packed.shape[0], -1)


def look_up(texture: UInt32[Array, " texels"], y: Array, x: Array) -> Float[Array, "3 h w"]:
    """Interpolates the packed square ``texture`` bilinearly at (y, x), mirrored at its edges."""
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
        # Via int32: CPUs have an instruction that converts it to float, but none for uint32.
        bytes_ = [((word >> shift) & 255).astype(jnp.int32) for _, word in weighted]
        terms = [w * b.astype(jnp.float32) for (w, _), b in zip(weighted, bytes_, strict=True)]
        return (terms[0] + terms[1]) + (terms[2] + terms[3])

    return jnp.stack([channel(0), channel(8), channel(16)]) / 255


class View(NamedTuple):
    """The camera at one moment; maps pixels to the plane at the background's distance."""

    matrix: Float[Array, "2 2"]
    slope: Float[Array, " 2"]
    camera: Float[Array, " 2"]
    centre: Float[Array, " 2"]

    def plane(self, y: Array, x: Array) -> tuple[Array, Array]:
        """Returns where pixels lie in that plane, relative to the point the camera looks at."""
        y, x = y - self.centre[0], x - self.centre[1]
        scale = 1 / (1 + self.slope[0] * y + self.slope[1] * x)
        m = self.matrix
        return (m[0, 0] * y + m[0, 1] * x) * scale, (m[1, 0] * y + m[1, 1] * x) * scale

    def pixel(self, point: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """Computes the inverse of ``plane`` for one point."""
        c, s = self.matrix[0, 0], self.matrix[1, 0]
        straight = jnp.array([[c, s], [-s, c]]) @ point / (c * c + s * s)
        return straight / (1 - self.slope @ straight) + self.centre


def view_at(
    scene: Any, camera: Float[Array, " 2"], time: Float[Array, ""], size: tuple[int, int]
) -> View:
    """Returns the camera's view of a scene at one moment.

    Args:
      scene: has ``tilt``, ``turning``, ``zooming`` and ``slope``, like ``scenes.Scene``.
      camera: the point it looks at: rows, columns in pixels.
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
    """Integrates an oscillating rate; the result is bounded for clips of any length."""
    rate, cycles, phase = rate_cycles_phase
    return rate / (2 * jnp.pi * cycles) * jnp.sin(2 * jnp.pi * cycles * time + phase)


class Outline(NamedTuple):
    """An object's shape seen from the front; lengths are in pixels."""

    radius: Float[Array, ""]
    swing: Float[Array, " 3"]
    """Deviation from a circle, as a share of the radius, in three waves around the outline."""
    swing_phase: Float[Array, " 3"]
    is_box: Float[Array, ""]
    aspect: Float[Array, ""]
    """Width of a box divided by its height."""
    edge: Float[Array, ""]
    """Width of the soft edge."""


def coverage(thing: Outline, y: Array, x: Array) -> Array:
    """Returns an object's coverage of pixels, 0 to 1, with a soft edge; (y, x) from its centre."""
    distance = jnp.sqrt(y * y + x * x + 1e-6)
    c, s = x / distance, y / distance
    # cos and sin of 2, 3 and 5 times the angle by the addition theorems, without arctan.
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


def brightened(values: Array, exponent: Array | float) -> Array:
    """Computes ``values ** exponent`` for values in [0, 1], of which the least is 1e-6."""
    return power(jnp.maximum(values, 1e-6), exponent)


def to_light(scene: Any, image: Array) -> Array:
    """Converts stored values to what a scene averages, light or themselves; white may exceed 1."""
    light = jax.lax.cond(scene.gamma > 1, lambda v: brightened(v, scene.gamma), lambda v: v, image)
    return light + scene.highlights * 10 * jnp.maximum(light - 0.9, 0)


_FROM_RGB = np.array(
    [REC_601, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def compress(
    frames: Float[Array, "T H W 3"], strength: Float[Array, ""] | float
) -> Float[Array, "T H W 3"]:
    """Imitates mild JPEG compression: rounds the 8x8 cosine transform of luma and chroma.

    The quantisation steps grow with frequency, from 2 to 18 grey levels for luma at ``strength`` 1
    and twice that for chroma (about quality 90).
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
