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
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from jaxdeblur.errors import UserError
from jaxdeblur.video.formats import list_frames

Split: TypeAlias = Literal["train", "validation", "test"]
"""What a photograph is for."""

# Photographs that are in the wheels of scikit-image 0.26 (others it fetches on demand: those are
# not used) and scikit-learn 1.7: those with detail, and two of lettering. motorcycle_right.png is
# the same view as the left one, so it is in no split.
_SKIMAGE: dict[Split, str] = {
    "train": "astronaut.png brick.png chelsea.png coins.png grass.png gravel.png "
    "hubble_deep_field.jpg ihc.png page.png text.png",
    "validation": "camera.png rocket.jpg",
    "test": "coffee.png motorcycle_left.png",
}
_SKLEARN: dict[Split, str] = {"train": "china.jpg", "validation": "", "test": "flower.jpg"}


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph on disk: ``name`` says where it is from, ``digest`` is of its bytes."""

    name: str
    path: Path
    digest: str


def find_photographs(
    split: Split, folder: str | os.PathLike[str] | None = None
) -> tuple[Photograph, ...]:
    """The photographs of a split: the packages' and, if given, ``folder``'s share of it.

    Raises:
      UserError: ``folder`` cannot be read or holds no photograph of the split.
    """
    found = _packaged(split)
    if folder is not None:
        files = list_frames(folder)
        if not files:
            raise UserError(f"{folder}: no photographs (folders in it are not looked into)")
        own = [Photograph(f"folder/{path.name}", path, _digest(path)) for path in files]
        own = [p for p in own if _split_of(p.digest) == split and p.digest not in _taken()]
        if not own:
            raise UserError(
                f"{folder}: of its {len(files)} images none falls to {split}; "
                "90 % of a folder's photographs train, 5 % validate and 5 % test: give 100 or more"
            )
        found += own
    return tuple(found)


def _packaged(split: Split) -> list[Photograph]:
    paths = [
        (f"{package}/{name}", _folder_of(package) / inside / name)
        for package, inside, names in (
            ("skimage", "data", _SKIMAGE[split]),
            ("sklearn", "datasets/images", _SKLEARN[split]),
        )
        for name in names.split()
    ]
    return [Photograph(name, path, _digest(path)) for name, path in paths]


@functools.cache
def _taken() -> frozenset[str]:
    return frozenset(p.digest for split in get_args(Split) for p in _packaged(split))


def _folder_of(package: str) -> Path:
    """Where a package is installed, without importing it."""
    return Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _split_of(digest: str) -> Split:
    share = int(digest[:8], 16) / 16**8
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"
