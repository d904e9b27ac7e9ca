"""A run's config is read as it was written, and what is wrong in it is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.run_folder import Run, check_folder
from jaxdeblur.training.step import TrainingConfig

RUN = Run(
    "strcnn_dtb_small",
    StrcnnConfig(width=24, blocks=2, scales=(2, 1)),
    TrainingConfig(steps=7, loss="log_mse"),
    DataConfig(data=("rendered", "pairs:/data/mine"), mix=(0.5, 0.5), only=("a",), scenes="wide"),
    start_from="runs/first",
)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    assert Run.read(tmp_path) == RUN


def test_fields_that_are_not_there_have_their_defaults(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["start_from"], values["data"]["sharp_input"], values["training"]["recompute"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Run.read(tmp_path) == dataclasses.replace(RUN, start_from=None)


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["data"]["workers"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: data: workers is 'many'"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "then", "here"),
    [
        ("optimizer", "adam", "muon"),
        ("average", 0.0, 0.9),
        ("rates", (), ("beta_logit=30",)),
        ("rates", ("beta_logit=30", "head=2"), ()),
    ],
)
def test_what_the_checkpoints_cannot_continue_is_named(
    tmp_path: Path, field: str, then: Any, here: Any
) -> None:
    begun, run = (
        dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, **{field: value}))
        for value in (then, here)
    )
    begun.write(tmp_path)
    check_folder(begun, tmp_path, resume=True, overwrite=False)
    with pytest.raises(UserError, match=f"began with --{field}=.*--start-from"):
        check_folder(run, tmp_path, resume=True, overwrite=False)


def test_rates_that_the_run_has_may_change(tmp_path: Path) -> None:
    one, two = (
        dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, rates=(rate,)))
        for rate in ("beta_logit=30", "head=2")
    )
    one.write(tmp_path)
    check_folder(two, tmp_path, resume=True, overwrite=False)
