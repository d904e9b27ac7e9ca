"""The systems that the attention paper's Table 1 compares with: networks, weights, data.

Each system is one file and exactly the network of its reference code: with the reference's weights
it gives the reference's output. ``jaxdeblur convert`` converts such weights, and ``jaxdeblur
prepare`` writes data sets as published tables score them. docs/peers.md describes the systems and
what differs between paper, code and re-implementations.

Nothing else in the package imports this folder: ``jaxdeblur/siblings.py`` finds it if it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdeblur.models.restorer import VideoRestorer

COMMANDS = {
    "convert": ("jaxdeblur.table1.convert", "imports weights of a reference implementation"),
    "prepare": ("jaxdeblur.table1.prepare", "checks GOPRO, DVD or BSD; writes what tables score"),
}
"""What ``jaxdeblur`` offers more, as in ``commands.COMMANDS``."""

PRESETS = Path(__file__).with_name("presets.toml")
"""More presets; their recipes may be those of the package's."""


def models() -> dict[type, Callable[..., VideoRestorer]]:
    """Returns the networks, by the classes of their configs."""
    from jaxdeblur.table1.dbn import Dbn, DbnConfig
    from jaxdeblur.table1.edvr import Edvr, EdvrConfig
    from jaxdeblur.table1.ifi_rnn import IfiRnn, IfiRnnConfig
    from jaxdeblur.table1.rdn import Rdn, RdnConfig
    from jaxdeblur.table1.srn import Srn, SrnConfig
    from jaxdeblur.table1.stfan import Stfan, StfanConfig

    return {
        DbnConfig: Dbn,
        EdvrConfig: Edvr,
        IfiRnnConfig: IfiRnn,
        RdnConfig: Rdn,
        SrnConfig: Srn,
        StfanConfig: Stfan,
    }
