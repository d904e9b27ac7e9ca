"""``jaxdeblur fit-gates``: fits the gates of a network at several sizes."""

from __future__ import annotations

from pathlib import Path

from jaxdeblur import devices, presets
from jaxdeblur.errors import UserError
from jaxdeblur.options import ClusterConfig, Parser, add_fields, read_fields
from jaxdeblur.training.fit_gates import CLIPS_AT_ONCE, PRESET, FitConfig, fit_gates


def main(name: str = "jaxdeblur fit-gates") -> None:
    """Reads the options, fits the gates and writes the file.

    Raises:
      UserError: options, weights or data cannot be used.
    """
    preset = presets.PRESETS[PRESET]
    parser = Parser(prog=name, description="Fits the gates of a network at several sizes.")
    parser.add_argument(
        "start",
        metavar="CKPT",
        help="a network of one scale, or one with gates, which are replaced",
    )
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    add_fields(parser, FitConfig(), "fitting")
    add_fields(parser, preset.data, "data")
    arguments = parser.parse_args()
    config, data = read_fields(arguments, FitConfig()), read_fields(arguments, preset.data)
    for option in ("render", "curriculum", "validate_on", "validate_only"):
        if getattr(data, option) != getattr(preset.data, option):
            raise UserError(f"--{option.replace('_', '-')} applies to train.py only")
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(CLIPS_AT_ONCE, ClusterConfig())
    fit_gates(arguments.start, arguments.file, preset.network.scales, config, data)
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes")
