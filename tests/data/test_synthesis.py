"""Blur synthesis: eq. 1 against plain NumPy, and the command that writes pairs."""

from __future__ import annotations

import json
import sys
from unittest import mock

import av
import numpy as np
import pytest

from jaxdeblur.commands import synthesis
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure, average
from jaxdeblur.data.videos import DecodedFrames, HighSpeedVideo
from jaxdeblur.errors import UserError
from jaxdeblur.images import GAMMA
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import read_image, write_png


def main(arguments: list[str]) -> None:
    """Runs the command with these arguments."""
    with mock.patch.object(sys, "argv", ["jaxdeblur", *arguments]):
        synthesis.main()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def high_speed():
    return np.random.default_rng(0).integers(0, 256, (26, 16, 20, 3), np.uint8)


def write_frames(folder, frames):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        write_png(folder / f"{index}.png", frame)


def synthesise(frames, exposure):
    video = HighSpeedVideo("v", DecodedFrames(frames), exposure)
    return [(video.blurred(n), video.sharp(n)) for n in range(len(video))]


@pytest.mark.parametrize(("tau", "period"), [(1, 2), (4, 5), (5, 7), (11, 12), (7, 7)])
@pytest.mark.parametrize("linear", [False, True])
def test_equation_1(high_speed, tau, period, linear):
    # The last of 26 frames may hold an exposure but not the pause after it, as with (5, 7).
    pairs = synthesise(high_speed, Exposure(tau, period, linear))
    assert len(pairs) == Exposure(tau, period).count(26)
    curve = GAMMA if linear else 1.0
    for n, (blurred, sharp) in enumerate(pairs):
        # X_{nT+j}, j = 1 to tau, counted from 1; the middle one is j = (tau + 1) / 2.
        exposure = [high_speed[n * period + j - 1] for j in range(1, tau + 1)]
        light = sum((x / 255.0) ** curve for x in exposure) / tau
        expected = 255 * light ** (1 / curve)
        # Halves are rounded up; in linear light, float32 decides them.
        assert np.abs(blurred - expected).max() <= 0.5 + 1e-4
        np.testing.assert_array_equal(sharp, exposure[(tau + 1) // 2 - 1])
        np.testing.assert_array_equal(average(np.stack(exposure), linear), blurred)


def test_the_largest_sum_does_not_overflow():
    white = np.full((256, 2, 2, 3), 255, np.uint8)
    assert (average(white) == 255).all()
    assert (average(white, linear=True) == 255).all()


def test_light_is_brighter_than_stored_values():
    exposure = np.array([[0, 40], [255, 40]], np.uint8)
    np.testing.assert_array_equal(average(exposure), [128, 40])
    np.testing.assert_array_equal(average(exposure, linear=True), [186, 40])  # 255 * 0.5 ** (1/2.2)


def test_a_perfect_middle_frame_is_the_sharp_frame(high_speed):
    # Eq. 1 as printed takes one frame earlier when tau is odd.
    ramp = np.broadcast_to(np.arange(0, 24, 2, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 3))
    for blurred, sharp in synthesise(ramp, Exposure(5, 6)):
        np.testing.assert_array_equal(blurred, sharp)


def test_the_command_writes_pairs_and_a_manifest(tmp_path, high_speed, capsys):
    write_frames(tmp_path / "in", high_speed)
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--tau=5", "--period=8"])
    expected = synthesise(high_speed, Exposure(5, 8))
    for kind, images in zip(("blur", "sharp"), zip(*expected, strict=True), strict=True):
        files = list_frames(tmp_path / "out" / kind / "in")
        assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
        for file, image in zip(files, images, strict=True):
            np.testing.assert_array_equal(read_image(file), image)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == {"source": str(tmp_path / "in"), "tau": 5, "period": 8, "linear": False}
    assert "3 frames of 1 video(s), tau 5, period 8" in capsys.readouterr().out
    assert len(open_dataset(str(tmp_path / "out"), "test").videos[0]) == 3


def test_several_videos_become_several_folders(tmp_path, high_speed):
    write_frames(tmp_path / "in" / "v2", high_speed)
    write_frames(tmp_path / "in" / "v10", high_speed[:12])
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--linear"])
    assert len(list_frames(tmp_path / "out" / "blur" / "v2")) == 2
    assert len(list_frames(tmp_path / "out" / "sharp" / "v10")) == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["linear"]


def write_video(path, frames, codec="ffv1", pixels="bgr0"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_file_is_read(tmp_path, high_speed):
    write_video(tmp_path / "in.mkv", high_speed)
    main([str(tmp_path / "in.mkv"), str(tmp_path / "out"), "--tau=3", "--period=6"])
    expected = synthesise(high_speed, Exposure(3, 6))
    files = list_frames(tmp_path / "out" / "blur" / "in.mkv")
    assert len(files) == len(expected)
    for file, (blurred, _) in zip(files, expected, strict=True):
        np.testing.assert_array_equal(read_image(file), blurred)


def test_a_video_is_not_darkened(tmp_path):
    """Grey 5 is code 20 in YUV, which decodes to 4.66: it must be rounded, not truncated."""
    write_video(tmp_path / "in.mkv", np.full((4, 16, 16, 3), 5, np.uint8), pixels="yuv420p")
    main([str(tmp_path / "in.mkv"), str(tmp_path / "out"), "--tau=3"])
    assert (read_image(tmp_path / "out" / "sharp" / "in.mkv" / "000000.png") == 5).all()


def test_what_exists_is_kept(tmp_path, high_speed):
    write_frames(tmp_path / "in", high_speed)
    with pytest.raises(UserError, match="in: already exists"):
        main([str(tmp_path / "in"), str(tmp_path / "in")])
    assert len(list_frames(tmp_path / "in")) == 26


def test_a_failure_leaves_nothing_behind(tmp_path, high_speed):
    write_frames(tmp_path / "in", high_speed)
    (tmp_path / "in" / "9.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"9\.png"):
        main([str(tmp_path / "in"), str(tmp_path / "out"), "--tau=5"])
    write_png(tmp_path / "in" / "9.png", high_speed[0, :8])
    with pytest.raises(UserError, match=r"9\.png: 20x8 pixels, but .* has 20x16"):
        main([str(tmp_path / "in"), str(tmp_path / "out"), "--tau=5"])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tau=5", "--period=5"], "must be above tau"),
        (["--tau=5", "--period=0"], "period must be positive, not 0"),
        (["--tau=27"], "an exposure needs 27 frames: in has 26"),
        (["--tau=many"], "--tau"),
    ],
)
def test_bad_options_are_one_line(tmp_path, high_speed, options, message):
    write_frames(tmp_path / "in", high_speed)
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "in"), str(tmp_path / "out"), *options])


def test_bad_inputs_are_named(tmp_path, high_speed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("#EXTM3U\nframes.ts\n")
    write_frames(tmp_path / "in", high_speed)
    for source, message in [
        ("none", "no such folder"),
        ("empty", "contains no frames"),
        ("text.mp4", "not a readable video"),
    ]:
        with pytest.raises(UserError, match=message):
            main([str(tmp_path / source), str(tmp_path / "out")])
    with pytest.raises(UserError, match="cannot be written"):
        main([str(tmp_path / "in"), str(tmp_path / "none" / "out")])
