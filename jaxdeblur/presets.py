"""All named configurations, from files ``presets.toml``; ``--model=`` selects one.

Each field of its network, training and data is an option.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models import fsta_config
from jaxdeblur.models.registry import network_from_json
from jaxdeblur.options import from_json
from jaxdeblur.siblings import siblings
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network with its training and data configurations."""

    about: str
    """Its purpose, as ``train.py --help`` lists it."""
    network: Any
    training: TrainingConfig
    data: DataConfig
    expect: str = ""
    """The hardware and duration of its training, and the gain; empty if unknown."""
    start_from: str | None = None
    """The weights that a run starts from by default: those of a system's base."""
    on_cores: str | None = None
    """The preset to use on a machine without a GPU, where training this one takes days."""

    def described(self, name: str) -> list[str]:
        """Returns its purpose, the command that trains it, and what to expect, as paragraphs."""
        hardware = "One GPU." if self.on_cores else "Two CPU cores."
        unknown = f"{hardware} Never trained here: duration and result are unknown."
        return [self.about, f"python train.py --model={name}", self.expect or unknown]


def _read() -> dict[str, Preset]:
    recipes: dict[str, Any] = {}
    listed: dict[str, Any] = {}
    for file in (Path(__file__).with_suffix(".toml"), *(each.PRESETS for each in siblings())):
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        recipes |= tables["recipe"]
        listed |= tables["preset"]
    presets = {}
    for name, fields in listed.items():
        network, training = fields.pop("network"), recipes[fields.pop("recipe")]
        training = training | fields.pop("training", {})
        presets[name] = Preset(
            network=getattr(fsta_config, network)
            if isinstance(network, str)
            else network_from_json(network, name),
            training=from_json(TrainingConfig, training, name),
            data=from_json(DataConfig, fields.pop("data"), name),
            **fields,
        )
    return presets


PRESETS = _read()


def find(name: str) -> Preset:
    """Returns the preset of this name.

    Raises:
      UserError: there is no such preset; the message lists all presets.
    """
    if name not in PRESETS:
        raise UserError(f"--model={name}: no such preset; choose from {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
