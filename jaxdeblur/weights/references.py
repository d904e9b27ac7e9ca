"""The names and axis orders of weights in reference implementations.

The networks of ``models/peers/`` use their reference's names, so a parameter's path is its name
there except for a few words, and the type of its layer determines the order of its axes. To add a
system, add an entry to ``REFERENCES``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from flax import nnx

from jaxdeblur.models import registry
from jaxdeblur.models.peers.dbn import DbnConfig
from jaxdeblur.models.peers.edvr import EdvrConfig
from jaxdeblur.models.peers.ifi_rnn import IfiRnnConfig
from jaxdeblur.models.peers.layers import TransposedConv
from jaxdeblur.models.peers.rdn import RdnConfig
from jaxdeblur.models.peers.srn import SrnConfig
from jaxdeblur.models.peers.stfan import StfanConfig

Arrays: TypeAlias = dict[str, np.ndarray]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

TORCH = {"kernel": "weight", "scale": "weight", "layers": ""}
TENSORFLOW = {"kernel": "weights", "bias": "biases"}


class Weight(NamedTuple):
    """One of our parameters and its layout in the reference."""

    ours: str
    """Its name here, as ``models/parameters.py`` makes it."""
    axes: tuple[int, ...]
    """For each of our axes, the reference's axis."""
    shape: tuple[int, ...]
    """The shape in the reference."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The weight format of a reference implementation."""

    source: str
    """The repository and its licence."""
    config: Callable[[Shapes], Any]
    """Makes a network's config from its weights' shapes; raises KeyError if names are missing."""
    default: Any
    """The config of the published network."""
    words: Mapping[str, str]
    """Its names for parts of a path that are named differently here; empty: it has no such part."""
    tensorflow: bool = False
    """Whether the names and the order of axes are TensorFlow's, not PyTorch's."""
    prepare: Callable[[Arrays], Arrays] = dict
    """Drops or renames arrays of a file before anything else is done."""

    def names(self, network: Any) -> dict[str, Weight]:
        """Returns the weights of a network by the reference's names."""
        found = {}
        words = {**(TENSORFLOW if self.tensorflow else TORCH), **self.words}
        for path, module in nnx.iter_modules(nnx.eval_shape(lambda: registry.build(network))):
            for leaf, parameter in vars(module).items():
                if isinstance(parameter, nnx.Param):
                    parts = [str(part) for part in (*path, leaf)]
                    named = [words.get(part, part) for part in parts]
                    name = ("/" if self.tensorflow else ".").join(filter(None, named))
                    axes = self._axes(module, parameter.ndim)
                    shape = tuple(parameter.shape[axes.index(i)] for i in range(len(axes)))
                    found[name] = Weight("/".join(parts), axes, shape)
        return found

    def _axes(self, module: nnx.Module, rank: int) -> tuple[int, ...]:
        """Returns ``Weight.axes``; kernels are ``kh kw C_in C_out`` here."""
        if rank != 4:
            return tuple(range(rank))
        transposed = isinstance(module, TransposedConv)
        if self.tensorflow:  # kh kw C_in C_out; for transposed convolutions kh kw C_out C_in
            return (0, 1, 3, 2) if transposed else (0, 1, 2, 3)
        # PyTorch: C_out C_in kh kw; for transposed convolutions C_in C_out kh kw
        return (2, 3, 0, 1) if transposed else (2, 3, 1, 0)


def _count(shapes: Shapes, pattern: str) -> int:
    """Counts how many of ``pattern.format(0)``, ``pattern.format(1)``, ... exist."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _dbn(shapes: Shapes) -> DbnConfig:
    width, stacked, *_ = shapes["blocks.F0.0.weight"]
    return DbnConfig(m=(stacked // 3 - 1) // 2, width=width)


def _edvr(shapes: Shapes) -> EdvrConfig:
    width = shapes["conv_1x1.weight"][0]
    tsa = "fusion.feat_fusion.weight" in shapes
    fused = shapes["fusion.feat_fusion.weight" if tsa else "fusion.weight"][1]
    return EdvrConfig(
        m=(fused // width - 1) // 2,
        width=width,
        groups=shapes["pcd_align.cas_dcnpack.conv_offset.weight"][0] // 27,
        extract_blocks=_count(shapes, "feature_extraction.{}.conv1.weight"),
        blocks=_count(shapes, "reconstruction.{}.conv1.weight"),
        head_width=shapes["conv_hr.weight"][0],
        tsa=tsa,
    )


def _ifi_rnn(shapes: Shapes) -> IfiRnnConfig:
    return IfiRnnConfig(
        widths=tuple(shapes[f"rnncell1.F_B.{i}.weight"][0] for i in range(3)),
        hidden=shapes["rnncell1.F_h.2.weight"][0],
        up_widths=tuple(shapes[f"rnncell1.F_L.{i}.weight"][1] for i in range(2)),
        blocks=_count(shapes, "rnncell1.F_R.{}.main_branch.0.weight"),
    )


def _srn(shapes: Shapes) -> SrnConfig:
    _, _, channels, width = shapes["g_net/enc1_1/weights"]
    if channels == 6:
        return SrnConfig("color", width)
    return SrnConfig("lstm" if "g_net/convLSTM/LSTM_conv/weights" in shapes else "gray", width)


def _without_training(arrays: Arrays) -> Arrays:
    """Drops Adam's moments and the step number, which TensorFlow checkpoints contain."""
    named = {name.removesuffix(":0"): array for name, array in arrays.items()}
    return {
        name: array
        for name, array in named.items()
        if not name.endswith(("/Adam", "/Adam_1", "beta1_power", "beta2_power"))
        and name not in ("Variable", "global_step")
    }


def _stfan(shapes: Shapes) -> StfanConfig:
    filters, quarter = shapes["fac_warp.3.0.weight"][:2]
    return StfanConfig(width=shapes["conv1_1.0.weight"][0], taps=round((filters / quarter) ** 0.5))


REFERENCES = {
    # Layers are named as in the authors' graph. Their weights are a Torch 7 file of one flat vector
    # and lists of statistics; stored under these names, they can be read.
    "dbn": Reference("shuochsu/DeepVideoDeblurring (MIT)", _dbn, DbnConfig(), {}),
    "edvr": Reference(
        "XPixelGroup/BasicSR (Apache-2.0)",  # for deblurring: ``hr_in`` and ``with_predeblur``
        _edvr,
        EdvrConfig(),
        {"first": "conv1", "second": "conv2"},
    ),
    "ifi_rnn": Reference(
        "zzh-tech/ESTRNN (MIT)",
        _ifi_rnn,
        IfiRnnConfig(),
        {"first": "main_branch.0", "second": "main_branch.2"},
    ),
    # Layers are named by their scopes in the authors' graph, with PyTorch's kernel layout.
    "rdn": Reference(
        "cgtuebingen/learning-blind-motion-deblurring (Apache-2.0)",
        lambda shapes: RdnConfig(width=shapes["d0_conv.conv.weight"][0]),
        RdnConfig(),
        {},
    ),
    "srn": Reference(
        "jiangsutx/SRN-Deblur (MIT)",
        _srn,
        SrnConfig("lstm"),
        {"first": "conv1", "second": "conv2"},
        tensorflow=True,
        prepare=_without_training,
    ),
    "stfan": Reference(
        "sczhou/STFAN (MIT)",
        _stfan,
        StfanConfig(),
        {"first": "stem.0", "second": "stem.2"},
    ),
}
"""The systems whose weights can be read."""
