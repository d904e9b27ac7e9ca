"""Exports trained weights to a file; the suffix of OUT selects the format.

.safetensors  the weights, for this package
.onnx         for ONNX Runtime and all that embeds it: VapourSynth, chaiNNer, web pages
.stablehlo    for JAX without this package
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxdeblur.deploy import write
from jaxdeblur.deploy.forms import FORMS
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.options import Parser, add_extension_option, load_extension
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.weights import save
from jaxdeblur.weights.load import LoadedModel, load_model


def main(name: str = "python -m jaxdeblur.export") -> None:
    """Reads the options and writes the file."""
    parser = Parser(prog=name, description=__doc__)
    parser.add_argument(
        "run", help="a run folder, a .safetensors file, or the name of shipped weights"
    )
    parser.add_argument("file", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--half", action="store_true", help="store float16, half the size")
    parser.add_argument(
        "--licence", help="licence of the training data, if the weights do not state it"
    )
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="*",
        default=[],
        metavar="METRICS",
        help="metrics.json files of evaluations; their totals are stored in the file",
    )
    group = parser.add_argument_group("options for .onnx and .stablehlo (docs/deploy.md)")
    group.add_argument(
        "--form",
        choices=FORMS,
        default="step",
        help="step: one frame and the state in and out, exactly as in a stream; window: several "
        "frames in, one out, no state; image: one image in, one out",
    )
    group.add_argument(
        "--warm-up",
        type=int,
        metavar="N",
        help="for --form=window, the number of frames before the restored one; by default as many "
        "as the network looks ahead, so that the middle frame is restored",
    )
    save.add_options(parser)
    add_extension_option(parser)
    arguments = parser.parse_args()
    if arguments.extension:
        load_extension(arguments.extension)
    loaded = _WRITERS.get(arguments.file.suffix, _refuse)(arguments, parser)
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes, {loaded.source}")


def _refuse(arguments: argparse.Namespace, parser: Parser) -> LoadedModel:
    raise UserError(f"{arguments.file}: unknown suffix; use one of {', '.join(_WRITERS)}")


def _safetensors(arguments: argparse.Namespace, parser: Parser) -> LoadedModel:
    if arguments.form != "step" or arguments.warm_up is not None:
        raise UserError("--form and --warm-up apply to .onnx and .stablehlo only")
    return save.write_safetensors(arguments)


def _onnx(arguments: argparse.Namespace, parser: Parser) -> LoadedModel:
    loaded = _load(arguments, parser)
    write.write_onnx(
        loaded,
        arguments.file,
        form=arguments.form,
        warm_up=arguments.warm_up,
        half=arguments.half,
        metadata=save.given_metadata(arguments, loaded),
    )
    return loaded


def _stablehlo(arguments: argparse.Namespace, parser: Parser) -> LoadedModel:
    if arguments.half or arguments.licence or arguments.scores:
        raise UserError("--half, --licence and --scores apply to .safetensors and .onnx only")
    loaded = _load(arguments, parser)
    write.write_stablehlo(loaded, arguments.file, form=arguments.form, warm_up=arguments.warm_up)
    return loaded


def _load(arguments: argparse.Namespace, parser: Parser) -> LoadedModel:
    given = vars(arguments)
    for name in save.ONLY_SAFETENSORS:
        if given.get(name) != parser.get_default(name):
            option, suffix = name.replace("_", "-"), arguments.file.suffix
            raise UserError(
                f"--{option} applies to .safetensors only; write such a file, then export it as "
                f"{suffix}"
            )
    loaded = load_model(arguments.run)
    if below := getattr(loaded.network, "over_paths", ""):
        raise UserError(
            f"{arguments.run}: blur paths cannot be exported; export {below}, the network below"
        )
    if isinstance(loaded.model, PathRestorer):
        raise UserError(f"{arguments.run}: blur paths cannot be exported")
    return loaded


_WRITERS = {".safetensors": _safetensors, ".onnx": _onnx, ".stablehlo": _stablehlo}


if __name__ == "__main__":
    run_command(main, "jaxdeblur.export")
