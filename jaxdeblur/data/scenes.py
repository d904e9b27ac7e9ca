"""Scenes to train on: photographs and moving objects under a moving camera, and how they are drawn.

A scene is a background and a few objects in front of it, each cut from a photograph. The camera
goes as hands do: in fast and slow phases, with moments of rest, changing its speed within an
exposure, trembling, turning, zooming. Objects stand nearer (and so move more: parallax) or go their
own way, and hide what is behind them. ``SCENES`` are the named configurations.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.data.raster import Outline
from jaxdeblur.options import from_json

STEPS_A_FRAME = 16
"""Steps of the numeric integration of a path: between them it is straight."""

_SINES = 3  # Sines a random function of time is made of: enough that no two look alike.
_SWAY_CYCLES = (0.03, 0.25)  # Cycles a frame: slow turns of the hand.
_ACCELERATION_CYCLES = (0.25, 0.8)  # Fast enough to change the speed within an exposure.
_TREMBLE_CYCLES = (0.2, 0.6)  # Hands tremble at 6-13 Hz and more, at 30 frames/s.
_PAUSES = 2  # In a scene that has some.
_PAUSE_FRAMES = (0.6, 1.5)  # How long the camera nearly rests, to each side.
_PAUSE_DEPTH = 0.97  # What a pause takes of the speed.
_FASTEST = 1.8  # No moment is faster than so many times the scene's mean.
_EXTRA_REACH = 1.25  # Rotation, zoom and depth add to the motion at the frame's corners.
_OBJECT_RADIUS = (0.07, 0.19)  # Range of mean radii, of the shorter side of the frame.
_OBJECT_SWING = 0.35  # How far the outline strays from the mean radius, as a share of it.
_ZOOM_LIMIT = 0.08  # Largest log scale.
_ROLL_LIMIT = 0.3  # Largest angle, radians: people hold cameras upright.
_BRIGHT_EXPOSURE = (0.03, 0.5)  # Shares of the period, in bright light.
_FRAMES_AHEAD = 10  # Textures hold the camera's way over so many frames; beyond is their mirror.


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are rendered. Speeds are in pixels a frame; ranges are (least, most).

    A scene draws every quantity uniformly from its range, ``motion`` by way of ``motion_skew``.
    ``motion`` is the mean speed of the camera and of the objects that go their own way.
    """

    size: tuple[int, int] = (192, 192)
    """Height and width of the frames, of which a clip is a crop; larger crops have larger ones."""
    motion: tuple[float, float] = (2.5, 6.0)
    motion_skew: float = 1.0
    """Above 1, slow motion is drawn more often than fast: a uniform number to this power."""
    still: float = 0.0
    """Share of the scenes in which the camera rests on a tripod (its tremble too)."""
    sway: float = 0.15
    """How far the velocity strays slowly from its mean, as a share of it."""
    acceleration: float = 0.0
    """How far it changes within an exposure, likewise."""
    phases: float = 0.0
    """How far the logarithm of the speed rises and falls over a clip: fast and slow phases."""
    brief: float = 0.0
    """Share of the scenes with moments of rest, in which a frame is nearly sharp."""
    tremble: float = 0.2
    """Amplitude of the hand's tremble, pixels."""
    exposure: tuple[float, float] = (1.0, 1.0)
    """Share of the period for which the shutter is open: tau / T of eq. 1."""
    bright: float = 0.0
    """Share of the scenes in bright light, with exposures from 0.03 to 0.5 of the period."""
    objects: int = 2
    """The most objects of a scene; each number from 0 is as likely."""
    rotation: float = 0.5
    """How fast turning moves the edge of the frame, at most, as a share of the scene's speed."""
    zoom: float = 0.25
    """How fast zooming does, likewise."""
    depth: float = 0.05
    """Largest change of scale from the middle to the edge of the frame: a slanted background."""
    parallax: float = 0.3
    """How much faster than the background the nearest standing object moves."""
    linear_light: float = 0.0
    """Share of the scenes averaged in linear light (gamma 2.2); the others as stored."""
    highlights: float = 0.0
    """How far white exceeds what the sensor can hold, before clipping (0: nothing is clipped)."""
    noise: tuple[float, float] = (0.0, 1 / 255)
    """Standard deviation of the noise of mid-grey: reading's, and photons', which grows with light.
    """
    softness: float = 0.0
    """How much of a pixel's light the lens spreads over its neighbours, at most, each way."""
    compression: float = 0.0
    """Share of the scenes whose blurred frames pass a mild JPEG-like compression."""

    @property
    def reach(self) -> int:
        """How far anything moves from the middle of its exposure, at most, pixels."""
        fastest = _FASTEST * _EXTRA_REACH * self.motion[1]
        return math.ceil(self.exposure[1] / 2 * fastest + self.tremble) + 3  # a kernel's edge

    @property
    def texture_size(self) -> int:
        """The side of textures on which the camera has room to move."""
        return math.ceil((1.3 * max(self.size) + _FRAMES_AHEAD * self.motion[1]) / 32) * 32

    def at_least(self, crop: int) -> SceneConfig:
        """The same with frames that hold a crop of ``crop`` x ``crop`` pixels."""
        size = (max(self.size[0], crop), max(self.size[1], crop))
        return dataclasses.replace(self, size=size)


def _read() -> dict[str, SceneConfig]:
    kinds = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

    def fields(kind: str) -> dict[str, Any]:
        own = dict(kinds[kind])
        return (fields(own.pop("like")) if "like" in own else {}) | own

    return {kind: from_json(SceneConfig, fields(kind), kind) for kind in kinds}


SCENES = _read()
"""The named configurations (``scenes.toml``)."""


class Objects(NamedTuple):
    """The objects of a scene, one row an object; the first ``number`` of them are present."""

    number: Int[Array, ""]
    start: Float[Array, "n 2"]
    """Where each is in the middle of the clip, pixels from the middle of the frame."""
    follows: Float[Array, " n"]
    """How far it moves against the camera's way, as a share of that: 0 if it goes its own way."""
    path: Any
    """``n steps 2`` as of the camera; of fixed scenes a ``SinePath``."""
    angle: Float[Array, " n"]
    spin: Float[Array, " n"]
    """Radians a frame; drawn objects do not spin."""
    outline: Outline


class Scene(NamedTuple):
    """All that decides a scene but its noise; :func:`sample_scene` draws it."""

    textures: Int[Array, " layers"]
    """Which texture each layer shows: the background, then the objects."""
    origin: Float[Array, "layers 2"]
    """Where in its texture a layer's middle lies, as a share of the texture's side."""
    texels: Float[Array, " layers"]
    """Texels a pixel: at 1 and above the picture is as sharp as its texture or sharper."""
    corner: Float[Array, " 2"]
    """Where in the frame the crop begins."""
    camera: Any
    """Rows and columns in pixels, 0 in the middle of the clip: ``steps 2``, ``STEPS_A_FRAME`` of
    them; of fixed scenes a ``SinePath``."""
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
    softness: Float[Array, ""]
    compression: Float[Array, ""]


class _Draws:
    """Uniform numbers handed out in order: one draw of many compiles faster than many draws."""

    def __init__(self, key: PRNGKeyArray, count: int) -> None:
        self._values = jax.random.uniform(key, (count,))
        self._used = 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """The next numbers, in [low, high)."""
        start, self._used = self._used, self._used + math.prod(shape)
        return low + (high - low) * self._values[start : self._used].reshape(shape)

    def swing(self, rate: Array, limit: float) -> Array:
        """Rate, cycles and phase of a swing that is back before it exceeds ``limit``."""
        rate = rate * self(low=-1.0, high=1.0)
        # It swings as far as rate / (2 pi cycles).
        cycles = jnp.maximum(self(low=0.02, high=0.08), jnp.abs(rate) / (2 * math.pi * limit))
        return jnp.stack([rate, cycles, self(high=2 * math.pi)])

    def wave(
        self, times: Float[Array, " steps"], cycles: tuple[float, float], *many: int
    ) -> Float[Array, "*many steps"]:
        """A smooth random function of time of unit variance, or many of them."""
        speed = self(*many, _SINES, low=cycles[0], high=cycles[1])
        size = self(*many, _SINES, low=-1.0, high=1.0)
        phase = self(*many, _SINES, high=2 * math.pi)
        angles = 2 * math.pi * speed[..., None] * times + phase[..., None]
        # The variance of a uniform number in [-1, 1] is 1/3, that of a sine is 1/2.
        return math.sqrt(6 / _SINES) * jnp.sum(size[..., None] * jnp.sin(angles), axis=-2)

    def path(
        self, times: Float[Array, " steps"], speed: Float[Array, "*many"], config: SceneConfig
    ) -> Float[Array, "*many steps 2"]:
        """Paths of mean speeds, by integrating a smooth random velocity over the steps."""
        many = speed.shape
        angle = self(*many, high=2 * math.pi)[..., None]
        sway = self.wave(times, _SWAY_CYCLES, *many, 2)
        change = self.wave(times, _ACCELERATION_CYCLES, *many, 2)
        heading = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-2)
        velocity = heading + config.sway * sway + config.acceleration * change
        phase = self.wave(times, _SWAY_CYCLES, *many)
        velocity = velocity * jnp.exp(config.phases * phase)[..., None, :]
        size = jnp.sqrt(jnp.sum(velocity**2, axis=-2, keepdims=True) + 1e-12)
        velocity = velocity / jnp.mean(size, axis=-1, keepdims=True)
        size = size / jnp.mean(size, axis=-1, keepdims=True)
        velocity = velocity * jnp.minimum(1.0, _FASTEST / size)
        velocity = (
            velocity * (speed[..., None] * self.rest(times, config.brief, *many))[..., None, :]
        )
        steps = (velocity[..., 1:] + velocity[..., :-1]) / (2 * STEPS_A_FRAME)
        way = jnp.cumsum(steps, axis=-1)
        way = jnp.concatenate([jnp.zeros_like(way[..., :1]), way], axis=-1)
        return jnp.swapaxes(way - way[..., times.shape[0] // 2, None], -1, -2)

    def rest(
        self, times: Float[Array, " steps"], share: float, *many: int
    ) -> Float[Array, "*many steps"]:
        """What is left of the speed: 1 but in the pauses of a ``share`` of the paths."""
        has = (self(*many, 1) < share).astype(jnp.float32)
        middle = self(*many, _PAUSES, 1, low=-1.0, high=1.0) * times[-1]
        low, high = _PAUSE_FRAMES
        length = self(*many, _PAUSES, 1, low=low, high=high)
        pause = jnp.max(jnp.exp(-(((times - middle) / length) ** 2)), axis=-2)
        return 1 - _PAUSE_DEPTH * has * pause


def step_times(frames: int) -> Float[Array, " steps"]:
    """The times of a path's steps, in frames: from a frame before a clip's exposures to one after.

    An odd number of them, so that the one in the middle is at 0.
    """
    steps = (frames + 2) * STEPS_A_FRAME
    return (jnp.arange(steps + 1) - steps / 2) / STEPS_A_FRAME


def sample_scene(
    key: PRNGKeyArray,
    textures: tuple[int, int],
    config: SceneConfig,
    frames: int,
    crop: int,
    motion_limit: Float[Array, ""] | float | None = None,
) -> Scene:
    """Draws a scene that shows some of ``textures`` (how many there are, their side).

    Args:
      key: of all that is random.
      textures: how many there are, and their side in pixels.
      config: what is drawn; its frames hold the crop (``SceneConfig.at_least``).
      frames: of the clip.
      crop: side of the square that is rendered, at a random place of the frame.
      motion_limit: (it may be traced: a curriculum raises it over the steps) lowers the upper end
        of ``config.motion``; below the lower end it lowers both.
    """
    n, size = config.objects, jnp.array(config.size, jnp.float32)
    shorter, longer = min(config.size), max(config.size)
    times = step_times(frames)
    draw = _Draws(key, 192 + 96 * n)  # More than are handed out: with fewer the reshape fails.

    high = jnp.minimum(config.motion[1], jnp.inf if motion_limit is None else motion_limit)
    low = jnp.minimum(config.motion[0], high)
    moves = (draw() >= config.still).astype(jnp.float32)
    speed = moves * (low + draw() ** config.motion_skew * (high - low))
    tremble = moves * config.tremble * draw.wave(times, _TREMBLE_CYCLES, 2)
    camera = draw.path(times, speed, config) + tremble.T

    # Half of the objects stand in the scene, nearer than the background; half go their own way.
    number = jnp.floor(draw() * (n + 1)).astype(jnp.int32)
    stands = (draw(n) < 0.5).astype(jnp.float32)
    follows = stands * (1 + draw(n, high=config.parallax))
    own = (1 - stands) * (low + draw(n) ** config.motion_skew * (high - low))
    objects = Objects(
        number=number,
        start=size * draw(n, 2, low=-0.4, high=0.4),
        follows=follows,
        path=draw.path(times, own, config),
        angle=draw(n, high=2 * math.pi),
        spin=jnp.zeros(n),
        outline=Outline(
            radius=shorter * draw(n, low=_OBJECT_RADIUS[0], high=_OBJECT_RADIUS[1]),
            swing=_OBJECT_SWING * jnp.array([0.5, 0.3, 0.2]) * draw(n, 3),
            swing_phase=draw(n, 3, high=2 * math.pi),
            is_box=(draw(n) < 0.4).astype(jnp.float32),
            aspect=draw(n, low=0.08, high=0.8),
            edge=draw(n, low=1.0, high=2.5),
        ),
    )

    texels = draw(n + 1, low=1.0, high=1.25)
    # The background lies so that the camera stays on it, if it is large enough; what is beyond its
    # edge is its mirror image. Objects are cut from the inner half of their textures.
    travel = jnp.max(camera, axis=0) - jnp.min(camera, axis=0) + 1.15 * size
    free = jnp.maximum(1 - texels[0] * travel / textures[1], 0.0)
    spread = jnp.concatenate([free[None], jnp.full((n, 2), 0.5)])
    exposure = draw(low=config.exposure[0], high=config.exposure[1])
    bright = draw(low=_BRIGHT_EXPOSURE[0], high=_BRIGHT_EXPOSURE[1])
    return Scene(
        textures=jnp.floor(draw(n + 1) * textures[0]).astype(jnp.int32),
        origin=0.5 + spread * draw(n + 1, 2, low=-0.5, high=0.5),
        texels=texels,
        corner=jnp.floor(draw(2) * (size - crop + 1)),
        camera=camera,
        tilt=draw(low=-0.1, high=0.1),
        turning=draw.swing(config.rotation * speed / (longer / 2), _ROLL_LIMIT),
        zooming=draw.swing(config.zoom * speed / (longer / 2), _ZOOM_LIMIT),
        slope=config.depth * 2 / size * draw(2, low=-1.0, high=1.0),
        objects=objects,
        exposure=jnp.where(draw() < config.bright, bright, exposure),
        gamma=jnp.where(draw() < config.linear_light, GAMMA, 1.0),
        highlights=draw(high=config.highlights),
        noise=draw(low=config.noise[0], high=config.noise[1]),
        softness=draw(high=config.softness),
        compression=jnp.where(draw() < config.compression, draw(low=0.3, high=1.0), 0.0),
    )


def position(path: Float[Array, "steps 2"], time: Float[Array, ""]) -> Float[Array, " 2"]:
    """Where a path is at ``time`` (frames; 0: the middle of the clip): rows, columns in pixels."""
    at = jnp.clip(time * STEPS_A_FRAME + (path.shape[0] - 1) / 2, 0, path.shape[0] - 1)
    before = jnp.minimum(jnp.floor(at).astype(jnp.int32), path.shape[0] - 2)
    return path[before] + (at - before) * (path[before + 1] - path[before])
