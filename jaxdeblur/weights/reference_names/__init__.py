"""What reference implementations call their weights: one module a system, from theirs to ours.

``REFERENCES`` lists the systems. Such a module holds ``REFERENCE``, a :class:`Reference`, which
reads a network's widths and variant from the shapes of its weights, and names each of them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange

Arrays: TypeAlias = dict[str, np.ndarray]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the numbers of a weight lie in the reference, beside ours (kernels: kh kw C_in C_out)."""

    axes: tuple[int, ...] | None = None
    """For each of our axes the reference's; None: the same."""
    shuffled: bool = False
    """The channels feed a PixelShuffle, (c p q), where ``layers.depth_to_space`` has (p q c)."""

    def ours(self, array: np.ndarray) -> np.ndarray:
        """A weight of the reference as it lies here."""
        moved = array if self.axes is None else array.transpose(self.axes)
        return rearrange(moved, "... (c n) -> ... (n c)", n=4) if self.shuffled else moved

    def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a weight of our ``shape`` has in the reference."""
        if self.axes is None:
            return shape
        return tuple(shape[self.axes.index(axis)] for axis in range(len(shape)))


AS_IT_IS = Layout()
CONV = Layout((2, 3, 1, 0))
"""PyTorch's convolution, C_out C_in kh kw."""
TRANSPOSED = Layout((2, 3, 0, 1))
"""PyTorch's transposed convolution, C_in C_out kh kw."""
TF_CONV = Layout()
"""TensorFlow's convolution lies as ours."""
TF_TRANSPOSED = Layout((0, 1, 3, 2))
"""TensorFlow's transposed convolution, kh kw C_out C_in."""
SHUFFLED_CONV = Layout((2, 3, 1, 0), shuffled=True)
"""PyTorch's convolution before a PixelShuffle(2)."""
SHUFFLED_BIAS = Layout(None, shuffled=True)
"""Its bias."""

Names: TypeAlias = dict[str, tuple[str, Layout]]
"""By the reference's name: our parameter (as ``models/parameters.py`` names it), and the layout."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is known of the weights of a reference implementation."""

    default: Any
    """The config of the published network."""
    config: Callable[[Shapes], Any]
    """The config of the network whose weights have these shapes; KeyError if names are missing."""
    names: Callable[[Any], Names]
    """What the reference calls the weights of a config."""
    source: str
    """The repository and its licence."""
    prepare: Callable[[Arrays], Arrays] = dict
    """Leaves out or puts together, before anything else, what a file may hold."""


REFERENCES = ("dbn", "edvr", "ifi_rnn", "rdn", "srn", "stfan", "strcnn_dtb")
"""The systems whose weights can be read; each is a module of this package."""


def reference(name: str) -> Reference:
    """The reference of a system in ``REFERENCES``."""
    return importlib.import_module(f"{__name__}.{name}").REFERENCE


def conv(theirs: str, ours: str, layout: Layout = CONV) -> Names:
    """The two weights of a convolution of PyTorch's."""
    bias = SHUFFLED_BIAS if layout.shuffled else AS_IT_IS
    return {
        f"{theirs}.weight": (f"{ours}/kernel", layout),
        f"{theirs}.bias": (f"{ours}/bias", bias),
    }


def norm(theirs: str, ours: str) -> Names:
    """The four arrays of a batch normalisation of PyTorch's."""
    pairs = {
        "weight": "scale",
        "bias": "bias",
        "running_mean": "running_mean",
        "running_var": "running_var",
    }
    return {f"{theirs}.{a}": (f"{ours}/{b}", AS_IT_IS) for a, b in pairs.items()}


def count(shapes: Shapes, pattern: str) -> int:
    """How many of ``pattern.format(0)``, ``pattern.format(1)``, ... there are."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number
