"""Reads the weight files of reference implementations: arrays by name.

Nothing is unpickled: a ``.pth`` is read by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.weights.load import check_finite, read_safetensors
from jaxdeblur.weights.references import Arrays

INSTALL = 'pip install "jaxdeblur[convert]"'

_INSIDE = (
    "params_ema",
    "params",
    "state_dict",
    "model_state_dict",
    "deblurnet_state_dict",
    "model",
)
"""The keys of the network in checkpoints of training programs, the preferred ones first."""


def read_arrays(path: Path) -> Arrays:
    """Reads the weights of a file as float32, without the prefixes that wrappers of networks add.

    Raises:
      UserError: the file is missing, damaged or of an unsupported kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".index":
        arrays = _read_tensorflow(path.with_suffix(""))
    elif path.suffix == ".safetensors":
        arrays, _ = read_safetensors(path)
    elif path.suffix in (".pth", ".pt", ".tar", ".ckpt"):
        arrays = _read_torch(path)
    else:
        raise UserError(
            f"{path}: unsupported weights file; use .safetensors, PyTorch's .pth or .pth.tar, or "
            "the .index of a TensorFlow checkpoint"
        )
    arrays = {
        name: np.asarray(array, np.float32)
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")
    }
    while arrays and all(name.startswith(("module.", "model.")) for name in arrays):
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    check_finite(arrays, path)
    return arrays


def _read_tensorflow(prefix: Path) -> Arrays:
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{prefix}.index: reading it needs TensorFlow; install it with {INSTALL}"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map()
        arrays = {name: np.asarray(reader.get_tensor(name)) for name in names}
    except Exception as error:  # whatever its reader raises
        raise UserError(
            f"{prefix}.index: not readable by tf.train.load_checkpoint: {_first_line(error)}"
        ) from error
    # A TensorFlow 2 checkpoint also holds a description of its objects as text.
    return {name: array for name, array in arrays.items() if array.dtype.kind in "fiu"}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _read_torch(path: Path) -> Arrays:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs PyTorch; install it with {INSTALL}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its reader or unpickler raises
        # Only the first sentence: the rest advises running the file's code after all.
        reason = _first_line(error).partition(". ")[0]
        raise UserError(
            f"{path}: not readable by torch.load(weights_only=True): {reason}"
        ) from error
    tensors = _network_in(content, path)
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _network_in(content: Any, path: Path) -> Mapping[str, Any]:
    """Returns the tensors by name, from a state dict or from a checkpoint that holds one."""

    def is_network(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(isinstance(k, str) and hasattr(v, "detach") for k, v in value.items())
        )

    if not isinstance(content, Mapping):
        raise UserError(f"{path}: contains no network weights by name")
    for found in (content, *(content[key] for key in _INSIDE if key in content)):
        if is_network(found):
            return found
    holds = ", ".join(map(str, list(content)[:10])) or "an empty dict"
    raise UserError(f"{path}: contains no network weights by name, only {holds}")
