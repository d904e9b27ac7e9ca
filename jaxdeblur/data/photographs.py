"""Photographs for rendered scenes: those of installed packages and folders, split, cut, sharpened.

Splits never share a photograph. Of the packages' the split is fixed below; a folder's are split by
a hash of their bytes (90 % train, 5 % validation, 5 % test), so that copies of one photograph under
several names stay together and adding files moves no other; what the packages have too is theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import read_image

Split: TypeAlias = Literal["train", "validation", "test"]
"""What a photograph is for."""

SPLITS: tuple[Split, ...] = get_args(Split)

# Photographs that are in the wheels of scikit-image 0.26 (others it fetches on demand: those are
# not used) and scikit-learn 1.7: those with detail, and two of lettering.
_SKIMAGE: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "chelsea.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "page.png",
        "text.png",
    ),
    "validation": ("camera.png", "rocket.jpg"),
    # motorcycle_right.png is the same view, so it is in no split.
    "test": ("coffee.png", "motorcycle_left.png"),
}
_SKLEARN: dict[Split, tuple[str, ...]] = {
    "train": ("china.jpg",),
    "validation": (),
    "test": ("flower.jpg",),
}


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph on disk: ``name`` says where it is from, ``digest`` is of its bytes."""

    name: str
    path: Path
    digest: str


@dataclasses.dataclass(frozen=True)
class Textures:
    """Square textures cut from photographs: what scenes are made of."""

    pixels: UInt8[np.ndarray, "n S S 3"]
    names: tuple[tuple[str, ...], ...]
    """The names of the photographs in each texture."""


def find_photographs(
    split: Split, folder: str | os.PathLike[str] | None = None
) -> tuple[Photograph, ...]:
    """The photographs of a split: the packages' and, if given, ``folder``'s share of it.

    Raises:
      UserError: unknown split; ``folder`` cannot be read or holds no photograph of the split.
    """
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is none of {', '.join(SPLITS)}")
    found = _packaged(split)
    if folder is not None:
        files = list_frames(folder)
        if not files:
            raise UserError(f"{folder}: no photographs (folders in it are not looked into)")
        own = [Photograph(f"folder/{path.name}", path, _digest(path)) for path in files]
        taken = _packaged_digests()
        own = [p for p in own if _split_of(p.digest) == split and p.digest not in taken]
        if not own:
            raise UserError(
                f"{folder}: of its {len(files)} images none falls to {split}; "
                "90 % of a folder's photographs train, 5 % validate and 5 % test: give 100 or more"
            )
        found += own
    return tuple(found)


def _packaged(split: Split) -> list[Photograph]:
    paths = [
        (f"{package}/{name}", _package_folder(package) / inside / name)
        for package, inside, names in (
            ("skimage", "data", _SKIMAGE[split]),
            ("sklearn", "datasets/images", _SKLEARN[split]),
        )
        for name in names
    ]
    return [Photograph(name, path, _digest(path)) for name, path in paths]


@functools.cache
def _packaged_digests() -> frozenset[str]:
    return frozenset(p.digest for split in SPLITS for p in _packaged(split))


def cut_textures(
    photographs: Sequence[Photograph],
    count: int,
    size: int,
    seed: int,
    scale: tuple[float, float] = (0.5, 0.95),
) -> Textures:
    """Cuts ``count`` square textures of ``size`` pixels; each photograph begins as many of them.

    A photograph is reduced by a factor within ``scale``, so that the texture is sharp to the pixel
    whatever lens and compression it has seen; of a few random cuts the one with most detail is
    taken. It is mirrored at random, its contrast varied, and tinted if grey. Where a photograph
    does not fill the square, others of the list are laid beside it, edge to edge, like prints on
    a wall. The same arguments give the same textures.

    Raises:
      UserError: there is no photograph, or one cannot be read.
    """
    if not photographs:
        raise UserError("photographs: none were given")
    plan = np.random.default_rng([seed, size, 0])
    turns = -(-count // len(photographs))
    order = np.concatenate([plan.permutation(len(photographs)) for _ in range(turns)])[:count]

    def cut(index: int) -> tuple[Frame8, tuple[str, ...]]:
        rng = np.random.default_rng([seed, size, 1, index])
        return _cut(photographs, int(order[index]), size, scale, rng)

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        cuts = list(workers.map(cut, range(count)))
    return Textures(np.stack([pixels for pixels, _ in cuts]), tuple(names for _, names in cuts))


def _cut(
    photographs: Sequence[Photograph],
    first: int,
    size: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[Frame8, tuple[str, ...]]:
    """One texture: shelves of photographs from the top, each from left to right."""
    wall = np.empty((size, size, 3), np.uint8)
    names: dict[str, None] = {}
    top, chosen = 0, first
    while top < size:
        left, bottom = 0, size
        while left < size:
            photograph = photographs[chosen]
            names[photograph.name] = None
            shelf = bottom - top if left else 0
            print_ = _print(photograph, max(shelf, 1), size, scale, rng)
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
    return wall, tuple(names)


def _most_detailed(
    image: Frame8, height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Of four random cuts of ``image`` the one whose neighbouring pixels differ most."""
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


def _print(
    photograph: Photograph,
    height: int,
    size: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> Frame8:
    """A photograph reduced (to ``height`` or more where the scale allows it), mirrored, toned."""
    pixels = _decoded(photograph.path)
    factor = rng.uniform(*scale)
    # One that can fill the whole square does, else at least its shelf.
    for needed in (height / pixels.shape[0], size / min(pixels.shape[:2])):
        if factor < needed <= scale[1]:
            factor = needed
    rows, columns = (_ceil(n * factor) for n in pixels.shape[:2])
    small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float32) / 255
    if rng.random() < 0.5:
        values = values[:, ::-1]
    if np.max(np.ptp(values, axis=-1)) < 0.02:
        values = values * rng.uniform(0.6, 1.0, 3).astype(np.float32)
    values = values ** np.float32(rng.uniform(0.8, 1.25))
    return np.round(values * 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)  # the packages' photographs, 20 MB in all, laid again and again
def _decoded(path: Path) -> Frame8:
    return read_image(path)


def _ceil(value: float) -> int:
    """The least whole number that is not under ``value``, blind to rounding errors."""
    return int(np.ceil(value - 1e-6))


def _package_folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package}: not installed; its photographs are needed for rendered scenes")
    return Path(spec.origin).parent


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _split_of(digest: str) -> Split:
    share = int(digest[:8], 16) / 16**8
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"
