"""evaluate.py without --data scores the kind of videos that the run trains on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxdeblur.commands.evaluate import of_its_own_kind
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.layouts import MAPS_FILE, SHARP_FILE
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.shapes import MAP_CHANNELS


def test_a_run_is_scored_on_its_own_kind(tmp_path: Path) -> None:
    run = {"data": dataclasses.asdict(DataConfig(scenes="wide"))}
    config = of_its_own_kind(EvaluationConfig(only=("rendered_00",)), run)
    assert (config.data, config.split, config.only) == ("rendered:wide", "test", ("rendered_00",))
    assert of_its_own_kind(EvaluationConfig(), {}).data == "rendered"
    # The variant belongs to the training data set; rendered scenes have none.
    (tmp_path / "train/a/blur_gamma").mkdir(parents=True)
    mixed = DataConfig(data=("rendered", f"gopro:{tmp_path}"), variant="blur_gamma")
    assert of_its_own_kind(EvaluationConfig(), {"data": dataclasses.asdict(mixed)}).variant is None
    with pytest.raises(UserError, match="data of the run: this version has no shoes; --data"):
        of_its_own_kind(EvaluationConfig(), {"data": {"shoes": 2}})


def test_a_split_without_data_is_that_of_the_run(tmp_path: Path) -> None:
    run = {"data": dataclasses.asdict(DataConfig(scenes="wide"))}
    assert of_its_own_kind(EvaluationConfig(split="validation"), run).split == "validation"
    with pytest.raises(UserError, match="--split=train needs --data"):
        of_its_own_kind(EvaluationConfig(split="train"), run)


def test_a_run_on_maps_of_blur_paths_is_scored_on_frames(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number:06d}").mkdir()
        for file, channels in ((MAPS_FILE, MAP_CHANNELS), (SHARP_FILE, 3)):
            pixels = np.zeros((4, 8, 8, channels), np.uint8)
            np.save(tmp_path / f"{number:06d}" / file, pixels)
    run = {"data": dataclasses.asdict(DataConfig(data=(f"paths:{tmp_path}",)))}
    config = of_its_own_kind(EvaluationConfig(), run)
    assert (config.data, config.split, config.only) == ("rendered:narrow", "test", ())
