"""The rendered scenes of reported results: the same in every version and on every machine.

``fixed_scenes.json`` holds their parameters as drawn when the first scores were taken. They are
rendered moment by moment: a blurred frame is the mean of moments spread evenly over the exposure,
and the sharp frame is the middle moment. This is eq. 1 of the paper (ICCV 2017) with tau moments
and T = tau / exposure. :mod:`jaxdeblur.data.scenes` draws training scenes instead, and
:mod:`jaxdeblur.data.render` renders them. No edit here may change a pixel.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray, UInt8, UInt32

from jaxdeblur.data.cache import in_threads, kept_array
from jaxdeblur.data.raster import (
    Outline,
    brightened,
    compress,
    coverage,
    look_up,
    pack_texels,
    to_light,
    view_at,
)
from jaxdeblur.data.scenes import Objects, Scene
from jaxdeblur.data.textures import Split, cut_textures, find_photographs
from jaxdeblur.data.videos import DecodedFrames, PairedVideo
from jaxdeblur.errors import UserError
from jaxdeblur.images import GAMMA

_RENDERER_VERSION = 3  # Part of the cache key: raise it if the same scenes get other pixels.
_SEED = 2017  # For the noise and the textures.
# An object is drawn in a square whose half side must hold its largest radius, enlarged by the zoom
# and, at a corner of the frame, by the perspective: 0.19 * 1.35 * e ** 0.08 * 1.16 ** 2 < 0.80 / 2.
_OBJECT_BOX = 0.80  # Side of that square, as a share of the frame's shorter side.


class SinePath(NamedTuple):
    """A smooth path in the plane: position(t) = velocity * t + sines (pixels; t in frames)."""

    velocity: Float[Array, " 2"]
    amplitude: Float[Array, "2 sines"]
    cycles: Float[Array, " sines"]
    phase: Float[Array, "2 sines"]

    def at(self, time: Float[Array, ""]) -> Float[Array, " 2"]:
        """Returns rows, columns in pixels at ``time`` (frames; 0: the middle of the clip)."""
        sines = jnp.sin(2 * jnp.pi * self.cycles * time + self.phase)
        return self.velocity * time + jnp.sum(self.amplitude * sines, axis=-1)


class FixedKind(NamedTuple):
    """Scenes of one kind, such as ``narrow`` or ``20px``."""

    size: tuple[int, int]
    """Height and width of the frames."""
    frames: int
    moments: int
    """Moments averaged into one frame: tau of eq. 1. Odd, so that one is in the middle."""
    texture_size: int
    scenes: Scene
    """All scenes, along the first axis of every array."""


@functools.cache
def fixed_kinds() -> dict[str, FixedKind]:
    """Returns the kinds of fixed scenes by name."""
    text = Path(__file__).with_name("fixed_scenes.json").read_text(encoding="utf-8")
    return {name: _kind(values) for name, values in json.loads(text).items()}


def _kind(values: dict[str, Any]) -> FixedKind:
    def arrays(values: dict[str, Any]) -> dict[str, Any]:
        whole = {"textures", "number"}
        return {
            name: arrays(value)
            if isinstance(value, dict)
            else np.array(value, np.int32 if name in whole else np.float32)
            for name, value in values.items()
        }

    scenes = arrays(values["scenes"])
    things = scenes["objects"]
    outline = Outline(**{name: things.pop(name) for name in Outline._fields})
    objects = Objects(**{**things, "path": SinePath(**things["path"]), "outline": outline})
    scenes |= {"camera": SinePath(**scenes["camera"]), "objects": objects}
    none: Any = np.zeros_like(scenes["gamma"])  # fields that only training scenes use
    corner: Any = np.stack([none, none], axis=1)
    scene = Scene(**scenes, corner=corner, softness=none)
    return FixedKind(**{**values, "size": tuple(values["size"]), "scenes": scene})


def render_moment(
    scene: Scene,
    packed: UInt32[Array, "layers texels"],
    time: Float[Array, ""],
    size: tuple[int, int],
) -> Float[Array, "3 H W"]:
    """Renders the scene at one moment, as stored (not linear) values in [0, 1], channels first.

    Args:
      scene: the scene.
      packed: the scene's own textures (``raster.pack_texels``), one per layer.
      time: in frames, 0 in the middle of the clip.
      size: height and width of the frame.
    """
    height, width = size
    side = math.isqrt(packed.shape[1])
    view = view_at(scene, scene.camera.at(time), time, size)

    def layer(index: int | Array, y: Array, x: Array) -> Array:
        texels, origin = scene.texels[index], scene.origin[index] * side
        return look_up(packed[index], texels * y + origin[0], texels * x + origin[1])

    y, x = view.plane(jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width) * 1.0)
    image = layer(0, y + view.camera[0], x + view.camera[1])
    box = min(*size, math.ceil(_OBJECT_BOX * min(size)) + 4)

    def draw(index: Array, image: Array) -> Array:
        thing = jax.tree.map(lambda a: a[index] if a.ndim else a, scene.objects)
        middle = thing.start + thing.path.at(time) - thing.follows * view.camera
        corner = jnp.floor(view.pixel(middle) - box / 2).astype(jnp.int32)
        corner = jnp.clip(corner, 0, jnp.array(size) - box)
        rows, columns = (end + jnp.arange(box) for end in corner)
        y, x = view.plane(rows.astype(jnp.float32)[:, None], columns.astype(jnp.float32))
        y, x = y - middle[0], x - middle[1]
        c, s = (f(thing.angle + thing.spin * time) for f in (jnp.cos, jnp.sin))
        y, x = c * y - s * x, s * y + c * x
        behind = jax.lax.dynamic_slice(image, (0, *corner), (3, box, box))
        front = behind + coverage(thing.outline, y, x) * (layer(index + 1, y, x) - behind)
        return jax.lax.dynamic_update_slice(image, front, (0, *corner))

    return jax.lax.fori_loop(0, scene.objects.number, draw, image)


@functools.partial(jax.jit, static_argnames=("size", "frames", "moments"))
def render_fixed_scene(
    key: PRNGKeyArray,
    scene: Scene,
    textures: UInt8[Array, "n S S 3"],
    *,
    size: tuple[int, int],
    frames: int,
    moments: int,
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W 3"]]:
    """Renders (blurred, sharp) of a scene, in [0, 1] and rounded to multiples of 1/255.

    Args:
      key: random key of the noise.
      scene: the scene.
      textures: squares as :func:`~jaxdeblur.data.textures.cut_textures` makes them.
      size: height and width of the frames.
      frames: number of frames in the clip.
      moments: number of moments averaged into one frame.
    """
    packed = pack_texels(textures[scene.textures])
    middle = moments // 2
    offsets = ((jnp.arange(moments) + 0.5) / moments - 0.5) * scene.exposure  # eq. 1

    def frame(time: Array) -> tuple[Array, Array]:
        sharp = to_light(scene, render_moment(scene, packed, time, size))

        def add(i: Array, total: Array) -> Array:
            at = time + offsets[i + (i >= middle)]
            return total + to_light(scene, render_moment(scene, packed, at, size))

        total = jax.lax.fori_loop(0, moments - 1, add, sharp)
        return _to_stored(scene, total / moments), _to_stored(scene, sharp)

    # One frame at a time, so that it remains in a CPU's cache.
    clips = jax.lax.map(frame, jnp.arange(frames) - (frames - 1) / 2)
    blurred, sharp = (jnp.moveaxis(clip, 1, -1) for clip in clips)
    # Half of mid-grey's noise variance is read noise, half photon noise, which grows with light.
    spread = scene.noise * jnp.sqrt(0.5 + blurred)
    blurred = blurred + spread * jax.random.normal(key, blurred.shape)
    blurred = jax.lax.cond(
        scene.compression > 0, lambda v: compress(v, scene.compression), lambda v: v, blurred
    )
    return _to_bytes(blurred), _to_bytes(sharp)


def _to_stored(scene: Scene, light: Array) -> Array:
    return brightened(jnp.minimum(light, 1), 1 / scene.gamma)


def _to_bytes(values: Array) -> Array:
    """Rounds to the nearest of the 256 values that a file can hold, as floats in [0, 1]."""
    return jnp.round(jnp.clip(values, 0, 1) * 255) / 255


def rendered_videos(
    split: Split = "test",
    kind: str = "narrow",
    *,
    scenes: int | None = None,
    linear: bool | None = None,
) -> list[PairedVideo]:
    """Returns the fixed scenes of a kind, rendered once and kept in the cache.

    Args:
      split: which photographs are shown.
      kind: one of :func:`fixed_kinds`: a kind of motion, or the blur at 1280x720, as ``20px``.
      scenes: how many scenes, from the first, with proportionally fewer textures; default: all.
      linear: averages linear light (True), stored values (False), or what each scene says (None).

    Raises:
      UserError: there is no such kind, or the cache cannot be written (a full disk).
    """
    if kind not in fixed_kinds():
        raise UserError(f"rendered scenes must be one of {', '.join(fixed_kinds())}, not {kind!r}")
    chosen = fixed_kinds()[kind]
    all_scenes, name = chosen.scenes, "rendered"
    if kind.endswith("px"):
        name += f"_{kind}"
    if linear is not None:
        name += "_linear" if linear else "_stored"
        gamma = jnp.full_like(all_scenes.gamma, GAMMA if linear else 1.0)
        all_scenes = all_scenes._replace(gamma=gamma)
    drawn = len(all_scenes.gamma)
    count = drawn if scenes is None else scenes
    # Two textures per scene: in a shorter list, objects show those at the same relative place.
    shown = jnp.asarray(all_scenes.textures)
    shown = shown.at[:, 1:].set(shown[:, 1:] * count // drawn)
    all_scenes = all_scenes._replace(textures=shown)
    photographs = find_photographs(split)
    recipe = {
        "renderer": _RENDERER_VERSION,
        "kind": kind,
        "split": split,
        "linear": linear,
        "scenes": count,
        "photographs": {photograph.name: photograph.digest for photograph in photographs},
    }

    def make() -> np.ndarray:
        textures = jnp.asarray(cut_textures(photographs, 2 * count, chosen.texture_size, _SEED))
        keys = jax.random.split(jax.random.key(_SEED), count)

        def render(index: int) -> np.ndarray:
            scene = jax.tree.map(lambda values: values[index], all_scenes)
            noise_key = jax.random.split(keys[index])[1]
            clips = render_fixed_scene(
                noise_key,
                scene,
                textures,
                size=chosen.size,
                frames=chosen.frames,
                moments=chosen.moments,
            )
            return np.round(np.stack(clips) * 255).astype(np.uint8)

        return np.stack(in_threads(render, count, "rendering", "scenes"), axis=1)

    blurred, sharp = kept_array("scenes", recipe, make)
    return [
        PairedVideo(f"{name}_{i:02d}", DecodedFrames(blurred[i]), DecodedFrames(sharp[i]))
        for i in range(count)
    ]
