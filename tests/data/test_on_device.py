"""Scenes rendered on the device have the renderer's values and the pipeline's order."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import devices
from jaxdeblur.data import textures
from jaxdeblur.data.batches import batches, source_of_clips
from jaxdeblur.data.config import DataConfig, MotionLimit
from jaxdeblur.data.on_device import render_on_device
from jaxdeblur.data.render import render_scene
from jaxdeblur.data.scenes import SCENES, SceneConfig, sample_scene
from jaxdeblur.data.textures import open_scenes
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.video.image_file import write_png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _tiny_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCENES, "narrow", SCENES["tiny"])
    monkeypatch.setattr(textures, "_LEAST_TEXTURES", 4)


def draw_and_render(
    key: jax.Array, pixels: jax.Array, config: SceneConfig, frames: int, crop: int
) -> tuple[jax.Array, jax.Array]:
    scene_key, noise_key = jax.random.split(key)
    textures = (pixels.shape[0], pixels.shape[1])
    scene = sample_scene(scene_key, textures, config, frames, crop)
    return render_scene(noise_key, scene, pixels, config, frames, crop)


def numbered(video: int, frames: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Returns frames whose pixels encode where they come from: video and frame, row, column."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([40 * video + t, y, x], axis=-1).astype(np.uint8)


def noise(frames: int, height: int, width: int) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(frames).integers(0, 256, shape, dtype=np.uint8)


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
    motion_limit: MotionLimit = lambda step: float("inf"),
) -> list[dict[str, np.ndarray]]:
    data, options = TrainingData(config, 16), config.clip_options(3, 16)
    sources = data.train
    order = {"batch_size": batch_size, "seed": seed, "start_step": start_step}
    where = devices.mesh_of(jax.devices()[:on])
    with batches(sources, options, **order, render=False) as host:  # type: ignore[arg-type]
        made = render_on_device(
            devices.global_batches(host, where) if config.folders else None,
            sources,
            options,
            devices.clips_over(where),
            **order,
            motion_limit=motion_limit,
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


def is_real(clip: np.ndarray) -> bool:
    """Returns whether a clip is from a numbered video: its first channel is constant per frame."""
    return bool((clip[..., 0] == clip[:, :1, :1, 0]).all())


@pytest.fixture
def mixed(tmp_path: Path) -> DataConfig:
    """Rendered scenes of two kinds and real frames."""
    real = folder(tmp_path, numbered(1, 20), numbered(2, 14, 30, 18))
    data = ("rendered", real, "rendered:tiny")
    return DataConfig(data=data, mix=(0.4, 0.4, 0.2), render="device", taus=(1, 3))


@pytest.mark.stress
def test_rendered_scenes_alone_are_those_of_the_renderer() -> None:
    scenes = open_scenes(SCENES["narrow"], 16)
    key = jax.random.split(jax.random.fold_in(jax.random.key(5), 1), 2)[1]
    pixels = jnp.asarray(scenes.textures)
    clips = jax.jit(lambda key: draw_and_render(key, pixels, scenes.config, 3, 16))(key)
    batch = take(2, DataConfig(render="device"), batch_size=2, seed=5)[1]
    for name, clip in zip(("blurred", "sharp"), clips, strict=True):
        np.testing.assert_array_equal(batch[name][1], clip)


@pytest.mark.stress
def test_real_clips_are_those_of_the_host_in_their_places(mixed: DataConfig) -> None:
    sources, options = TrainingData(mixed, 16).train, mixed.clip_options(3, 16)
    with batches(sources, options, batch_size=4, seed=3) as feed:
        host = list(itertools.islice(feed, 5))
    device = take(5, mixed, seed=3)
    source_of = source_of_clips(np.arange(20), mixed.mix).reshape(5, 4)
    assert [int((source_of == source).sum()) for source in range(3)] == [8, 8, 4]
    for ours, theirs, source in zip(device, host, source_of, strict=True):
        for name in ("blurred", "sharp"):
            assert ours[name].shape == theirs[name].shape
            assert ours[name].dtype == np.uint8
            np.testing.assert_array_equal(ours[name][source == 1], theirs[name][source == 1])
        assert [is_real(clip) for clip in ours["sharp"]] == list(source == 1)
        assert all(clip.any() for clip in ours["blurred"])


@pytest.mark.stress
def test_batches_are_a_function_of_the_seed_and_the_step(mixed: DataConfig) -> None:
    straight = take(4, mixed, seed=3)
    assert_same(take(2, mixed, seed=3, start_step=2), straight[2:])
    assert (straight[1]["sharp"] != straight[0]["sharp"]).any()


@pytest.mark.stress
def test_batches_do_not_depend_on_the_number_of_devices(mixed: DataConfig) -> None:
    straight = take(3, mixed)[1:]
    for devices_in_use in (2, 4):
        assert_same(take(2, mixed, on=devices_in_use, start_step=1), straight)


@pytest.mark.stress
def test_a_share_of_the_clips_goes_in_as_it_is_to_come_out() -> None:
    config = DataConfig(render="device")
    some = dataclasses.replace(config, sharp_input=0.3)
    straight = take(10, some)
    as_they_are = []
    # All else is unchanged: the same targets, and the same blur where there is any.
    for other, one in zip(take(10, config), straight, strict=True):
        np.testing.assert_array_equal(one["sharp"], other["sharp"])
        for clip, target, blurred in zip(
            one["blurred"], one["sharp"], other["blurred"], strict=True
        ):
            as_they_are.append(bool((clip == target).all()))
            np.testing.assert_array_equal(clip, target if as_they_are[-1] else blurred)
    assert 0.1 < np.mean(as_they_are) < 0.5
    assert_same(take(1, some, start_step=5), straight[5:6])


@pytest.mark.stress
def test_clips_made_all_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = take(1, DataConfig(render="device"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (at_once,) = take(1, DataConfig(render="device"))
    for name in ("blurred", "sharp"):  # but for a few pixels that round differently
        difference = np.abs(at_once[name].astype(int) - one_by_one[0][name])
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 1e-3


@pytest.mark.stress
def test_the_motion_limit_is_asked_for_at_every_step() -> None:
    """A curriculum: at step 0 only the hand's tremor moves, afterwards everything that can."""
    made = take(
        5,
        DataConfig(render="device"),
        seed=5,
        motion_limit=lambda step: float("inf") if step else 0.0,
    )
    blur = [
        np.abs(batch["blurred"].astype(int) - batch["sharp"].astype(int)).mean() for batch in made
    ]
    assert blur[0] < 0.7 * np.mean(blur[1:])


@pytest.mark.stress
def test_the_command_trains_on_a_mix(tmp_path: Path) -> None:
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
