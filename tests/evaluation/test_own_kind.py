"""evaluate.py without --data scores the kind of videos that the run trains on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jaxdeblur.commands.evaluate import of_its_own_kind
from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.config import EvaluationConfig


def test_a_run_is_scored_on_its_own_kind(tmp_path: Path) -> None:
    run = {"data": dataclasses.asdict(DataConfig(scenes="wide"))}
    config = of_its_own_kind(EvaluationConfig(only=("rendered_00",)), run)
    assert (config.data, config.split, config.only) == ("rendered:wide", "test", ("rendered_00",))
    assert of_its_own_kind(EvaluationConfig(), {}).data == "rendered"
    # The variant belongs to the training data set; rendered scenes have none.
    (tmp_path / "train/a/blur_gamma").mkdir(parents=True)
    mixed = DataConfig(data=("rendered", f"gopro:{tmp_path}"), variant="blur_gamma")
    assert of_its_own_kind(EvaluationConfig(), {"data": dataclasses.asdict(mixed)}).variant is None
    with pytest.raises(UserError, match="data of the run: unknown fields shoes"):
        of_its_own_kind(EvaluationConfig(), {"data": {"shoes": 2}})
