"""Random training scenes: photographs and moving objects under a moving camera.

A scene is a background and a few objects in front of it, each cut from a photograph. The camera
moves as if hand-held: in fast and slow phases, with moments of rest, changing its speed within an
exposure, trembling, rotating, zooming. Objects are nearer (and so move more: parallax) or follow
their own paths, and occlude what is behind them. ``SCENES`` holds the named configurations.
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

from jaxdeblur.data.raster import Outline
from jaxdeblur.images import GAMMA
from jaxdeblur.options import from_json

STEPS_A_FRAME = 16
"""Steps per frame in the numeric integration of a path, which is straight between them."""

_SINES = 3  # Sines in a random function of time: enough that no two look alike.
_SWAY_CYCLES = (0.03, 0.25)  # Cycles per frame: slow turns of the hand.
_ACCELERATION_CYCLES = (0.25, 0.8)  # Fast enough to change the speed within an exposure.
_TREMBLE_CYCLES = (0.2, 0.6)  # Hands tremble at 6-13 Hz and more; for 30 frames/s.
_PAUSES = 2  # In a path with pauses.
_PAUSE_FRAMES = (0.6, 1.5)  # Duration of a pause to each side of its middle.
_PAUSE_DEPTH = 0.97  # Share of the speed that a pause removes.
_FASTEST = 1.8  # Largest speed, relative to the scene's mean.
_EXTRA_REACH = 1.25  # Rotation, zoom and depth add to the motion at the frame's corners.
_OBJECT_RADIUS = (0.07, 0.19)  # Range of mean radii, relative to the frame's shorter side.
_OBJECT_SWING = 0.35  # Largest deviation of the outline from the mean radius, as a share of it.
_ZOOM_LIMIT = 0.08  # Largest log scale.
_ROLL_LIMIT = 0.3  # Largest angle, radians: people hold cameras upright.
_BRIGHT_EXPOSURE = (0.03, 0.5)  # Range of exposures in bright light, as shares of the period.
_FRAMES_AHEAD = 10  # Textures hold the camera's path for this many frames, then are mirrored.


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are rendered. Speeds are in pixels per frame; ranges are (least, most).

    Every quantity of a scene is drawn uniformly from its range, except ``motion``: see
    ``motion_skew``. It is the mean speed of the camera and of objects with paths of their own.
    """

    size: tuple[int, int] = (192, 192)
    """Height and width of the frames, from which clips are cropped; larger for larger crops."""
    motion: tuple[float, float] = (2.5, 6.0)
    motion_skew: float = 1.0
    """Exponent of the uniform random number for the speed: above 1, slow motion is more likely."""
    still: float = 0.0
    """Share of scenes whose camera is on a tripod, without any tremble."""
    sway: float = 0.15
    """Slow variation of the velocity around its mean, as a share of it."""
    acceleration: float = 0.0
    """The same for variation within an exposure."""
    phases: float = 0.0
    """Variation of the logarithm of the speed over a clip: fast and slow phases."""
    brief: float = 0.0
    """Share of paths with moments of rest, in which a frame is nearly sharp."""
    tremble: float = 0.2
    """Amplitude of the hand's tremble, pixels."""
    exposure: tuple[float, float] = (1.0, 1.0)
    """Share of the period that the shutter is open: tau / T of eq. 1."""
    bright: float = 0.0
    """Share of scenes in bright light, with exposures from 0.03 to 0.5 of the period."""
    objects: int = 2
    """Largest number of objects; every number from 0 up to it is equally likely."""
    rotation: float = 0.5
    """Largest speed of the frame's edge due to rotation, as a share of the scene's speed."""
    zoom: float = 0.25
    """The same for zooming."""
    depth: float = 0.05
    """Largest change of scale from the centre to the edge of the frame: a slanted background."""
    parallax: float = 0.3
    """How much faster than the background the nearest stationary object moves, as a share."""
    linear_light: float = 0.0
    """Share of scenes averaged in linear light (gamma 2.2); others average stored values."""
    highlights: float = 0.0
    """How far white may exceed the sensor's range before clipping (0: nothing is clipped)."""
    noise: tuple[float, float] = (0.0, 1 / 255)
    """Standard deviation at mid-grey of read noise and photon noise, which grows with light."""
    softness: float = 0.0
    """Largest strength of the lens blur: along each axis, a third of it goes to each neighbour."""
    compression: float = 0.0
    """Share of scenes whose blurred frames undergo mild JPEG-like compression."""

    @property
    def reach(self) -> int:
        """Largest displacement from the middle of an exposure, with a kernel's edge, pixels."""
        fastest = _FASTEST * _EXTRA_REACH * self.motion[1]
        return math.ceil(self.exposure[1] / 2 * fastest + self.tremble) + 3  # a kernel's edge

    @property
    def texture_size(self) -> int:
        """The side of textures, pixels, that gives the camera room to move."""
        return math.ceil((1.3 * max(self.size) + _FRAMES_AHEAD * self.motion[1]) / 32) * 32

    def at_least(self, crop: int) -> SceneConfig:
        """Returns a copy whose frames hold a crop of ``crop`` x ``crop`` pixels."""
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
    """The objects of a scene, one row each; the first ``number`` of them are present."""

    number: Int[Array, ""]
    start: Float[Array, "n 2"]
    """Position in the middle of the clip, pixels from the centre of the frame."""
    follows: Float[Array, " n"]
    """Motion opposite to the camera's, as a share of it: 0 for objects with their own path."""
    path: Any
    """``n steps 2``, like the camera's; in fixed scenes a ``SinePath``."""
    angle: Float[Array, " n"]
    spin: Float[Array, " n"]
    """Radians per frame; 0 in scenes that :func:`sample_scene` draws."""
    outline: Outline


class Scene(NamedTuple):
    """Everything that determines a scene except its noise; :func:`sample_scene` draws it."""

    textures: Int[Array, " layers"]
    """Which texture each layer shows: the background, then the objects."""
    origin: Float[Array, "layers 2"]
    """Where a layer's centre lies in its texture, as a share of the texture's side."""
    texels: Float[Array, " layers"]
    """Texels per pixel: from 1 on, the picture is at least as sharp as its texture."""
    corner: Float[Array, " 2"]
    """Where the crop begins in the frame."""
    camera: Any
    """Path in rows and columns, pixels, 0 in the middle of the clip: ``steps 2`` with
    ``STEPS_A_FRAME`` steps per frame; in fixed scenes a ``SinePath``."""
    tilt: Float[Array, ""]
    turning: Float[Array, " 3"]
    """Roll: the largest rate (radians per frame), cycles per frame, phase."""
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
    """Uniform random numbers, used in order: one large draw compiles faster than many small."""

    def __init__(self, key: PRNGKeyArray, count: int) -> None:
        self._values = jax.random.uniform(key, (count,))
        self._used = 0

    def __call__(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """Returns the next numbers, in [low, high)."""
        start, self._used = self._used, self._used + math.prod(shape)
        return low + (high - low) * self._values[start : self._used].reshape(shape)

    def swing(self, rate: Array, limit: float) -> Array:
        """Returns rate, cycles and phase of an oscillation that does not exceed ``limit``."""
        rate = rate * self(low=-1.0, high=1.0)
        # The amplitude is rate / (2 pi cycles).
        cycles = jnp.maximum(self(low=0.02, high=0.08), jnp.abs(rate) / (2 * math.pi * limit))
        return jnp.stack([rate, cycles, self(high=2 * math.pi)])

    def wave(
        self, times: Float[Array, " steps"], cycles: tuple[float, float], *many: int
    ) -> Float[Array, "*many steps"]:
        """Returns one or many smooth random functions of time with unit variance."""
        speed = self(*many, _SINES, low=cycles[0], high=cycles[1])
        size = self(*many, _SINES, low=-1.0, high=1.0)
        phase = self(*many, _SINES, high=2 * math.pi)
        angles = 2 * math.pi * speed[..., None] * times + phase[..., None]
        # The variance of a uniform number in [-1, 1] is 1/3, that of a sine is 1/2.
        return math.sqrt(6 / _SINES) * jnp.sum(size[..., None] * jnp.sin(angles), axis=-2)

    def path(
        self, times: Float[Array, " steps"], speed: Float[Array, "*many"], config: SceneConfig
    ) -> Float[Array, "*many steps 2"]:
        """Returns paths of given mean speeds, integrated from smooth random velocities."""
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
        """Returns the remaining share of the speed: 1 except in pauses of a ``share`` of paths."""
        has = (self(*many, 1) < share).astype(jnp.float32)
        middle = self(*many, _PAUSES, 1, low=-1.0, high=1.0) * times[-1]
        low, high = _PAUSE_FRAMES
        length = self(*many, _PAUSES, 1, low=low, high=high)
        pause = jnp.max(jnp.exp(-(((times - middle) / length) ** 2)), axis=-2)
        return 1 - _PAUSE_DEPTH * has * pause


def step_times(frames: int) -> Float[Array, " steps"]:
    """Returns the times of a path's steps, in frames: a clip's exposures and one frame either side.

    Their number is odd, so that the middle one is 0.
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
    """Draws a scene.

    Args:
      key: random key of all choices.
      textures: number of textures to choose from, and their side in pixels.
      config: the scene's configuration; its frames hold the crop (``SceneConfig.at_least``).
      frames: number of frames in the clip.
      crop: side of the rendered square, at a random place in the frame.
      motion_limit: lowers the upper end of ``config.motion``; below the lower end it lowers both.
        It may be traced: a curriculum raises it over the steps.
    """
    n, size = config.objects, jnp.array(config.size, jnp.float32)
    shorter, longer = min(config.size), max(config.size)
    times = step_times(frames)
    draw = _Draws(key, 192 + 96 * n)  # More than are used; with fewer, a reshape fails.

    high = jnp.minimum(config.motion[1], jnp.inf if motion_limit is None else motion_limit)
    low = jnp.minimum(config.motion[0], high)
    moves = (draw() >= config.still).astype(jnp.float32)
    speed = moves * (low + draw() ** config.motion_skew * (high - low))
    tremble = moves * config.tremble * draw.wave(times, _TREMBLE_CYCLES, 2)
    camera = draw.path(times, speed, config) + tremble.T

    # Half of the objects are stationary, nearer than the background; half have their own paths.
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
    # The background is placed so that the camera remains on it, if it is large enough; beyond its
    # edge it is mirrored. Objects are cut from the inner half of their textures.
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
    """Returns a path's rows, columns in pixels at ``time`` (frames; 0: the middle of the clip)."""
    at = jnp.clip(time * STEPS_A_FRAME + (path.shape[0] - 1) / 2, 0, path.shape[0] - 1)
    before = jnp.minimum(jnp.floor(at).astype(jnp.int32), path.shape[0] - 2)
    return path[before] + (at - before) * (path[before + 1] - path[before])
