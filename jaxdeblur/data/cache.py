"""The cache on disk: slow results are made once, each in a folder named by a hash of its recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxdeblur.console import ProgressLine
from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder, made_once, replace_folder_when_whole, write_json

Result = TypeVar("Result")


def kept_file(kind: str, recipe: dict[str, Any], write: Callable[[Path], object]) -> Path:
    """Returns a .npy file of the cache, which is made if it is missing or damaged.

    Args:
      kind: the start of its folder's name, which ends with a hash of the recipe.
      recipe: everything that determines the array, as JSON values; saved as ``recipe.json``.
      write: writes the file.

    Raises:
      UserError: the folder cannot be written (a full disk), or ``write`` raises it.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / f"{kind}-{key}"
    file = folder / "pixels.npy"
    if _is_whole(file):
        return file
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with made_once(folder):  # every process of a multi-device run gets here
            if not _is_whole(file):  # not made by another process meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                with replace_folder_when_whole(folder) as part:
                    write(part / file.name)
                    write_json(part / "recipe.json", recipe)
    except OSError as error:
        if not folder.exists():  # otherwise another process made the same first
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return file


def kept_array(kind: str, recipe: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the memory-mapped array of a :func:`kept_file`."""
    return mapped(kept_file(kind, recipe, lambda file: np.save(file, make())))


def mapped(file: Path) -> np.ndarray:
    """Maps the array of a .npy file; raises OSError, EOFError or ValueError if it is damaged."""
    # Slicing an np.memmap is slower.
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _is_whole(file: Path) -> bool:
    with contextlib.suppress(OSError, EOFError, ValueError):
        mapped(file)
        return True
    return False


def in_threads(make: Callable[[int], Result], count: int, what: str, unit: str) -> list[Result]:
    """Returns ``make(0)`` to ``make(count - 1)``, made on all cores, and shows the progress.

    Args:
      make: makes one result from its index.
      count: of the results, at least 1.
      what, unit: what is made, and what is counted, for the line of progress.
    """
    line = ProgressLine(what, count, unit=unit, stays=True)
    made = [make(0)]  # alone, so that it is compiled only once
    with ThreadPoolExecutor(os.cpu_count()) as workers:  # each keeps one core busy
        for one in workers.map(make, range(1, count)):
            made.append(one)
            line.update(len(made))
    line.close()
    return made
