"""Photographs: the splits never share one; textures are reproducible, sharp and fully covered."""

from __future__ import annotations

import shutil
from typing import get_args

import numpy as np
import pytest

from jaxdeblur.data import textures
from jaxdeblur.data.textures import Split, cut_textures, find_photographs
from jaxdeblur.errors import UserError
from jaxdeblur.video.image_file import read_image, write_png

SPLITS = get_args(Split)


def noise_image(seed, height=60, width=80):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs")
    for seed in range(80):
        write_png(path / f"{seed}.png", noise_image(seed, 8, 8))
    return path


def test_packaged_photographs_are_there_and_decode():
    for split in SPLITS:
        for photograph in find_photographs(split):
            assert min(read_image(photograph.path).shape[:2]) >= 170


def test_splits_share_no_photograph():
    splits = {split: find_photographs(split) for split in SPLITS}
    digests = [{photograph.digest for photograph in found} for found in splits.values()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not digests[i] & digests[j]
    names = [photograph.name for found in splits.values() for photograph in found]
    assert len(names) == len(set(names))
    # The two views of the motorcycle show the same thing: one of them is in no split at all.
    assert not any("motorcycle_right" in name for name in names)


def test_a_copy_of_a_packaged_photograph_is_left_out(folder, tmp_path):
    """Otherwise training could include a photograph of validation or test."""
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    for split in SPLITS:
        for number, photograph in enumerate(find_photographs(split)):
            shutil.copy(photograph.path, tmp_path / f"holiday_{split}_{number}.png")
    names = [photograph.name for photograph in find_photographs("train", tmp_path)]
    assert not any("holiday" in name for name in names)


def test_which_photographs_of_a_folder_train_does_not_depend_on_the_others(folder, tmp_path):
    train = {photograph.name for photograph in find_photographs("train", folder)}
    assert 60 < sum(name.startswith("folder/") for name in train) < 80
    for seed in range(40):
        shutil.copy(folder / f"{seed}.png", tmp_path)
    half = find_photographs("train", tmp_path)
    assert {photograph.name for photograph in half} <= train


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        find_photographs("train", tmp_path / "nowhere")
    with pytest.raises(UserError, match="subfolders are not searched"):
        find_photographs("train", tmp_path)


def test_textures_are_reproducible():
    photographs = find_photographs("test")
    first, again = (cut_textures(photographs, 4, 96, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 96, 96, 3)
    assert (cut_textures(photographs, 4, 96, seed=4) != first).any()


def test_small_photographs_are_laid_side_by_side_without_holes(tmp_path, monkeypatch):
    for seed in range(80):
        write_png(tmp_path / f"{seed}.png", np.maximum(noise_image(seed), 100))
    photographs = [p for p in find_photographs("train", tmp_path) if p.name.startswith("folder/")]
    laid = []
    lay = textures._print
    monkeypatch.setattr(textures, "_print", lambda *a: laid.append(a[0].name) or lay(*a))
    texture = cut_textures(photographs, 1, 150, seed=0)
    assert len(set(laid)) >= 6
    # Reduction overshoots and contrast varies; pixels never written would be 0 or arbitrary.
    assert (texture.mean(axis=-1) < 20).mean() < 0.001


def test_grey_photographs_are_tinted_and_coloured_ones_are_not_changed_in_kind():
    grey = [p for p in find_photographs("train") if p.name == "skimage/brick.png"]
    pixels = cut_textures(grey, 1, 64, seed=0)
    assert np.ptp(pixels.mean(axis=(0, 1, 2))) > 5


def test_textures_are_sharper_than_their_photographs():
    """Neighbouring pixels differ more after the reduction: the blur of lens and JPEG is gone."""
    coffee = [p for p in find_photographs("test") if p.name == "skimage/coffee.png"]

    def detail(image):
        return np.abs(np.diff(image[..., 1].astype(float), axis=-1)).mean()

    assert detail(cut_textures(coffee, 8, 160, seed=0)) > 1.2 * detail(read_image(coffee[0].path))
