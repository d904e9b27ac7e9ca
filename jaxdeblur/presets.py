"""Every named configuration, from ``presets.toml``: ``--model=`` picks one.

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
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network, how it is trained, and on what."""

    about: str
    """What it is for, as ``train.py --help`` lists it."""
    network: Any
    training: TrainingConfig
    data: DataConfig
    expect: str = ""
    """On what hardware it trains, how long, and what it then gains; empty where nobody knows."""
    on_cores: str | None = None
    """The preset to take on a machine without a GPU, where this one's training takes days."""

    def described(self, name: str) -> list[str]:
        """What it is, the command that trains it, and what to expect, as paragraphs."""
        hardware = "One GPU." if self.on_cores else "Two CPU cores."
        unknown = f"{hardware} Never trained here: hours and result are not known."
        return [self.about, f"python train.py --model={name}", self.expect or unknown]


def _read() -> dict[str, Preset]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    presets = {}
    for name, fields in tables["preset"].items():
        network, training = fields.pop("network"), tables["recipe"][fields.pop("recipe")]
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
    """The preset of a name.

    Raises:
      UserError: there is none; it lists those there are.
    """
    if name not in PRESETS:
        raise UserError(f"--model={name}: no such preset; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
