"""RDN: layers named by their scopes in the authors' graph, with PyTorch's layout of kernels.

``d0_conv.conv.weight`` and ``.bias`` are the convolution's, ``d0_conv.gamma`` and ``.beta`` the
normalisation's; ``u1_0_deconv`` is a transposed one, ``d41_s_conv``, ``u1_s_conv`` and
``u2_s_conv`` merge what passes from step to step. Scopes may stand without ``_conv`` or
``_deconv``, and the merging ones as ``merge0``, ``merge1`` and ``merge2``.
"""

from __future__ import annotations

import re

from jaxdeblur.models.peers.rdn import RdnConfig
from jaxdeblur.weights.reference_names import (
    AS_IT_IS,
    CONV,
    TRANSPOSED,
    Arrays,
    Layout,
    Names,
    Reference,
    Shapes,
    conv,
)

_MERGING = {"merge0": "d41_s", "merge1": "u1_s", "merge2": "u2_s"}


def _config(shapes: Shapes) -> RdnConfig:
    return RdnConfig(width=shapes["d0_conv.conv.weight"][0])


def _names(config: RdnConfig) -> Names:
    names: Names = {}

    def add(theirs: str, ours: str, layout: Layout = CONV) -> None:
        names.update(conv(f"{theirs}.conv", f"{ours}/conv", layout))
        names[f"{theirs}.gamma"] = f"{ours}/scale", AS_IT_IS
        names[f"{theirs}.beta"] = f"{ours}/bias", AS_IT_IS

    add("d0_conv", "d0")
    for block in ("d1", "d2", "d3", "d4"):
        for i in range(4):
            add(f"{block}_{i}_conv", f"{block}/{i}")
    for block, layers in (("u1", 4), ("u2", 4), ("u3", 5)):
        add(f"{block}_0_deconv", f"{block}/0", TRANSPOSED)
        for i in range(1, layers):
            add(f"{block}_{i}_conv", f"{block}/{i}")
    for i, merging in enumerate(_MERGING.values()):
        add(f"{merging}_conv", f"merge/{i}")
    return names


def _prepare(arrays: Arrays) -> Arrays:
    return {_in_full(name): array for name, array in arrays.items()}


def _in_full(name: str) -> str:
    """The name with ``_conv`` or ``_deconv`` after its scope, and ``.conv.`` in it."""
    scope, _, rest = name.partition(".")
    scope = re.sub("_(de)?conv$", "", scope)
    scope = _MERGING.get(scope, scope)
    kind = "deconv" if re.fullmatch("u[123]_0", scope) else "conv"
    return f"{scope}_{kind}.{re.sub('^deconv[.]', 'conv.', rest)}"


REFERENCE = Reference(
    default=RdnConfig(),
    config=_config,
    names=_names,
    source="cgtuebingen/learning-blind-motion-deblurring (Apache-2.0)",
    prepare=_prepare,
)
