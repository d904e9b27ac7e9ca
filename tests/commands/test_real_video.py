"""The benchmark of real video: each condition does to frames what its name says."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Video8

ROOT = Path(__file__).resolve().parents[2]
COUNT, HEIGHT, WIDTH = 33, 72, 120
STEP = np.array([0.4, -0.6])  # Pixels that the camera moves in one high-speed frame.


def moving(seed: int = 0) -> Video8:
    """A smooth random texture under a camera that moves evenly."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.random((HEIGHT + 40, WIDTH + 40, 3)), (1.5, 1.5, 0))
    texture = np.clip(0.5 + (texture - 0.5) / texture.std() / 4, 0, 1)
    frames = [
        ndimage.shift(texture, (*(t * STEP), 0), order=1)[20:-20, 20:-20] for t in range(COUNT)
    ]
    return np.rint(255 * np.clip(frames, 0, 1)).astype(np.uint8)


FRAMES, OTHER = moving(), moving(1)


@pytest.fixture
def conditions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.real_video_conditions")


@pytest.fixture
def make(conditions: Any) -> Any:
    def made(name: str) -> Any:
        scene = conditions.Scene("moving", FRAMES, lambda: OTHER)
        return conditions.CONDITIONS[name](scene, conditions.random_of(name, "moving"))

    return made


@pytest.fixture
def psnr(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.real_video").psnr


def test_every_condition_makes_a_video_with_its_truth(conditions: Any, make: Any) -> None:
    for name in conditions.CONDITIONS:
        made = make(name)
        assert made.blurred.dtype == made.sharp.dtype == np.uint8, name
        assert made.blurred.shape == made.sharp.shape, name
        assert made.blurred.shape[1:] == (HEIGHT, WIDTH, 3), name
        assert made.is_sharp == name.startswith("sharp"), name
        assert all(region.shape == made.sharp.shape[:3] for region in made.regions.values()), name
        assert all(max(t) < len(made.sharp) for t in made.parts.values()), name
        assert np.array_equal(make(name).blurred, made.blurred), f"{name} is random"


def test_exposures_average_what_they_say(make: Any) -> None:
    base, long, short = make("baseline"), make("11-of-11"), make("short-exposure")
    assert len(base.blurred) == 4
    assert np.array_equal(base.blurred[1], np.rint(FRAMES[8:15].mean(axis=0)).astype(np.uint8))
    assert np.array_equal(base.sharp[1], FRAMES[11])
    assert len(long.blurred) == 3
    assert np.array_equal(long.sharp[2], FRAMES[22 + 5])
    assert np.array_equal(short.sharp[3], FRAMES[25])
    linear = make("linear-light").blurred.astype(int)
    assert (linear - base.blurred).mean() > 0.2  # the mean of the light is brighter
    assert np.array_equal(make("linear-light").sharp, base.sharp)


def test_a_rolling_shutter_exposes_lower_rows_later(make: Any) -> None:
    made = make("rolling-shutter")
    assert len(made.blurred) == 3
    for row, delay in ((0, 0), (HEIGHT // 2, 3), (HEIGHT - 1, 5)):
        for t, first in enumerate((delay, delay + 8, delay + 16)):
            exposed = np.rint(FRAMES[first : first + 7, row].mean(axis=0)).astype(np.uint8)
            assert np.array_equal(made.blurred[t, row], exposed)
            assert np.array_equal(made.sharp[t, row], FRAMES[first + 3, row])


STABLE = ["stabilised", "stabilised-with-rotation", "sharp-stabilised"]


@pytest.mark.parametrize("name", [*STABLE, "stabilised-noise-5", "stabilised-h264-18"])
def test_stabilised_frames_keep_still_and_stay_blurred(name: str, make: Any, psnr: Any) -> None:
    sharp, moved = make(name).sharp, make("baseline").sharp
    inner = np.s_[16:-16, 16:-16]
    for one, other in itertools.pairwise(sharp):
        assert psnr(one[inner], other[inner]) > 26
    assert psnr(moved[1][inner], moved[2][inner]) < 18
    half = make("stabilised-by-half").sharp
    assert psnr(half[1][inner], half[2][inner]) < 18  # still moves
    if name == "stabilised-noise-5":
        assert np.array_equal(sharp, make("stabilised-with-rotation").sharp)
    if name != "sharp-stabilised":
        blurred = make(name).blurred
        assert psnr(blurred[1], sharp[1]) < 30


def test_the_tracker_finds_motion_and_roll(conditions: Any) -> None:
    frames = FRAMES[::8].astype(np.float32) / 255
    place, roll = conditions.track(frames)
    np.testing.assert_allclose(np.diff(place, axis=0), np.tile(8 * STEP, (4, 1)), atol=0.15)
    np.testing.assert_allclose(roll, 0, atol=0.01)
    turned = conditions.warp(frames[:1], np.zeros((1, 2)), np.array([0.015]), 1.0)
    _, roll = conditions.track(np.concatenate([frames[:1], turned]))
    assert roll[1] == pytest.approx(0.015, abs=0.004)
    moved = conditions.warp(frames[:1], np.array([[0.0, 3.0]]), np.zeros(1), 1.0)
    place, _ = conditions.track(np.concatenate([frames[:1], moved]))
    np.testing.assert_allclose(place[1], [0, -3], atol=0.15)  # shown from farther to the right


def test_rotation_is_removed_too(conditions: Any) -> None:
    still = np.repeat(FRAMES[:1].astype(np.float32) / 255, 3, axis=0)
    roll = np.array([0.0, 0.015, 0.03])
    turning = conditions.warp(still, np.zeros((3, 2)), roll, 1.0)
    (kept,), (removed,) = (
        conditions.stabilise(1.0, with_roll, turning) for with_roll in (False, True)
    )
    assert conditions.track(kept)[1][-1] == pytest.approx(0.03, abs=0.006)
    assert conditions.track(removed)[1][-1] == pytest.approx(0, abs=0.006)


def test_what_stands_still_is_scored_by_itself(conditions: Any) -> None:
    frames = np.repeat(FRAMES[:1], COUNT, axis=0)
    frames[:, 30:50, 40:70] = FRAMES[:, 30:50, 40:70]  # a window that moves
    scene = conditions.Scene("window", frames, lambda: OTHER)
    made = conditions.CONDITIONS["moving-and-still"](scene, conditions.random_of("a", "b"))
    moving = made.regions["moving"]
    assert moving[:, 32:48, 42:68].mean() > 0.95
    assert not moving[:, :20].any()
    assert np.array_equal(made.regions["still"], ~moving)
    assert np.array_equal(made.blurred[~moving], made.sharp[~moving])


def test_codec_and_noise_leave_the_truth_alone(make: Any, psnr: Any) -> None:
    base = make("baseline")
    scores = []
    for name in ("h264-18", "h264-23", "h264-28", "hevc-24", "noise-5", "noise-10"):
        made = make(name)
        assert np.array_equal(made.sharp, base.sharp), name
        scores.append(psnr(made.blurred, base.blurred))
    assert scores[0] > scores[1] > scores[2]
    assert scores[4] - scores[5] == pytest.approx(6, abs=0.7)  # twice the deviation
    assert psnr(make("phone").sharp, base.sharp) < 35  # its tone and sharpening stay


def test_gains_change_both(make: Any) -> None:
    base = make("baseline").sharp.mean(axis=(1, 2, 3))
    for name, gains in (("flicker", [0.9, 1.1, 0.9, 1.1]), ("fade", 1 - 0.8 * np.arange(4) / 3)):
        made = make(name)
        for video in (made.sharp, made.blurred):
            np.testing.assert_allclose(video.mean(axis=(1, 2, 3)) / base, gains, rtol=0.02)


def test_light_clips_and_the_dark_is_dark(make: Any) -> None:
    base, clipped = make("baseline"), make("clipped-highlights")
    assert (clipped.blurred == 255).mean() > 10 * (base.blurred == 255).mean() + 0.01
    assert (clipped.sharp == 255).mean() > 0.01
    dark, lamps = make("dark"), make("night-lamps")
    assert 10 < dark.sharp.mean() < 25
    assert (dark.blurred.astype(int) - dark.sharp).std() > 1.8
    assert (lamps.sharp == 255).mean() > 0.002 > (dark.sharp == 255).mean()


def test_frames_out_of_order(make: Any) -> None:
    base, twins, cut = make("baseline"), make("duplicates"), make("cut")
    assert np.array_equal(twins.blurred[1], twins.blurred[2])
    assert twins.parts == {"first twin": [1], "second twin": [2]}
    assert np.array_equal(twins.blurred[[0, 1, 3, 4]], base.blurred)
    assert np.array_equal(cut.blurred[:4], base.blurred)
    assert np.array_equal(cut.sharp[4], OTHER[3])
    assert cut.parts["first after"] == [4]
    blended, pulled = make("two-frames-blended"), make("pulldown-blended")
    two = FRAMES[0:3].mean(axis=0) / 2 + FRAMES[4:7].mean(axis=0) / 2
    assert np.abs(blended.blurred[0] - two).max() < 0.6
    mixed = 0.2 * base.blurred[0] + 0.8 * base.blurred[1]
    assert np.abs(pulled.blurred[1] - mixed).max() < 1.3
    assert np.array_equal(pulled.sharp[0], base.sharp[0])


def test_fields_lie_half_a_frame_apart(make: Any, psnr: Any) -> None:
    made = make("interlaced-blended")
    one, two = FRAMES[0:3].mean(axis=0), FRAMES[4:7].mean(axis=0)
    rows = [one[1::2], two[1::2]]  # odd rows come from the second field, smoothed over both
    mixed = 0.5 * rows[1][:-1] + 0.25 * (one[2::2][: len(rows[1]) - 1] + one[0::2][:-1])
    assert np.abs(made.blurred[0][1:-1:2] - mixed[: len(made.blurred[0][1:-1:2])]).max() < 1


def test_bars_are_black_and_text_stands_still(conditions: Any, make: Any) -> None:
    boxed, base = make("letterbox"), make("baseline")
    picture = boxed.regions["picture"]
    assert 0.7 < picture.mean() < 0.8
    assert not boxed.blurred[~picture].any()
    assert not boxed.sharp[~picture].any()
    assert np.array_equal(boxed.blurred[picture], base.blurred[picture])
    written = make("text-and-logo")
    text = written.regions["text"]
    assert 0.01 < text.mean() < 0.2
    assert np.array_equal(written.blurred[~text], base.blurred[~text])
    opaque = np.broadcast_to(conditions.overlay(HEIGHT, WIDTH)[..., 3] == 1, text.shape)
    assert np.array_equal(written.blurred[opaque], written.sharp[opaque])


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    for name, frames in (("one", FRAMES), ("two", OTHER)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{t:03d}.png")
    return tmp_path / "data"


class Echo:
    """Stands for a deblurrer: its stream brightens frames and says what it has found."""

    source = "none"

    def __init__(self, added: int) -> None:
        self.added = added
        found = {"stabilised": False, "duty": 0.85, "light": "stored"}
        self.found: dict[str, Any] = found if added else {}

    def open_stream(self, height: int, width: int) -> Echo:
        assert (height, width) == (HEIGHT, WIDTH)
        return self

    def restore(self, frames: Video8) -> Any:
        return ((frame + np.uint8(self.added),) for frame in frames)


def test_the_table_compares_two_configurations(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.real_video")
    monkeypatch.setattr(benchmark, "opened", lambda name: Echo(name == "default"))
    out = tmp_path / "scores.json"
    options = f"x --data {footage} --only baseline text sharp --align --out {out}".split()
    monkeypatch.setattr(sys, "argv", options)
    benchmark.main()
    printed = capsys.readouterr().out
    held = json.loads(out.read_text())["conditions"]
    assert list(held) == ["baseline", "text-and-logo", "sharp", "sharp-stabilised"]
    assert list(held["baseline"]) == ["one", "two"]
    assert held["baseline"]["one"]["fast"]["restored"] == held["baseline"]["one"]["fast"]["blurred"]
    assert held["sharp"]["one"]["fast"]["restored"] == [100.0] * 4
    assert held["baseline"]["one"]["default"]["found"] == {
        "stabilised": False,
        "duty": 0.85,
        "light": "stored",
    }
    gains, shifts = printed.split("\n\n")[1:3]
    rows = {line.split(" |")[0]: line for line in gains.splitlines()}
    assert "| +0.00 | +0.00 / +0.00 | +0.00 |" in rows["| baseline"]
    assert "text-and-logo: text" in printed
    assert "| 100.00 | 100.00 / 100.00 | 100.00 |" in rows["| sharp"]
    assert "| condition | default: aligned | default: wobble | fast: aligned |" in shifts
    assert "| baseline | 0.00 | 0.00 | 0.00 | 0.00 |" in shifts
    assert "baseline, one, default: stabilised False, duty 0.85, light stored" in printed


def test_aligning_finds_a_frame_of_another_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.real_video")
    sharp = FRAMES[[8, 16, 24]]
    assert benchmark.aligned(sharp, sharp) == {"aligned": 0.0, "wobble": 0.0}
    late = benchmark.aligned(FRAMES[[9, 17, 25]], sharp)
    assert late["aligned"] > 3
    assert late["wobble"] == pytest.approx(np.linalg.norm(STEP), abs=0.12)
    one = benchmark.aligned(FRAMES[[8, 16, 25]], sharp)
    assert one["wobble"] == pytest.approx(late["wobble"] / np.sqrt(3), abs=0.05)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("", "give --data, --paired or both"),
        ("--data {data} --only nothing", "--only=nothing: no such condition; choose from baseline"),
        ("--data {data} --scenes three", "three"),
    ],
)
def test_a_bad_option_is_one_line(
    options: str, named: str, footage: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.real_video")
    monkeypatch.setattr(sys, "argv", ["x", *options.format(data=footage).split()])
    with pytest.raises(SystemExit) as ended:
        run_command(benchmark.main, "benchmarks.real_video")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said


def test_paired_videos_are_cut_to_their_middle(footage: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.real_video")
    for half in ("blur", "sharp"):
        (footage / "pairs" / half / "one").mkdir(parents=True)
        for t in range(8):
            frame = Image.fromarray(FRAMES[t + (half == "blur")])
            frame.save(footage / "pairs" / half / "one" / f"{t}.png")
    monkeypatch.setattr(benchmark, "WINDOW", (40, 60))
    spec = f"pairs:{footage / 'pairs'}"
    found = list(benchmark.chosen_videos(None, spec, (), ["own-pixels"]))
    assert [name for name, *_ in found] == [
        "own-pixels",
        "own-pixels-h264-18",
        "own-pixels-h264-23",
    ]
    plain, coded = found[0][2](), found[1][2]()
    assert np.array_equal(plain.sharp, FRAMES[2:8, 16:56, 30:90])
    assert np.array_equal(plain.blurred, FRAMES[3:9, 16:56, 30:90])
    assert np.array_equal(coded.sharp, plain.sharp)
    assert not np.array_equal(coded.blurred, plain.blurred)
    with pytest.raises(UserError, match="nothing"):
        list(benchmark.chosen_videos(None, spec, (), ["nothing"]))
