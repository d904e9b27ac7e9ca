"""Rendered scenes: photographs and moving objects under a moving camera, blurred by eq. 1.

A scene is a background and a few objects in front of it, each cut from a photograph. The camera
drifts, trembles, turns and zooms; objects stand nearer (and so move more: parallax) or go their own
way, and hide what is behind them. An exposure is the mean of ``sub_frames`` moments spread evenly
over a share of the period (its ``exposure``); the sharp frame is the moment in its middle. This is
eq. 1 of the paper (ICCV 2017) with tau = sub_frames and T = tau / exposure, so T = tau where the
exposure lasts the whole period.

:func:`render_batch` is pure JAX and runs inside a training program; :func:`render_pool` writes
scenes to a cache on disk, where training on a CPU reads them again and again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray, UInt8, UInt32

from jaxdeblur.data.photographs import Split, Textures, cut_textures, find_photographs
from jaxdeblur.errors import UserError, tell
from jaxdeblur.files import made_once, replace_folder_when_whole, write_json
from jaxdeblur.shapes import Clip, Frame8

RENDERER_VERSION = 3
"""Part of a cache's key: raise it whenever the same seed would give other pixels."""

GAMMA = 2.2
"""Camera response of linear light, as in GOPRO's ``blur_gamma``: stored = light ** (1 / 2.2)."""

_SINES = 3  # Sines a path is made of: enough that no two paths look alike.
_WANDER_CYCLES = (0.03, 0.25)  # Cycles a frame of the wandering: slow turns of the hand.
_TREMOR_CYCLES = (0.2, 0.45)  # Hand tremor is 6-13 Hz, at 30 frames/s.
# An object is drawn in a square, whose half side must hold its largest radius, enlarged by the zoom
# and, at a corner of the frame, by the perspective: 0.19 * 1.35 * e ** 0.08 * 1.16 ** 2 < 0.80 / 2.
_OBJECT_BOX = 0.80  # Side of that square, of the shorter side of the frame.
_OBJECT_RADIUS = (0.07, 0.19)  # Range of mean radii, of the same.
_OBJECT_SWING = 0.35  # How far the outline strays from the mean radius, as a share of it.
_ZOOM_LIMIT = 0.08  # Largest log scale.
_PERSPECTIVE_LIMIT = 0.08  # Largest SceneConfig.perspective.
_ROLL_LIMIT = 0.3  # Largest angle, radians: people hold cameras upright.


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are rendered. Speeds are in pixels a frame; ranges are (least, most).

    A scene draws every quantity uniformly from its range, ``motion`` by way of ``motion_skew``.
    ``motion`` is the speed of the camera and of the objects that go their own way.
    """

    size: tuple[int, int] = (192, 192)
    """Height and width of the frames."""
    frames: int = 10
    sub_frames: int = 9
    """Moments averaged into one frame: tau of eq. 1. Odd, so that one stands in the middle."""
    motion: tuple[float, float] = (2.5, 6.0)
    motion_skew: float = 1.0
    """Above 1, slow motion is drawn more often than fast: a uniform number to this power."""
    still: float = 0.0
    """Share of the scenes in which the camera rests on a tripod (its tremor too)."""
    exposure: tuple[float, float] = (1.0, 1.0)
    """Share of the period for which the shutter is open: tau / T of eq. 1."""
    objects: int = 2
    """The most objects of a scene; each number from 0 is as likely."""
    wander: float = 0.15
    """How far the speed strays from its mean, as a share of it."""
    tremor: float = 0.2
    """Amplitude of the hand's tremor, pixels."""
    rotation: float = 0.5
    """How fast turning moves the edge of the frame, at most, as a share of the scene's speed."""
    zoom: float = 0.25
    """How fast zooming does, likewise."""
    perspective: float = 0.05
    """Largest change of scale from the middle to the edge of the frame."""
    parallax: float = 0.3
    """How much faster than the background the nearest standing object moves."""
    linear_light: float = 0.0
    """Share of the scenes averaged in linear light (gamma 2.2); the others as stored."""
    highlights: float = 0.0
    """How far white exceeds what the sensor can hold, before clipping (0: nothing is clipped)."""
    noise: tuple[float, float] = (0.0, 1 / 255)
    """Standard deviation of the noise of mid-grey; it grows with the square root of light."""
    compression: float = 0.0
    """Share of the scenes whose blurred frames pass a mild JPEG-like compression."""

    def __post_init__(self) -> None:
        if self.sub_frames < 1 or self.sub_frames % 2 == 0:
            raise UserError(f"sub_frames: {self.sub_frames} is not odd and positive")
        if min(self.size) < 16 or self.frames < 1:
            raise UserError("size, frames: at least 16 x 16 pixels and 1 frame are needed")
        if not 0 < self.exposure[0] <= self.exposure[1] <= 1:
            raise UserError(f"exposure: {self.exposure} is not a range within (0, 1]")
        if not 0 <= self.motion[0] <= self.motion[1]:
            raise UserError(f"motion: {self.motion} is not a range from 0 up")
        if self.motion_skew <= 0:
            raise UserError(f"motion_skew: {self.motion_skew} is not positive")
        if not 0 <= self.perspective <= _PERSPECTIVE_LIMIT:
            raise UserError(f"perspective: {self.perspective} is not in [0, {_PERSPECTIVE_LIMIT}]")


SCENES: dict[str, SceneConfig] = {
    # For the demo and strcnn_dtb_small: what a short training on two cores can learn.
    "narrow": SceneConfig(),
    # Blur of a few pixels, in either kind of light: for a network that is then run at every size.
    "small": SceneConfig(
        motion=(2.0, 7.0),
        exposure=(0.8, 1.0),
        tremor=0.3,
        linear_light=0.4,
        highlights=0.3,
    ),
    # Small motion with everything else varied: the first stage of a curriculum.
    "medium": SceneConfig(
        motion=(0.8, 8.0),
        still=0.05,
        exposure=(0.6, 1.0),
        objects=3,
        tremor=0.4,
        linear_light=0.5,
        highlights=0.5,
        noise=(0.0, 2 / 255),
        compression=0.25,
    ),
    # What hand-held footage has at 1280x720.
    "wide": SceneConfig(
        sub_frames=27,
        motion=(1.0, 28.0),
        still=0.08,
        exposure=(0.6, 1.0),
        objects=3,
        tremor=0.6,
        rotation=0.3,
        zoom=0.15,
        perspective=0.08,
        parallax=0.5,
        linear_light=0.5,
        highlights=0.5,
        noise=(0.0, 2 / 255),
        compression=0.25,
    ),
    # For tests: compiles and renders in a moment.
    "tiny": SceneConfig(size=(32, 48), frames=3, sub_frames=3, motion=(1.0, 3.0)),
}
"""The named configurations."""
# Half of the speeds are below 7 pixels a frame: for weights that must gain on large blur and leave
# sharp video alone.
SCENES["handheld"] = dataclasses.replace(SCENES["wide"], motion=(0.0, 28.0), motion_skew=2.0)
# The same up to the largest blur of the goals, in frames that hold it at an eighth of their size.
SCENES["footage"] = dataclasses.replace(
    SCENES["wide"], size=(320, 320), frames=6, sub_frames=39, motion=(0.0, 40.0), motion_skew=1.5
)
# The same with any shutter: in bright light fast motion blurs little, and what leaves such video
# alone must tell the two apart.
SCENES["shutter"] = dataclasses.replace(SCENES["footage"], exposure=(0.02, 1.0))


class Path2D(NamedTuple):
    """A smooth path in the plane: position(t) = velocity * t + sines (pixels; t in frames)."""

    velocity: Float[Array, " 2"]
    amplitude: Float[Array, "2 sines"]
    cycles: Float[Array, " sines"]
    phase: Float[Array, "2 sines"]


class Objects(NamedTuple):
    """The objects of a scene, one row an object; the first ``number`` of them are present."""

    number: Int[Array, ""]
    start: Float[Array, "n 2"]
    follows: Float[Array, " n"]
    path: Path2D
    angle: Float[Array, " n"]
    spin: Float[Array, " n"]
    radius: Float[Array, " n"]
    swing: Float[Array, "n 3"]
    swing_phase: Float[Array, "n 3"]
    is_box: Float[Array, " n"]
    aspect: Float[Array, " n"]
    edge: Float[Array, " n"]


class Scene(NamedTuple):
    """Everything random about a scene but its noise; :func:`sample_scene` draws it."""

    textures: Int[Array, " layers"]
    """Which texture each layer shows: the background, then the objects."""
    origin: Float[Array, "layers 2"]
    """Where in its texture a layer's middle lies, as a share of the texture's side."""
    texels: Float[Array, " layers"]
    """Texels a pixel: at 1 and above the picture is as sharp as its texture or sharper."""
    camera: Path2D
    tilt: Float[Array, ""]
    turning: Float[Array, " 3"]
    """Roll: the largest rate (radians a frame), cycles a frame, phase."""
    zooming: Float[Array, " 3"]
    """The same for log scale."""
    slope: Float[Array, " 2"]
    objects: Objects
    exposure: Float[Array, ""]
    gamma: Float[Array, ""]
    highlights: Float[Array, ""]
    noise: Float[Array, ""]
    compression: Float[Array, ""]
    motion: Float[Array, ""]
    """Largest mean speed of a layer, pixels a frame."""


class _Draws:
    """Uniform numbers handed out in order: one draw of many compiles faster than many draws."""

    def __init__(self, key: PRNGKeyArray, count: int) -> None:
        self._values = jax.random.uniform(key, (count,))
        self._used = 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        start, self._used = self._used, self._used + math.prod(shape)
        return low + (high - low) * self._values[start : self._used].reshape(shape)

    def path(self, speed: Array, wander: float, tremor: Array | float) -> Path2D:
        """A path of mean ``speed`` in a random direction, or one for each of many speeds."""
        many = speed.shape
        angle = self(*many, high=2 * math.pi)
        low, high = _WANDER_CYCLES
        slow = self(*many, _SINES, low=low, high=high)
        low, high = _TREMOR_CYCLES
        fast = self(*many, _SINES, low=low, high=high)
        # Of unit variance in all. A sine of amplitude a and frequency f has the mean square speed
        # (2 pi f a) ** 2 / 2, so the wandering, which is a share of the speed, divides by f.
        bound = math.sqrt(3 / _SINES)
        size = self(*many, 2, 2 * _SINES, low=-bound, high=bound)
        wandering = wander * speed[..., None] / (math.sqrt(2) * math.pi * slow)
        trembling = jnp.broadcast_to(tremor, fast.shape)
        scale = jnp.concatenate([wandering, trembling], axis=-1)
        return Path2D(
            velocity=speed[..., None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1),
            amplitude=size * scale[..., None, :],
            cycles=jnp.concatenate([slow, fast], axis=-1),
            phase=self(*many, 2, 2 * _SINES, high=2 * math.pi),
        )

    def swing(self, rate: Array, limit: float) -> Array:
        """Rate, cycles and phase of a swing that is back before it exceeds ``limit``."""
        rate = rate * self(low=-1.0, high=1.0)
        # It swings as far as rate / (2 pi cycles).
        cycles = jnp.maximum(self(low=0.02, high=0.08), jnp.abs(rate) / (2 * math.pi * limit))
        return jnp.stack([rate, cycles, self(high=2 * math.pi)])


def sample_scene(
    key: PRNGKeyArray,
    textures: tuple[int, int],
    config: SceneConfig,
    motion_limit: Float[Array, ""] | float | None = None,
) -> Scene:
    """Draws a scene that shows some of ``textures`` (how many there are, their side).

    ``motion_limit`` (it may be traced: a curriculum raises it over the steps) lowers the upper end
    of ``config.motion``; below the lower end it lowers both.
    """
    n, size = config.objects, jnp.array(config.size, jnp.float32)
    shorter, longer = min(config.size), max(config.size)
    draw = _Draws(key, 128 + 64 * n)  # More than are handed out: with fewer the reshape fails.

    high = jnp.minimum(config.motion[1], jnp.inf if motion_limit is None else motion_limit)
    low = jnp.minimum(config.motion[0], high)
    moves = (draw() >= config.still).astype(jnp.float32)
    speed = moves * (low + draw() ** config.motion_skew * (high - low))
    camera = draw.path(speed, config.wander, moves * config.tremor)

    # Half of the objects stand in the scene, nearer than the background; half go their own way.
    number = jnp.floor(draw() * (n + 1)).astype(jnp.int32)
    stands = (draw(n) < 0.5).astype(jnp.float32)
    follows = stands * (1 + draw(n, high=config.parallax))
    own = (1 - stands) * (low + draw(n) ** config.motion_skew * (high - low))
    objects = Objects(
        number=number,
        start=size * draw(n, 2, low=-0.4, high=0.4),
        follows=follows,
        path=draw.path(own, config.wander, 0.0),
        angle=draw(n, high=2 * math.pi),
        spin=config.rotation * own / shorter * draw(n, low=-4.0, high=4.0),
        radius=shorter * draw(n, low=_OBJECT_RADIUS[0], high=_OBJECT_RADIUS[1]),
        swing=_OBJECT_SWING * jnp.array([0.5, 0.3, 0.2]) * draw(n, 3),
        swing_phase=draw(n, 3, high=2 * math.pi),
        is_box=(draw(n) < 0.4).astype(jnp.float32),
        aspect=draw(n, low=0.08, high=0.8),
        edge=draw(n, low=1.0, high=2.5),
    )
    present = (jnp.arange(n) < number).astype(jnp.float32)

    texels = draw(n + 1, low=1.0, high=1.25)
    # The background lies so that the camera stays on it, if it is large enough; what is beyond its
    # edge is its mirror image. Objects are cut from the inner half of their textures.
    travel = jnp.abs(camera.velocity) * config.frames + 1.15 * size
    free = jnp.maximum(1 - texels[0] * travel / textures[1], 0.0)
    spread = jnp.concatenate([free[None], jnp.full((n, 2), 0.5)])
    return Scene(
        textures=jnp.floor(draw(n + 1) * textures[0]).astype(jnp.int32),
        origin=0.5 + spread * draw(n + 1, 2, low=-0.5, high=0.5),
        texels=texels,
        camera=camera,
        tilt=draw(low=-0.1, high=0.1),
        turning=draw.swing(config.rotation * speed / (longer / 2), _ROLL_LIMIT),
        zooming=draw.swing(config.zoom * speed / (longer / 2), _ZOOM_LIMIT),
        slope=config.perspective * 2 / size * draw(2, low=-1.0, high=1.0),
        objects=objects,
        exposure=draw(low=config.exposure[0], high=config.exposure[1]),
        gamma=jnp.where(draw() < config.linear_light, GAMMA, 1.0),
        highlights=draw(high=config.highlights),
        noise=draw(low=config.noise[0], high=config.noise[1]),
        compression=jnp.where(draw() < config.compression, draw(low=0.3, high=1.0), 0.0),
        motion=jnp.max(jnp.concatenate([speed[None], present * (follows * speed + own)])),
    )


def position(path: Path2D, time: Float[Array, ""]) -> Float[Array, " 2"]:
    """Where a path is at ``time`` (frames; 0: the middle of the clip): rows, columns in pixels."""
    sines = jnp.sin(2 * jnp.pi * path.cycles * time + path.phase)
    return path.velocity * time + jnp.sum(path.amplitude * sines, axis=-1)


def _swinging(rate_cycles_phase: Float[Array, " 3"], time: Float[Array, ""]) -> Float[Array, ""]:
    """The integral of a rate that swings: bounded, however long the clip."""
    rate, cycles, phase = rate_cycles_phase
    return rate / (2 * jnp.pi * cycles) * jnp.sin(2 * jnp.pi * cycles * time + phase)


def pack(textures: UInt8[Array, "n S S 3"]) -> UInt32[Array, "n S*S"]:
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
    angle = scene.tilt + _swinging(scene.turning, time)
    scale = jnp.exp(_swinging(scene.zooming, time))
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
        square = min(*size, math.ceil(_OBJECT_BOX * min(size)) + 4)
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


def moments(exposure: Float[Array, ""] | float, sub_frames: int) -> Float[Array, " n"]:
    """The times of the moments of one exposure around its middle, in frames (eq. 1)."""
    return ((jnp.arange(sub_frames) + 0.5) / sub_frames - 0.5) * exposure


def render_scene(
    key: PRNGKeyArray, scene: Scene, photographs: UInt8[Array, "n S S 3"], config: SceneConfig
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Renders a drawn scene; ``key`` is for its noise. Returns see :func:`render_clip`."""
    packed = pack(photographs[scene.textures])
    middle = config.sub_frames // 2
    offsets = moments(scene.exposure, config.sub_frames)

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


@dataclasses.dataclass(frozen=True)
class ScenePool:
    """Rendered scenes on disk, memory-mapped."""

    blurred: UInt8[np.ndarray, "N T H W 3"]
    sharp: UInt8[np.ndarray, "N T H W 3"]
    motion: Float[np.ndarray, " N"]
    """Largest mean speed of a layer of each scene, pixels a frame."""
    photographs: tuple[tuple[str, ...], ...]
    """The names of the photographs that each scene shows."""


def texture_size(config: SceneConfig) -> int:
    """The side of textures on which the camera has room to move for a whole clip."""
    return math.ceil((1.3 * max(config.size) + config.frames * config.motion[1]) / 32) * 32


def cache_folder() -> Path:
    """Where pools are kept: ``$JAXDEBLUR_CACHE``, or jaxdeblur in ``$XDG_CACHE_HOME``.

    Raises:
      UserError: neither is set, and there is no home either.
    """
    if own := os.environ.get("JAXDEBLUR_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdeblur"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder; name one for the cache in JAXDEBLUR_CACHE"
        ) from error


def render_pool(
    split: Split,
    config: SceneConfig,
    scenes: int,
    seed: int,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    photos: str | os.PathLike[str] | None = None,
) -> ScenePool:
    """Renders ``scenes`` scenes of a split, or opens them if they have been rendered before.

    Every texture is the background of as many scenes (one more or less). A damaged folder is
    rendered anew, with a warning.

    Args:
      split: which photographs are shown.
      config: what is rendered.
      scenes: how many.
      seed: of the textures and the scenes.
      cache_dir: holds the folder ``scenes-KEY`` with blurred.npy, sharp.npy (uint8, N T H W 3),
        motion.npy (float32, N) and scenes.json (the configuration, the seed and the photographs of
        each scene). KEY is a hash of all that decides the pixels. Default: :func:`cache_folder`.
      progress: called with (scenes rendered, scenes in all).
      photos: a folder of photographs to add to the packages'.

    Raises:
      UserError: the photographs cannot be read, or the cache not written (a full disk).
    """
    found = find_photographs(split, photos)
    recipe = {
        "renderer": RENDERER_VERSION,
        "split": split,
        "scenes": scenes,
        "seed": seed,
        "config": dataclasses.asdict(config),
        "photographs": {photograph.name: photograph.digest for photograph in found},
    }
    recipe = json.loads(json.dumps(recipe))  # as it reads from a file: lists for tuples
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir or cache_folder()) / f"scenes-{key}"
    shape = _shape(config, scenes)
    with contextlib.suppress(*_UNREADABLE):
        return _open_pool(folder, recipe, shape)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_once(folder):  # every process of a run on many devices is here
            if folder.exists():
                try:
                    return _open_pool(folder, recipe, shape)
                except _UNREADABLE as error:
                    message = f"{folder}: damaged ({error}); its scenes are rendered anew"
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                    shutil.rmtree(folder)
            # A memory map that grows beyond the disk ends the process: the room is checked first.
            free, needed = shutil.disk_usage(folder.parent).free, 2 * math.prod(shape)
            if free < needed:
                raise OSError(f"it takes {needed >> 20} MiB and {free >> 20} MiB are free")
            with replace_folder_when_whole(folder) as part:
                # Textures cost more than scenes to make, and few photographs give few that differ.
                textures = min(2 * scenes, max(96, len(found)))
                cut = cut_textures(found, textures, texture_size(config), seed)
                shows = _render_to(part, cut, config, scenes, seed, progress)
                write_json(part / "scenes.json", {**recipe, "shows": shows})
    except OSError as error:
        if not folder.exists():  # else another process was first: its pool is the same
            raise UserError(f"{folder}: cannot be written: {error}") from error
    return _open_pool(folder, recipe, shape)


_UNREADABLE = (OSError, EOFError, ValueError, KeyError)
"""What a pool that is not there, or damaged, makes the reader raise."""


def _shape(config: SceneConfig, scenes: int) -> tuple[int, ...]:
    return scenes, config.frames, *config.size, 3


def show_rendering(done: int, total: int) -> None:
    """Prints how far the rendering of scenes is."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        tell(f"\r\033[Krendering scenes {done}/{total}", end)
    elif done == total:
        tell(f"rendered {total} scenes")


@functools.partial(jax.jit, static_argnames="config")
def _render_pooled(
    key: PRNGKeyArray,
    index: Int[Array, ""],
    photographs: UInt8[Array, "n S S 3"],
    config: SceneConfig,
) -> tuple[Scene, Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Scene ``index`` of a pool, the textures taking turns as background; see render_clip."""
    scene_key, noise_key = jax.random.split(key)
    count, side = photographs.shape[:2]
    scene = sample_scene(scene_key, (count, side), config)
    scene = scene._replace(textures=scene.textures.at[0].set(index % count))
    return scene, *render_scene(noise_key, scene, photographs, config)


def _render_to(
    folder: Path,
    textures: Textures,
    config: SceneConfig,
    scenes: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[str]]:
    """Writes a pool's arrays to ``folder``; returns the photographs that each scene shows."""
    keys = jax.random.split(jax.random.key(seed), scenes)
    photographs = jnp.asarray(textures.pixels)
    blurred, sharp = (
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=_shape(config, scenes)
        )
        for name in ("blurred", "sharp")
    )
    motion = np.zeros(scenes, np.float32)
    shows: list[list[str]] = [[] for _ in range(scenes)]

    def write(index: int) -> None:
        scene, *clips = _render_pooled(keys[index], jnp.int32(index), photographs, config)
        for target, values in zip((blurred, sharp), clips, strict=True):
            target[index] = np.round(np.asarray(values) * 255).astype(np.uint8)
        motion[index] = scene.motion
        present = np.asarray(scene.textures)[: 1 + int(scene.objects.number)]
        shows[index] = sorted({name for texture in present for name in textures.names[texture]})

    # A scene keeps one core busy. The first is rendered alone, so that it is compiled once.
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        try:
            for batch in ([0], range(1, scenes)):
                for future in as_completed([workers.submit(write, index) for index in batch]):
                    future.result()
                    done += 1
                    if progress:
                        progress(done, scenes)
        except BaseException:  # ctrl-C too: do not render the rest first
            workers.shutdown(cancel_futures=True)
            raise
    blurred.flush()
    sharp.flush()
    np.save(folder / "motion.npy", motion)
    return shows


def _open_pool(folder: Path, recipe: dict[str, Any], shape: tuple[int, ...]) -> ScenePool:
    """Opens a pool; one of the errors above if it is not as ``recipe`` asks."""
    manifest = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    if {name: manifest[name] for name in recipe} != recipe:
        raise ValueError("scenes.json describes other scenes")
    arrays = {}
    for name, expected in (
        ("blurred", (np.uint8, *shape)),
        ("sharp", (np.uint8, *shape)),
        ("motion", (np.float32, shape[0])),
    ):
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if (array.dtype.type, *array.shape) != expected:
            raise ValueError(f"{name}.npy is {array.dtype} {array.shape}")
        arrays[name] = array
    return ScenePool(**arrays, photographs=tuple(tuple(names) for names in manifest["shows"]))


@dataclasses.dataclass(frozen=True)
class RenderedVideo:
    """One rendered scene as a video, see :mod:`jaxdeblur.data.datasets`."""

    name: str
    blurred_frames: UInt8[np.ndarray, "T H W 3"]
    sharp_frames: UInt8[np.ndarray, "T H W 3"]
    photographs: tuple[str, ...]

    def __len__(self) -> int:
        return self.blurred_frames.shape[0]

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.blurred_frames.shape[1]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.blurred_frames.shape[2]

    def blurred(self, index: int) -> Frame8:
        """Frame ``index`` as the camera took it."""
        return np.array(self.blurred_frames[index])

    def sharp(self, index: int) -> Frame8:
        """The moment in the middle of its exposure."""
        return np.array(self.sharp_frames[index])


_EVALUATION_SEED = 2017  # Of the scenes that results are reported on: never change it.


def rendered_videos(
    split: Split = "test",
    *,
    config: SceneConfig | None = None,
    scenes: int = 6,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    blur_pixels: int | float | None = None,
    linear: bool | None = None,
    photos: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[RenderedVideo]:
    """The fixed scenes that results are reported on: the same in every run and on every machine.

    Args:
      split: which photographs are shown.
      config: what is rendered. Default: SCENES["narrow"], or "wide" if ``blur_pixels`` is given.
      scenes: how many videos.
      size: replaces that of ``config``.
      frames: likewise.
      blur_pixels: how far the camera moves during an exposure, which then lasts the whole period;
        as many moments are averaged as it takes to show no gaps.
      linear: averaged in linear light (True), as stored (False), or as ``config`` has it (None).
      photos: see :func:`render_pool`, as for ``cache_dir`` and ``progress``.
    """
    name = "rendered"
    if config is None:
        config = SCENES["narrow" if blur_pixels is None else "wide"]
    config = dataclasses.replace(config, size=size or config.size, frames=frames or config.frames)
    if blur_pixels is not None:
        name += f"_{blur_pixels:g}px"
        config = dataclasses.replace(
            config,
            motion=(float(blur_pixels), float(blur_pixels)),
            still=0.0,
            exposure=(1.0, 1.0),
            sub_frames=max(9, 2 * math.ceil(blur_pixels / 2) + 1),
        )
    if linear is not None:
        name += "_linear" if linear else "_stored"
        config = dataclasses.replace(config, linear_light=float(linear))
    pool = render_pool(split, config, scenes, _EVALUATION_SEED, cache_dir, progress, photos)
    return [
        RenderedVideo(f"{name}_{i:02d}", pool.blurred[i], pool.sharp[i], pool.photographs[i])
        for i in range(scenes)
    ]
