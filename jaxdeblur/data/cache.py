"""The cache on disk: what takes long is made once, in a folder named by all that decides it.

:func:`in_threads` makes it on all cores.
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
"""What a folder that is not there, or damaged, makes its reader raise."""


def kept(
    kind: str,
    recipe: dict[str, Any],
    make: Callable[[Path], object],
    read: Callable[[Path], Content],
) -> Content:
    """What a folder of the cache holds; it is made if it is not there, or damaged.

    Args:
      kind: the folder's name begins with it, and ends with a hash of the recipe.
      recipe: all that decides the content, as JSON can hold it: ``recipe.json``.
      make: fills a new folder.
      read: opens one; raises OSError, ValueError, KeyError or the like if it is not whole.

    Raises:
      UserError: the folder cannot be written (a full disk), or what making it raises.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / f"{kind}-{key}"
    with contextlib.suppress(*_DAMAGED):
        return read(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_once(folder):  # every process of a run on many devices is here
            if folder.exists():
                try:
                    return read(folder)
                except _DAMAGED as error:
                    message = f"{folder}: damaged ({error}), so it is made anew"
                    warnings.warn(message, RuntimeWarning, stacklevel=2)
                    shutil.rmtree(folder)
            with replace_folder_when_whole(folder) as part:
                make(part)
                write_json(part / "recipe.json", recipe)
    except OSError as error:
        if not folder.exists():  # else another process was first, and made the same
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return read(folder)


def kept_array(
    kind: str, recipe: dict[str, Any], shape: tuple[int, ...], make: Callable[[], np.ndarray]
) -> np.ndarray:
    """A uint8 array of the cache, memory-mapped.

    Args:
      kind: the folder's name begins with it.
      recipe: all that decides the values, as JSON can hold it.
      shape: of the array.
      make: makes it, should it not be there.

    Raises:
      UserError: the cache cannot be written (a full disk), or what making it raises.
    """

    def read(folder: Path) -> np.ndarray:
        array = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.shape != shape:
            raise ValueError(f"pixels.npy is {array.dtype} {array.shape}")
        return np.asarray(array)  # a memmap's own class makes every slice slower

    return kept(kind, recipe, lambda folder: np.save(folder / "pixels.npy", make()), read)


def in_threads(make: Callable[[int], Content], count: int, line: ProgressLine) -> list[Content]:
    """What ``make`` gives for each number from 0 to ``count`` - 1; ``line`` counts them."""
    made = [make(0)]  # alone, so that it is compiled once
    with ThreadPoolExecutor(os.cpu_count()) as workers:  # each keeps one core busy
        for one in workers.map(make, range(1, count)):
            made.append(one)
            line.update(len(made))
    line.close()
    return made
