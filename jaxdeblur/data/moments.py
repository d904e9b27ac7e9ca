"""Renders a scene moment by moment, in JAX: an exposure is the mean of many sharp frames (eq. 1).

An exposure is the mean of ``sub_frames`` moments spread evenly over a share of the period (its
``exposure``); the sharp frame is the moment in its middle. This is eq. 1 of the paper (ICCV 2017)
with tau = sub_frames and T = tau / exposure, so T = tau where the exposure lasts the whole period.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray, UInt8, UInt32

from jaxdeblur.data.scenes import (
    OBJECT_BOX,
    Objects,
    Scene,
    SceneConfig,
    position,
    sample_scene,
    swinging,
)
from jaxdeblur.shapes import Clip

RENDERER_VERSION = 3
"""Part of a cache's key: raise it whenever the same seed would give other pixels."""


def pack_texels(textures: UInt8[Array, "n S S 3"]) -> UInt32[Array, "n S*S"]:
    """Three bytes in one word, so that a texel is one read and not three."""
    words = textures.astype(jnp.uint32)
    packed = words[..., 0] | words[..., 1] << 8 | words[..., 2] << 16
    return packed.reshape(packed.shape[0], -1)


def _look_up(texture: UInt32[Array, " texels"], y: Array, x: Array) -> Float[Array, "3 h w"]:
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


class _View(NamedTuple):
    """The camera at one moment: maps pixels to the plane at the background's distance."""

    matrix: Float[Array, "2 2"]
    slope: Float[Array, " 2"]
    camera: Float[Array, " 2"]
    centre: Float[Array, " 2"]

    def plane(self, y: Array, x: Array) -> tuple[Array, Array]:
        y, x = y - self.centre[0], x - self.centre[1]
        scale = 1 / (1 + self.slope[0] * y + self.slope[1] * x)
        m = self.matrix
        return (m[0, 0] * y + m[0, 1] * x) * scale, (m[1, 0] * y + m[1, 1] * x) * scale

    def pixel(self, point: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """The inverse of ``plane`` for one point."""
        c, s = self.matrix[0, 0], self.matrix[1, 0]
        straight = jnp.array([[c, s], [-s, c]]) @ point / (c * c + s * s)
        return straight / (1 - self.slope @ straight) + self.centre


def _view(scene: Scene, time: Float[Array, ""], size: tuple[int, int]) -> _View:
    angle = scene.tilt + swinging(scene.turning, time)
    scale = jnp.exp(swinging(scene.zooming, time))
    c, s = scale * jnp.cos(angle), scale * jnp.sin(angle)
    return _View(
        matrix=jnp.array([[c, -s], [s, c]]),
        slope=scene.slope,
        camera=position(scene.camera, time),
        centre=(jnp.array(size, jnp.float32) - 1) / 2,
    )


def _coverage(thing: Objects, y: Array, x: Array) -> Array:
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


def render_moment(
    scene: Scene,
    packed: UInt32[Array, "layers texels"],
    time: Float[Array, ""],
    size: tuple[int, int],
) -> Float[Array, "3 H W"]:
    """The scene at one moment, as stored (not linear) values in [0, 1], colours first.

    ``packed`` holds the scene's own textures, see :func:`pack`; ``time`` is in frames, 0 in the
    middle of the clip.
    """
    height, width = size
    side = math.isqrt(packed.shape[1])
    view = _view(scene, time, size)

    def layer(index: int | Array, y: Array, x: Array) -> Array:
        texels, origin = scene.texels[index], scene.origin[index] * side
        return _look_up(packed[index], texels * y + origin[0], texels * x + origin[1])

    y, x = view.plane(jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width) * 1.0)
    image = layer(0, y + view.camera[0], x + view.camera[1])
    number: Array | int
    if _one_after_the_other():
        square = min(*size, math.ceil(OBJECT_BOX * min(size)) + 4)
        box, number = (square, square), scene.objects.number
    else:  # A box that differs from scene to scene would cost an accelerator more than it saves.
        box, number = size, scene.objects.start.shape[0]

    def draw(index: Array, image: Array) -> Array:
        thing = jax.tree.map(lambda a: a[index] if a.ndim else a, scene.objects)
        middle = thing.start + position(thing.path, time) - thing.follows * view.camera
        corner = jnp.zeros(2, jnp.int32)
        if box != size:
            corner = jnp.floor(view.pixel(middle) - box[0] / 2).astype(jnp.int32)
            corner = jnp.clip(corner, 0, jnp.array(size) - jnp.array(box))
        rows = (corner[0] + jnp.arange(box[0])).astype(jnp.float32)[:, None]
        columns = (corner[1] + jnp.arange(box[1])).astype(jnp.float32)
        y, x = view.plane(rows, columns)
        y, x = y - middle[0], x - middle[1]
        c, s = (f(thing.angle + thing.spin * time) for f in (jnp.cos, jnp.sin))
        y, x = c * y - s * x, s * y + c * x
        behind = jax.lax.dynamic_slice(image, (0, *corner), (3, *box))
        cover = _coverage(thing, y, x) * (index < scene.objects.number)
        front = behind + cover * (layer(index + 1, y, x) - behind)
        return jax.lax.dynamic_update_slice(image, front, (0, *corner))

    if not scene.objects.start.shape[0]:
        return image
    return jax.lax.fori_loop(0, number, draw, image)


def _to_light(scene: Scene, image: Array) -> Array:
    """Stored values to what is averaged: light or the stored values, white exceeding 1."""
    light = jax.lax.cond(scene.gamma > 1, lambda v: _power(v, scene.gamma), lambda v: v, image)
    return light + scene.highlights * 10 * jnp.maximum(light - 0.9, 0)


def _to_stored(scene: Scene, light: Array) -> Array:
    return _power(jnp.minimum(light, 1), 1 / scene.gamma)


def _power(values: Array, exponent: Array) -> Array:
    """Like ``**`` for values in [0, 1], in under a third of its time: it minds no special case."""
    return jnp.exp(exponent * jnp.log(jnp.maximum(values, 1e-6)))


def moment_times(exposure: Float[Array, ""] | float, sub_frames: int) -> Float[Array, " n"]:
    """The times of the moments of one exposure around its middle, in frames (eq. 1)."""
    return ((jnp.arange(sub_frames) + 0.5) / sub_frames - 0.5) * exposure


def render_scene(
    key: PRNGKeyArray, scene: Scene, photographs: UInt8[Array, "n S S 3"], config: SceneConfig
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Renders a drawn scene; ``key`` is for its noise. Returns see :func:`render_clip`."""
    packed = pack_texels(photographs[scene.textures])
    middle = config.sub_frames // 2
    offsets = moment_times(scene.exposure, config.sub_frames)

    def frame(time: Array) -> tuple[Array, Array]:
        sharp = _to_light(scene, render_moment(scene, packed, time, config.size))

        def add(i: Array, total: Array) -> Array:
            at = time + offsets[i + (i >= middle)]
            return total + _to_light(scene, render_moment(scene, packed, at, config.size))

        total = jax.lax.fori_loop(0, config.sub_frames - 1, add, sharp)
        return _to_stored(scene, total / config.sub_frames), _to_stored(scene, sharp)

    times = jnp.arange(config.frames) - (config.frames - 1) / 2
    blurred, sharp = _map(frame, times)
    blurred, sharp = (jnp.moveaxis(v, 1, -1) for v in (blurred, sharp))
    return _to_bytes(_degrade(key, scene, blurred, config)), _to_bytes(sharp)


def _one_after_the_other() -> bool:
    """On a CPU scenes and frames are rendered in turn, so that each stays in its cache.

    An accelerator renders all at once, in loops whose length does not depend on the scene.
    """
    return jax.default_backend() == "cpu"


def _map(function: Callable[..., tuple[Array, Array]], values: object) -> tuple[Array, Array]:
    if _one_after_the_other():
        return jax.lax.map(function, values)
    return jax.vmap(function)(values)


def _to_bytes(values: Array) -> Array:
    """To the nearest of the 256 values that a file can hold, still as floats in [0, 1]."""
    return jnp.round(jnp.clip(values, 0, 1) * 255) / 255


def _degrade(
    key: PRNGKeyArray, scene: Scene, blurred: Float[Array, "T H W 3"], config: SceneConfig
) -> Float[Array, "T H W 3"]:
    """Sensor noise and mild compression of the blurred frames."""
    if config.noise[1] > 0:
        # Half of the variance is the reading's, half the photons' (it grows with the light).
        spread = scene.noise * jnp.sqrt(0.5 + blurred)
        blurred = blurred + spread * jax.random.normal(key, blurred.shape)
    if config.compression > 0:
        blurred = jax.lax.cond(
            scene.compression > 0, lambda v: compress(v, scene.compression), lambda v: v, blurred
        )
    return blurred


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


def render_clip(
    key: PRNGKeyArray,
    photographs: UInt8[Array, "n S S 3"],
    config: SceneConfig,
    motion_limit: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Draws and renders a scene: (blurred, sharp), floats in [0, 1] that are whole 255ths.

    The same key, photographs and configuration give the same clip. ``photographs`` are square
    textures as :func:`~jaxdeblur.data.photographs.cut_textures` makes them.
    """
    scene_key, noise_key = jax.random.split(key)
    count, side = photographs.shape[:2]
    scene = sample_scene(scene_key, (count, side), config, motion_limit)
    return render_scene(noise_key, scene, photographs, config)


def render_batch(
    key: PRNGKeyArray,
    photographs: UInt8[Array, "n S S 3"],
    config: SceneConfig,
    batch: int,
    motion_limit: Float[Array, ""] | float | None = None,
) -> tuple[Clip, Clip]:
    """``batch`` clips, see :func:`render_clip`; for use inside a jitted training program."""
    return _map(
        lambda key: render_clip(key, photographs, config, motion_limit),
        jax.random.split(key, batch),
    )
