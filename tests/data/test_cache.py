"""The cache: made once, opened after, healed if damaged, and named by all that decides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.data.cache import Kept, read_array
from jaxdeblur.errors import UserError

SHAPE = (2, 3)


def kept(within: Path, made: list[Path], seed: int = 1) -> Kept[np.ndarray]:
    def make(folder: Path) -> None:
        made.append(folder)
        np.save(folder / "values.npy", np.full(SHAPE, seed, np.uint8))

    def read(folder: Path) -> np.ndarray:
        return read_array(folder / "values.npy", SHAPE)

    return Kept("values", {"seed": seed}, make, read, within)


def test_a_folder_is_made_once_and_another_recipe_is_another_folder(tmp_path: Path) -> None:
    made: list[Path] = []
    assert kept(tmp_path, made).find() is None
    for _ in range(2):
        assert (kept(tmp_path, made).open() == 1).all()
    assert len(made) == 1
    assert (kept(tmp_path, made, seed=2).open() == 2).all()
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert len(folders) == 2
    assert all(name.startswith("values-") for name in folders)


@pytest.mark.parametrize("damaged", [b"", b"text", None])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damaged: bytes | None) -> None:
    made: list[Path] = []
    one = kept(tmp_path, made)
    one.open()
    file = one.folder / "values.npy"
    file.write_bytes(file.read_bytes()[:-2] if damaged is None else damaged)
    assert one.find() is None
    with pytest.warns(RuntimeWarning, match="damaged .* made anew"):
        assert (one.open() == 1).all()
    assert len(made) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_what_another_process_made_meanwhile_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    kept(tmp_path, made).open()
    monkeypatch.setattr(Kept, "find", lambda self: None)  # as it was before the lock
    assert (kept(tmp_path, made).open() == 1).all()
    assert len(made) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache/values-\w+: cannot be written"):
        kept(tmp_path / "file" / "cache", []).open()
