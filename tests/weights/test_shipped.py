"""The shipped weights load, state their origin and reach the documented scores."""

from __future__ import annotations

import json
import re
import runpy
from functools import partial
from pathlib import Path
from typing import Any, get_args

import chex
import numpy as np
import pytest

from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.models.parameters import of_base, split
from jaxdeblur.restoration.stream import Stream, restore_frames, restore_pixels
from jaxdeblur.weights import shipped
from jaxdeblur.weights.load import load_model, runs_paths

ROOT = Path(__file__).resolve().parents[2]


def all_data(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the data settings of every run that contributed to the weights."""
    return [run["data"] for run in (metadata, *metadata["after"])]


every_weights = pytest.mark.parametrize(
    "name",
    [name for name in shipped.names() if name != "paths"],  # which has none
)


def test_there_are_some_and_they_are_small() -> None:
    assert shipped.names()
    assert sum(file.stat().st_size for file in set(map(shipped.path, shipped.names()))) < 20 * 2**20


@pytest.mark.parametrize(
    ("whole", "within"),
    [
        ("strcnn_dtb_paths", "strcnn_dtb_choice"),
        ("strcnn_dtb_photo_paths", "strcnn_dtb_photo"),
    ],
)
def test_a_system_is_one_file_with_its_base(whole: str, within: str) -> None:
    system, base = load_model(whole), load_model(within)
    assert system.network.base == base.network
    chex.assert_trees_all_equal(of_base(split(system.model)[1]), split(base.model)[1])
    assert system.metadata["base"] == base.metadata


def test_paths_alone_have_no_parameters() -> None:
    assert split(load_model("paths").model)[1] == {}


@every_weights
def test_they_say_what_they_were_trained_on(name: str) -> None:
    metadata = load_model(name).metadata
    assert metadata["licence of the data"]
    assert metadata["training"]["steps"] >= metadata["step"] > 0
    assert re.fullmatch(r"[0-9a-f]{12}", metadata["commit"])
    assert metadata["scores"]
    for data in all_data(metadata):
        assert "/" not in json.dumps(data), "a path of the machine that trained"


@every_weights
def test_no_validation_scene_is_among_the_training_data(name: str) -> None:
    metadata = load_model(name).metadata
    for data in all_data(metadata):
        if any("x4k" in spec for spec in data["data"]):
            assert {"TEST03", "TEST12", "TEST14"} <= set(data["exclude"])


@pytest.mark.parametrize("use", get_args(shipped.Use))
def test_every_use_has_weights(use: shipped.Use) -> None:
    name = shipped.default_name(use)
    assert name in shipped.names()
    assert load_model(name).of_photographs == use.endswith("photograph")


def test_they_compute_in_the_type_that_is_asked_for() -> None:
    """``--dtype=bfloat16`` halves the memory on a GPU."""
    name = shipped.default_name("fast video")
    assert load_model(name).network.dtype == "float32"
    half = load_model(name, dtype="bfloat16")
    assert half.network.dtype == "bfloat16"
    assert str(half.model.level.dtype) == "bfloat16"


# Those that compile quickly; one of them is enough for each change.
@pytest.mark.parametrize("use", [pytest.param("camera", marks=pytest.mark.stress), "photograph"])
def test_they_sharpen(use: shipped.Use) -> None:
    (video,) = rendered_videos("validation", "narrow", scenes=1)
    loaded = load_model(shipped.default_name(use))
    count = 1 if loaded.of_photographs else 3
    blurred = np.stack([video.blurred(i)[:96, :96] for i in range(count)])
    sharp = [video.sharp(i)[:96, :96] for i in range(count)]
    restored = restore_pixels(loaded.model, blurred)
    gains = [psnr(r, s) - psnr(b, s) for r, b, s in zip(restored, blurred, sharp, strict=True)]
    assert np.mean(gains) > 0.8


@pytest.mark.stress  # half a minute each
@every_weights
@pytest.mark.parametrize("scenes", ["narrow", "wide"])
def test_the_score_is_the_documented_one(name: str, scenes: str) -> None:
    """Compares with docs/results.md: two validation scenes of each kind, to 0.05 dB."""
    table = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \| {scenes} \| [\d.]+ \| ([\d.]+) \|", table, re.MULTILINE)
    assert row, f"docs/results.md has no row for {name} on {scenes}"
    loaded = load_model(name)
    restore = partial(restore_frames, partial(Stream, loaded.model))
    scores = []
    for video in rendered_videos("validation", scenes, scenes=2):
        blurred = [video.blurred(i) for i in range(len(video))]
        clips = [[frame] for frame in blurred] if loaded.of_photographs else [blurred]
        restored = [frame for clip in clips for frame in restore(clip)]
        scores.append(np.mean([psnr(frame, video.sharp(i)) for i, frame in enumerate(restored)]))
    assert float(np.mean(scores)) == pytest.approx(float(row[1]), abs=0.05)


@pytest.mark.stress  # a minute
def test_the_demo_restores_a_clip_and_may_be_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    monkeypatch.chdir(tmp_path)
    clip = tmp_path / "runs" / "demo-clip"
    for name in ("blurred", "restored"):  # An earlier demo of another clip stopped halfway.
        (clip / name).mkdir(parents=True)
    (clip / "restored" / "9999.png").touch()
    demo["restore_with_shipped_weights"]()
    blurred, restored = (sorted((clip / name).iterdir()) for name in ("blurred", "restored"))
    assert [file.name for file in restored] == [file.name for file in blurred]
    assert restored[0].read_bytes() != blurred[0].read_bytes()


def test_which_weights_run_blur_paths(tmp_path: Path) -> None:
    found = {name for name in [*shipped.names(), "paths"] if runs_paths(name)}
    assert found == {"strcnn_dtb_paths", "strcnn_dtb_photo_paths", "paths"}
    assert runs_paths(shipped.path("strcnn_dtb_paths"))
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    for nothing in ("nothing", tmp_path, tmp_path / "broken.safetensors"):
        assert not runs_paths(nothing), "loading it reports the error"
