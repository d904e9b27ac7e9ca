"""SRN: the variables of the authors' TensorFlow graph, ``g_net/enc1_1/weights`` and so on."""

from __future__ import annotations

from jaxdeblur.models.peers.srn import SrnConfig
from jaxdeblur.weights.reference_names import (
    AS_IT_IS,
    TF_CONV,
    TF_TRANSPOSED,
    Arrays,
    Layout,
    Names,
    Reference,
    Shapes,
)

_LSTM = "g_net/convLSTM/LSTM_conv"


def _config(shapes: Shapes) -> SrnConfig:
    _, _, channels, width = shapes["g_net/enc1_1/weights"]
    if channels == 6:
        return SrnConfig("color", width)
    return SrnConfig("lstm" if f"{_LSTM}/weights" in shapes else "gray", width)


def _names(config: SrnConfig) -> Names:
    names: Names = {}

    def layer(theirs: str, ours: str, layout: Layout = TF_CONV) -> None:
        names[f"{theirs}/weights"] = f"{ours}/kernel", layout
        names[f"{theirs}/biases"] = f"{ours}/bias", AS_IT_IS

    def blocks(theirs: list[str], ours: str) -> None:
        for i, scope in enumerate(theirs):
            layer(f"g_net/{scope}/conv1", f"{ours}/{i}/first")
            layer(f"g_net/{scope}/conv2", f"{ours}/{i}/second")

    for size in (1, 2, 3):
        layer(f"g_net/enc{size}_1", f"enc{size}")
        blocks([f"enc{size}_{i}" for i in (2, 3, 4)], f"enc{size}_blocks")
        blocks([f"dec{size}_{i}" for i in (3, 2, 1)], f"dec{size}_blocks")
    for size in (1, 2):
        layer(f"g_net/dec{size}_4", f"dec{size}", TF_TRANSPOSED)
    layer("g_net/dec1_0", "image")
    if config.srn == "lstm":
        layer(_LSTM, "lstm/gates")
    return names


def _prepare(arrays: Arrays) -> Arrays:
    """Without what a checkpoint holds for its training: Adam's moments, the number of the step."""
    named = {name.removesuffix(":0"): array for name, array in arrays.items()}
    return {
        name: array
        for name, array in named.items()
        if not name.endswith(("/Adam", "/Adam_1", "beta1_power", "beta2_power"))
        and name not in ("Variable", "global_step")
    }


REFERENCE = Reference(
    default=SrnConfig("lstm"),
    config=_config,
    names=_names,
    source="jiangsutx/SRN-Deblur (MIT)",
    prepare=_prepare,
)
