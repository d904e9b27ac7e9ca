"""The names and axis orders of weights in reference implementations.

The networks beside this file use their reference's names, so a parameter's path is its name
there except for a few words, and the type of its layer determines the order of its axes. To add a
system, add an entry to ``REFERENCES``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from jaxdeblur.models import registry
from jaxdeblur.table1.dbn import DbnConfig
from jaxdeblur.table1.edvr import EdvrConfig
from jaxdeblur.table1.ifi_rnn import IfiRnnConfig
from jaxdeblur.table1.layers import TransposedConv
from jaxdeblur.table1.rdn import RdnConfig
from jaxdeblur.table1.srn import SrnConfig
from jaxdeblur.table1.stfan import StfanConfig

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


class Reference(NamedTuple):
    """The weight format of a reference implementation."""

    source: str
    """The repository and its licence."""
    networks: tuple[Any, ...]
    """The configs of the published networks; a file's names and shapes say which one it is for."""
    words: Mapping[str, str]
    """Its names for parts of a path that are named differently here; empty: it has no such part."""
    tensorflow: bool = False
    """Whether the names and the order of axes are TensorFlow's, not PyTorch's."""

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


_EDVR_M, _EDVR_L = EdvrConfig(), EdvrConfig(width=128, blocks=40)

REFERENCES = {
    # Layers are named as in the authors' graph. Their weights are a Torch 7 file of one flat vector
    # and lists of statistics; stored under these names, they can be read.
    "dbn": Reference("shuochsu/DeepVideoDeblurring (MIT)", (DbnConfig(),), {}),
    "edvr": Reference(
        "XPixelGroup/BasicSR (Apache-2.0)",  # for deblurring: ``hr_in`` and ``with_predeblur``
        tuple(
            dataclasses.replace(size, tsa=tsa)
            for size in (_EDVR_L, _EDVR_M)
            for tsa in (False, True)
        ),
        {"first": "conv1", "second": "conv2"},
    ),
    "ifi_rnn": Reference(
        "zzh-tech/ESTRNN (MIT)",
        (IfiRnnConfig(),),
        {"first": "main_branch.0", "second": "main_branch.2"},
    ),
    # Layers are named by their scopes in the authors' graph, with PyTorch's kernel layout.
    "rdn": Reference(
        "cgtuebingen/learning-blind-motion-deblurring (Apache-2.0)", (RdnConfig(),), {}
    ),
    "srn": Reference(
        "jiangsutx/SRN-Deblur (MIT)",
        (SrnConfig("color"), SrnConfig("gray"), SrnConfig("lstm")),
        {"first": "conv1", "second": "conv2"},
        tensorflow=True,
    ),
    "stfan": Reference(
        "sczhou/STFAN (MIT)", (StfanConfig(),), {"first": "stem.0", "second": "stem.2"}
    ),
}
"""The systems whose weights can be read."""
