"""Pools of rendered scenes, cached on disk, and the fixed scenes that results are reported on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray, UInt8

from jaxdeblur.data.photographs import Split, find_photographs
from jaxdeblur.data.test_scenes.moments import RENDERER_VERSION, render_scene
from jaxdeblur.data.test_scenes.scenes import SCENES, Scene, SceneConfig, sample_scene, texture_size
from jaxdeblur.data.textures import Textures, cut_textures
from jaxdeblur.errors import ProgressLine, UserError
from jaxdeblur.files import cache_folder, made_once, replace_folder_when_whole, write_json
from jaxdeblur.shapes import Frame8


@dataclasses.dataclass(frozen=True)
class ScenePool:
    """Rendered scenes on disk, memory-mapped."""

    blurred: UInt8[np.ndarray, "N T H W 3"]
    sharp: UInt8[np.ndarray, "N T H W 3"]
    motion: Float[np.ndarray, " N"]
    """Largest mean speed of a layer of each scene, pixels a frame."""
    photographs: tuple[tuple[str, ...], ...]
    """The names of the photographs that each scene shows."""


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


def show_rendering() -> Callable[[int, int], None]:
    """What prints how far the rendering of scenes is, as their ``progress``."""
    return ProgressLine("rendering", unit="scenes", stays=True).update


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
    """One rendered scene as a video, see :mod:`jaxdeblur.data.videos`."""

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
