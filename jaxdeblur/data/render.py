"""Renders scenes with point spread functions, by FFT, from the motion within each exposure.

Everything that moves alike is blurred with one kernel: its path while the shutter is open, splatted
into an image. The background rotates, zooms and is slanted, so its motion varies over the frame: it
is blurred with the kernels of the crop's four corners, and the results are interpolated. For an
object, its colour times its coverage and the coverage itself are blurred; the blurred coverage
determines how much of what is behind is visible. The sharp frame is the middle moment of the
exposure, as in eq. 1 of the paper (ICCV 2017); the blurred frame is the limit of its average.

All of it is pure JAX. On a device a clip is one program (:func:`render_scene`). On the host it is
composed of several (:class:`HostRenderer`), so that it costs no more than the scene needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt8, UInt32

from jaxdeblur.data.raster import (
    View,
    brightened,
    compress,
    coverage,
    look_up,
    pack_texels,
    to_light,
    view_at,
)
from jaxdeblur.data.scenes import Scene, SceneConfig, position, sample_scene
from jaxdeblur.data.textures import RenderedScenes
from jaxdeblur.shapes import Video8

_ALIKE = 0.15  # If the corners' paths differ by fewer pixels, one kernel is used for all.
_REACHES = (0.5, 0.25)  # Shares of SceneConfig.reach: the smaller margins of the host's programs.
_LEAST_REACH = 8
_LANCZOS = 3  # Pixels to each side over which a moment is spread.
_READ_NOISE = (0.5, 0.05)  # Shares of the variance at mid-grey: for stored values, for light.

ClipPair = tuple[UInt8[Array, "T H W 3"], UInt8[Array, "T H W 3"]]
"""The blurred and the sharp frames of one clip."""

LightClip = Float[Array, "T 3 H W"]
"""A clip of the values to average: light or stored, channels first; white may exceed 1."""


class Motion(NamedTuple):
    """Displacements during each exposure, in pixels, relative to the middle of the exposure."""

    times: Float[Array, " T"]
    background: Float[Array, "T 4 moments 2"]
    """From each corner of the crop to the pixel of the middle moment that it shows."""
    objects: Float[Array, "T n moments 2"]
    """Displacements of the objects' centres."""
    seen: Bool[Array, " n"]
    """Which objects exist and come near the crop."""


def _view(scene: Scene, time: Float[Array, ""], size: tuple[int, int]) -> View:
    return view_at(scene, position(scene.camera, time), time, size)


def _middle(scene: Scene, index: Array, view: View, time: Array) -> Float[Array, " 2"]:
    """Returns an object's centre in the plane, relative to the point the camera looks at."""
    things = scene.objects
    own = position(things.path[index], time)
    return things.start[index] + own - things.follows[index] * view.camera


def motion_of(scene: Scene, config: SceneConfig, frames: int, crop: int) -> Motion:
    """Returns the paths of a scene's layers, at moments less than a pixel apart.

    Args:
      scene: the scene.
      config: the configuration it was drawn from.
      frames: number of frames in the clip.
      crop: side of a frame, pixels.
    """
    times = jnp.arange(frames) - (frames - 1) / 2
    moments = 2 * config.reach + 1
    shares = (jnp.arange(moments) - config.reach) / moments  # the centres of equal parts
    n = config.objects
    corners = scene.corner + (crop - 1) * jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])

    def frame(time: Array) -> tuple[Array, Array, Array]:
        now = _view(scene, time, config.size)

        def moment(share: Array) -> tuple[Array, Array]:
            at = time + share * scene.exposure
            view = _view(scene, at, config.size)
            y, x = view.plane(corners[:, 0], corners[:, 1])
            shown = jnp.stack([y, x], axis=-1) + view.camera - now.camera
            places = jnp.zeros((n, 2))
            if n:
                places = jax.vmap(lambda i: view.pixel(_middle(scene, i, view, at)))(jnp.arange(n))
            return jax.vmap(now.pixel)(shown) - corners, places

        background, places = jax.vmap(moment, out_axes=1)(shares)
        here = places[:, shares.shape[0] // 2]
        return background, places - here[:, None], here

    background, objects, here = jax.vmap(frame)(times)
    radius = 1.6 * scene.objects.outline.radius[:, None] + config.reach
    near = (here > scene.corner - radius) & (here < scene.corner + crop + radius)
    seen = jnp.any(jnp.all(near, axis=-1), axis=0) & (jnp.arange(n) < scene.objects.number)
    return Motion(times, background, objects, seen)


def splat(ways: Float[Array, "K moments 2"], side: int) -> Float[Array, "K P P"]:
    """Makes kernels of paths by spreading each moment over the pixels around it; cyclic, sum 1.

    The Lanczos window preserves detail between pixels. Spread over only four pixels, blurred frames
    would lose fine detail that a camera's frames keep, and networks would learn to invent it.
    """

    def along(axis: int) -> Float[Array, "K P moments"]:
        away = jnp.arange(side)[:, None] - ways[:, None, :, axis]
        away = (away + side / 2) % side - side / 2
        near = jnp.abs(away) < _LANCZOS
        weights = jnp.where(near, jnp.sinc(away) * jnp.sinc(away / _LANCZOS), 0.0)
        return weights / jnp.sum(weights, axis=1, keepdims=True)

    return jnp.einsum("kym,kxm->kyx", along(0), along(1)) / ways.shape[-2]


def _within(ways: Array, reach: int) -> Array:
    """Shrinks paths that exceed the margin (hardly ever needed, see SceneConfig.reach)."""
    furthest = jnp.max(jnp.abs(ways), axis=-1, keepdims=True)
    return ways * jnp.minimum(1.0, (reach - _LANCZOS) / jnp.maximum(furthest, 1e-6))


def _side(crop: int, reach: int) -> int:
    """Returns the side of the canvas: the crop with its margins, enlarged to a fast FFT size."""
    return int(scipy.fft.next_fast_len(crop + 2 * reach, real=True))


def _blur(
    images: Float[Array, "C P P"], ways: Float[Array, "K moments 2"]
) -> Float[Array, "K C P P"]:
    side = images.shape[-1]
    spectra = jnp.fft.rfft2(images) * jnp.fft.rfft2(splat(ways, side))[:, None]
    return jnp.fft.irfft2(spectra, s=(side, side))


def _plane(
    scene: Scene, view: View, side: int, reach: int
) -> tuple[Float[Array, "P P"], Float[Array, "P P"]]:
    rows = scene.corner[0] - reach + jnp.arange(side, dtype=jnp.float32)
    columns = scene.corner[1] - reach + jnp.arange(side, dtype=jnp.float32)
    return view.plane(rows[:, None], columns)


def _texture(
    scene: Scene, packed: UInt32[Array, " texels"], layer: int | Array, y: Array, x: Array
) -> Float[Array, "3 P P"]:
    """Returns what a layer shows at points of its plane, as values to average."""
    texels, origin = scene.texels[layer], scene.origin[layer] * packed.shape[0] ** 0.5
    light = to_light(scene, look_up(packed, texels * y + origin[0], texels * x + origin[1]))
    for axis in (-1, -2):  # lens blur
        beside = jnp.roll(light, 1, axis) + jnp.roll(light, -1, axis)
        light = light + scene.softness / 3 * (beside - 2 * light)
    return light


def _render_background(
    scene: Scene,
    texture: UInt8[Array, "S S 3"],
    motion: Motion,
    size: tuple[int, int],
    crop: int,
    reach: int,
    corners: int = 4,
) -> tuple[LightClip, LightClip]:
    """Renders (blurred, sharp) of the background; ``reach`` is a margin that holds its motion.

    With 4 ``corners`` the results of their kernels are interpolated; with 1 the mean path is used.
    """
    (packed,) = pack_texels(texture[None])
    side = _side(crop, reach)
    inside = slice(reach, reach + crop)
    across = jnp.linspace(0.0, 1.0, crop)
    down, right = across[:, None], across[None, :]
    weights = jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    )
    ways = motion.background if corners == 4 else motion.background.mean(axis=1, keepdims=True)

    def frame(moment: tuple[Array, Array]) -> tuple[Array, Array]:
        time, way = moment
        view = _view(scene, time, size)
        y, x = _plane(scene, view, side, reach)
        sharp = _texture(scene, packed, 0, y + view.camera[0], x + view.camera[1])
        # A pixel shows what is at its displacement, so the kernel follows the reversed path.
        blurred = _blur(sharp, -_within(way, reach))[..., inside, inside]
        blurred = jnp.einsum("kchw,khw->chw", blurred, weights) if corners == 4 else blurred[0]
        return blurred, sharp[:, inside, inside]

    return _map(frame, (motion.times, ways))


def _render_object(
    scene: Scene,
    index: Int[Array, ""],
    texture: UInt8[Array, "S S 3"],
    motion: Motion,
    clip: tuple[LightClip, LightClip],
    size: tuple[int, int],
    crop: int,
    reach: int,
) -> tuple[LightClip, LightClip]:
    """Renders an object in front of ``clip``, (blurred, sharp); ``reach`` is a margin in pixels."""
    (packed,) = pack_texels(texture[None])
    side = _side(crop, reach)
    inside = slice(reach, reach + crop)
    things = scene.objects
    outline = jax.tree.map(lambda a: a[index], things.outline)

    def frame(moment: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        time, way, blurred, sharp = moment
        view = _view(scene, time, size)
        middle = _middle(scene, index, view, time)
        y, x = _plane(scene, view, side, reach)
        y, x = y - middle[0], x - middle[1]
        c, s = jnp.cos(things.angle[index]), jnp.sin(things.angle[index])
        y, x = c * y - s * x, s * y + c * x
        cover = coverage(outline, y, x)[None] * motion.seen[index]
        front = cover * _texture(scene, packed, index + 1, y, x)
        moved = _blur(jnp.concatenate([front, cover]), _within(way[None], reach))[0]
        moved, front, cover = (v[:, inside, inside] for v in (moved, front, cover))
        return moved[:3] + (1 - moved[3:]) * blurred, front + (1 - cover) * sharp

    return _map(frame, (motion.times, motion.objects[:, index], *clip))


def _map(function: Callable[..., Any], values: Any) -> Any:
    """Maps over frames: one by one on a CPU, to suit its cache; all at once on an accelerator."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, values)
    return jax.vmap(function)(values)


def _finish_clip(
    key: PRNGKeyArray, scene: Scene, blurred: LightClip, sharp: LightClip, config: SceneConfig
) -> ClipPair:
    """Imitates the sensor and the file: noise, clipping, bytes, mild compression."""
    gamma = scene.gamma
    if config.noise[1] > 0:
        # At mid-grey up to half of the variance is read noise; photon noise grows with the light.
        read = jnp.where(gamma > 1, _READ_NOISE[1], _READ_NOISE[0])
        light = jnp.maximum(blurred, 0) / 0.5**gamma
        spread = scene.noise * jnp.sqrt(read + (1 - read) * light)
        blurred = blurred + spread * jax.random.normal(key, blurred.shape)

    def stored(light: LightClip) -> Float[Array, "T H W 3"]:
        light = jnp.clip(jnp.moveaxis(light, 1, -1), 0, 1)
        return jax.lax.cond(gamma > 1, lambda v: brightened(v, 1 / gamma), lambda v: v, light)

    frames = stored(blurred)
    if config.compression > 0:
        frames = jax.lax.cond(
            scene.compression > 0, lambda v: compress(v, scene.compression), lambda v: v, frames
        )
    return _bytes(frames), _bytes(stored(sharp))


def _bytes(frames: Float[Array, "T H W 3"]) -> UInt8[Array, "T H W 3"]:
    return jnp.round(jnp.clip(frames, 0, 1) * 255).astype(jnp.uint8)


def render_scene(
    key: PRNGKeyArray,
    scene: Scene,
    textures: UInt8[Array, "n S S 3"],
    config: SceneConfig,
    frames: int,
    crop: int,
) -> ClipPair:
    """Renders a drawn scene as (blurred, sharp), for use inside a jitted program.

    Args:
      key: random key of the noise.
      scene: as :func:`~jaxdeblur.data.scenes.sample_scene` draws it.
      textures: squares that its layers show.
      config: the configuration it was drawn from.
      frames: number of frames in the clip.
      crop: side of a frame, pixels.
    """
    motion = motion_of(scene, config, frames, crop)
    reach = config.reach
    shown = scene.textures
    clip = _render_background(scene, textures[shown[0]], motion, config.size, crop, reach)
    for i in range(config.objects):
        texture = textures[shown[i + 1]]
        clip = _render_object(scene, jnp.int32(i), texture, motion, clip, config.size, crop, reach)
    return _finish_clip(key, scene, *clip, config)


class HostRenderer:
    """Renders on the CPU with no more work than each scene needs: it skips unseen objects, uses one
    kernel for an even motion, and makes margins as wide as the motion.

    ``frames`` is the number of frames in a clip, and ``crop`` their side in pixels.
    """

    def __init__(self, scenes: RenderedScenes, frames: int, crop: int) -> None:
        self.textures, self.config = scenes.textures, scenes.config
        self.frames, self.crop = frames, crop
        self._device = jax.local_devices(backend="cpu")[-1]  # the spare one, if there is one

    def clip(self, seed: int, motion_limit: float = float("inf")) -> tuple[Video8, Video8]:
        """Returns (blurred, sharp) of the scene drawn with ``seed``."""
        with jax.default_device(self._device):
            key, scene, motion = self.draw(seed, motion_limit)
            return self.render(key, scene, motion)

    def draw(
        self, seed: int, motion_limit: float = float("inf")
    ) -> tuple[PRNGKeyArray, Scene, Motion]:
        """Draws a scene with ``seed``; returns the key of its noise, the scene and its motion."""
        textures = self.textures.shape[:2]
        limit = np.float32(motion_limit)
        return _draw(np.uint32(seed), limit, textures, self.config, self.frames, self.crop)

    def render(self, key: PRNGKeyArray, scene: Scene, motion: Motion) -> tuple[Video8, Video8]:
        """Renders a drawn scene; ``key`` is for its noise."""
        shown, seen, ways = jax.device_get((scene.textures, motion.seen, motion.background))
        uneven = np.abs(ways - ways.mean(axis=1, keepdims=True)).max()
        corners = 4 if uneven > _ALIKE else 1
        fixed = {"size": self.config.size, "crop": self.crop, "reach": self.reach_of(motion)}
        clip = _background(scene, self.textures[shown[0]], motion, corners=corners, **fixed)
        for i in np.flatnonzero(seen):
            texture = self.textures[shown[i + 1]]
            clip = _object(scene, np.int32(i), texture, motion, clip, **fixed)
        blurred, sharp = _finish(key, scene, *clip, config=self.config)
        return np.asarray(blurred), np.asarray(sharp)

    def reach_of(self, motion: Motion) -> int:
        """Returns the least of a few margins that hold the motion: each is compiled separately."""
        seen = np.asarray(motion.seen)
        others = np.abs(np.asarray(motion.objects)[:, seen]).max(initial=0)
        furthest = max(float(np.abs(motion.background).max()), float(others))
        most = self.config.reach
        margins = [max(_LEAST_REACH, int(share * most)) for share in _REACHES]
        return min([most, *(m for m in margins if m - _LANCZOS >= furthest and m < 0.75 * most)])


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _draw(
    seed: UInt32[Array, ""],
    limit: Float[Array, ""],
    textures: tuple[int, int],
    config: SceneConfig,
    frames: int,
    crop: int,
) -> tuple[PRNGKeyArray, Scene, Motion]:
    """Returns the key of the noise, the scene and its motion."""
    scene_key, noise_key = jax.random.split(jax.random.key(seed))
    scene = sample_scene(scene_key, textures, config, frames, crop, limit)
    return noise_key, scene, motion_of(scene, config, frames, crop)


_background = jax.jit(_render_background, static_argnames=("size", "crop", "reach", "corners"))
_object = jax.jit(_render_object, static_argnames=("size", "crop", "reach"))
_finish = jax.jit(_finish_clip, static_argnames=("config",))
