"""Every named configuration: ``--model=`` picks one, and each field of it is an option."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdeblur.data.sources import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network, how it is trained, and on what."""

    about: str
    """The command, the hardware, the hours and the result to expect."""
    network: Any
    training: TrainingConfig
    data: DataConfig


# The paper trains on 13-frame clips of 128x128 pixels, 8 at a time, with MSE, weight decay and
# Adam at 1e-4, decayed (docs/architecture.md says what of this is from the paper).
_PAPER = TrainingConfig(
    steps=400_000,
    batch_size=8,
    frames=13,
    crop=128,
    optimizer="adam",
    learning_rate=1e-4,
    weight_decay=1e-4,
    loss="mse",
    validate_every=5000,
    save_every=1000,
)

# Two cores: short clips, small crops, Muon, which learns about twice as fast as Adam here.
_TWO_CORES = TrainingConfig(
    steps=3000,
    batch_size=2,
    frames=4,
    crop=96,
    optimizer="muon",
    learning_rate=1e-3,
    beta2=0.99,
    loss="charbonnier",
    validate_every=500,
    save_every=500,
)

PRESETS: dict[str, Preset] = {
    "strcnn": Preset(
        about="STRCNN without blending, the paper's baseline, for one GPU.",
        network=StrcnnConfig(blending="none"),
        training=_PAPER,
        data=DataConfig(scenes="wide"),
    ),
    "strcnn_dtb": Preset(
        about="STRCNN+DTB, the paper's network (1.15 M parameters), for one GPU.",
        network=StrcnnConfig(),
        training=_PAPER,
        data=DataConfig(scenes="wide"),
    ),
    "strcnn_dtb_small": Preset(
        about="STRCNN+DTB at width 24 with 2+2 blocks (87 k parameters): trains on two cores in "
        "minutes, on scenes with small motion.",
        network=StrcnnConfig(width=24, blocks=2, head_width=0, residual=True, leak=0.1),
        training=_TWO_CORES,
        data=DataConfig(scenes="narrow"),
    ),
}


def find(name: str) -> Preset:
    """The preset of a name; :class:`UserError` lists the names there are."""
    if name not in PRESETS:
        raise UserError(f"--model={name}: no such preset; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
