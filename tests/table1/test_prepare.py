"""The data that published tables score, made from small folders laid out like the real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError
from jaxdeblur.table1 import prepare as module
from jaxdeblur.table1.prepare import Published, check
from jaxdeblur.video.image_file import read_image, write_png

SIZE = (24, 32)


def main(arguments: list[str]) -> None:
    """Runs the command with these arguments."""
    with mock.patch.object(sys, "argv", ["jaxdeblur", *arguments]):
        module.main()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expects the published folders, but with few and small videos."""
    few = {
        "GOPRO": {"train": (2, 4), "test": (1, 2)},
        "DVD": {"quantitative_datasets": (2, 4)},
        "BSD": {"train": (1, 2), "valid": (1, 2), "test": (1, 2)},
    }
    for name, splits in few.items():
        folders = module.PUBLISHED[name].folders
        monkeypatch.setitem(module.PUBLISHED, name, Published(folders, splits))


def write(folder: Path, count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    frames = rng.integers(0, 256, (count, *size, 3), np.uint8)
    for index, frame in enumerate(frames):
        write_png(folder / f"{index + 1:06d}.png", frame)
    return frames


def write_gopro(root: Path) -> None:
    for video in ("train/GOPR0372_07_00", "train/GOPR0374_11_00", "test/GOPR0384_11_00"):
        for folder in ("blur", "blur_gamma", "sharp"):
            write(root / video / folder, 2)


def test_whole_downloads_pass_and_are_linked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gopro(tmp_path / "GOPRO")
    for split in ("train", "valid", "test"):
        for folder in ("Blur/RGB", "Sharp/RGB"):
            write(tmp_path / "BSD" / split / "000" / folder, 2)
    for name, frames in (("GOPRO", 18), ("BSD", 12)):
        assert check(name, tmp_path / name) == []
        target = tmp_path / f"{name}_made"
        main([name, str(tmp_path / name), str(target)])
        assert f"{target}: {frames} frames" in capsys.readouterr().out
        test = open_dataset(str(target), "test")
        assert [len(video) for video in test.videos] == [2]
    made = tmp_path / "GOPRO_made/test/GOPR0384_11_00/blur/000001.png"
    assert made.is_symlink()
    assert made.samefile(tmp_path / "GOPRO/test/GOPR0384_11_00/blur/000001.png")


def test_what_is_missing_is_said_and_stops_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gopro(tmp_path / "GOPRO")
    video = tmp_path / "GOPRO/train/GOPR0372_07_00"
    (video / "blur/000002.png").unlink()
    (tmp_path / "GOPRO/test").rename(tmp_path / "GOPRO/tests")
    assert check("GOPRO", tmp_path / "GOPRO") == [
        f"{tmp_path}/GOPRO/train/*/blur: 3 frames, expected 4",
        f"{tmp_path}/GOPRO/test: 0 videos, expected 1",
        f"{tmp_path}/GOPRO/test/*/blur: 0 frames, expected 2",
        f"{tmp_path}/GOPRO/test/*/blur_gamma: 0 frames, expected 2",
        f"{tmp_path}/GOPRO/test/*/sharp: 0 frames, expected 2",
    ]
    command = ["GOPRO", str(tmp_path / "GOPRO"), str(tmp_path / "made")]
    with pytest.raises(UserError, match="differs from GOPRO as published"):
        main(command)
    assert "test: 0 videos, expected 1" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    main([*command, "--partial"])
    assert (tmp_path / "made/train/GOPR0374_11_00/sharp/000002.png").exists()


def test_estrnn_scores_three_quarters_of_the_size(tmp_path: Path) -> None:
    write_gopro(tmp_path / "GOPRO")
    main(["GOPRO", str(tmp_path / "GOPRO"), str(tmp_path / "made"), "--protocol=estrnn"])
    for folder in ("blur_gamma", "sharp"):
        place = f"test/GOPR0384_11_00/{folder}/000001.png"
        before, after = (read_image(tmp_path / root / place) for root in ("GOPRO", "made"))
        assert after.shape == (18, 24, 3)
        # An output pixel covers one and a third input pixels along each side.
        weights = np.array([3, 1, 0]) / 4
        corner = np.einsum("i,j,ijc->c", weights, weights, before[:3, :3].astype(float))
        assert np.abs(after[0, 0] - corner).max() <= 0.6


@pytest.mark.parametrize("occupied", ["folder", "file", "link"])
def test_what_exists_is_kept_and_said_before_the_work(
    occupied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gopro(tmp_path / "GOPRO")
    target = tmp_path / "made"
    if occupied == "link":
        target.symlink_to(tmp_path / "nowhere")
    elif occupied == "file":
        target.write_text("mine")
    else:
        (target / "mine").mkdir(parents=True)
    monkeypatch.setattr(module, "write_png", None)
    with pytest.raises(UserError, match="made: already exists; remove it or choose another"):
        main(["GOPRO", str(tmp_path / "GOPRO"), str(target), "--protocol=estrnn"])


def test_pvdnet_scores_portrait_videos_lying(tmp_path: Path) -> None:
    for video, size in (("IMG_0003", SIZE), ("IMG_0021", SIZE[::-1])):
        for folder in ("input", "GT"):
            write(tmp_path / "DVD/quantitative_datasets" / video / folder, 2, size)
    main(["DVD", str(tmp_path / "DVD"), str(tmp_path / "made"), "--protocol=pvdnet"])
    test = open_dataset(str(tmp_path / "made"), "test")
    assert [video.sharp(0).shape for video in test.videos] == [(24, 32, 3)] * 2
    upright = read_image(tmp_path / "DVD/quantitative_datasets/IMG_0021/GT/000001.png")
    np.testing.assert_array_equal(test.videos[1].sharp(0), np.rot90(upright))


@pytest.mark.parametrize(("options", "tau", "middle"), [([], 7, 3), (["--tau=8"], 8, 3)])
@pytest.mark.parametrize("printed", [False, True])
def test_equation_1_of_the_high_speed_frames(
    tmp_path: Path, options: list[str], tau: int, middle: int, printed: bool
) -> None:
    frames = write(tmp_path / "all/train/GOPR0372_07_00", 17)
    command = ["GOPRO", str(tmp_path / "all"), str(tmp_path / "made"), *options, "--partial"]
    main([*command, *(["--as-printed"] if printed else [])])
    made = tmp_path / "made/train/GOPR0372_07_00"
    assert sorted(f.name for f in (made / "blur").iterdir()) == ["000001.png", "000002.png"]
    exposure = frames[tau : 2 * tau]
    if printed:  # X_{nT + floor(tau/2)}, counted from 1
        middle = tau // 2 - 1
    np.testing.assert_array_equal(read_image(made / "sharp/000002.png"), exposure[middle])
    np.testing.assert_allclose(read_image(made / "blur/000002.png"), exposure.mean(0), atol=0.51)
    light = ((exposure / 255) ** 2.2).mean(0) ** (1 / 2.2) * 255
    np.testing.assert_allclose(read_image(made / "blur_gamma/000002.png"), light, atol=0.51)


def test_options_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_gopro(tmp_path / "GOPRO")
    paths = [str(tmp_path / "GOPRO"), str(tmp_path / "made")]
    with pytest.raises(UserError, match="--tau and --as-printed apply only to GOPRO_Large_all"):
        main(["GOPRO", *paths, "--tau=7"])
    with pytest.raises(UserError, match="--protocol=pvdnet: does not change GOPRO"):
        main(["GOPRO", *paths, "--protocol=pvdnet"])
    write(tmp_path / "all/train/clip", 7)
    with pytest.raises(UserError, match="no tau in the name"):
        main(["GOPRO", str(tmp_path / "all"), paths[1], "--partial"])
