"""Scenes to render: photographs and moving objects under a moving camera, and how they are drawn.

A scene is a background and a few objects in front of it, each cut from a photograph. The camera
drifts, trembles, turns and zooms; objects stand nearer (and so move more: parallax) or go their own
way, and hide what is behind them. ``SCENES`` are the named configurations.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from jaxdeblur.data.drawing import Draws, Outline
from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.errors import UserError

_SINES = 3  # Sines a path is made of: enough that no two paths look alike.
_WANDER_CYCLES = (0.03, 0.25)  # Cycles a frame of the wandering: slow turns of the hand.
_TREMOR_CYCLES = (0.2, 0.45)  # Hand tremor is 6-13 Hz, at 30 frames/s.
# An object is drawn in a square, whose half side must hold its largest radius, enlarged by the zoom
# and, at a corner of the frame, by the perspective: 0.19 * 1.35 * e ** 0.08 * 1.16 ** 2 < 0.80 / 2.
OBJECT_BOX = 0.80  # Side of that square, of the shorter side of the frame.
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


class _Draws(Draws):
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


def sample_scene(key: PRNGKeyArray, textures: tuple[int, int], config: SceneConfig) -> Scene:
    """Draws a scene that shows some of ``textures`` (how many there are, their side)."""
    n, size = config.objects, jnp.array(config.size, jnp.float32)
    shorter, longer = min(config.size), max(config.size)
    draw = _Draws(key, 128 + 64 * n)  # More than are handed out: with fewer the reshape fails.

    low, high = (jnp.float32(end) for end in config.motion)
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


def outline(thing: Objects) -> Outline:
    """What one of the objects looks like."""
    return Outline(*(getattr(thing, name) for name in Outline._fields))


def position(path: Path2D, time: Float[Array, ""]) -> Float[Array, " 2"]:
    """Where a path is at ``time`` (frames; 0: the middle of the clip): rows, columns in pixels."""
    sines = jnp.sin(2 * jnp.pi * path.cycles * time + path.phase)
    return path.velocity * time + jnp.sum(path.amplitude * sines, axis=-1)


def texture_size(config: SceneConfig) -> int:
    """The side of textures on which the camera has room to move for a whole clip."""
    return math.ceil((1.3 * max(config.size) + config.frames * config.motion[1]) / 32) * 32
