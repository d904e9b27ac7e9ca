"""``jaxdeblur export``: writes trained weights to a file, in the format of its suffix.

.safetensors  the weights, for this package
.onnx         for ONNX Runtime and all that embeds it: VapourSynth, chaiNNer, web pages
.stablehlo    for JAX without this package
"""

from __future__ import annotations

from pathlib import Path

from jaxdeblur.deploy import write
from jaxdeblur.deploy.forms import FORMS
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser, add_extension_option, load_extension
from jaxdeblur.weights import save, shipped
from jaxdeblur.weights.load import LoadedModel, load_model

_SUFFIXES = (".safetensors", ".onnx", ".stablehlo")
_APPLIES_TO = {
    **dict.fromkeys(("half", "licence", "scores"), _SUFFIXES[:2]),
    **dict.fromkeys(("form", "warm_up"), _SUFFIXES[1:]),
    **dict.fromkeys(("after", "mix_with"), _SUFFIXES[:1]),
}
"""The formats to which an option applies."""


def main(name: str = "jaxdeblur export") -> None:
    """Reads the options and writes the file.

    Raises:
      UserError: OUT has another suffix, or an option does not apply to it.
    """
    parser = _parser(name)
    arguments = parser.parse_args()
    file, suffix = arguments.file, arguments.file.suffix
    if suffix not in _SUFFIXES:
        raise UserError(f"{file}: unknown suffix; use one of {', '.join(_SUFFIXES)}")
    for option, suffixes in _APPLIES_TO.items():
        if suffix not in suffixes and getattr(arguments, option) != parser.get_default(option):
            written = option.replace("_", "-")
            raise UserError(f"--{written} applies to {' and '.join(suffixes)} only, not {file}")
    if arguments.extension:
        load_extension(arguments.extension)
    if suffix == ".safetensors":
        loaded = save.write_safetensors(arguments)
    else:
        loaded = _network(arguments.run)
        if suffix == ".onnx":
            about = save.given_metadata(arguments, loaded)
            write.write_onnx(
                loaded, file, arguments.form, arguments.warm_up, half=arguments.half, metadata=about
            )
        else:
            write.write_stablehlo(loaded, file, arguments.form, arguments.warm_up)
    print(f"{file}: {file.stat().st_size:,} bytes, {loaded.source}")


def _network(run: str) -> LoadedModel:
    loaded = load_model(run)
    if len(loaded.model.parts()) > 1:
        alone = shipped.default_name("fast video")
        raise UserError(f"{run}: blur paths cannot be exported, only a network, such as {alone}")
    return loaded


def _parser(name: str) -> Parser:
    parser = Parser(prog=name, description=f"Writes {__doc__.partition(' writes ')[2]}")
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
    group = parser.add_argument_group("options for .safetensors")
    group.add_argument(
        "--after",
        type=Path,
        nargs="*",
        default=[],
        metavar="RUN",
        help="the earlier runs that the weights come from, oldest first",
    )
    group.add_argument(
        "--mix-with",
        nargs=2,
        metavar=("RUN", "SHARE"),
        help="average the parameters with those of another run of the same origin, which gets this "
        "share: a fine-tuned network keeps more of its earlier abilities (Wortsman et al. 2022, "
        "arXiv:2109.01903)",
    )
    add_extension_option(parser)
    return parser
