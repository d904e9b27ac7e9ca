"""Photographs, and the textures that are cut from them for rendered scenes.

Those of installed packages are split for training, validation and test. Nine tenths of a folder's,
chosen by a hash of their bytes, train, except copies of the packages' own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.data.cache import in_threads, kept_array
from jaxdeblur.data.scenes import SceneConfig
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import read_image

Split: TypeAlias = Literal["train", "validation", "test"]
"""What a photograph is for."""

# Photographs with detail, and two of lettering, from the wheels of scikit-image 0.26 (those that it
# downloads on demand are not used) and scikit-learn 1.7. motorcycle_right.png shows the same view
# as the left one, so it is in no split.
_SKIMAGE: dict[Split, str] = {
    "train": "astronaut.png brick.png chelsea.png coins.png grass.png gravel.png "
    "hubble_deep_field.jpg ihc.png page.png text.png",
    "validation": "camera.png rocket.jpg",
    "test": "coffee.png motorcycle_left.png",
}
_SKLEARN: dict[Split, str] = {"train": "china.jpg", "validation": "", "test": "flower.jpg"}

_VERSION = 1  # Part of the folder's name: raise it when the same seed cuts other textures.

_SHARE_THAT_TRAINS = 0.9  # Of a folder's photographs.
_LEAST_TEXTURES = 96  # Few photographs give few distinct textures.
_SCALE = (0.5, 0.95)  # Range of factors by which photographs are reduced.
_TEXTURE_SEED = 0  # All runs share one cached set of textures. Scenes use the run's seed.


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph on disk: ``name`` tells its origin, and ``digest`` is a hash of its bytes."""

    name: str
    path: Path
    digest: str


def find_photographs(
    split: Split, folder: str | os.PathLike[str] | None = None
) -> tuple[Photograph, ...]:
    """Returns the photographs of a split: the packages' and, to train on, those of ``folder``.

    Raises:
      UserError: ``folder`` cannot be read or holds no photograph to train on.
    """
    found = _packaged(split)
    if folder is not None:
        taken = {photograph.digest for each in get_args(Split) for photograph in _packaged(each)}
        own = [_photograph(f"folder/{path.name}", path) for path in list_frames(folder)]
        own = [
            p
            for p in own
            if p.digest not in taken and int(p.digest[:8], 16) / 16**8 < _SHARE_THAT_TRAINS
        ]
        if not own:
            raise UserError(f"{folder}: contains no photographs (subfolders are not searched)")
        found += own
    return tuple(found)


def _packaged(split: Split) -> list[Photograph]:
    return [
        _photograph(f"{package}/{name}", _folder_of(package) / inside / name)
        for package, inside, names in (
            ("skimage", "data", _SKIMAGE[split]),
            ("sklearn", "datasets/images", _SKLEARN[split]),
        )
        for name in names.split()
    ]


def _photograph(name: str, path: Path) -> Photograph:
    return Photograph(name, path, hashlib.sha256(path.read_bytes()).hexdigest())


def _folder_of(package: str) -> Path:
    """Returns a package's installation folder without importing the package."""
    return Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]


def cut_textures(
    photographs: Sequence[Photograph], count: int, size: int, seed: int
) -> UInt8[np.ndarray, "n S S 3"]:
    """Cuts ``count`` square textures of ``size`` pixels; each photograph begins equally many.

    A photograph is reduced by a factor within ``_SCALE``, so that the texture is sharp to the pixel
    despite its lens and compression. It is mirrored at random, its contrast is varied, and it is
    tinted if grey. The most detailed of a few random cuts is used. Where a photograph does not fill
    the square, others of the list are placed beside it, edge to edge, like prints on a wall. The
    same arguments give the same textures.

    Args:
      photographs: the photographs to cut from.
      count: number of textures.
      size: side of a texture, pixels.
      seed: seed of all random choices.

    Raises:
      UserError: a photograph cannot be read.
    """
    plan = np.random.default_rng([seed, size, 0])
    turns = -(-count // len(photographs))
    order = np.concatenate([plan.permutation(len(photographs)) for _ in range(turns)])[:count]

    def cut(index: int) -> Frame8:
        rng = np.random.default_rng([seed, size, 1, index])
        return _cut(photographs, int(order[index]), size, rng)

    return np.stack(in_threads(cut, count, "cutting textures", "textures"))


def _cut(
    photographs: Sequence[Photograph], first: int, size: int, rng: np.random.Generator
) -> Frame8:
    """Fills one texture with shelves of photographs from the top, each from left to right."""
    wall = np.empty((size, size, 3), np.uint8)
    top, chosen = 0, first
    while top < size:
        left, bottom = 0, size
        while left < size:
            photograph = photographs[chosen]
            shelf = bottom - top if left else 0
            print_ = _print(photograph, max(shelf, 1), size, rng)
            if not left:  # the first print sets the height of its shelf
                bottom = min(size, top + print_.shape[0])
                if size - bottom < size // 8:  # no slivers: the last shelf takes the rest
                    print_ = _at_least(print_, size - top, 1)
                    bottom = size
            height = bottom - top
            width = min(size - left, print_.shape[1])
            if size - left - width < size // 8:
                width = size - left
            print_ = _at_least(print_, height, width)
            wall[top:bottom, left : left + width] = _most_detailed(print_, height, width, rng)
            left += width
            chosen = int(rng.integers(len(photographs)))
        top = bottom
    return wall


def _most_detailed(
    image: Frame8, height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the one of four random cuts of ``image`` whose neighbouring pixels differ most."""
    free = image.shape[0] - height + 1, image.shape[1] - width + 1
    corners = rng.integers(free, size=(4, 2)).tolist() if free != (1, 1) else [(0, 0)]
    cuts = [image[y : y + height, x : x + width] for y, x in corners]
    green = (cut[::2, :, 1].astype(np.int16) for cut in cuts)
    detail = [np.abs(np.diff(values, axis=1)).mean() for values in green]
    return cuts[int(np.argmax(detail))]


def _at_least(image: Frame8, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Mirrors the image at its lower and right edge until it has ``height`` and ``width``."""
    down, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    return np.pad(image, ((0, down), (0, right), (0, 0)), mode="symmetric")


def _print(photograph: Photograph, height: int, size: int, rng: np.random.Generator) -> Frame8:
    """Reduces a photograph (to at least ``height`` if ``_SCALE`` allows), mirrors and tones it."""
    pixels = _decoded(photograph.path)
    factor = rng.uniform(*_SCALE)
    # A photograph fills the whole square if it can, or else at least its shelf.
    for needed in (height / pixels.shape[0], size / min(pixels.shape[:2])):
        if factor < needed <= _SCALE[1]:
            factor = needed
    # Rounded up, tolerating rounding errors.
    rows, columns = (math.ceil(n * factor - 1e-6) for n in pixels.shape[:2])
    small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float32) / 255
    if rng.random() < 0.5:
        values = values[:, ::-1]
    if np.max(np.ptp(values, axis=-1)) < 0.02:
        values = values * rng.uniform(0.6, 1.0, 3).astype(np.float32)
    values = values ** np.float32(rng.uniform(0.8, 1.25))
    return np.round(values * 255).astype(np.uint8)


# The packages' photographs, 20 MB in all, are used repeatedly.
_decoded = functools.lru_cache(maxsize=32)(read_image)


@dataclasses.dataclass(frozen=True)
class RenderedScenes:
    """The configuration of rendered scenes and their textures."""

    config: SceneConfig
    textures: UInt8[np.ndarray, "n S S 3"]


def open_scenes(
    config: SceneConfig, crop: int, photos: str | os.PathLike[str] | None = None
) -> RenderedScenes:
    """Returns scenes whose frames hold a crop, with textures of the train split.

    Textures are cut once and kept in the cache. ``photos`` is a folder of photographs to add to the
    packages'.

    Raises:
      UserError: the photographs cannot be read, or the cache cannot be written.
    """
    config = config.at_least(crop)
    found = find_photographs("train", photos)
    count, size = max(_LEAST_TEXTURES, len(found)), config.texture_size
    recipe = {
        "version": _VERSION,
        "count": count,
        "size": size,
        "seed": _TEXTURE_SEED,
        "photographs": {photograph.name: photograph.digest for photograph in found},
    }
    return RenderedScenes(
        config,
        kept_array("textures", recipe, lambda: cut_textures(found, count, size, _TEXTURE_SEED)),
    )
