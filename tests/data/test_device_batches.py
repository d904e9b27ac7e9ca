"""Batches made on the device: the values, the choices and the order of the pipeline on the host."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import devices
from jaxdeblur.data import device_batches, device_frames, textures
from jaxdeblur.data.batches import ClipOptions, batches
from jaxdeblur.data.clips import Source
from jaxdeblur.data.device_batches import batches_on_device, source_of_clips
from jaxdeblur.data.device_frames import (
    Cut,
    DeviceFrames,
    _averaging,
    copy_frames,
    draw_cut,
    read_cut,
    vary,
)
from jaxdeblur.data.exposure import Exposure, average, to_stored
from jaxdeblur.data.frames import DecodedFrames
from jaxdeblur.data.render import render_clip
from jaxdeblur.data.scenes import SCENES
from jaxdeblur.data.sources import DataConfig
from jaxdeblur.data.textures import open_scenes
from jaxdeblur.data.videos import Dataset, HighSpeedVideo
from jaxdeblur.errors import UserError
from jaxdeblur.video.image_file import write_png

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ClipOptions(frames=3, crop=16, taus=(3, 5), linear=0.5)


@pytest.fixture(autouse=True)
def _tiny_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCENES, "narrow", SCENES["tiny"])
    monkeypatch.setattr(textures, "_LEAST_TEXTURES", 4)


def mesh(count: int) -> jax.sharding.Mesh:
    return devices.mesh_of(jax.devices()[:count])


def numbered(video: int, frames: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Frames whose pixels say where they come from: video and frame, row, column."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([40 * video + t, y, x], axis=-1).astype(np.uint8)


def noise(frames: int, height: int, width: int) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(frames).integers(0, 256, shape, dtype=np.uint8)


def dataset(*videos: np.ndarray, name: str = "numbered") -> Dataset:
    return Dataset(
        name,
        "",
        [
            HighSpeedVideo(f"v{i}", DecodedFrames(frames), Exposure(5, 6))
            for i, frames in enumerate(videos)
        ],
    )


def cached(*datasets: Dataset, options: ClipOptions = OPTIONS) -> DeviceFrames:
    return copy_frames(datasets, options, devices.replicated(mesh(1)))


def folder(path: Path, *videos: np.ndarray) -> str:
    for number, frames in enumerate(videos):
        (path / f"v{number}").mkdir(parents=True)
        for index, frame in enumerate(frames):
            write_png(path / f"v{number}" / f"{index:03d}.png", frame)
    return f"highspeed:{path}"


def take(
    count: int,
    config: DataConfig,
    *,
    on: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    start_step: int = 0,
    crop: int = 16,
) -> list[dict[str, np.ndarray]]:
    made = batches_on_device(
        config,
        config.clip_options(3, crop),
        devices.clips_over(mesh(on)),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        motion_limit=None,
    )
    return [
        {name: np.asarray(clips) for name, clips in batch.items()}
        for batch in itertools.islice(made, count)
    ]


def assert_same(one: Sequence[dict[str, np.ndarray]], other: Sequence[dict[str, np.ndarray]]):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("blurred", "sharp"):
            np.testing.assert_array_equal(a[name], b[name])


def test_no_real_video_is_held_out_where_rendered_scenes_validate(tmp_path, monkeypatch):
    spec = folder(tmp_path / "real", *(numbered(i, 20) for i in range(9)))
    config = DataConfig(data=("rendered", spec), scenes="narrow", render="device")
    opened: list[Dataset] = []
    copy = copy_frames

    def noted(datasets: Sequence[Dataset], *others: Any) -> DeviceFrames:
        opened.extend(datasets)
        return copy(datasets, *others)

    monkeypatch.setattr(device_batches, "copy_frames", noted)
    take(0, config)
    assert [len(each.videos) for each in opened] == [9]


def test_one_frame_of_as_many_as_the_video_has():
    options = ClipOptions(frames=1, crop=16, taus=(5,))
    clip = Source(dataset(numbered(0, 5)), options).clip(0, np.random.default_rng(0))
    assert clip.blurred.shape == (1, 16, 16, 3)


def test_a_cut_is_the_host_s_average_of_its_frames():
    videos = [noise(30, 20, 24), noise(41, 33, 18)]
    options = ClipOptions(frames=3, crop=16, taus=(1, 2, 5, 8, 11))
    cache = cached(dataset(*videos), options=options)
    read = jax.jit(lambda cut: read_cut(cache, cut, options))
    rng = np.random.default_rng(0)
    for place, video, linear in itertools.product(range(5), range(2), (False, True)):
        tau, frames = options.taus[place], videos[video]
        period = int(rng.integers(1, (len(frames) - tau) // 2 + 1))
        start = int(rng.integers(len(frames) - tau - 2 * period + 1))
        top, left = (int(rng.integers(side - 15)) for side in frames.shape[1:3])
        where = (video, place, period, start, top, left)
        blurred, sharp = read(Cut(*map(jnp.int32, where), jnp.bool_(linear)))
        for n in range(3):
            exposure = frames[start + n * period :][:tau, top : top + 16, left : left + 16]
            np.testing.assert_array_equal(blurred[n], average(exposure, linear), err_msg=str(where))
            np.testing.assert_array_equal(sharp[n], exposure[(tau - 1) // 2])


@pytest.mark.parametrize("tau", [2, 7, 11])
def test_every_sum_of_light_is_rounded_as_on_the_host(tau: int):
    # Frames of 256 grey levels against each other, and exposures that end in a long still.
    rng = np.random.default_rng(tau)
    frames = np.broadcast_to(np.arange(256, dtype=np.uint8), (3 * tau, 256, 256)).copy()
    frames[1:] = np.swapaxes(frames[1:], 1, 2)
    frames[tau:] = rng.integers(0, 256, (2 * tau, 256, 256))
    frames = np.stack([frames] * 3, axis=-1)
    options = ClipOptions(frames=3, crop=256, taus=(tau,), linear=1.0)
    cache = cached(dataset(frames), options=options)
    cut = Cut(*map(jnp.int32, (0, 0, tau, 0, 0, 0)), jnp.bool_(True))
    blurred, _ = jax.jit(lambda: read_cut(cache, cut, options))()
    for n in range(3):
        np.testing.assert_array_equal(blurred[n], average(frames[n * tau : (n + 1) * tau], True))


def test_sums_next_to_a_level_fall_on_the_host_s_side_of_it():
    taus = (2, 5, 7, 11, 256)
    _, levels = _averaging(taus)
    for tau, level in zip(taus, levels[1], strict=True):
        steps = np.arange(-4, 4, dtype=np.int32)
        sums = (level.view(np.int32)[:, None] + steps).view(np.float32)
        found = np.searchsorted(level, sums, side="right")
        np.testing.assert_array_equal(found, to_stored(sums, tau), err_msg=f"tau {tau}")


def test_cuts_come_from_the_right_frames_and_cover_what_the_host_covers():
    videos = [numbered(0, 33), numbered(1, 12, 16, 40), numbered(2, 25, 30, 17)]
    # No clip is too still: the host would draw another one.
    options = ClipOptions(frames=3, crop=16, taus=(3, 5, 9, 11), duty=(0.6, 0.9), least_blur=0.0)
    sources = (dataset(*videos[:2]), dataset(videos[2]))
    cache = cached(*sources, options=options)
    draws = jax.jit(
        jax.vmap(lambda key, source: draw_cut(key, cache, source, options), in_axes=(0, None))
    )
    keys = jax.random.split(jax.random.key(0), 3000)
    cuts = [jax.tree.map(np.asarray, draws(keys, source)) for source in (0, 1)]
    assert set(cuts[0].video) == {0, 1}
    assert set(cuts[1].video) == {2}
    # Clips count by the exposures they hold: (33 - 5) // 6 + 1 of 5 against (12 - 5) // 6 + 1.
    assert np.mean(cuts[0].video == 0) == pytest.approx(5 / 7, abs=0.03)

    def host(data: Dataset) -> set[tuple[int, int, int]]:
        """Video, tau and period of clips that the pipeline on the host reads."""
        seen = set()
        plain = dataclasses.replace(options, reversal=False, flips=False, rotations=False)
        with batches([(data, 1.0)], plain, batch_size=50, seed=0, workers=0) as feed:
            for batch in itertools.islice(feed, 20):
                first = batch["sharp"][:, :, 0, 0, 0].astype(int)
                seen |= {(int(c[0] // 40), int(c[1] - c[0])) for c in first}
        return seen

    both = [set(zip(drawn.video.tolist(), drawn.period.tolist(), strict=True)) for drawn in cuts]
    assert both[0] == host(sources[0])
    assert both[1] == host(sources[1])
    read = jax.jit(lambda cut: read_cut(cache, cut, options))
    for drawn, n in itertools.product(cuts, range(25)):
        cut = jax.tree.map(lambda values, n=n: values[n], drawn)
        video, tau = videos[cut.video], options.taus[cut.tau]
        needed = tau + 2 * cut.period
        assert 0 <= cut.start <= len(video) - needed
        _, sharp = read(cut)
        middles = cut.start + cut.period * np.arange(3) + (tau - 1) // 2
        area = slice(cut.top, cut.top + 16), slice(cut.left, cut.left + 16)
        np.testing.assert_array_equal(sharp, video[middles][:, *area])
    tall = cuts[1]
    assert (set(tall.top), set(tall.left)) == (set(range(15)), {0, 1})
    assert {int(s) for s in tall.start[(tall.tau == 0) & (tall.period == 5)]} == set(range(13))


def test_the_share_of_linear_light():
    cache, source = cached(dataset(noise(30, 20, 24))), jnp.int32(0)
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = jax.jit(jax.vmap(lambda key: draw_cut(key, cache, source, OPTIONS)))(keys)
    assert np.mean(drawn.linear) == pytest.approx(0.5, abs=0.04)


def test_every_variation_occurs_and_each_can_be_switched_off():
    clip = numbered(0, 3)[:, :16, :16]

    def ways(options: ClipOptions) -> set[bytes]:
        found = set()
        for key in jax.random.split(jax.random.key(0), 200):
            blurred, sharp = varied(key, clip, options)
            np.testing.assert_array_equal(blurred, sharp)
            found.add(np.asarray(sharp).tobytes())
        return found

    varied = jax.jit(lambda key, clip, options: vary(key, clip, clip, options), static_argnums=2)
    turned = [np.rot90(clip, n, axes=(1, 2)) for n in range(4)]
    both = [*turned, *(c[:, ::-1] for c in turned)]
    expected = {c[::way].tobytes() for c in both for way in (1, -1)}
    assert ways(OPTIONS) == expected
    assert len(expected) == 16
    plain = dataclasses.replace(OPTIONS, flips=False, rotations=False, reversal=False)
    assert ways(plain) == {clip.tobytes()}


def test_of_an_even_number_of_frames_the_earlier_as_played_is_sharp(tmp_path: Path):
    """Of the two in the middle, played either way, as on the host."""
    ramp = np.broadcast_to(2 * np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 16, 16, 3))
    spec = folder(tmp_path, ramp)
    config = DataConfig(data=(spec,), render="device", taus=(2, 4), duty=(0.8, 1.0))
    ways = set()
    for batch in take(8, config):
        blurred, sharp = (batch[name].astype(int) for name in ("blurred", "sharp"))
        way = np.sign(sharp[:, 1:2] - sharp[:, :1])
        ways |= set(way[:, 0, 0, 0, 0].tolist())
        np.testing.assert_array_equal(blurred, sharp + way)
    assert ways == {-1, 1}


def test_any_clips_in_a_row_hold_each_source_by_its_share():
    shares = (0.65, 0.25, 0.1)
    sources = source_of_clips(np.arange(10_000), shares)
    assert [int(np.sum(sources == s)) for s in range(3)] == [6500, 2500, 1000]
    for first in range(0, 200, 7):
        part = source_of_clips(np.arange(first, first + 8), shares)
        np.testing.assert_array_equal(part, sources[first : first + 8])
        assert np.sum(part == 0) in (5, 6)
    assert set(source_of_clips(np.arange(50), (0.0, 1.0))) == {1}
    assert set(source_of_clips(np.arange(50), (3.0,))) == {0}


def test_batches_are_a_function_of_the_seed_and_the_step(tmp_path: Path):
    real = folder(tmp_path, numbered(1, 20), numbered(2, 14, 30, 18))
    config = DataConfig(data=(real,), render="device", taus=(1, 3))
    straight = take(4, config, seed=3)
    for batch in straight:
        assert batch["blurred"].shape == batch["sharp"].shape == (4, 3, 16, 16, 3)
        assert batch["blurred"].dtype == batch["sharp"].dtype == np.uint8
    assert_same(take(2, config, seed=3, start_step=2), straight[2:])
    assert (take(1, config, seed=4)[0]["sharp"] != straight[0]["sharp"]).any()
    assert (straight[1]["sharp"] != straight[0]["sharp"]).any()


@pytest.mark.stress
def test_batches_do_not_depend_on_the_number_of_devices(tmp_path: Path):
    real = folder(tmp_path, numbered(1, 20), numbered(2, 14, 30, 18))
    config = DataConfig(data=("rendered", real), render="device", taus=(1, 3))
    straight = take(2, config)
    assert_same(take(1, config, on=2, start_step=1), straight[1:])


@pytest.mark.stress
def test_devices_may_render_different_numbers_of_clips(tmp_path: Path):
    real = folder(tmp_path, numbered(1, 20), numbered(2, 14, 30, 18))
    config = DataConfig(data=("rendered", real), render="device", taus=(1, 3))
    # The second device renders one of its two clips, the first one none: branches differ.
    uneven = dataclasses.replace(config, mix=(0.3, 0.7))
    one, two = take(1, uneven, start_step=1), take(1, uneven, on=2, start_step=1)
    assert_same(one, two)
    assert [is_real(clip) for clip in one[0]["sharp"]] == [True, True, False, True]


def is_real(clip: np.ndarray) -> bool:
    """Whether a clip's first channel is the same over each frame, as that of numbered videos is."""
    return bool((clip[..., 0] == clip[:, :1, :1, 0]).all())


def test_sources_are_mixed_by_their_shares(tmp_path: Path):
    one = folder(tmp_path / "one", numbered(1, 20))
    two = folder(tmp_path / "two", numbered(3, 20))
    data = ("rendered", one, two)
    config = DataConfig(data=data, mix=(0.5, 0.25, 0.25), render="device", taus=(3,))
    clips = np.concatenate([b["sharp"] for b in take(10, config, on=2)])
    real = np.array([is_real(clip) for clip in clips])
    assert real.sum() == 20
    assert np.sum(clips[real, 0, 0, 0, 0] >= 120) == 10
    first, second = (
        source_of_clips(np.arange(40), (0.5, 0.25, 0.25)) == source for source in (1, 2)
    )
    np.testing.assert_array_equal(real, first | second)


def test_high_speed_frames_alone(tmp_path: Path):
    config = DataConfig(data=(folder(tmp_path, numbered(1, 20)),), render="device", taus=(3,))
    for batch in take(2, config):
        assert all(is_real(clip) for clip in batch["sharp"])
        # Rows and columns are ramps, and so is time: every average is its middle frame.
        np.testing.assert_array_equal(batch["blurred"], batch["sharp"])


def test_a_share_of_the_clips_goes_in_as_it_is_to_come_out(tmp_path: Path):
    real = folder(tmp_path, noise(20, 20, 24))
    config = DataConfig(data=(real,), render="device", taus=(3,))
    some = dataclasses.replace(config, sharp_input=0.3)
    straight = take(20, some)
    as_they_are = []
    # All else is as it was: the same targets, and the same blur where there is any.
    for other, one in zip(take(20, config), straight, strict=True):
        np.testing.assert_array_equal(one["sharp"], other["sharp"])
        for clip, target, blurred in zip(
            one["blurred"], one["sharp"], other["blurred"], strict=True
        ):
            as_they_are.append(bool((clip == target).all()))
            np.testing.assert_array_equal(clip, target if as_they_are[-1] else blurred)
    assert 0.15 < np.mean(as_they_are) < 0.45
    assert_same(take(1, some, start_step=5), straight[5:6])
    both = dataclasses.replace(config, data=("rendered", real), sharp_input=1.0)
    for batch in take(1, both):
        np.testing.assert_array_equal(batch["blurred"], batch["sharp"])


def test_clips_made_all_at_once_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = folder(tmp_path, noise(20, 20, 24), noise(14, 30, 18))
    config = DataConfig(data=(real,), render="device", taus=(3, 5), linear=0.5)
    one_by_one = take(1, config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_same(take(1, config), one_by_one)


def test_rendered_scenes_alone_are_those_of_the_renderer():
    config = DataConfig(render="device")
    scenes = open_scenes(SCENES["narrow"], 16)
    key = jax.random.split(jax.random.fold_in(jax.random.key(5), 1), 2)[1]
    pixels = jnp.asarray(scenes.textures)
    clips = jax.jit(lambda key: render_clip(key, pixels, scenes.config, 3, 16))(key)
    batch = take(2, config, batch_size=2, seed=5)[1]
    for name, clip in zip(("blurred", "sharp"), clips, strict=True):
        np.testing.assert_array_equal(batch[name][1], clip)


def test_cuts_bring_their_context_and_repeat_a_video_s_ends():
    options = ClipOptions(frames=2, before=2, after=1, crop=16, taus=(3,))
    cache = cached(dataset(numbered(0, 20)), options=options)
    read = jax.jit(lambda cut, backwards: read_cut(cache, cut, options, backwards))
    for start in range(15):
        cut = Cut(*map(jnp.int32, (0, 0, 3, start, 0, 0)), jnp.bool_(False))
        earlier, later = min(2, start // 3), min(2, (20 - 6 - start) // 3)
        for backwards, numbers in ((False, range(-2, 3)), (True, range(-1, 4))):
            expected = start + 1 + 3 * np.clip(numbers, -earlier, 1 + later)
            blurred, sharp = read(cut, backwards)
            np.testing.assert_array_equal(blurred[:, 0, 0, 0], expected)
            np.testing.assert_array_equal(sharp[:, 0, 0, 0], expected)


def test_the_motion_limit_is_asked_for_at_every_step():
    """A curriculum: nothing but the hand's tremor moves at step 0, and all that can afterwards."""
    made = batches_on_device(
        DataConfig(render="device"),
        ClipOptions(frames=3, crop=16),
        devices.clips_over(mesh(1)),
        batch_size=4,
        seed=5,
        start_step=0,
        motion_limit=lambda step: float("inf") if step else 0.0,
    )
    blur = [
        np.abs(np.asarray(batch["blurred"], int) - np.asarray(batch["sharp"], int)).mean()
        for batch in itertools.islice(made, 5)
    ]
    assert blur[0] < 0.7 * np.mean(blur[1:])


def test_videos_that_hold_no_clip_are_named(tmp_path: Path):
    config = DataConfig(
        data=("rendered", folder(tmp_path, numbered(0, 20), numbered(1, 20, 12, 40))),
        render="device",
        taus=(3,),
    )
    with pytest.raises(UserError, match=r"do not fit: v1 \(20 frames of 40x12\)$"):
        take(1, config)


def test_unreadable_frames_are_named(tmp_path: Path):
    config = DataConfig(
        data=(folder(tmp_path, noise(20, 20, 24)),), render="device", max_bad_samples=9
    )
    frame = tmp_path / "v0" / "007.png"
    frame.write_bytes(frame.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"--render=device cannot skip them.*007\.png"):
        take(1, config)


def test_frames_that_leave_the_network_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch):
    data = dataset(noise(30, 20, 24), noise(10, 20, 18), name="large")
    needed = 40 * 20 * 3 * 24
    monkeypatch.setattr(device_frames, "_device_memory", lambda: 2 * needed)
    cached(data)
    monkeypatch.setattr(device_frames, "_device_memory", lambda: 2 * needed - 2)
    with pytest.raises(UserError, match=r"large: the frames need 5\.76e-05 GB .* 5\.76e-05 GB"):
        cached(data)


@pytest.mark.parametrize("spec", ["/data/GOPRO_Large", "gopro:/data/GOPRO_Large"])
def test_other_data_sets_are_refused(spec: str):
    with pytest.raises(UserError, match=rf"--data={spec}: .* rendered and highspeed:FOLDER only"):
        DataConfig(data=("rendered", spec), render="device")


@pytest.mark.stress
def test_the_command_trains_on_a_mix(tmp_path: Path):
    real = folder(tmp_path / "frames", noise(20, 40, 48))
    process = subprocess.run(
        [
            sys.executable, str(ROOT / "train.py"), "--model=strcnn_dtb_small", "--width=4",
            "--blocks=1", "--m=1", "--crop=32", "--frames=2", "--validate-every=0", "--steps=2",
            "--save-every=2", "--warmup=1", "--render=device", "--data", "rendered", real,
            "--mix", "0.65", "0.35", f"--out={tmp_path / 'run'}",
        ],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")] == ["2"]
