"""Photographs for rendered scenes, from installed packages and folders, divided into splits.

Splits never share a photograph. The packages' splits are fixed below. A folder is split by a hash
of each file's bytes (90 % train, 5 % validation, 5 % test): copies under several names remain
together, and adding files moves no other. Copies of the packages' photographs are ignored.
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


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph on disk: ``name`` tells its origin, and ``digest`` is a hash of its bytes."""

    name: str
    path: Path
    digest: str


def find_photographs(
    split: Split, folder: str | os.PathLike[str] | None = None
) -> tuple[Photograph, ...]:
    """Returns the photographs of a split: the packages' and, if given, those of ``folder``.

    Raises:
      UserError: ``folder`` cannot be read or holds no photograph of the split.
    """
    found = _packaged(split)
    if folder is not None:
        files = list_frames(folder)
        if not files:
            raise UserError(f"{folder}: contains no photographs (subfolders are not searched)")
        own = [Photograph(f"folder/{path.name}", path, _digest(path)) for path in files]
        own = [p for p in own if _split_of(p.digest) == split and p.digest not in _taken()]
        if not own:
            raise UserError(
                f"{folder}: none of its {len(files)} images is in the {split} split (90 % are for "
                "training, 5 % for validation and 5 % for testing); use 100 or more images"
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
    """Returns a package's installation folder without importing the package."""
    return Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _split_of(digest: str) -> Split:
    share = int(digest[:8], 16) / 16**8
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"
