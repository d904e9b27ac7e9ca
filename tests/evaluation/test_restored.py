"""Frames that another program restored, scored like our own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.restored import RestoredFrames
from jaxdeblur.video.image_file import write_png

ROOT = Path(__file__).parents[2]
SIZE = (24, 32, 3)


def write_frames(folder: Path, seed: int, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(np.random.default_rng(seed).integers(0, 256, (count, *SIZE))):
        write_png(folder / f"{i:06d}.png", frame.astype(np.uint8))


def gopro(root: Path) -> Path:
    for video in ("a", "b"):
        write_frames(root / "test" / video / "sharp", 1)
        write_frames(root / "test" / video / "blur", 2)
    return root


class Of:
    """A video's name and size."""

    def __init__(self, name: str) -> None:
        self.name, self.height, self.width = name, *SIZE[:2]

    def __len__(self) -> int:
        return 3

    def blurred(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def sharp(self, index: int) -> np.ndarray:
        raise NotImplementedError


def test_they_are_scored_under_a_protocol_into_the_same_report(tmp_path: Path) -> None:
    data = gopro(tmp_path / "GOPRO_Large")
    write_frames(tmp_path / "theirs" / "a", 1)  # perfect
    write_frames(tmp_path / "theirs" / "001-b", 2)  # as it was
    out = tmp_path / "out"
    command = [sys.executable, "evaluate.py", f"--restored={tmp_path / 'theirs'}", "--name=Theirs"]
    done = subprocess.run(
        [*command, f"--data=gopro:{data}", f"--out={out}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    metrics = json.loads((out / "metrics.json").read_text())
    first, second = metrics["videos"]
    assert first["ssim"] == pytest.approx(1)
    assert first["psnr"] > 90
    assert second["psnr"] == pytest.approx(second["psnr_blurred"])
    assert metrics["seconds_per_frame"] is None
    assert metrics["checkpoint"]["preset"] == "Theirs"
    assert "Theirs on" in (out / "report.html").read_text()
    assert " -\n" in done.stdout + "\n"


def test_what_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", 1, count=2)
    videos = [Of("a"), Of("b")]
    with pytest.raises(UserError, match="b: no folder of that name"):
        RestoredFrames.find(tmp_path, "", videos)
    with pytest.raises(UserError, match="no such folder"):
        RestoredFrames.find(tmp_path / "none", "", videos)
    found = RestoredFrames.find(tmp_path, "", videos[:1])
    with pytest.raises(UserError, match="a: 2 restored frames of 3"):
        found.check(videos[:1], [3])
    videos[0].width = 30
    with pytest.raises(UserError, match="restored frames are 32x24, not 30x24"):
        found.check(videos[:1], [2])


def test_frames_of_the_only_video_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", 1)
    found = RestoredFrames.find(tmp_path / "frames", "", [Of("x")])
    found.check([Of("x")], [3])
    before = found.digest()
    write_png(tmp_path / "frames" / "000000.png", np.zeros(SIZE, np.uint8))
    assert found.digest() != before
