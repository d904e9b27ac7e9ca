"""The cache: made once, then opened, rebuilt if damaged, and named by all that it depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.data import cache as cache_module
from jaxdeblur.data.cache import kept_array
from jaxdeblur.errors import UserError

SHAPE = (2, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))


def kept_values(made: list[int], seed: int = 1) -> np.ndarray:
    def make() -> np.ndarray:
        made.append(seed)
        return np.full(SHAPE, seed, np.uint8)

    return kept_array("values", {"seed": seed}, make)


def test_a_folder_is_made_once_and_another_recipe_is_another_folder(tmp_path: Path) -> None:
    made: list[int] = []
    for _ in range(2):
        assert (kept_values(made) == 1).all()
    assert (kept_values(made, seed=2) == 2).all()
    assert made == [1, 2]
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert len(folders) == 2
    assert all(name.startswith("values-") for name in folders)


@pytest.mark.parametrize("damaged", [b"", b"text", None])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damaged: bytes | None) -> None:
    made: list[int] = []
    kept_values(made)
    (file,) = tmp_path.glob("*/pixels.npy")
    file.write_bytes(file.read_bytes()[:-2] if damaged is None else damaged)
    assert (kept_values(made) == 1).all()
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_what_another_process_made_meanwhile_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    kept_values(made)
    (folder,) = tmp_path.iterdir()
    aside = folder.rename(tmp_path / "aside")

    @contextlib.contextmanager
    def lock(target: Path) -> Iterator[None]:
        aside.rename(folder)  # while this one waited
        yield

    monkeypatch.setattr(cache_module, "made_once", lock)
    assert (kept_values(made) == 1).all()
    assert len(made) == 1


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache/values-\w+: cannot be written"):
        kept_values([])
