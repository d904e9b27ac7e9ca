"""Converts weights of reference implementations: ``python -m jaxdeblur.weights.convert``.

NAME is the system, FILE holds its weights under the reference's names, and OUT.safetensors is for
``deblur.py --ckpt`` and ``evaluate.py --ckpt``. FILE is a safetensors file, PyTorch's .pth or
.pth.tar, or the .index of a TensorFlow V2 checkpoint; the extra ``convert`` installs PyTorch and
TensorFlow for these. Widths and variants are inferred from the shapes.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import outline
from jaxdeblur.options import Parser
from jaxdeblur.weights.load import LoadedModel, check_fits
from jaxdeblur.weights.reference_files import read_arrays
from jaxdeblur.weights.references import REFERENCES
from jaxdeblur.weights.save import export_weights


def main(name: str = "python -m jaxdeblur.weights.convert") -> None:
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
    arrays = known.prepare(read_arrays(file))
    try:
        network = known.config({name: array.shape for name, array in arrays.items()})
    except (KeyError, ValueError, IndexError, UserError):
        network = known.default  # whose names are then compared
    rebuild, _ = outline(lambda: registry.build(network))
    names = known.names(network)
    check_fits(names, arrays, f"{file}: not the weights of {name} ({known.source})")
    parameters = {
        weight.ours: jnp.asarray(arrays[theirs].transpose(weight.axes), jnp.float32)
        for theirs, weight in names.items()
    }
    metadata = {"converted from": file.name, "reference": known.source}
    return LoadedModel(rebuild(parameters), name, network, 0, file.name, metadata)


if __name__ == "__main__":
    run_command(main, "jaxdeblur.weights.convert")
