"""DBN: layers named as in the authors' graph, each a sequence of convolution and normalisation.

``blocks.F0.0.weight`` and ``.bias`` are the convolution's, ``blocks.F0.1.*`` the normalisation's,
with ``running_mean`` and ``running_var``. The authors' own weights are a Torch 7 file, which holds
one flat vector and lists of statistics: put under these names they can be read.
"""

from __future__ import annotations

from jaxdeblur.models.peers.dbn import LAYERS, DbnConfig
from jaxdeblur.weights.reference_names import CONV, TRANSPOSED, Names, Reference, Shapes, conv, norm


def _config(shapes: Shapes) -> DbnConfig:
    width, stacked, *_ = shapes["blocks.F0.0.weight"]
    return DbnConfig(m=(stacked // 3 - 1) // 2, width=width)


def _names(config: DbnConfig) -> Names:
    names: Names = {}
    for layer, (_, stride, _, _) in LAYERS.items():
        layout = CONV if stride else TRANSPOSED
        names |= conv(f"blocks.{layer}.0", f"layers/{layer}/conv", layout)
        names |= norm(f"blocks.{layer}.1", f"layers/{layer}/norm")
    return names


REFERENCE = Reference(
    default=DbnConfig(),
    config=_config,
    names=_names,
    source="shuochsu/DeepVideoDeblurring (MIT)",
)
