"""deblur.py end to end: unusual inputs, what is kept, and that no existing file is damaged."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import jax
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from jaxdeblur import console, models
from jaxdeblur.console import ProgressLine, run_command
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.restoration import restore
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, Job, plan
from jaxdeblur.restoration.stream import Stream, restore_pixels
from jaxdeblur.restoration.threads import in_stages
from jaxdeblur.video.animation import MAX_WIDTH
from jaxdeblur.video.picture import Picture
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter
from jaxdeblur.weights import shipped
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).parents[2]
NETWORK = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The file of a small network with random weights."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    loaded = LoadedModel(models.build(NETWORK), "small", NETWORK, 0, "test", {})
    export_weights(loaded, path)
    return path


@pytest.fixture
def command(weights, monkeypatch, capsys, tmp_path):
    """Runs deblur.py in this process; returns its exit code and output."""
    monkeypatch.chdir(tmp_path)
    spec = runpy.run_path(str(ROOT / "deblur.py"), run_name="deblur")

    def run(*options: str, ckpt: bool = True) -> tuple[int, str]:
        given = [*map(str, options), *([f"--ckpt={weights}"] if ckpt else [])]
        monkeypatch.setattr(sys, "argv", ["deblur.py", *given])
        try:
            run_command(spec["main"], "deblur.py")
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def pictures(frames: int, height: int = 24, width: int = 32, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(frames)
    small = rng.integers(0, np.iinfo(dtype).max, (frames, height // 8 + 1, width // 8 + 1, 3))
    return small.repeat(8, 1).repeat(8, 2)[:, :height, :width].astype(dtype)


def make_video(
    path: Path, frames: int = 5, codec: str = "ffv1", pixel_format: str = "bgr0"
) -> Path:
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=Fraction(25))
        video.width, video.height, video.pix_fmt = 32, 24, pixel_format
        for pixels in pictures(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pixel_format)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def rgb_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def expected(weights: Path, clip: np.ndarray) -> np.ndarray:
    return restore_pixels(load_model(weights).model, clip)


def left_overs(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".part" in path.name]


def test_a_video_equals_the_clip_to_one_grey_level(command, weights, tmp_path):
    make_video(tmp_path / "in.mkv")
    code, said = command("in.mkv", "out.mkv")
    assert code == 0, said
    assert "5 frames in" in said
    restored = rgb_of(tmp_path / "out.mkv")
    clip = expected(weights, pictures(5))
    assert np.abs(restored.astype(int) - clip).max() <= 1
    assert np.abs(clip.astype(int) - pictures(5)).max() > 1, "the network changes nothing"


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_a_folder_of_frames_keeps_its_names(suffix, command, weights, tmp_path):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(pictures(3)):
        options = {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(frame).save(tmp_path / "in" / f"frame{i + 9}{suffix}", **options)
    code, said = command("in", "out")
    assert code == 0, said
    names = [f"frame{i}{suffix}" for i in (9, 10, 11)]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    restored = np.stack([np.asarray(Image.open(tmp_path / "out" / name)) for name in names])
    assert np.abs(restored.astype(int) - expected(weights, pictures(3))).max() <= 1


def test_one_image_comes_out_the_right_way_up_with_its_exif_and_profile(command, tmp_path):
    exif = with_orientation(6)
    exif[0x010F] = "the maker"
    Image.fromarray(pictures(1)[0]).save("in.jpg", exif=exif, icc_profile=b"profile")
    assert command("in.jpg", "out.jpg")[0] == 0
    with Image.open("out.jpg") as image:
        assert dict(image.getexif()) == {0x010F: "the maker"}
        assert image.info["icc_profile"] == b"profile"
        assert image.size == (24, 32)


def test_one_image_that_comes_back_as_it_was_is_said_to(command, tmp_path):
    """Otherwise users would not know why."""
    flat = np.full((24, 32, 3), 128, np.uint8)
    Image.fromarray(flat).save("flat.png")
    code, said = command("flat.png", "out.png", ckpt=False)
    assert (code, "flat.png: hardly changed" in said) == (0, True), said
    Image.fromarray(pictures(1)[0]).save("in.png")
    code, said = command("in.png", "changed.png")
    assert (code, "hardly changed" in said) == (0, False), said
    code, said = command("flat.png", "same.png", "--strength=0")
    assert (code, "hardly changed" in said) == (0, False), said


def test_so_is_one_frame_of_10_bits_only_if_it_was(command, tmp_path):
    """A frame of 10 bits uses a 64th of the range of its 16-bit array."""
    make_video(tmp_path / "in.mkv", 1, pixel_format="yuv444p10le")
    code, said = command("in.mkv", "out.mkv")
    assert (code, "hardly changed" in said) == (0, False), said


def test_images_and_videos_have_weights_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    for name in ("photo", "frames/0", "frames/1"):
        Image.fromarray(pictures(1)[0]).save(f"{name}.png")
    for name, of in (("photo.png", "photo"), ("frames", "video")):
        (job,) = plan([name], DeblurConfig(out_dir="out"))
        assert job.use.startswith(of)
    names = {use: shipped.default_name(use) for use in get_args(shipped.Use)}
    assert names == {
        "video": "strcnn_dtb_paths",
        "fast video": "strcnn_dtb_choice",
        "photograph": "strcnn_dtb_photo_paths",
        "fast photograph": "strcnn_dtb_photo",
        "camera": "strcnn_dtb_live",
    }


@pytest.mark.stress  # compiles four systems; the choice is above
def test_one_image_has_weights_of_its_own(command, tmp_path):
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(pictures(2)):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    Image.fromarray(pictures(1)[0]).save("photo.png")
    code, said = command("photo.png", "out.png", ckpt=False)
    assert (code, re.findall(r"weights: (\w+)", said)) == (0, ["strcnn_dtb_photo_paths"]), said
    code, said = command("photo.png", "fast.png", "--fast", ckpt=False)
    assert (code, re.findall(r"weights: (\w+)", said)) == (0, ["strcnn_dtb_photo"]), said
    code, said = command("frames", "photo.png", "--out-dir=both", ckpt=False)
    used = ["strcnn_dtb_paths", "strcnn_dtb_photo_paths"]
    assert (code, re.findall(r"weights: (\w+)", said)) == (0, used), said
    code, said = command("frames", "fast", "--fast", ckpt=False)
    assert (code, re.findall(r"weights: (\w+)", said)) == (0, ["strcnn_dtb_choice"]), said
    code, said = command("frames", "other", "--fast")
    assert (code, "--fast uses the shipped weights" in said) == (2, True), said
    assert (tmp_path / "both" / "photo.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_photographs_of_a_folder_can_go_in_one_by_one(command, tmp_path):
    """As frames of a video, they would need the same size and would be mixed."""
    (tmp_path / "photos").mkdir()
    for name, height in (("a", 24), ("b", 40)):
        Image.fromarray(pictures(1, height)[0]).save(tmp_path / "photos" / f"{name}.png")
        assert command(f"photos/{name}.png", f"{name}.png")[0] == 0
    code, said = command("photos", "--single", "--out-dir=out")
    assert code == 0, said
    for name in "ab":
        alone = np.asarray(Image.open(tmp_path / f"{name}.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/{name}.png")), alone)
    assert all(
        job.use == "photograph"
        for job in plan(["photos"], DeblurConfig(out_dir="new", single=True))
    )
    for wrong, named in (
        (["camera:0", "out.mkv"], "camera:0: --single takes images and videos, not a camera"),
        (["photos", "out2"], "2 inputs need --out-dir=FOLDER"),
    ):
        code, said = command(*wrong, "--single")
        assert (code, named in said) == (2, True), said


def test_frames_of_a_video_can_be_restored_by_themselves(command, tmp_path):
    (tmp_path / "frames").mkdir()
    for index, picture in enumerate(pictures(3, 24)):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{index}.png")
    assert command("frames", "in.mkv", "--codec=ffv1", "--strength=0")[0] == 0
    assert command("in.mkv", "alone", "--single")[0] == 0
    assert command("in.mkv", "together")[0] == 0
    assert command("frames", "--single", "--out-dir=photos")[0] == 0
    folders = ("alone", "together", "photos")
    alone, together, photos = (
        np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / name).iterdir())])
        for name in folders
    )
    np.testing.assert_array_equal(alone, photos)
    assert (alone != together).any()
    assert plan(["in.mkv", "new"], DeblurConfig(single=True))[0].use == "photograph"


EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_maker() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "the maker"
    return exif


def make_turned_video(path: Path, degrees: int) -> None:
    """Writes one lossless frame that players turn counter-clockwise."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "bgr0"
        if degrees:
            video.set_display_rotation(degrees)
        frame = av.VideoFrame.from_ndarray(pictures(1)[0], "rgb24")
        out.mux(video.encode(frame.reformat(format="bgr0")))
        out.mux(video.encode(None))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stays_the_right_way_up(orientation, command, tmp_path):
    given = Image.fromarray(pictures(1)[0])
    given.save("in.png", exif=with_orientation(orientation))
    with Image.open("in.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    for name in ("out.png", "out.bmp"):
        assert command("in.png", name, "--strength=0")[0] == 0
        with Image.open(name) as image:
            np.testing.assert_array_equal(np.asarray(image), shown)
            assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("orientation", EXIF_TRANSPOSES)
def test_so_does_an_image_of_16_bits(orientation, suffix, command, tmp_path):
    stored = pictures(1, dtype=np.uint16)[0, ..., 0]
    Image.fromarray(stored).save(f"in{suffix}", exif=with_orientation(orientation))
    shown = np.asarray(Image.fromarray(stored).transpose(EXIF_TRANSPOSES[orientation]))
    code, said = command(f"in{suffix}", f"out{suffix}", "--strength=0")
    assert code == 0, said
    with Image.open(f"out{suffix}") as image:
        np.testing.assert_array_equal(np.asarray(image), shown)


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_frames_of_a_turned_video_become_images_the_right_way_up(degrees, command, tmp_path):
    make_turned_video(tmp_path / "in.mkv", degrees)
    assert command("in.mkv", "out", "--strength=0")[0] == 0
    turned = np.rot90(pictures(1)[0], degrees // 90)
    np.testing.assert_array_equal(np.asarray(Image.open("out/000001.png")), turned)


def test_what_an_image_cannot_take_over(command, tmp_path):
    colour = Image.fromarray(pictures(1)[0])
    colour.save("profile.png", icc_profile=b"profile", exif=with_maker())
    code, said = command("profile.png", "plain.bmp")
    assert (code, said.count("not kept: colour profile"), said.count("EXIF")) == (0, 1, 1), said
    colour.convert("CMYK").save("inks.jpg", icc_profile=b"inks")
    assert command("inks.jpg", "inks.png")[0] == 0
    with Image.open("inks.png") as image:
        assert (image.mode, "icc_profile" in image.info) == ("RGB", False)
    Image.fromarray(pictures(1)[0][..., 0] / np.float32(255)).save("floats.tif")
    code, said = command("floats.tif", "out.tif")
    assert (code, "floats.tif: not a readable image: floating-point pixels" in said) == (2, True)
    Image.new("RGB", (17000, 8)).save("wide.png")
    code, said = command("wide.png", "wide.webp")
    assert (code, "wide.webp: cannot be written: " in said) == (2, True)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_goes_in_and_out(command, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("1", "2"):
        Image.fromarray(pictures(1)[0]).save(f"in/{name}.avif", exif=with_orientation(6))
    assert command("in/1.avif", "one.png", "--strength=0")[0] == 0
    with Image.open("in/1.avif") as before, Image.open("one.png") as after:
        shown = np.asarray(ImageOps.exif_transpose(before)).astype(int)
        np.testing.assert_array_equal(np.asarray(after), shown)
    assert command("in", "frames", "--strength=0")[0] == 0
    assert sorted(os.listdir("frames")) == ["1.avif", "2.avif"]
    with Image.open("frames/1.avif") as again:
        assert np.abs(np.asarray(again) - shown).mean() < 4


def encoded_deeply(frame: np.ndarray, encoder: str, pixel_format: str) -> bytes:
    context = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt = 32, 24, pixel_format
    context.time_base = Fraction(1, 25)
    encoded = av.VideoFrame.from_ndarray(frame, "rgb48le").reformat(format=pixel_format)
    return b"".join(map(bytes, [*context.encode(encoded), *context.encode(None)]))


def test_16_bits_stay_16_bits(command, weights, tmp_path):
    (tmp_path / "in").mkdir()
    deep = pictures(2, dtype=np.uint16)
    for i, frame in enumerate(deep):
        data = encoded_deeply(frame, "png", "rgb48be")
        (tmp_path / "in" / f"{i}.png").write_bytes(data)
    for kind in (".png", ".tiff"):
        code, said = command("in", "out" + kind[1:]) if kind == ".png" else (0, "")
        assert code == 0, said
    restored = []
    for i in range(2):
        with av.open(str(tmp_path / "outpng" / f"{i}.png")) as container:
            frame = next(container.decode(video=0))
            assert frame.format.name == "rgb48be"
            restored.append(frame.reformat(format="rgb48le").to_ndarray())
    assert np.abs(np.stack(restored).astype(int) - expected(weights, deep)).max() <= 1


def test_grey_stays_grey_and_alpha_passes_through(command, tmp_path):
    alpha = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    colour = pictures(1)[0]
    Image.fromarray(colour[..., 0]).save("grey.png")
    Image.fromarray(np.dstack([colour, alpha])).save("alpha.png")
    Image.fromarray(np.dstack([colour[..., 0], alpha])).save("both.png")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save("deep.png")
    for name, mode in (("grey", "L"), ("alpha", "RGBA"), ("both", "RGBA"), ("deep", "I;16")):
        code, said = command(f"{name}.png", f"out_{name}.png")
        assert code == 0, said
        with Image.open(f"out_{name}.png") as image:
            assert image.mode == mode
            if "A" in mode:
                np.testing.assert_array_equal(np.asarray(image)[..., -1], alpha)


def test_each_image_of_a_folder_has_its_own_orientation(command, tmp_path):
    (tmp_path / "in").mkdir()
    frames = pictures(2)
    Image.fromarray(frames[0]).save("in/1.png", exif=with_orientation(3))
    Image.fromarray(frames[1]).save("in/2.png")
    assert command("in", "out", "--strength=0")[0] == 0
    for name, shown in (("1.png", np.rot90(frames[0], 2)), ("2.png", frames[1])):
        np.testing.assert_array_equal(np.asarray(Image.open(f"out/{name}")), shown)


@pytest.mark.parametrize("kind", [b"P6", b"P5"])
def test_ppm_of_16_bits_keeps_them(kind, command, weights, tmp_path):
    (deep,) = pictures(1, dtype=np.uint16)
    if kind == b"P5":
        deep = np.repeat(deep[..., :1], 3, -1)
    stored = deep if kind == b"P6" else deep[..., 0]
    (tmp_path / "in.ppm").write_bytes(kind + b" 32 24 65535\n" + stored.astype(">u2").tobytes())
    code, said = command("in.ppm", "out.png")
    assert code == 0, said
    with av.open("out.png") as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == ("rgb48be" if kind == b"P6" else "gray16be")
        restored = frame.reformat(format="rgb48le").to_ndarray()
    if kind == b"P6":
        assert np.abs(restored.astype(int) - expected(weights, deep[None])[0]).max() <= 1


def test_alpha_of_10_bits_fills_the_16_of_an_image(command, tmp_path):
    with av.open("in.mov", "w") as out:
        video = out.add_stream("prores_ks", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "yuva444p10le"
        frame = av.VideoFrame(32, 24, "yuva444p10le")
        for plane, value in zip(frame.planes, (500, 512, 512, 1023), strict=True):
            np.frombuffer(plane, np.uint16)[:] = value
        out.mux(video.encode(frame))
        out.mux(video.encode(None))
    assert command("in.mov", "out")[0] == 0
    with av.open("out/000001.png") as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == "rgba64be"
        samples = np.frombuffer(frame.planes[0], ">u2").reshape(24, -1, 4)
    assert np.all(samples[:, :32, 3] == 65535)


def test_a_folder_that_is_a_link_or_here_is_filled(command, monkeypatch, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert command("in.mkv", "link")[0] == 0
    monkeypatch.chdir(tmp_path / "real")
    assert sorted(os.listdir()) == ["000001.png", "000002.png"]
    for name in os.listdir():
        os.remove(name)
    code, said = command("../in.mkv", ".")
    assert code == 0, said
    assert sorted(os.listdir()) == ["000001.png", "000002.png"]
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "link", "real"]


def test_the_frames_of_an_earlier_result_are_replaced_others_stay(command, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    (tmp_path / "out").mkdir()
    for name in ("000001.png", "000009.png", "notes.txt"):
        (tmp_path / "out" / name).write_text("old")
    code, said = command("in.mkv", "out")
    assert (code, "(--overwrite replaces" in said) == (2, True), said
    code, said = command("in.mkv", "out", "--overwrite")
    assert code == 0, said
    assert sorted(os.listdir("out")) == ["000001.png", "000002.png", "000009.png", "notes.txt"]
    assert (tmp_path / "out" / "000009.png").read_text() == "old"
    with Image.open("out/000001.png") as image:
        assert image.size == (32, 24)


def test_what_else_a_folder_holds_is_said(command, tmp_path):
    """A .jfif is a JPEG; for others there is no decoder."""
    (tmp_path / "in").mkdir()
    for number, suffix in enumerate(("jpg", "jfif", "JPE")):
        Image.fromarray(pictures(1)[0]).save(f"in/{number}.{suffix}", "JPEG")
    for name in ("3.HEIC", "4.mov", "5.3gp", "6.X3F", "notes.txt"):
        (tmp_path / "in" / name).touch()
    for name in ("more", ".hidden"):
        (tmp_path / "in" / name).mkdir()
    code, said = command("in", "out")
    unread = "1 .3gp, 1 .heic, 1 .mov, 1 .x3f, 1 folder"
    assert (code, f"in: not read: {unread}; convert" in said) == (0, True), said
    assert sorted(os.listdir("out")) == ["0.jpg", "1.jfif", "2.JPE"]
    code, said = command("in", "--out-dir=each", "--single")
    assert (code, said.count("not read")) == (0, 1), said
    code, said = command("in/[0-3]*", "some")
    assert (code, "in/[0-3]*: not read: 1 .heic; convert" in said) == (0, True), said


@pytest.mark.parametrize("target", ["frames", "out.mkv", "-"])
def test_hdr_stays_tagged_or_is_said(target, command, monkeypatch, tmp_path):
    """As phones film, HLG: without a tag it looks washed out everywhere."""
    with av.open("in.mkv", "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p10le"
        context = video.codec_context
        context.color_range, context.colorspace = 1, 9
        context.color_primaries, context.color_trc = 9, 18
        for frame in pictures(2):
            frame = av.VideoFrame.from_ndarray(frame, "rgb24")
            out.mux(video.encode(frame.reformat(format="yuv420p10le")))
        out.mux(video.encode(None))
    if target == "-":
        with open("raw", "wb") as file:
            monkeypatch.setattr(
                sys,
                "stdout",
                types.SimpleNamespace(fileno=file.fileno, isatty=lambda: False, flush=lambda: None),
            )
            code, said = command("in.mkv", target)
        assert (code, "not kept: colour: BT.2020 HLG (raw frames" in said) == (0, True), said
        return
    code, said = command("in.mkv", target, "--compare=both.webp")
    lost = "both.webp: not kept: colour: BT.2020 HLG (not supported by .webp)"
    assert (code, said.count("not kept"), lost in said) == (0, 1, True), said
    with av.open("frames/000001.png" if target == "frames" else target) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.color_primaries), int(frame.color_trc)) == (9, 18)
    if target == "frames":  # and from images back to a video
        assert command("frames", "again.mp4", "--codec=libx265")[0] == 0
        with av.open("again.mp4") as container:
            frame = next(container.decode(video=0))
            found = (frame.colorspace, frame.color_primaries, frame.color_trc)
            assert tuple(map(int, found)) == (9, 9, 18)


def test_fps_is_of_images_and_raw_streams_beside_other_videos(command, tmp_path):
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(pictures(3)):
        Image.fromarray(frame).save(f"frames/{number}.png")
    make_video(tmp_path / "raw.h264", codec="libx264", pixel_format="yuv420p")
    make_video(tmp_path / "in.mp4", codec="libx264", pixel_format="yuv420p")
    code, said = command("raw.h264", "in.mp4", "frames", "--out-dir=out", "--fps=60")
    assert code == 0, said
    rates = []
    for name in ("raw.mkv", "in.mp4"):
        with av.open(f"out/{name}") as container:
            rates.append(container.streams.video[0].average_rate)
    assert rates == [60, 25]


@pytest.mark.parametrize("paths", [False, True])
def test_threads_are_added_for_blur_paths_alone(paths, command, monkeypatch, tmp_path):
    added = []
    monkeypatch.setattr("jaxdeblur.devices.add_threads", lambda: added.append(1))
    if paths:
        monkeypatch.setattr("jaxdeblur.weights.load.runs_paths", lambda name: True)
    make_video(tmp_path / "in.mkv", 2)
    assert command("in.mkv", "out.mkv")[0] == 0
    assert bool(added) == paths


def test_notes_of_the_source_are_said(command, monkeypatch, tmp_path):
    make_video(tmp_path / "in.mkv")
    monkeypatch.setattr(VideoReader, "notes", ["the note"], raising=False)
    monkeypatch.setattr(
        VideoReader,
        "__setattr__",
        lambda self, name, value: name == "notes" or object.__setattr__(self, name, value),
    )
    code, said = command("in.mkv", "out.mkv")
    assert (code, said.count("in.mkv: the note\n")) == (0, 1), said


def test_an_empty_folder_is_not_done(command, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    (tmp_path / "out").mkdir()
    assert command("in.mkv", "out", "--skip-done")[0] == 0
    assert len(os.listdir("out")) == 2


def test_from_frames_to_video_and_back(command, tmp_path):
    make_video(tmp_path / "in.mp4", codec="libx264", pixel_format="yuv420p")
    assert command("in.mp4", "frames")[0] == 0
    assert sorted(os.listdir("frames")) == [f"{i:06}.png" for i in range(1, 6)]
    assert command("frames", "out.mp4", "--fps=29.97")[0] == 0
    with av.open("out.mp4") as container:
        video = container.streams.video[0]
        assert (video.frames, video.average_rate) == (5, Fraction(30000, 1001))
        assert video.codec_context.pix_fmt == "yuv420p"
    assert command("frames/00000[12].png", "two.mkv")[0] == 0
    assert len(rgb_of(Path("two.mkv"))) == 2


def test_one_input_without_memory_does_not_end_the_others(command, monkeypatch, tmp_path):
    for name in ("a.mkv", "large.mkv", "z.mkv"):
        make_video(tmp_path / name, 3)
    flush = Stream.flush

    def out_of_memory(self):
        if not (tmp_path / "out" / "a.mkv").exists() or (tmp_path / "tried").exists():
            return flush(self)
        (tmp_path / "tried").touch()
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(Stream, "flush", out_of_memory)
    code, said = command("a.mkv", "large.mkv", "z.mkv", "--out-dir=out")
    assert (code, "not enough memory: RESOURCE_EXHAUSTED: Out of memory" in said) == (75, True)
    assert said.endswith("1 of 3 inputs could not be restored: large.mkv\n")
    assert sorted(os.listdir("out")) == ["a.mkv", "z.mkv"]


def test_many_inputs_into_a_folder_and_only_once(command, tmp_path):
    for name in ("a.mkv", "b.mp4"):
        codec = ("ffv1", "bgr0") if name == "a.mkv" else ("libx264", "yuv420p")
        make_video(tmp_path / name, 3, *codec)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    code, said = command("a.mkv", "b.mp4", "bad.mp4", "--out-dir=out")
    assert code == 2
    assert "bad.mp4: not a readable video" in said
    assert said.endswith("1 of 3 inputs could not be restored: bad.mp4\n")
    assert sorted(os.listdir("out")) == ["a.mkv", "b.mp4"]
    code, said = command("a.mkv", "misspelt.mkv", "--out-dir=other")
    assert (code, "misspelt.mkv: no such file" in said) == (2, True)
    assert not os.path.exists("other")  # nothing is restored unless all inputs exist
    before = {name: os.stat(f"out/{name}").st_mtime_ns for name in os.listdir("out")}
    code, said = command("*.mkv", "b.mp4", "--out-dir=out", "--skip-done")
    assert (code, "nothing left" in said) == (0, True)
    again = command("*.mkv", "b.mp4", "--out-dir=out", "--skip-done", "--quiet")
    assert again == (0, "")
    assert before == {name: os.stat(f"out/{name}").st_mtime_ns for name in os.listdir("out")}


def test_a_folder_may_be_named_by_its_place(command, tmp_path, monkeypatch):
    (tmp_path / "frames/inside").mkdir(parents=True)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "frames/1.png")
    monkeypatch.chdir(tmp_path / "frames/inside")
    code, said = command("..", f"--out-dir={tmp_path / 'out'}")
    assert code == 0, said
    assert (tmp_path / "out/frames/1.png").is_file()


def test_nobody_needs_to_read_what_it_says(weights, tmp_path):
    """As after ``2>&1 | head -1``: the command continues."""
    Image.fromarray(pictures(1)[0]).convert("RGBA").save(tmp_path / "in.png")
    begun = [sys.executable, str(ROOT / "deblur.py"), "in.png", "out.mp4", f"--ckpt={weights}"]
    process = subprocess.Popen(begun, cwd=tmp_path, stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert rgb_of(tmp_path / "out.mp4").shape == (1, 24, 32, 3)


def test_a_folder_may_have_a_dot_in_its_name(command, tmp_path):
    for name in ("2024.05.01", "take.mp4"):
        (tmp_path / name).mkdir()
        Image.fromarray(pictures(1)[0]).save(tmp_path / name / "1.png")
    code, said = command("2024.05.01", "take.mp4", "--out-dir=out")
    assert code == 0, said
    assert sorted(map(str, Path("out").glob("*/*"))) == [
        "out/2024.05.01/1.png",
        "out/take.mp4/1.png",
    ]
    assert command("take.mp4", "take.sharp/")[0] == 0
    assert os.listdir("take.sharp") == ["1.png"]


def test_compare_shows_before_and_after(command, weights, tmp_path):
    make_video(tmp_path / "in.mkv")
    Path("both.mkv").write_bytes(b"of another start")
    code, said = command("in.mkv", "out.mkv", "--compare=both.mkv", "--overwrite")
    assert code == 0, said
    both, before, after = rgb_of(Path("both.mkv")), pictures(5), rgb_of(Path("out.mkv"))
    assert both.shape == (5, 24, 64, 3)
    np.testing.assert_array_equal(both[:, :, :32], before)
    np.testing.assert_array_equal(both[:, :, 32:], after)


def test_sound_after_the_last_frame_is_kept_beside_a_comparison(command, tmp_path):
    with av.open("in.mkv", "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "bgr0"
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for pixels in pictures(2):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="bgr0")
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        silence.rate = 8000
        out.mux([*sound.encode(silence), *sound.encode(None)])
    code, said = command("in.mkv", "out.mkv", "--compare=both.mkv")
    assert (code, "audio" in said) == (0, False), said

    def samples(name: str) -> int:
        with av.open(name) as container:
            return sum(packet.size for packet in container.demux(audio=0))

    assert samples("out.mkv") == samples("in.mkv") == 16000


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("source", ["in.mkv", "frames", "frames/0.png"])
def test_compare_makes_an_animation(source, suffix, command, tmp_path):
    """Black and white frames at strength 0, so that both sides are known."""
    (tmp_path / "frames").mkdir()
    for i in range(3):
        frame = np.full((48, 400, 3), 255 * (i % 2), np.uint8)
        Image.fromarray(frame).save(tmp_path / f"frames/{i}.png")
    assert command("frames", "in.mkv", "--fps=10", "--strength=0")[0] == 0
    out = "out.png" if source.endswith(".png") else "out"
    options = [] if source.endswith(".mkv") or out == "out.png" else ["--fps=10"]
    code, said = command(source, out, f"--compare=both{suffix}", "--strength=0", *options)
    assert code == 0, said
    with Image.open(f"both{suffix}") as animation:
        count = 1 if out == "out.png" else 3
        assert getattr(animation, "n_frames", 1) == count
        for i in range(count):
            animation.seek(i)
            shown = np.asarray(animation.convert("RGB"))
            assert shown.shape == (round(48 * MAX_WIDTH / 800), MAX_WIDTH, 3)
            assert np.abs(shown[-5:].astype(int) - 255 * (i % 2)).max() < 20
            if count > 1:
                assert animation.info["duration"] == 100


def test_result_and_comparison_get_the_codec_and_the_quality(command, monkeypatch, tmp_path):
    make_video(tmp_path / "in.mkv", 1)
    asked = []

    class Noted(VideoWriter):
        def __init__(self, *given, codec, crf, **rest):
            asked.append((codec, crf))
            if len(asked) == 2:
                raise UserError("enough: nothing needs to be restored")
            super().__init__(*given, codec=codec, crf=crf, **rest)

    monkeypatch.setattr(restore, "VideoWriter", Noted)
    options = ("--compare=both.mkv", "--codec=libx264", "--crf=40")
    assert "enough" in command("in.mkv", "out.mkv", *options)[1]
    assert asked == [("libx264", 40)] * 2


@pytest.mark.parametrize("degrees", [-90, 90, 180])
def test_compare_shows_the_input_on_the_left_whichever_way_it_is_turned(degrees, command, tmp_path):
    make_turned_video(tmp_path / "in.mkv", degrees)
    assert command("in.mkv", "out.mkv")[0] == 0
    assert command("in.mkv", "x.mkv", "--compare=both.mkv")[0] == 0
    assert command("both.mkv", "shown", "--strength=0")[0] == 0  # as players turn it
    assert command("in.mkv", "before", "--strength=0")[0] == 0
    assert command("out.mkv", "after", "--strength=0")[0] == 0
    shown, before, after = (
        np.asarray(Image.open(f"{name}/000001.png")) for name in ("shown", "before", "after")
    )
    np.testing.assert_array_equal(shown, np.concatenate([before, after], axis=1))
    assert np.any(before != after)


def test_strength_0_gives_the_input_back_bit_for_bit(command, tmp_path):
    make_video(tmp_path / "in.mkv", pixel_format="yuv420p10le")
    assert command("in.mkv", "out.mkv", "--strength=0")[0] == 0
    with VideoReader("in.mkv") as before, VideoReader("out.mkv") as after:
        for one, other in zip(before, after, strict=True):
            for a, b in zip(one.planes, other.planes, strict=True):
                np.testing.assert_array_equal(a, b)


def test_tiles_and_start_and_duration(command, tmp_path):
    make_video(tmp_path / "in.mkv", 8)
    code, said = command("in.mkv", "whole.mkv", "--start=0.08", "--duration=0.16", "--tile=none")
    assert code == 0, said
    code, said = command("in.mkv", "tiles.mkv", "--start=0.08", "--duration=0.16", "--tile=8x16")
    assert (code, "to fit the free memory" in said) == (0, False)
    whole, tiles = rgb_of(Path("whole.mkv")), rgb_of(Path("tiles.mkv"))
    assert len(whole) == 4
    assert np.abs(whole.astype(int) - tiles).max() <= 1


def test_a_part_may_be_given_as_the_clock_shows_it(command, tmp_path):
    make_video(tmp_path / "in.mkv", 8)
    for name, part in {
        "one": ["--start=0.08", "--end=0.24"],
        "two": ["--start=0:00.08", "--duration=00:00:00.16"],
    }.items():
        code, said = command("in.mkv", f"{name}.mkv", "--strength=0", *part)
        assert code == 0, said
        np.testing.assert_array_equal(rgb_of(Path(f"{name}.mkv")), pictures(8)[2:6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.mp4", "out.mp4"], "missing.mp4: no such file"),
        (["nothing*.mp4", "out.mp4"], "no file matches this pattern"),
        (["n" * 300 + ".mp4", "out.mp4"], "no such file"),
        (["in.mkv", "in.mkv"], "in.mkv: is also the input"),
        (["loop.mp4", "out.mp4"], "no such file"),
        (["*/1.png", "out"], "images of the same name"),
        (["in.mkv", "no/where/out.mkv"], "no/where does not exist"),
        (["in.mkv", "misspelt/out.mkv"], "out.mkv: the folder misspelt does not exist"),
        (["in.mkv", "misspelt/frames"], "frames: the folder misspelt does not exist"),
        (["in.mkv", "out.txt"], "unsupported output format"),
        (["in.mkv", "out.png"], "an image cannot hold a video"),
        (["in.mkv", "full"], "the folder is not empty; name a new one (--overwrite replaces"),
        (["full/*.png", "full", "--overwrite"], "full: is also the input"),
        (["full/1.png", "full", "--overwrite"], "full: is also the input"),
        (["pipe", "out.mkv"], "pipe: is a pipe; give - as INPUT"),
        (["/dev/null", "out.mkv"], "/dev/null: is a device; give a file, camera:0, or -"),
        (["https://host/in.mp4", "out.mkv"], "https://host/in.mp4: is an address; download"),
        (["in.mkv", "s3://bucket/out.mkv"], "OUTPUT=s3:/bucket/out.mkv: an address, not a local"),
        (["in.mkv", "--out-dir=gs://bucket/out"], "--out-dir=gs:/bucket/out: an address"),
        (["in.mkv", "out.mkv", "--compare=s3://b/x.mp4"], "--compare=s3:/b/x.mp4: an address"),
        (["picture.jxl", "out.png"], "picture.jxl: JXL is not supported; convert it to PNG or"),
        (["light.exr", "out.png"], "light.exr: EXR is not supported; convert it to PNG or"),
        (["photos", "out"], "photos: contains no images ("),
        (["photos", "out"], "), but 1 .dng, 2 .heic, 1 .mov, not read from a folder"),
        (["in.mkv", "mine.mkv"], "mine.mkv: already exists (--overwrite replaces it)"),
        (["in.mkv", "--out-dir=full"], "in.mkv: already exists (--overwrite replaces it)"),
        (["in.mkv", "out.mkv", "--compare=mine.mkv"], "--compare=mine.mkv: already exists ("),
        (["empty", "out"], "empty: contains no images ("),
        (["photo.HEIC", "out.png"], "photo.HEIC: HEIC is not supported; convert it to PNG or"),
        (["*.HEIC", "out.png"], "photo.HEIC: HEIC is not supported; convert it to PNG or"),
        (["in.mkv"], "give an OUTPUT"),
        (["in.mkv", "in.mkv", "out.mkv"], "need --out-dir"),
        (["in.mkv", "full/../in.mkv", "--out-dir=out"], "several inputs would be written to"),
        (["in.mkv", "--out-dir=no/where/at/all"], "parent folder does not exist"),
        (["-", "out.mkv"], "--size=WIDTHxHEIGHT"),
        (["in.mkv", "out.mkv", "--strength=2"], "--strength must be 0 to 1, not 2.0"),
        (["in.mkv", "out.mkv", "--tile=big"], "--tile=big"),
        (["in.mkv", "out.mkv", "--start=-1"], "--start must be 0 or more and below"),
        (["in.mkv", "out.mkv", "--start=99"], "contains no frames at --start=99"),
        (["in.mkv", "out.mkv", "--duration=0"], "--duration must be above 0"),
        (["in.mkv", "out.mkv", "--start=1:x"], "--start: '1:x' is not a time; give seconds"),
        (["in.mkv", "out.mkv", "--start=2", "--end=0:02"], "--end must be after --start=2, not 2"),
        (["in.mkv", "out.mkv", "--end=1", "--duration=1"], "give one of them"),
        (["in.mkv", "out.mkv", "--size=axb"], "--size=axb"),
        (["in.mkv", "out.mkv", "--crf=99"], "--crf must be 0"),
        (["in.mkv", "out.mkv", "--fps=0"], "--fps must be 0.01 to 10000"),
        (["in.mkv", "out.mkv", "--codec=nonsense"], "no encoder of video for matroska"),
        (["in.mkv", "frames", "--codec=libx264"], "--codec and --crf apply to videos"),
        (["in.mkv", "out.mkv", "--max-pixels=700"], "exceed --max-pixels"),
        (["in.mkv", "out.mkv", "--compare=in.mkv"], "is also the input or output"),
        (["in.mkv", "out.mkv", "--compare=x.png"], "must be a video or an animation (.mp4"),
        (["in.mkv", "out", "--compare=x.gif", "--crf=9"], "--codec and --crf apply to videos"),
        (["camera:0", "--out-dir=out"], "a camera has no file name for --out-dir"),
        (["in.mkv", "out.mkv", "--fps=5"], "--fps applies to images, pipes, cameras and raw"),
        (["in.mkv", "out.mkv", "--size=32x24"], "--size applies to pipes"),
        (["in.mkv", "-", "--codec=libx264"], "apply to videos, but - is not one"),
        (["full", "empty", "--compare=empty/both.mkv"], "is inside the output folder"),
        (["full", "out", "--duration=1"], "--end and --duration also to cameras"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(options, message, command, tmp_path):
    source = make_video(tmp_path / "in.mkv", 3)
    before = source.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "full" / "1.png")
    shutil.copytree(tmp_path / "full", tmp_path / "other")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "photos").mkdir()
    unread = ["a.HEIC", "b.heic", "c.mov", "d.dng", "notes.txt", ".hidden.heic"]
    for name in ("photo.HEIC", "picture.jxl", "light.exr", *(f"photos/{name}" for name in unread)):
        (tmp_path / name).write_bytes(b"a photo")
    for name in ("mine.mkv", "full/in.mkv"):
        (tmp_path / name).write_bytes(b"mine")
    names = sorted(os.listdir(tmp_path))
    code, said = command(*options)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1, said
    assert source.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names


def test_a_long_wait_before_the_first_frame_is_explained_and_counted(
    command, monkeypatch, tmp_path
):
    make_video(tmp_path / "in.mkv", 2)
    compile_, wait = Deblurrer.compile, 0.5

    def slow(*arguments):
        time.sleep(wait)
        return compile_(*arguments)

    monkeypatch.setattr(Deblurrer, "compile", slow)
    assert wait < restore._LONG_S
    monkeypatch.setattr(restore, "_LONG_S", 60)  # the machine may be busy
    code, said = command("in.mkv", "out.mkv", "--strength=0")
    assert (code, "compiling" in said) == (0, False), said
    monkeypatch.setattr(restore, "_LONG_S", 0.1)
    code, said = command("in.mkv", "out.mkv", "--strength=0", "--overwrite")
    assert (code, said.count("in.mkv: compiling for 32x24")) == (0, 1), said
    assert float(re.search(r"first after ([\d.]+) s", said)[1]) >= wait
    code, said = command("in.mkv", "out.mkv", "--strength=0", "--quiet", "--overwrite")
    assert (code, said) == (0, "")


def test_weights_that_do_not_exist(command, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    code, said = command("in.mkv", "out.mkv", "--ckpt=nowhere", ckpt=False)
    assert (code, said.count("\n")) == (2, 1)


@pytest.mark.parametrize("grey", [0, 1])
def test_one_grey_image_among_others_becomes_rgb(grey, command, tmp_path):
    (tmp_path / "in").mkdir()
    frames = pictures(3)
    frames[grey] = frames[grey, ..., :1]
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame[..., 0] if i == grey else frame)
        profile = {"icc_profile": b"of grey"} if i == grey else {}
        image.save(tmp_path / "in" / f"{i}.png", **profile)
    code, said = command("in", "out", "--strength=0")
    assert code == 0, said
    for i, frame in enumerate(frames):
        with Image.open(f"out/{i}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), frame)
            assert "icc_profile" not in image.info
    assert command("in", "out.mov", "--codec=png", "--strength=0")[0] == 0
    np.testing.assert_array_equal(rgb_of(Path("out.mov")), frames)


@pytest.mark.parametrize("opaque", [0, 1])
def test_an_image_without_alpha_among_others_is_opaque(opaque, command, tmp_path):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(pictures(3)):
        image = Image.fromarray(frame)
        if i != opaque:
            image.putalpha(100)
        image.save(tmp_path / "in" / f"{i}.png")
    code, said = command("in", "out", "--strength=0")
    assert (code, "not kept" in said) == (0, False), said
    for i in range(3):
        with Image.open(f"out/{i}.png") as image:
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == (255 if i == opaque else 100)
    assert command("in", "out.mov", "--codec=png")[0] == 0
    with av.open("out.mov") as container:
        alphas = [f.to_ndarray(format="rgba")[0, 0, 3] for f in container.decode(video=0)]
    assert alphas == [255 if i == opaque else 100 for i in range(3)]


def test_other_bits_and_another_size_are_said_before_anything_is_restored(
    command, monkeypatch, tmp_path
):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(pictures(3)):
        Image.fromarray(frame).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(pictures(1)[0, ..., 0].astype(np.uint16)).save(tmp_path / "in" / "1.png")
    monkeypatch.setattr(Deblurrer, "compile", None)  # it is never called
    code, said = command("in", "out")
    assert (code, "1.png: 32x24 pixels of 16 bits, but 0.png has 32x24 of 8;" in said) == (
        2,
        True,
    ), said
    Image.fromarray(pictures(1)[0]).save(tmp_path / "in" / "1.png")
    Image.fromarray(pictures(1, 16)[0]).save(tmp_path / "in" / "2.png")
    code, said = command("in", "out")
    assert (code, "2.png: 32x16 pixels of 8 bits, but 0.png has 32x24" in said) == (2, True), said


def test_a_damaged_frame_or_another_size_leaves_the_old_output(command, tmp_path):
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(pictures(3)):
        Image.fromarray(frame).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "out.mkv").write_bytes(b"old")
    Image.fromarray(pictures(1, 16)[0]).save(tmp_path / "in" / "2.png")
    code, said = command("in", "out.mkv", "--overwrite")
    assert (code, "2.png: 32x16 pixels of 8 bits, but 0.png has 32x24" in said) == (2, True)
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:60])
    code, said = command("in", "out.mkv", "--overwrite")
    assert (code, "2.png: not a readable image" in said) == (2, True)
    assert (tmp_path / "out.mkv").read_bytes() == b"old"
    assert not left_overs(tmp_path)


@pytest.mark.parametrize("output", ["out.mkv", "out"])
def test_ctrl_c_leaves_no_part_and_the_old_output(output, command, monkeypatch, tmp_path):
    make_video(tmp_path / "in.mkv", 6)
    (tmp_path / "out.mkv").write_bytes(b"old")
    push, pushed = Stream._push, []

    def interrupted(self, planes, at):
        pushed.append(1)
        if len(pushed) == 4:
            raise KeyboardInterrupt
        return push(self, planes, at)

    monkeypatch.setattr(Stream, "_push", interrupted)
    code, said = command("in.mkv", output, "--overwrite")
    assert (code, "interrupted" in said) == (130, True)
    assert (tmp_path / "out.mkv").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out.mkv"]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limits files to ``size`` bytes, which to a program looks like a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [3000, 40000])
def test_a_full_disk_is_one_line_and_the_old_output_stays(size, command, tmp_path):
    make_video(tmp_path / "in.mkv", 30)
    (tmp_path / "out.mkv").write_bytes(b"old")
    assert command("in.mkv", "other.mkv")[0] == 0
    assert (tmp_path / "other.mkv").stat().st_size > size, "the disk would not have been full"
    with files_up_to(size):
        code, said = command("in.mkv", "out.mkv", "--quiet", "--overwrite")
    assert (code, "out.mkv: cannot be written: File too large" in said) == (2, True), said
    assert len(said.strip().splitlines()) == 1, said
    assert (tmp_path / "out.mkv").read_bytes() == b"old"
    assert not left_overs(tmp_path)


class Pipes:
    """Stand-ins for standard input, which gives bytes, and output, which keeps what it gets."""

    def __init__(self, data: bytes):
        self._in, feed = os.pipe()
        drain, self._out = os.pipe()
        self.got = b""
        self._threads = [
            threading.Thread(target=self._feed, args=(feed, data)),
            threading.Thread(target=self._drain, args=(drain,)),
        ]

    def _feed(self, end: int, data: bytes) -> None:
        with open(end, "wb") as file:
            file.write(data)

    def _drain(self, end: int) -> None:
        with open(end, "rb") as file:
            self.got = file.read()

    def __enter__(self) -> Pipes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        for thread in self._threads:
            thread.join()
        os.close(self._in)

    def use(self, monkeypatch) -> None:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(fileno=lambda: self._in))
        monkeypatch.setattr(
            sys, "stdout", types.SimpleNamespace(fileno=lambda: self._out, isatty=lambda: False)
        )


def test_pipes_carry_raw_frames(command, weights, monkeypatch):
    clip = pictures(4)
    with Pipes(clip.tobytes()) as pipes, monkeypatch.context() as patched:
        pipes.use(patched)
        code, said = command("-", "-", "--size=32x24", "--fps=24")
    assert code == 0, said
    restored = np.frombuffer(pipes.got, np.uint8).reshape(clip.shape)
    assert np.abs(restored.astype(int) - expected(weights, clip)).max() <= 1


def test_raw_frames_are_kept_from_a_terminal(command, monkeypatch, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", types.SimpleNamespace(isatty=lambda: True))
        code, said = command("in.mkv", "-")
    assert (code, "-: standard output is a terminal" in said) == (2, True), said


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "deblur.py"])
def test_a_python_without_the_packages_is_one_line(script, tmp_path):
    # -S -I: without site-packages.
    given = {"train.py": [], "evaluate.py": ["--ckpt=x"], "deblur.py": [__file__, "out.mkv"]}
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = {given[script]!r}; "
        f"runpy.run_path({str(ROOT / script)!r}, {{}}, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
    assert "run `make install` once, then use .venv/bin/python" in done.stderr
    assert done.stderr.removeprefix("loading JAX ...\n").count("\n") == 1


def test_a_pipe_that_is_full_is_one_line(weights, tmp_path):
    make_video(tmp_path / "in.mkv", 2)
    done = subprocess.run(
        f"{sys.executable} {ROOT / 'deblur.py'} --quiet --ckpt={weights} in.mkv - > /dev/full",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    message = "deblur.py: error: -: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (75, message)  # not the video's fault


@pytest.mark.parametrize(("cut", "message"), [(100, "ends within frame 3"), (None, "no frames")])
def test_a_pipe_that_ends_too_soon(cut, message, command, monkeypatch, tmp_path):
    data = pictures(4).tobytes()[:-cut] if cut else b""
    with Pipes(data) as pipes, monkeypatch.context() as patched:
        pipes.use(patched)
        code, said = command("-", "out.mkv", "--size=32x24")
    assert (code, message in said) == (2, True), said
    assert os.listdir(tmp_path) == []


class Result:
    """A stand-in for an array on the device: reading it waits for the device."""

    def __init__(self, plane: np.ndarray, happened: list[str]):
        self._plane, self._happened = plane, happened

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self._happened.append(f"read {self._plane[0]}")
        return self._plane


class Delayed(Stream):
    """A stand-in for a network with a look-ahead of one frame; records the order of events."""

    opening = 0

    def __init__(self, before_push: Callable[[int], object] = lambda number: None):
        self.happened: list[str] = []
        self._before_push = before_push
        self._waiting: list[np.ndarray] = []

    def restore(self, frames: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[Result, ...]]:
        for planes in frames:
            self._before_push(planes[0][0])
            self._waiting.append(planes[0])
            self.happened.append(f"push {planes[0][0]}")
            if len(self._waiting) > 1:
                yield self._restored()
        yield from self.flush()

    def flush(self) -> Iterator[tuple[Result, ...]]:
        while self._waiting:
            yield self._restored()

    def _restored(self) -> tuple[Result, ...]:
        return (Result(self._waiting.pop(0), self.happened),)


def numbered(number: int) -> Picture:
    return Picture((np.full(1, number, np.uint8),))


def test_of_a_slow_camera_each_frame_comes_with_the_look_ahead():
    """Not one frame later: the camera gives the next only after the frame due is written."""
    written = [threading.Event() for _ in range(4)]
    came = []

    def camera():
        for number in range(4):
            if number > 1:
                came.append(written[number - 2].wait(5))
            yield numbered(number)

    for _, planes in in_stages(camera(), Delayed()):
        written[planes[0][0]].set()
    assert all(each.is_set() for each in written)
    assert came == [True, True]


def test_where_frames_come_fast_the_next_is_queued_before_a_result_is_read():
    """Except for the first, which someone waits for."""
    ready = [threading.Event() for _ in range(6)]

    def file():
        for number, event in enumerate(ready):
            yield numbered(number)
            event.set()  # whoever takes the next frame has queued this one

    network = Delayed(lambda number: number and ready[min(number + 1, 5)].wait(20))
    assert len(list(in_stages(file(), network))) == 6
    happened = network.happened.index
    assert happened("read 0") < happened("push 2")
    for number in range(1, 4):
        assert happened(f"push {number + 2}") < happened(f"read {number}")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.stress)]
)
def test_a_signal_stops_a_command_that_waits_for_its_pipe(number, weights, tmp_path, request):
    """As from a batch system or a closed terminal: no part file, and the old output untouched."""
    # Under nohup the command would inherit, and respect, that SIGHUP is ignored.
    request.addfinalizer(functools.partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, signal.SIG_DFL)
    (tmp_path / "out.mkv").write_bytes(b"old")
    command = [
        sys.executable,
        str(ROOT / "deblur.py"),
        "-",
        "out.mkv",
        "--size=32x24",
        "--overwrite",
    ]
    with subprocess.Popen(
        [*command, f"--ckpt={weights}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.stdin.write(pictures(1).tobytes())
        process.stdin.flush()
        deadline = time.monotonic() + 120
        while not left_overs(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left_overs(tmp_path), "the command did not begin to write"
        process.send_signal(number)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # a terminal sends several
            time.sleep(0.02)
            process.send_signal(number)
        process.wait(timeout=10)
    assert process.returncode == 130
    assert (tmp_path / "out.mkv").read_bytes() == b"old"
    assert not left_overs(tmp_path)


def test_ctrl_c_in_the_middle_of_a_video_leaves_the_old_output(weights, tmp_path, request):
    request.addfinalizer(
        functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
    )
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs have it ignored
    make_video(tmp_path / "in.mkv", 3000)
    (tmp_path / "out.mkv").write_bytes(b"old")
    with subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "deblur.py"),
            "in.mkv",
            "out.mkv",
            "--overwrite",
            f"--ckpt={weights}",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline, written = time.monotonic() + 120, 0
        while written < 20_000 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            with contextlib.suppress(FileNotFoundError):
                written = sum((tmp_path / name).stat().st_size for name in left_overs(tmp_path))
        assert written >= 20_000, "no frame was written"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.endswith("deblur.py: interrupted\n")
    assert (tmp_path / "out.mkv").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in.mkv", "out.mkv"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission_is_one_line(command, tmp_path):
    source = make_video(tmp_path / "in.mkv", 2)
    (tmp_path / "out").mkdir(mode=0o500)
    code, said = command("in.mkv", "out/x.mkv")
    assert (code, "Permission denied" in said) == (2, True)
    source.chmod(0)
    code, said = command("in.mkv", "x.mkv")
    assert (code, "Permission denied" in said) == (2, True)


def test_no_permission_as_the_system_says_it(command, monkeypatch, tmp_path):
    """The same for root, whom permissions do not stop."""
    make_video(tmp_path / "in.mkv", 2)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    opened = os.open
    monkeypatch.setattr(
        "os.open", lambda path, *a, **k: (refuse if ".part" in str(path) else opened)(path, *a, **k)
    )
    code, said = command("in.mkv", "x.mkv")
    assert (code, "x.mkv: cannot be written: Permission denied" in said) == (2, True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Exception, match="Permission denied"):
        VideoReader("in.mkv")


def test_an_image_that_is_newer_than_the_result_is_not_done(tmp_path):
    """In a folder the newest image counts: if it was replaced, it must be restored again."""
    images = tuple(tmp_path / f"{i}.png" for i in range(2))
    for path, time_of_change in zip((*images, tmp_path / "out.mkv"), (100, 300, 200), strict=True):
        path.write_bytes(b"x")
        os.utime(path, (time_of_change, time_of_change))
    job = Job("images", images, tmp_path / "out.mkv", "in")
    assert not job.is_done
    os.utime(images[1], (200, 200))  # equal times, as from a coarse clock: perhaps newer
    assert not job.is_done
    os.utime(images[1], (150, 150))
    assert job.is_done


def test_a_video_whose_format_cannot_be_written_becomes_matroska(tmp_path):
    for name in ("old.flv", "new.mp4"):
        (tmp_path / name).write_bytes(b"x")
    paths = [str(tmp_path / "old.flv"), str(tmp_path / "new.mp4")]
    jobs = plan(paths, DeblurConfig(out_dir=str(tmp_path / "out")))
    assert [job.output.name for job in jobs] == ["old.mkv", "new.mp4"]


def test_progress_tells_the_rate_and_the_time_left(monkeypatch, capsys):
    """Neither counts the first frame, for which the network is compiled."""
    now = 0.0
    monkeypatch.setattr(console, "time", types.SimpleNamespace(monotonic=lambda: now))
    for quiet in (False, True):
        now = 0.0
        progress = ProgressLine("in.mkv", 7411, quiet=quiet)
        for at, done in ((100.0, 1), (102.0, 5), (120.0, 11)):
            now = at
            progress.update(done)
        said = capsys.readouterr().err.splitlines()
        rate = "in.mkv: 11/7411 frames  0.50 frames/s  4:06:40 left"
        assert said == ([] if quiet else ["in.mkv: 1/7411 frames", rate])


def test_a_closed_stderr_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run_command(lambda: ProgressLine("in.mp4", 1, eager=True).update(1), "deblur.py")
    sys.stderr.close()


def test_a_current_folder_that_is_gone_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: None, "deblur.py")
    said = capsys.readouterr().err
    assert said == "deblur.py: error: the current folder no longer exists; change to another\n"


def test_only_a_job_that_is_done_may_find_its_output_there(tmp_path):
    """--skip-done does not imply --overwrite: an older output may be anything."""
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    for path, time_of_change in ((source, 200), (output, 100)):
        path.write_bytes(b"x")
        os.utime(path, (time_of_change, time_of_change))
    wanted = [str(source), str(output)]
    with pytest.raises(UserError, match="exists"):
        plan(wanted, DeblurConfig(skip_done=True))
    assert plan(wanted, DeblurConfig(overwrite=True))[0].output == output
    os.utime(output, (300, 300))
    assert plan(wanted, DeblurConfig(skip_done=True))[0].is_done
    with pytest.raises(UserError, match="exists"):
        plan(wanted, DeblurConfig())


def test_images_with_alpha_become_a_video_that_has_none(command, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(2):
        with_alpha = np.dstack([pictures(1)[0], np.full((24, 32), 99, np.uint8)])
        Image.fromarray(with_alpha).save(f"in/{number}.png")
    code, said = command("in", "out.mp4", "--strength=0")
    assert (code, "in: not kept: alpha (not supported with libx264)" in said) == (0, True), said
    assert len(rgb_of(Path("out.mp4"))) == 2
    code, said = command("in", "other.mp4", "--strength=0", "--codec=prores")
    assert (code, "--codec=prores: no encoder of video for mp4" in said) == (2, True), said
