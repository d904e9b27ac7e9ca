"""What a run is scored on where no data set is named: the kind of videos that it trains on."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdeblur.data.config import read_data_config
from jaxdeblur.data.layouts import RENDERED
from jaxdeblur.data.training_data import open_data
from jaxdeblur.evaluation.config import EvaluationConfig


def of_its_own_kind(config: EvaluationConfig, run: dict[str, Any]) -> EvaluationConfig:
    """``config`` with the data set of a run: test videos of its kind, or those held out.

    Args:
      config: the options; what they say of videos stays.
      run: what the run's config says, its ``data`` among it; without, the rendered scenes.

    Raises:
      UserError: the run's data options cannot be read, or its folder is not there any more.
    """
    if "data" not in run:
        return dataclasses.replace(config, data=RENDERED)
    data = open_data(read_data_config(run["data"], "data of the run"))
    spec, split, only, variant = data.scored("test")
    return dataclasses.replace(
        config,
        data=spec,
        split=split,
        only=config.only or only,
        variant=config.variant or variant,
    )
