"""Renders a scene moment by moment, in JAX: an exposure is the mean of many sharp frames (eq. 1).

An exposure is the mean of ``sub_frames`` moments spread evenly over a share of the period (its
``exposure``); the sharp frame is the moment in its middle. This is eq. 1 of the paper (ICCV 2017)
with tau = sub_frames and T = tau / exposure, so T = tau where the exposure lasts the whole period.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PRNGKeyArray, UInt8, UInt32

from jaxdeblur.data.drawing import View, compress, coverage, look_up, pack_texels, power, swinging
from jaxdeblur.data.test_scenes.scenes import (
    OBJECT_BOX,
    Scene,
    SceneConfig,
    outline,
    position,
    sample_scene,
)

RENDERER_VERSION = 3
"""Part of a cache's key: raise it whenever the same seed would give other pixels."""


def _view(scene: Scene, time: Float[Array, ""], size: tuple[int, int]) -> View:
    angle = scene.tilt + swinging(scene.turning, time)
    scale = jnp.exp(swinging(scene.zooming, time))
    c, s = scale * jnp.cos(angle), scale * jnp.sin(angle)
    return View(
        matrix=jnp.array([[c, -s], [s, c]]),
        slope=scene.slope,
        camera=position(scene.camera, time),
        centre=(jnp.array(size, jnp.float32) - 1) / 2,
    )


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
        return look_up(packed[index], texels * y + origin[0], texels * x + origin[1])

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
        cover = coverage(outline(thing), y, x) * (index < scene.objects.number)
        front = behind + cover * (layer(index + 1, y, x) - behind)
        return jax.lax.dynamic_update_slice(image, front, (0, *corner))

    if not scene.objects.start.shape[0]:
        return image
    return jax.lax.fori_loop(0, number, draw, image)


def _to_light(scene: Scene, image: Array) -> Array:
    """Stored values to what is averaged: light or the stored values, white exceeding 1."""
    light = jax.lax.cond(scene.gamma > 1, lambda v: power(v, scene.gamma), lambda v: v, image)
    return light + scene.highlights * 10 * jnp.maximum(light - 0.9, 0)


def _to_stored(scene: Scene, light: Array) -> Array:
    return power(jnp.minimum(light, 1), 1 / scene.gamma)


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


def render_clip(
    key: PRNGKeyArray, photographs: UInt8[Array, "n S S 3"], config: SceneConfig
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Draws and renders a scene: (blurred, sharp), floats in [0, 1] that are whole 255ths.

    The same key, photographs and configuration give the same clip. ``photographs`` are square
    textures as :func:`~jaxdeblur.data.textures.cut_textures` makes them.
    """
    scene_key, noise_key = jax.random.split(key)
    count, side = photographs.shape[:2]
    scene = sample_scene(scene_key, (count, side), config)
    return render_scene(noise_key, scene, photographs, config)
