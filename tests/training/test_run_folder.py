"""A run's config: what is written is read again, and what is wrong in it is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.registry import build
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.run_folder import Run
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

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


def test_what_was_called_fsta_has_another_name_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(FSTA_SMALL, widths=(4, 4), growths=(2, 2), dense_layers=1)
    for fusion, name in (("concat_fsta", "fsta_concat"), ("fsta", "fsta")):
        network = dataclasses.replace(small, fusion=fusion)
        dataclasses.replace(RUN, preset="fsta", network=network).write(tmp_path)
        assert [Run.read(tmp_path).preset for _ in range(2)] == [name] * 2
        file = tmp_path / f"{fusion}.safetensors"
        export_weights(LoadedModel(build(network), "fsta", network, 1, "", {}), file)
        assert load_model(file).preset == name
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: what it calls fsta is fsta_concat now; fsta is the paper's own network"
        for path in (tmp_path, tmp_path / "concat_fsta.safetensors")
    ]


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["data"]["workers"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: data: workers is 'many'"):
        Run.read(tmp_path)
