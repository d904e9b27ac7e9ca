"""A run's config: what is written is read again, and what versions before this one wrote too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.registry import network_from_json, network_to_json
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.run_folder import Run
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


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They say less: fields that came later have their defaults."""
    RUN.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["start_from"], values["data"]["sharp_input"], values["training"]["recompute"]
    values["network"] |= {"scales": [1], "choose_scale": False, "share_levels": False}
    values["network"] |= {"coarse_width": 0, "coarse_blocks": 0}
    values["training"]["train_only"] = ""
    (tmp_path / "config.json").write_text(json.dumps({**values, "jaxdeblur": "0.1.0"}))
    read = Run.read(tmp_path)
    assert (read.start_from, read.data, read.training) == (None, RUN.data, RUN.training)
    values["network"] |= {"scales": [2, 1], "choose_scale": True, "share_levels": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: a run at several sizes of an earlier"):
        Run.read(tmp_path)


def test_other_ways_of_using_several_sizes_are_refused() -> None:
    """Version 0.1 had such networks, and wrote their fields for others too."""
    old = network_to_json(RUN.network) | {"coarse_width": 0, "choose_scale": True}
    for wrong in ({"choose_scale": False}, {"coarse_width": 32}, {"share_levels": False}):
        with pytest.raises(UserError, match=r"here: .* which version 0\.1 restores"):
            network_from_json(old | wrong, "here")
    assert network_from_json(old, "here") == RUN.network
    attention = network_to_json(FSTA_SMALL)
    assert network_from_json(attention | {"scales": [1]}, "here") == FSTA_SMALL
    with pytest.raises(UserError, match=r"here: scales=\[2, 1\] is of a chain of levels"):
        network_from_json(attention | {"scales": [2, 1]}, "here")


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    RUN.write(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["data"]["workers"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json: data: workers is 'many'"):
        Run.read(tmp_path)
