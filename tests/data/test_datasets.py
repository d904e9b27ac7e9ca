"""Data sets on disk: every layout opens, all errors are named at once, frames are packed once."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from jaxdeblur.data import videos as videos_module
from jaxdeblur.data.batches import ClipOptions, batches
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.layouts import DVD_TEST_VIDEOS, resolve
from jaxdeblur.data.videos import (
    ArrayFile,
    FrameFiles,
    HighSpeedVideo,
    PairedVideo,
    Video,
    pack_dataset,
)
from jaxdeblur.errors import UserError
from jaxdeblur.video.image_file import read_image, write_png


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of packed frames for each test."""
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def write(root: Path, folders: dict[str, int], size: tuple[int, int] = (16, 20)) -> None:
    """Writes the given number of frames, all different, into each folder."""
    rng = np.random.default_rng(abs(hash(tuple(folders))) % 2**32)
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            write_png(
                root / folder / f"{index:06d}.png", rng.integers(0, 256, (*size, 3), np.uint8)
            )


def names(dataset) -> list[str]:
    return [video.name for video in dataset.videos]


GOPRO = {
    f"{split}/GOPR{n}/{kind}": 3
    for split, n in [("train", 1), ("train", 10), ("train", 2), ("test", 3)]
    for kind in ("blur", "blur_gamma", "sharp")
}
DVD = {
    f"quantitative_datasets/{v}/{k}": 2 for v in ("IMG_0001", "IMG_0003") for k in ("input", "GT")
}
BSD = {
    f"{split}/{v}/{k}/RGB": 2
    for split, v in [("train", "000"), ("valid", "010"), ("test", "020")]
    for k in ("Blur", "Sharp")
}
REDS = {
    f"{s}/{s}_{k}/{v}": 2
    for s, v in [("train", "000"), ("train", "001"), ("val", "000")]
    for k in ("blur", "blur_comp", "sharp")
}
PAIRS = {f"{k}/{v}": 2 for k in ("blur", "sharp") for v in ("a", "b")}
HIGH_SPEED = {"TEST01_003": 12, "TEST03_081": 13}


@pytest.mark.parametrize(
    ("layout", "folders", "split", "videos", "blurred", "title"),
    [
        ("gopro", GOPRO, "train", ["GOPR1", "GOPR2", "GOPR10"], "train/GOPR1/blur", "data/train"),
        ("gopro", GOPRO, "test", ["GOPR3"], "test/GOPR3/blur", "data/test"),
        ("dvd", DVD, "train", ["IMG_0001"], "quantitative_datasets/IMG_0001/input", "data/train"),
        ("dvd", DVD, "test", ["IMG_0003"], "quantitative_datasets/IMG_0003/input", "data/test"),
        ("bsd", BSD, "validation", ["010"], "valid/010/Blur/RGB", "data/validation"),
        ("bsd", BSD, "train", ["000"], "train/000/Blur/RGB", "data/train"),
        ("reds", REDS, "train", ["000", "001"], "train/train_blur/000", "data/train"),
        ("reds", REDS, "validation", ["000"], "val/val_blur/000", "data/validation"),
        ("pairs", PAIRS, "test", ["a", "b"], "blur/a", "data"),
    ],
)
def test_layouts(root, layout, folders, split, videos, blurred, title):
    write(root, folders)
    for spec in (str(root), f"{layout}:{root}"):
        dataset = open_dataset(spec, split)
        assert names(dataset) == videos
        assert dataset.name == title
        video = dataset.videos[0]
        assert isinstance(video, Video)
        assert (len(video), video.height, video.width) == (len(os.listdir(root / blurred)), 16, 20)
        np.testing.assert_array_equal(video.blurred(1), read_image(root / blurred / "000001.png"))
        assert (video.blurred(1) != video.sharp(1)).any()


def test_variants_are_chosen_and_named(root):
    write(root / "gopro", GOPRO)
    write(root / "reds", REDS)
    assert open_dataset(str(root / "gopro"), "test").variant == "blur"
    gamma = open_dataset(str(root / "gopro"), "test", variant="blur_gamma")
    assert gamma.variant == "blur_gamma"
    expected = read_image(root / "gopro/test/GOPR3/blur_gamma/000000.png")
    np.testing.assert_array_equal(gamma.videos[0].blurred(0), expected)
    assert open_dataset(str(root / "reds"), "train", variant="blur_comp").variant == "blur_comp"
    with pytest.raises(UserError, match="no variant 'fog', only blur, blur_comp"):
        open_dataset(str(root / "reds"), "train", variant="fog")
    shutil.rmtree(root / "gopro/test/GOPR3/blur")
    assert open_dataset(str(root / "gopro"), "test").variant == "blur_gamma"


def test_other_ways_in_which_layouts_lie(root):
    write(root / "flat", {"blur": 2, "sharp": 2})
    assert names(open_dataset(str(root / "flat"), "train")) == ["flat"]
    write(root / "split", {f"{s}/{k}/{s}1": 2 for s in ("train", "val") for k in ("blur", "sharp")})
    assert names(open_dataset(str(root / "split"), "validation")) == ["val1"]
    write(root / "dvd", {f"{s}/{s}1/{k}": 2 for s in ("train", "test") for k in ("input", "GT")})
    assert names(open_dataset(str(root / "dvd"), "test")) == ["test1"]
    write(root / "videos", {f"GOPR{n}/{k}": 2 for n in (1, 2) for k in ("blur", "sharp")})
    one_split = open_dataset(str(root / "videos"), "train")
    assert (one_split.name, names(one_split)) == ("videos", ["GOPR1", "GOPR2"])
    write(root / "reds", {f"train_{k}/000": 2 for k in ("blur", "sharp")})
    assert names(open_dataset(str(root / "reds"), "train")) == ["000"]
    for spec in ("split", "reds"):
        with pytest.raises(UserError, match="test"):
            open_dataset(str(root / spec), "test")
    assert len(DVD_TEST_VIDEOS) == 10


def test_high_speed_frames_are_exposed(root):
    write(root, HIGH_SPEED)
    for spec in (str(root), f"highspeed:{root}"):
        dataset = open_dataset(spec, "test", exposure=Exposure(5, 5))
        assert names(dataset) == list(HIGH_SPEED)
        assert resolve(spec).layout == "highspeed"
        assert dataset.variant == "tau 5, period 5"
        video = dataset.videos[1]
        assert isinstance(video, HighSpeedVideo)
        assert len(video) == 2
        frames = [read_image(root / "TEST03_081" / f"{i:06d}.png") for i in range(5, 10)]
        np.testing.assert_array_equal(video.sharp(1), frames[2])
        assert np.abs(video.blurred(1) - np.mean(frames, 0)).max() <= 0.5
    single = open_dataset(str(root / "TEST01_003"), "test")
    assert names(single) == ["TEST01_003"]
    assert single.variant == "tau 11, period 12"
    linear = open_dataset(str(root), "train", exposure=Exposure(5, 6, linear=True))
    assert linear.variant == "tau 5, period 6, linear light"
    with pytest.raises(UserError, match="an exposure needs 13 frames: TEST01_003 has 12"):
        open_dataset(str(root), "test", exposure=Exposure(13, 14))


def test_high_speed_video_files(root, cache):
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 20, 3), np.uint8)
    root.mkdir()
    with av.open(str(root / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 16, 20, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for spec in (root, root / "clip.mkv"):
        (video,) = open_dataset(str(spec), "test", exposure=Exposure(3, 3)).videos
        assert (video.name, len(video)) == ("clip.mkv", 3)
        np.testing.assert_array_equal(video.sharp(1), frames[4])
    assert len(list(cache.glob("*/pixels.npy"))) == 1
    trained, _ = pack_dataset(open_dataset(str(root), "train", scored=False))
    assert isinstance(trained.videos[0].frames, ArrayFile)
    (root / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"bad\.mp4: not a readable video"):
        open_dataset(str(root), "test", exposure=Exposure(3, 3))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_high_speed_video_files_are_upright(root, turns):
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), np.uint8)
    root.mkdir()
    with av.open(str(root / "clip.mov"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=240, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 16, 20, "rgb24"
        stream.set_display_rotation(90 * turns)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    (video,) = open_dataset(str(root), "test", exposure=Exposure(1, 1)).videos
    np.testing.assert_array_equal(video.sharp(1), np.rot90(frames[1], turns))


def test_what_is_wrong_with_a_frame_is_named(root):
    write(root, GOPRO)
    train = root / "train"
    odd = np.zeros((16, 22, 3), np.uint8)

    def named(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_dataset(str(root), "train")

    write_png(train / "GOPR1" / "blur" / "000002.png", odd)
    named(r"GOPR1/blur/000002\.png: 22x16 pixels, but .*GOPR1/sharp/000000\.png has 20x16")
    (train / "GOPR1" / "blur" / "000002.png").write_bytes(b"")
    named(r"GOPR1/blur/000002\.png: not a readable image")
    (train / "GOPR1" / "sharp" / "000001.png").unlink()
    named(r"GOPR1/blur/000001\.png: has no matching sharp frame")
    (train / "GOPR1" / "blur" / "000001.png").unlink()
    write_png(train / "GOPR1" / "sharp" / "extra.png", odd)
    named(r"GOPR1/sharp/extra\.png: has no matching blurred frame")
    shutil.rmtree(train / "GOPR1" / "sharp")
    named("GOPR1/sharp: cannot be read as a folder")
    assert len(names(open_dataset(str(root), "test"))) == 1  # the other split is intact


def test_what_is_not_a_data_set_is_refused_in_one_line(root, tmp_path):
    root.mkdir()
    write(root, {"pairs/blur": 1})
    cases = {
        "nowhere": "no such folder",
        str(root): "no data set recognised",
        f"goopro:{root}": "no such folder; the layouts are rendered, reds, pairs,",
        f"gopro:{root}": "pairs/sharp: cannot be read as a folder",
        "": "no such folder",
        "x" * 5000: "no such folder",
        "a\0b": "no such folder",
        f"reds:{root}": r"no folder test_blur/\* or test_blur_comp/\*",
        f"dvd:{root / 'pairs'}": r"contains no folder \*/input",
        f"pairs:{root / 'pairs'}": "sharp: cannot be read as a folder",
        f"highspeed:{root}": "contains no frames",
        "rendered:fog": "not 'fog'",
        "rendered:8px": "20px, 40px, not '8px'",
    }
    for spec, message in cases.items():
        with pytest.raises(UserError, match=message):
            open_dataset(spec, "test")
    with pytest.raises(UserError, match="has no variants"):
        open_dataset(f"pairs:{root}", "test", variant="blur")
    with pytest.raises(UserError, match="has no variants"):
        open_dataset("rendered:tiny", "test", variant="blur")
    with pytest.raises(UserError, match="tau and period apply to high-speed frames only"):
        open_dataset(f"pairs:{root}", "test", exposure=Exposure(3, 4))


def test_names_that_make_trouble(root):
    odd = ["--help", "été", "a b;c", "10", "9"]
    write(root, {f"{k}/{v}": 2 for k in ("blur", "sharp") for v in odd})
    (root / "blur" / "loop").symlink_to(root / "blur")
    (root / "loop").symlink_to(root)
    with pytest.raises(UserError) as caught:
        open_dataset(str(root), "test")
    assert "blur/loop: contains no images" in str(caught.value)
    dataset = open_dataset(str(root), "test", exclude=("loop",))
    assert sorted(names(dataset)) == sorted(odd)
    assert names(dataset).index("9") < names(dataset).index("10")


def test_a_data_set_above_has_its_folder_s_name(root, monkeypatch):
    write(root, {"blur/a": 2, "sharp/a": 2})
    monkeypatch.chdir(root / "blur")
    assert open_dataset("..", "test").name == "data"


def test_links_to_videos_elsewhere_are_followed(root, tmp_path):
    write(tmp_path / "elsewhere", {"blur": 2, "sharp": 2})
    for kind in ("blur", "sharp"):
        (root / kind).mkdir(parents=True)
        (root / kind / "video").symlink_to(tmp_path / "elsewhere" / kind)
    assert len(open_dataset(str(root), "train").videos[0]) == 2
    (root / "blur" / "video" / "000001.png").unlink()
    (root / "blur" / "video" / "000001.png").symlink_to("nothing.png")
    with pytest.raises(UserError, match=r"000001\.png: no such image"):
        open_dataset(str(root), "train")


def test_held_out_videos_never_train(root):
    write(root, {f"TEST{n:02}_x": 4 for n in (1, 3, 5, 12, 14)})
    held = ("TEST03", "TEST12", "TEST14")
    exposure = Exposure(3, 3)
    training = open_dataset(str(root), "train", exclude=held, exposure=exposure)
    validation = open_dataset(str(root), "validation", only=held, exposure=exposure)
    assert names(training) == ["TEST01_x", "TEST05_x"]
    assert names(validation) == ["TEST03_x", "TEST12_x", "TEST14_x"]

    def files(dataset):
        return {file.resolve() for video in dataset.videos for file in video.frames.files}

    assert not files(training) & files(validation)
    assert len(files(training) | files(validation)) == 20
    both = open_dataset(str(root), "test", only=("TEST0",), exclude=("TEST05",), exposure=exposure)
    assert names(both) == ["TEST01_x", "TEST03_x"]
    with pytest.raises(UserError, match=r"--exclude=TEST99: .* the videos are TEST01_x, TEST03_x"):
        open_dataset(str(root), "train", exclude=("TEST99",), exposure=exposure)
    with pytest.raises(UserError, match="leave no video"):
        open_dataset(str(root), "train", exclude=("TEST",), exposure=exposure)


def test_a_whole_name_tells_video1_from_video10(root):
    write(root, {f"{k}/video{n}": 1 for k in ("blur", "sharp") for n in (1, 10)})
    assert names(open_dataset(str(root), "train", only=("video1",))) == ["video1"]
    assert names(open_dataset(str(root), "train", exclude=("video1",))) == ["video10"]


def test_what_is_left_out_is_not_checked(root):
    write(root, {f"{k}/{v}": 1 for k in ("blur", "sharp") for v in ("good", "bad")})
    (root / "sharp" / "bad" / "000000.png").write_bytes(b"")
    assert names(open_dataset(str(root), "train", exclude=("bad",))) == ["good"]


def test_rendered_scenes_are_a_data_set():
    dataset = open_dataset("rendered:tiny", "test", only=("rendered_00", "rendered_02"))
    assert (dataset.name, dataset.variant) == ("rendered/test", "tiny")
    assert names(dataset) == ["rendered_00", "rendered_02"]
    video = dataset.videos[0]
    assert isinstance(video, Video)
    assert video.blurred(0).shape == (video.height, video.width, 3) == (32, 48, 3)
    assert (video.blurred(0) != video.sharp(0)).any()


def test_rendered_scenes_by_their_light():
    stored, linear = (
        open_dataset("rendered:tiny", "test", light=light) for light in ("stored", "linear")
    )
    assert (stored.name, stored.variant) == ("rendered/test", "tiny, stored values")
    assert names(stored)[0] == "rendered_stored_00"
    video, bright = stored.videos[0], linear.videos[0]
    # The scenes differ only in their light.
    dark = video.sharp(1) < 150
    assert np.abs(video.sharp(1)[dark].astype(int) - bright.sharp(1)[dark]).max() <= 1
    assert (video.blurred(1) != bright.blurred(1)).mean() > 0.1
    (still, *_) = open_dataset("rendered:tiny", "test", light="stored", sharp_input=True).videos
    np.testing.assert_array_equal(still.blurred(1), video.sharp(1))
    np.testing.assert_array_equal(still.sharp(1), video.sharp(1))


@pytest.mark.stress
def test_rendered_scenes_by_their_blur():
    slow, fast = (open_dataset(f"rendered:{blur}px", "test").videos[0] for blur in (2, 10))
    assert (slow.name, slow.height, slow.width, len(slow)) == ("rendered_2px_00", 720, 1280, 8)

    def change(video: Video) -> float:
        return float(np.abs(video.blurred(1).astype(int) - video.sharp(1)).mean())

    assert change(fast) > 2 * change(slow)


def opened(root: Path) -> FrameFiles:
    (video,) = open_dataset(str(root), "train", exposure=Exposure(2, 2)).videos
    assert isinstance(video.frames, FrameFiles)
    return video.frames


def test_packed_frames_are_the_files_and_are_decoded_once(root, cache, monkeypatch):
    write(root, {"video": 5})
    files = opened(root)
    packed = files.pack()
    crop = slice(1, 4), slice(2, 9), slice(3, 20)
    np.testing.assert_array_equal(packed.read(*crop), files.read(*crop))
    assert (len(packed), packed.height, packed.width) == (5, 16, 20)
    decoded = []
    monkeypatch.setattr(videos_module, "read_image", lambda *a: decoded.append(a) or read_image(*a))
    assert files.pack() == packed
    assert not decoded
    write_png(root / "video" / "000002.png", np.zeros((16, 20, 3), np.uint8))
    again = opened(root).pack()
    assert again.file != packed.file
    assert not again.read(slice(2, 3)).any()
    assert len(decoded) == 5


def test_a_video_with_an_unreadable_frame_is_read_from_its_files(root, cache, monkeypatch):
    write(root, {"video": 3})
    dataset = open_dataset(str(root), "train", exposure=Exposure(2, 2))

    def fails(file):
        if file.name == "000001.png":
            raise UserError(f"{file}: Input/output error")
        return read_image(file)

    with monkeypatch.context() as patch:
        patch.setattr(videos_module, "read_image", fails)
        same, errors = pack_dataset(dataset)
        assert "000001.png: Input/output error" in errors[0]
        assert same.videos == dataset.videos
        assert same.videos[0].frames.read(slice(2, 3)).shape == (1, 16, 20, 3)
    # An error of the disk that has passed leaves no trace.
    packed, errors = pack_dataset(dataset)
    assert not errors
    assert isinstance(packed.videos[0].frames, ArrayFile)


def test_damaged_packs_are_made_again(root, cache):
    write(root, {"video": 3})
    frames = opened(root)
    packed = frames.pack()
    whole = packed.file.read_bytes()
    for content in (whole[:100], b"", whole.replace(b"(3, 16", b"(9, 16")):
        packed.file.write_bytes(content)
        again = frames.pack()
        assert len(again) == 3
        np.testing.assert_array_equal(again.read(slice(None)), frames.read(slice(None)))
    assert len(list(cache.iterdir())) == 1


def damage(file: Path) -> None:
    """Cuts the file's pixels short. Its header remains intact, so opening raises no error."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


def test_frames_cut_short_are_found_before_training_and_named(root, caplog):
    write(root, {f"{k}/{v}": 6 for k in ("blur", "sharp") for v in ("a", "b")})
    damage(root / "blur" / "a" / "000002.png")
    damage(root / "sharp" / "b" / "000004.png")
    dataset = open_dataset(str(root), "train")
    with pytest.raises(UserError, match=r"000002\.png"):
        dataset.videos[0].blurred(2)
    sources = [(dataset, 1.0)]
    options = ClipOptions(frames=3, crop=16)
    with pytest.raises(UserError, match=r"max-bad-samples.*a/000002\.png.*b/000004\.png"):
        batches(sources, options, batch_size=2, seed=0).__enter__()
    with (
        caplog.at_level(logging.WARNING),
        batches(sources, options, batch_size=2, seed=0, max_bad_samples=99) as iterator,
    ):
        seen = [next(iterator) for _ in range(10)]
    assert "a/000002.png" in caplog.text
    assert all(batch[half].any(axis=(2, 3, 4)).all() for batch in seen for half in batch)


def test_files_that_vanish_before_they_are_packed_are_named(root):
    write(root, {"blur": 3, "sharp": 3})
    dataset = open_dataset(str(root), "train")
    (root / "sharp" / "000001.png").unlink()
    clips = ClipOptions(frames=3, crop=16)
    with pytest.raises(UserError, match=r"sharp/000001\.png: No such file"):
        batches([(dataset, 1.0)], clips, batch_size=1, seed=0).__enter__()


def test_training_goes_on_when_its_files_vanish(root):
    write(root, {"blur": 3, "sharp": 3})
    dataset = open_dataset(str(root), "train")
    with batches(
        [(dataset, 1.0)], ClipOptions(frames=3, crop=16), batch_size=1, seed=0
    ) as iterator:
        next(iterator)
        shutil.rmtree(root)
        for _ in range(5):
            assert next(iterator)["sharp"].shape == (1, 3, 16, 16, 3)


def test_packs_that_vanish_are_bad_samples(root, cache):
    write(root, {"blur": 3, "sharp": 3})
    dataset, _ = pack_dataset(open_dataset(str(root), "train"))
    (video,) = dataset.videos
    assert isinstance(video, PairedVideo)
    assert isinstance(video.sharp_frames, ArrayFile)
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="missing or damaged"):
        video.sharp(0)
