"""IFI-RNN: the names of ESTRNN (``rnncell0.F_B.0``) and of SimDeblur (``rnncells.0.F_B.0``).

Of the two networks, SimDeblur's is the one whose first state is the features.
"""

from __future__ import annotations

from jaxdeblur.models.peers.ifi_rnn import SIMDEBLUR, IfiRnnConfig
from jaxdeblur.weights.reference_names import (
    TRANSPOSED,
    Names,
    Reference,
    Shapes,
    conv,
    count,
)


def _config(shapes: Shapes) -> IfiRnnConfig:
    simdeblur = any(name.startswith("rnncells.") for name in shapes)
    cell, to_hidden = ("rnncells.1", "F_H") if simdeblur else ("rnncell1", "F_h")
    first = "conv1" if simdeblur else "main_branch.0"
    return IfiRnnConfig(
        widths=tuple(shapes[f"{cell}.F_B.{i}.weight"][0] for i in range(3)),
        hidden=shapes[f"{cell}.{to_hidden}.2.weight"][0],
        up_widths=tuple(shapes[f"{cell}.F_L.{i}.weight"][1] for i in range(2)),
        blocks=count(shapes, f"{cell}.F_R.{{}}.{first}.weight"),
        kernel=shapes[f"{cell}.F_B.0.weight"][-1],
        up_kernel=shapes[f"{cell}.F_L.0.weight"][-1],
        first_state=SIMDEBLUR.first_state if simdeblur else "zeros",
        centre=SIMDEBLUR.centre if simdeblur else IfiRnnConfig.centre,
    )


def _names(config: IfiRnnConfig) -> Names:
    simdeblur = config.first_state == "features"
    to_hidden = "F_H" if simdeblur else "F_h"
    first, second = ("conv1", "conv2") if simdeblur else ("main_branch.0", "main_branch.2")

    def block(theirs: str, ours: str) -> Names:
        return conv(f"{theirs}.{first}", f"{ours}/first") | conv(
            f"{theirs}.{second}", f"{ours}/second"
        )

    names: Names = {}
    for k in range(2):
        theirs, ours = f"rnncells.{k}" if simdeblur else f"rnncell{k}", f"cells/{k}"
        for i in range(3):
            names |= conv(f"{theirs}.F_B.{i}", f"{ours}/features/{i}")
        for i in range(config.blocks):
            names |= block(f"{theirs}.F_R.{i}", f"{ours}/blocks/{i}")
        for i in (0, 2):
            names |= conv(f"{theirs}.{to_hidden}.{i}", f"{ours}/to_hidden/{i}")
        names |= block(f"{theirs}.{to_hidden}.1", f"{ours}/to_hidden/1")
    for i in range(2):
        names |= conv(f"{theirs}.F_L.{i}", f"up/{i}", TRANSPOSED)
    return names | conv(f"{theirs}.F_L.2", "head")


REFERENCE = Reference(
    default=IfiRnnConfig(),
    config=_config,
    names=_names,
    source="zzh-tech/ESTRNN and ljzycmd/SimDeblur (both MIT)",
)
