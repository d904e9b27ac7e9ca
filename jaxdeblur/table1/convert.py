"""``jaxdeblur convert``: converts weights of reference implementations.

NAME is the system, FILE holds its weights under the reference's names, and OUT.safetensors is for
``deblur.py --ckpt`` and ``evaluate.py --ckpt``. FILE is a safetensors file, PyTorch's .pth or
.pth.tar, or the .index of a TensorFlow V2 checkpoint; the extra ``convert`` installs PyTorch and
TensorFlow for these. Nothing is unpickled: a .pth is read by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import outline
from jaxdeblur.options import Parser
from jaxdeblur.table1.references import REFERENCES
from jaxdeblur.weights.load import LoadedModel, check_finite, check_fits, read_safetensors
from jaxdeblur.weights.save import export_weights

_INSIDE = (
    "params_ema",
    "params",
    "state_dict",
    "model_state_dict",
    "deblurnet_state_dict",
    "model",
)
"""The keys of the network in checkpoints of training programs, the preferred ones first."""

_OF_TRAINING = ("num_batches_tracked", "/Adam", "/Adam_1", "beta1_power", "beta2_power")
"""The endings of names in a checkpoint that are no weights: counters and Adam's moments."""


def main(name: str = "jaxdeblur convert") -> None:
    """Reads the options and writes the file.

    Raises:
      UserError: OUT does not end in ``.safetensors``, or the weights are not those of NAME.
    """
    parser = Parser(
        prog=name, description="Imports weights of a reference implementation (docs/peers.md)."
    )
    parser.add_argument("name", choices=REFERENCES, metavar="NAME", help=", ".join(REFERENCES))
    parser.add_argument(
        "file",
        type=Path,
        help=".safetensors with the reference's names, .pth, .pth.tar, or a TensorFlow .index",
    )
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".safetensors":
        raise UserError(f"{arguments.out}: the name of a weights file must end in .safetensors")
    loaded = convert(arguments.name, arguments.file)
    export_weights(loaded, arguments.out)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size:,} bytes, {loaded.network}")


def convert(name: str, file: Path) -> LoadedModel:
    """Returns the network of a system, one of ``REFERENCES``, with the weights of ``file``.

    Raises:
      UserError: the file can't be read, or its names and shapes are not the system's (listed).
    """
    known = REFERENCES[name]
    arrays = read_arrays(file)
    shapes = {theirs: array.shape for theirs, array in arrays.items()}
    for network in known.networks:
        names = known.names(network)
        if {theirs: weight.shape for theirs, weight in names.items()} == shapes:
            break
    check_fits(names, arrays, f"{file}: not the weights of {name} ({known.source})")
    rebuild, _ = outline(lambda: registry.build(network))
    parameters = {
        weight.ours: jnp.asarray(arrays[theirs].transpose(weight.axes), jnp.float32)
        for theirs, weight in names.items()
    }
    metadata = {"converted from": file.name, "reference": known.source}
    return LoadedModel(rebuild(parameters), name, network, 0, file.name, metadata)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights of a file as float32, without the prefixes that wrappers of networks add.

    Raises:
      UserError: the file is missing, damaged or of an unsupported kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".index":
        found = _read_tensorflow(path)
    elif path.suffix == ".safetensors":
        found, _ = read_safetensors(path)
    elif path.suffix in (".pth", ".pt", ".tar", ".ckpt"):
        found = _read_torch(path)
    else:
        raise UserError(
            f"{path}: unsupported weights file; use .safetensors, PyTorch's .pth or .pth.tar, or "
            "the .index of a TensorFlow checkpoint"
        )
    arrays = {
        name: np.asarray(array, np.float32)
        for name, array in found.items()
        if not name.endswith(_OF_TRAINING) and name not in ("Variable", "global_step")
    }
    while arrays and all(name.startswith(("module.", "model.")) for name in arrays):
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    check_finite(arrays, path)
    return arrays


def _read_tensorflow(path: Path) -> dict[str, np.ndarray]:
    with _reading(path, "TensorFlow", "tf.train.load_checkpoint"):
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(path.with_suffix("")))
        names = reader.get_variable_to_shape_map()
        arrays = {name: np.asarray(reader.get_tensor(name)) for name in names}
    # A TensorFlow 2 checkpoint also holds a description of its objects as text.
    return {name: array for name, array in arrays.items() if array.dtype.kind in "fiu"}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    with _reading(path, "PyTorch", "torch.load(weights_only=True)"):
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True)
        network = next((content[key] for key in _INSIDE if key in content), content)
        tensors = {key: value for key, value in network.items() if hasattr(value, "detach")}
    if not tensors:
        holds = ", ".join(map(str, list(content)[:10]))
        raise UserError(f"{path}: contains no network weights by name, only {holds}")
    return {key: tensor.detach().float().numpy() for key, tensor in tensors.items()}


@contextlib.contextmanager
def _reading(path: Path, package: str, reader: str) -> Iterator[None]:
    """Turns a missing package, and whatever its reader raises, into a UserError."""
    try:
        yield
    except ImportError:
        raise UserError(
            f'{path}: reading it needs {package}; install it with pip install "jaxdeblur[convert]"'
        ) from None
    except Exception as error:
        # Only the first sentence: PyTorch's others advise running the file's code after all.
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path}: not readable by {reader}: {reason}") from error
