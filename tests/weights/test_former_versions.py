"""Weights and runs of former versions are read, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jaxdeblur import VERSION
from jaxdeblur.commands.evaluate import of_its_own_kind
from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.models.fsta_config import FSTA_SMALL, FstaConfig
from jaxdeblur.models.registry import network_from_json, network_to_json
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.run_folder import Run, check_folder
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import load_model

STRCNN = StrcnnConfig(width=4, blocks=1, head_width=0)


@pytest.mark.parametrize(
    ("network", "lost"),
    [
        (STRCNN, {"feedback": "side", "first_step": "copy", "over_paths": ""}),
        (FSTA_SMALL, {"squeeze": "features", "merge": "sum", "logit_gain": 1.0}),
    ],
)
def test_a_lost_field_is_read_if_it_says_what_still_holds(
    network: StrcnnConfig | FstaConfig, lost: dict[str, Any]
) -> None:
    values = json.loads(json.dumps(network_to_json(network)))
    assert network_from_json({**values, **lost}, "here") == network
    for name in lost.keys() - {"over_paths"}:  # which has a message of its own
        with pytest.raises(UserError, match=f"here: network: this version has no {name}$"):
            network_from_json({**values, **lost, name: "other"}, "here")


def test_a_network_without_the_one_below_it_is_to_be_trained_again() -> None:
    values = {**network_to_json(STRCNN), "over_paths": "strcnn_dtb_choice"}
    with pytest.raises(UserError, match=r"^here: .*strcnn_dtb_choice.* train it again with"):
        network_from_json(values, "here")


@pytest.mark.parametrize(
    ("version", "ending"), [("0.1.0", f"; jaxdeblur 0.1.0 wrote it, this is {VERSION}"), ("", "")]
)
@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ({"choose_scale": True}, "network: this version has no choose_scale"),
        ({}, "weights of another network; missing: "),
    ],
)
def test_a_file_that_is_not_read_names_the_version_that_wrote_it(
    lost: dict[str, Any], reason: str, version: str, ending: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.safetensors"
    about = {"jaxdeblur": version or VERSION, "preset": "strcnn_dtb_choice", "step": 3}
    header = json.dumps({**about, "network": {**network_to_json(STRCNN), **lost}})
    arrays = {"levels/0/head/bias": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(arrays, file, {"jaxdeblur": header})
    with pytest.raises(UserError) as refused:
        load_model(file)
    said = str(refused.value)
    assert said.startswith(f"{file}: {reason}")
    assert "\n" not in said
    assert ("wrote it" in said) == bool(version)
    assert said.endswith(ending)


def test_a_run_with_lost_options_is_loaded_but_not_resumed(tmp_path: Path) -> None:
    run = Run("strcnn_dtb_small", STRCNN, TrainingConfig(), DataConfig())
    run.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["training"]["muon_rms"], values["data"]["pool"] = 0.2, 64
    values["network"]["feedback"] = "side"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: training: this version has no muon_rms$"):
        check_folder(run, tmp_path, resume=True, overwrite=False)
    with pytest.raises(UserError, match=r"this version has no pool; --data selects another"):
        of_its_own_kind(EvaluationConfig(data=""), values)
    # Its options do not matter to those who use its weights, of which it has none.
    with pytest.raises(UserError, match=r"contains no checkpoint yet$"):
        load_model(tmp_path)
