"""Clips with the maps of blur paths: they are drawn once, read by crop, and train a network."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import chex
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.layouts import MAPS_FILE, SHARP_FILE
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import of_base, split
from jaxdeblur.models.registry import build
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.shapes import MAP_CHANNELS
from jaxdeblur.training.path_clips import (
    MapsOfClips,
    PathClipsConfig,
    PathClipSource,
    draw_clips,
    keep_settings,
)
from jaxdeblur.training.run import train
from jaxdeblur.training.run_folder import Run
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import LoadedModel, load_model, starting_parameters
from jaxdeblur.weights.save import export_weights

FUSION = StrcnnConfig(m=0, width=4, blocks=2, head_width=0, residual=True, beta0=0.1, of_maps=True)
SYSTEM = PathsConfig(base=load_model("strcnn_dtb_live").network, fusion=FUSION)
BASE = StrcnnConfig(m=2, width=4, blocks=1, head_width=0, residual=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("000000", "000001"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for file, channels in ((MAPS_FILE, MAP_CHANNELS), (SHARP_FILE, 3)):
            array = rng.integers(0, 256, (3, 40, 48, channels), dtype=np.uint8)
            np.save(tmp_path / "clips" / name / file, array)
    return tmp_path / "clips"


def test_a_network_over_paths_trains_on_them_and_restores_over_them(
    folder: Path, tmp_path: Path
) -> None:
    of, system = tmp_path / "base.safetensors", PathsConfig(base=BASE, fusion=FUSION)
    known = {"scores": {"psnr": 30.0}}
    export_weights(LoadedModel(build(BASE), "strcnn_dtb", BASE, 0, "base", known), of)
    run = Run(
        "strcnn_dtb_paths",
        system,
        TrainingConfig(
            steps=2,
            batch_size=8,
            frames=2,
            crop=32,
            average=0.9,
            validate_every=0,
            optimizer="muon",
        ),
        DataConfig(data=(f"paths:{folder}",), least_blur=0.0),
        start_from=str(of),
    )
    state = train(run, tmp_path / "run")
    assert int(state.step) == 2
    assert not bool(state.failed)
    loaded, base = load_model(tmp_path / "run"), load_model(of)
    restorer, parameters = loaded.model, split(loaded.model)[1]
    chex.assert_trees_all_equal(of_base(parameters), split(base.model)[1])  # bit by bit
    assert loaded.metadata["base"]["scores"] == base.metadata["scores"] == known["scores"]
    drawn = split(build(system))[1]
    assert not np.array_equal(parameters["fusion/head/kernel"], drawn["fusion/head/kernel"])
    # A second run goes on from both networks of the first.
    again = starting_parameters(restorer, drawn, str(tmp_path / "run"))
    chex.assert_trees_all_equal(again, parameters)
    assert restorer.lookahead == 2  # the look-ahead of the paths
    # Frames too small for tiles come from the base network.
    restored = jax.eval_shape(restorer.restore_clip, jnp.zeros((1, 2, 32, 32, 3)))
    assert restored.shape == (1, 2, 32, 32, 3)


@pytest.mark.parametrize(
    ("network", "start_from", "options", "message"),
    [
        (SYSTEM, "strcnn_dtb_live", {"validate_every": 1}, "--validate-every and .* 0 on maps"),
        (SYSTEM, "strcnn_dtb_live", {"sharp_input": 0.5}, "--sharp-input must be 0 on maps"),
        (SYSTEM, "strcnn_dtb_live", {"data": ("rendered:tiny",)}, "--data: a network over blur"),
        (SYSTEM.base, None, {}, "--data: .*, all others on frames"),
        (SYSTEM, "a typo", {}, "a typo: no such run folder"),
        (SYSTEM, "strcnn_dtb_choice", {}, "--start-from=strcnn_dtb_choice: weights of another"),
        (SYSTEM, None, {}, "--start-from: give the weights of the base"),
        (dataclasses.replace(SYSTEM, fusion=None), "strcnn_dtb_live", {}, "all others on frames"),
    ],
)
def test_data_that_the_network_cannot_read_is_refused_before_the_run_is_made(
    folder: Path,
    tmp_path: Path,
    network: Any,
    start_from: str | None,
    options: dict[str, Any],
    message: str,
) -> None:
    training = TrainingConfig(
        steps=1, batch_size=8, frames=2, crop=32, validate_every=options.pop("validate_every", 0)
    )
    data = DataConfig(**{"data": (f"paths:{folder}",), "least_blur": 0.0, **options})
    with pytest.raises(UserError, match=message):
        train(Run("test", network, training, data, start_from), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clips_that_do_not_belong_together_are_refused(folder: Path) -> None:
    video = open_dataset(f"paths:{folder}", "train").videos[0]
    assert (len(video), video.height, video.width) == (3, 40, 48)
    file = folder / "000001" / SHARP_FILE
    np.save(file, np.load(file)[:2])
    with pytest.raises(UserError, match=r"maps\.npy: differs in length or size from sharp\.npy"):
        open_dataset(f"paths:{folder}", "train")
    np.save(file, np.zeros((3, 40, 48, 4), np.uint8))
    with pytest.raises(UserError, match=r"sharp\.npy: must be a uint8 array T H W 3, not uint8"):
        open_dataset(f"paths:{folder}", "train")


def test_a_folder_of_other_clips_is_not_added_to(tmp_path: Path) -> None:
    keep_settings(tmp_path, PathClipsConfig(base="a typo"))  # no clip was drawn with it
    keep_settings(tmp_path, PathClipsConfig(clips=1))
    (tmp_path / "000000").mkdir()
    keep_settings(tmp_path, PathClipsConfig(clips=2))
    with pytest.raises(UserError, match=r"drawn with other settings than .*'seed': 1"):
        keep_settings(tmp_path, PathClipsConfig(seed=1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").touch()
    with pytest.raises(UserError, match="photos: holds something else"):
        keep_settings(tmp_path / "photos", PathClipsConfig(clips=1))
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="drawn with other settings"):
        draw_clips(tmp_path, PathClipsConfig(clips=1))


def test_clips_of_high_speed_video_are_as_long_as_training_takes(tmp_path: Path) -> None:
    for name, frames in (("short", 11), ("long", 33)):  # Exposures that fit: three of 3, four of 7.
        (tmp_path / name).mkdir()
        for number in range(frames):
            image = np.full((32, 48, 3), 7 * number, np.uint8)
            iio.imwrite(tmp_path / name / f"{number:02d}.png", image)
    source = PathClipSource(PathClipsConfig(highspeed=str(tmp_path)))
    assert [video.name for video in source.videos] == ["long"]
    for seed in range(20):
        drawn = source.averaged(np.random.default_rng(seed))
        assert len(drawn.blurred) == len(drawn.sharp) >= 4
        assert 0.55 <= drawn.duty <= 1


def test_the_parts_of_a_clip_take_what_the_parts_before_them_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps_of = MapsOfClips(load_model("strcnn_dtb_live").model)

    @functools.cache  # A step of the same shapes is not traced again.
    def step(kept: bool, large: bool) -> Any:
        return functools.partial(maps_of._step, kept=kept, large=large)

    def traced(states: Any, given: Any, *, kept: bool, large: bool) -> Any:
        shapes = jax.eval_shape(step(kept, large), states, given)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    monkeypatch.setattr(maps_of, "_compiled", traced)  # Compiling it takes a minute.
    maps = maps_of(np.zeros((3, 64, 64, 3), np.uint8), 1, 0.9, False, False)
    assert (maps.shape, maps.dtype) == ((2, 64, 64, MAP_CHANNELS), np.uint8)


@pytest.mark.stress
def test_drawing_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxdeblur.training.path_clips._SHARES", {"narrow": 1})
    config = PathClipsConfig(clips=2, crop=192, base="strcnn_dtb_live")
    draw_clips(tmp_path / "a", config)
    maps = [np.load(tmp_path / "a" / f"{n:06d}" / MAPS_FILE) for n in range(2)]
    assert all(each.shape == (5, 192, 192, MAP_CHANNELS) for each in maps)
    sharp = np.load(tmp_path / "a" / "000000" / SHARP_FILE).astype(int)
    errors = [np.abs(maps[0][..., k : k + 3] - sharp)[:, 48:-48, 48:-48].mean() for k in (0, 6)]
    assert errors[1] < errors[0]  # X is nearer to the sharp frame than B
    draw_clips(tmp_path / "b", PathClipsConfig(clips=1, crop=192, base="strcnn_dtb_live"))
    draw_clips(tmp_path / "b", config)
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "000001" / MAPS_FILE), maps[1])
