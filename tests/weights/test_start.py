"""Networks that start from, or are mixed with, weights that were trained before."""

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

from jaxdeblur import models
from jaxdeblur.commands import export
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.testing import float32_error
from jaxdeblur.weights.load import LoadedModel, load_model, starting_parameters
from jaxdeblur.weights.save import export_weights

TINY = StrcnnConfig(width=4, blocks=1, m=1)


def parameters(model: VideoRestorer) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in split(model)[1].items()}


@pytest.fixture
def weights(tmp_path: Path) -> Any:
    """Writes a network's weights with the settings of its training; returns the file."""

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
    """Returns the network of ``fields`` as ``train.py --start-from`` begins with it."""
    model = models.build(dataclasses.replace(TINY, **fields), 99)
    rebuild, drawn = split(model)
    return rebuild(starting_parameters(model, drawn, str(path)))


def exported(monkeypatch: pytest.MonkeyPatch, run: Path, *options: str) -> LoadedModel:
    file = run.with_name("exported.safetensors")
    monkeypatch.setattr(sys, "argv", ["export", str(run), str(file), "--licence=free", *options])
    export.main()
    return load_model(file)


def restored(model: VideoRestorer) -> np.ndarray:
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    frames = restore_pixels(model, clip)
    assert np.any(frames != clip)
    return frames


def test_several_sizes_begin_with_the_network_of_one_and_the_other_way_round(
    weights: Any,
) -> None:
    one = weights("one", 1)
    several = begun(one, scales=(4, 2, 1))
    expected = restored(load_model(one).model)
    np.testing.assert_array_equal(restored(several.level), expected)
    choice = weights("choice", 2, scales=(2, 1))
    np.testing.assert_array_equal(restored(begun(choice)), restored(load_model(choice).model.level))
    with pytest.raises(UserError, match=rf"--start-from={re.escape(str(one))}: .*another network"):
        begun(one, width=6)


def test_what_has_the_same_shapes_and_computes_something_else_is_refused(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = weights("one", 1)
    other = weights("other", 2, residual=True, blending="encoder")
    with pytest.raises(UserError, match=r"networks differ: .*blending: here middle"):
        exported(monkeypatch, one, "--mix-with", str(other), "0.5")
    alike = weights("alike", 2, dtype="bfloat16")
    mean = parameters(exported(monkeypatch, one, "--mix-with", str(alike), "0.5").model)
    pair = [parameters(load_model(path).model) for path in (one, alike)]
    for name, array in mean.items():
        expected = (pair[0][name] + pair[1][name]) / 2
        np.testing.assert_allclose(array, expected, rtol=0, atol=float32_error(2))


def test_networks_of_one_size_and_of_several_can_be_averaged(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, one = weights("several", 2, scales=(2, 1)), weights("one", 1)
    ours, theirs = (parameters(load_model(path).model) for path in (several, one))
    mixed = parameters(exported(monkeypatch, several, "--mix-with", str(one), "0.25").model)
    for name, array in mixed.items():
        level = name.removeprefix("level/")
        mean = 0.75 * ours[name] + 0.25 * theirs[level] if level in theirs else ours[name]
        np.testing.assert_allclose(array, mean, rtol=0, atol=float32_error(2))
    assert any(name.startswith("gates/") for name in mixed)


def test_without_git_no_commit_is_known(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = weights("one", 1)
    monkeypatch.setenv("PATH", "/nowhere")
    assert exported(monkeypatch, one).metadata["commit"] == "unknown"


def test_weights_trained_with_the_kernels_load_without_them(tmp_path: Path) -> None:
    config = dataclasses.replace(FSTA_SMALL, implementation="mosaic")
    file = tmp_path / "kernels.safetensors"
    export_weights(LoadedModel(models.build(config), "fsta_small", config, 0, "test", {}), file)
    assert load_model(file).network.implementation == "auto"


def test_what_is_exported_again_keeps_its_origin(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_model(weights("one", 1))
    known = {"licence of the data": "mine", "commit": "abcdef", "scores": [1], "after": [2]}
    file = weights("one", 1).with_name("known.safetensors")
    export_weights(run._replace(metadata={**run.metadata, **known}), file)
    monkeypatch.setattr(
        sys, "argv", ["export", str(file), str(file.with_name("again.safetensors"))]
    )
    export.main()
    again = load_model(file.with_name("again.safetensors")).metadata
    assert {name: again[name] for name in known} == known


def test_exported_weights_name_no_folder_and_have_their_scores(
    weights: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Paths belong to one machine and reveal who trained there."""
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
