"""The cache on disk: slow results are made once, each in a folder named by a hash of its recipe.

:func:`in_threads` makes them on all cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxdeblur.errors import ProgressLine, UserError
from jaxdeblur.files import cache_folder, made_once, replace_folder_when_whole, write_json

Content = TypeVar("Content")

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
"""What a reader raises when its folder is missing or damaged."""


def kept(
    kind: str,
    recipe: dict[str, Any],
    make: Callable[[Path], object],
    read: Callable[[Path], Content],
) -> Content:
    """Returns the content of a cache folder, which is made if it is missing or damaged.

    Args:
      kind: the start of the folder's name, which ends with a hash of the recipe.
      recipe: everything that determines the content, as JSON values; saved as ``recipe.json``.
      make: fills a new folder.
      read: reads a folder; raises OSError, ValueError, KeyError or the like if it is incomplete.

    Raises:
      UserError: the folder cannot be written (a full disk), or ``make`` raises it.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / f"{kind}-{key}"
    with contextlib.suppress(*_DAMAGED):
        return read(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_once(folder):  # every process of a multi-device run gets here
            if folder.exists():
                try:
                    return read(folder)
                except _DAMAGED as error:
                    message = f"{folder}: damaged ({error}); rebuilding it"
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                    shutil.rmtree(folder)
            with replace_folder_when_whole(folder) as part:
                make(part)
                write_json(part / "recipe.json", recipe)
    except OSError as error:
        if not folder.exists():  # otherwise another process made the same first
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return read(folder)


def kept_array(
    kind: str, recipe: dict[str, Any], shape: tuple[int, ...], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """Returns a memory-mapped uint8 array from the cache.

    Args:
      kind: the start of the folder's name.
      recipe: everything that determines the values, as JSON values.
      shape: the array's shape.
      make: makes the array if it is missing.

    Raises:
      UserError: the cache cannot be written (a full disk), or ``make`` raises it.
    """

    def read(folder: Path) -> np.ndarray:
        array = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.shape != shape:
            raise ValueError(f"pixels.npy is {array.dtype} {array.shape}, not uint8 {shape}")
        return np.asarray(array)  # slicing an np.memmap is slower

    return kept(kind, recipe, lambda folder: np.save(folder / "pixels.npy", make()), read)


def in_threads(make: Callable[[int], Content], count: int, line: ProgressLine) -> list[Content]:
    """Returns ``make(0)`` to ``make(count - 1)``; ``line`` shows the progress."""
    made = [make(0)]  # alone, so that it is compiled only once
    with ThreadPoolExecutor(os.cpu_count()) as workers:  # each keeps one core busy
        for one in workers.map(make, range(1, count)):
            made.append(one)
            line.update(len(made))
    line.close()
    return made
