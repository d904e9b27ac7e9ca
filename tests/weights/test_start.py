"""What a network begins with, or is put together from, where another one was trained before."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import export, models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights
from jaxdeblur.weights.start import starting_parameters

TINY = StrcnnConfig(width=4, blocks=1, m=1)


def parameters(model: VideoRestorer) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in split(model)[1].items()}


@pytest.fixture
def weights(tmp_path: Path) -> Any:
    """Writes the weights of a network that says how it was trained; gives the file."""

    def write(name: str, seed: int, **fields: Any) -> Path:
        network = dataclasses.replace(TINY, **fields)
        preset = PRESETS["strcnn_dtb_small"]
        about = {k: dataclasses.asdict(getattr(preset, k)) for k in ("training", "data")}
        model = models.build(network, seed)
        path = tmp_path / f"{name}.safetensors"
        export_weights(LoadedModel(model, "strcnn_dtb_small", network, seed, name, about), path)
        return path

    return write


def begun(path: Path, **fields: Any) -> VideoRestorer:
    """The network of ``fields`` as ``train.py --start-from`` begins with it."""
    model = models.build(dataclasses.replace(TINY, **fields), 99)
    rebuild, drawn = split(model)
    return rebuild(starting_parameters(model, drawn, str(path), may_grow=True))


def exported(monkeypatch: pytest.MonkeyPatch, run: Path, *options: str) -> LoadedModel:
    file = run.with_name("exported.safetensors")
    monkeypatch.setattr(sys, "argv", ["export", str(run), str(file), "--licence=free", *options])
    export.main()
    return load_model(file)


def restored(model: VideoRestorer) -> np.ndarray:
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    frames = restore_clip(model, clip)
    assert np.any(frames != clip)
    return frames


def test_a_wider_and_deeper_network_begins_as_the_small_one_ends(weights: Any) -> None:
    small = weights("small", 1)
    expected = restored(load_model(small).model)
    for larger in ({"width": 6, "blocks": 2},):
        np.testing.assert_array_equal(restored(begun(small, **larger)), expected)
    for wrong, said in (
        ({"width": 2, "blocks": 4}, "width is 4 there, 2 here"),
        ({"m": 2, "blocks": 4}, "only width and"),
    ):
        with pytest.raises(UserError, match=f"--start-from={re.escape(str(small))}: .*{said}"):
            begun(small, **wrong)


def test_each_level_grows(weights: Any) -> None:
    """A network at one scale starts a wider and deeper one at two."""
    small = weights("small", 1)
    grown = begun(small, scales=(2, 1), width=6, blocks=2)
    expected = restored(load_model(small).model)
    for level in grown.levels:
        assert level.config.width == 6
        np.testing.assert_array_equal(restored(level), expected)


def test_two_levels_start_three(weights: Any) -> None:
    pair = weights("pair", 1, scales=(2, 1))
    two, three = parameters(load_model(pair).model), parameters(begun(pair, scales=(4, 2, 1)))
    assert any(np.any(two[n] != two[n.replace("levels/0", "levels/1")]) for n in two)
    # The coarsest stays the coarsest; the finest is repeated.
    for name, array in three.items():
        part, level, rest = name.split("/", 2)
        if part == "levels":
            np.testing.assert_array_equal(array, two[f"levels/{min(int(level), 1)}/{rest}"])
    # Of shared ones there is no more than one.
    shared = parameters(begun(pair, scales=(4, 2, 1), share_levels=True))
    np.testing.assert_array_equal(shared["levels/0/stem/kernel"], two["levels/1/stem/kernel"])
    with pytest.raises(UserError, match="2 levels, more than the 1 here"):
        begun(pair)


def test_what_has_the_same_shapes_and_computes_something_else_is_refused(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = weights("one", 1)
    other = weights("other", 2, residual=True, blending="encoder")
    with pytest.raises(UserError, match=r"another network: .*blending: here middle"):
        exported(monkeypatch, one, "--mix-with", str(other), "0.5")
    alike = weights("alike", 2, dtype="bfloat16")
    mean = parameters(exported(monkeypatch, one, "--mix-with", str(alike), "0.5").model)
    pair = [parameters(load_model(path).model) for path in (one, alike)]
    for name, array in mean.items():
        np.testing.assert_allclose(array, (pair[0][name] + pair[1][name]) / 2, atol=1e-6)


def test_without_git_no_commit_is_known(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = weights("one", 1)
    monkeypatch.setenv("PATH", "/nowhere")
    assert exported(monkeypatch, one).metadata["commit"] == "unknown"


def test_exported_weights_name_no_folder_and_have_their_scores(
    weights: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Paths are those of one machine, and tell who trained there."""
    run = load_model(weights("one", 1))
    trained_on = {"data": ["highspeed:/nowhere/fast", "rendered"], "photos": "/nowhere/pictures"}
    data = {**run.metadata["data"], **trained_on, "validate_on": "pairs:/nowhere/held"}
    file = tmp_path / "of_folders.safetensors"
    export_weights(run._replace(metadata={**run.metadata, "data": data}), file)
    totals = {"psnr": 30.123456, "psnr_blurred": 27.5, "ssim": 0.912345, "ssim_blurred": 0.8}
    where = {"dataset": {"name": "fast", "variant": None}, "protocol": {"name": "jaxdeblur"}}
    (tmp_path / "metrics.json").write_text(json.dumps({**totals, **where}))
    about = exported(monkeypatch, file, "--half", f"--scores={tmp_path / 'metrics.json'}").metadata
    assert about["data"]["data"] == ["highspeed:fast", "rendered"]
    assert (about["data"]["photos"], about["data"]["validate_on"]) == ("pictures", "pairs:held")
    (scores,) = about["scores"]
    assert scores == {
        **{"data": "fast", "variant": None, "by": "jaxdeblur"},
        **{"psnr": 30.1235, "psnr_blurred": 27.5, "ssim": 0.9123, "ssim_blurred": 0.8},
    }
    stored = safetensors.numpy.load_file(tmp_path / "exported.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
