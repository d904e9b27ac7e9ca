"""``train.py`` and ``jaxdeblur train``: trains a model. Each field of a preset is an option."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from jaxdeblur.console import tell
from jaxdeblur.errors import UserError
from jaxdeblur.files import local
from jaxdeblur.options import (
    ClusterConfig,
    Parser,
    add_extension_option,
    add_fields,
    load_extension,
    read_fields,
)


def main(name: str = "train.py") -> None:
    """Reads the options and trains.

    Raises:
      UserError: the options conflict, or ``train`` refuses them.
    """
    parser = Parser(
        prog=name,
        description="Trains a video-deblurring model; by default strcnn_dtb on rendered scenes, "
        "in runs/strcnn_dtb.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    parser.add_argument("--model", metavar="PRESET", help="the preset to train")
    parser.add_argument("--out", type=Path, help="the run folder; by default runs/PRESET")
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the folder exactly where it stopped",
    )
    going_on.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument(
        "--start-from",
        metavar="CKPT",
        help="a run or weights that provide the initial parameters; with --resume, only while the "
        "run has no checkpoint",
    )
    add_extension_option(parser)

    # These options are common to all runs. They determine the others and their defaults.
    chosen, _ = parser.parse_known_args()
    if not chosen.help:
        tell("loading JAX ...")  # which takes seconds
    if chosen.extension:
        load_extension(chosen.extension)

    from jaxdeblur import devices, presets
    from jaxdeblur.training.loop import Stopped
    from jaxdeblur.training.run import train
    from jaxdeblur.training.run_folder import Run
    from jaxdeblur.weights.load import RUNS

    preset_name = chosen.model or "strcnn_dtb"
    folder = local(chosen.out, "--out") if chosen.out else RUNS / preset_name
    if chosen.resume:
        begun = Run.read(folder)
        if chosen.model not in (None, begun.preset):
            raise UserError(f"--model={preset_name}: the run in {folder} uses {begun.preset}")
    else:
        preset = presets.find(preset_name)
        given = preset.network, preset.training, preset.data, preset.start_from
        begun = Run(preset_name, *given)
    parser.set_defaults(model=begun.preset, start_from=begun.start_from)
    for config, title in (
        (begun.training, "training"),
        (begun.data, "data"),
        (ClusterConfig(), "devices and processes"),
        (begun.network, f"network ({type(begun.network).__name__})"),
    ):
        add_fields(parser, config, title)
    if chosen.help:
        listed = "\n".join(map(_described, presets.PRESETS.items()))
        parser.description = f"{parser.description}\n\npresets:\n{listed}"
        parser.print_help()
        parser.exit()

    arguments = parser.parse_args()
    processes = read_fields(arguments, ClusterConfig())
    run = Run(
        preset=begun.preset,
        network=read_fields(arguments, begun.network),
        training=read_fields(arguments, begun.training),
        data=read_fields(arguments, begun.data),
        start_from=arguments.start_from,
    )
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(run.training.batch_size, processes, spare=True)
    devices.join(processes)
    known = presets.PRESETS.get(run.preset)
    try:
        train(
            run,
            folder,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            on_cores=known.on_cores if known else None,
        )
    except Stopped as stop:
        tell(f"{stop}; continue with --resume")
        sys.exit(0 if stop.signal.name == "SIGTERM" else 128 + stop.signal)


def _described(item: tuple[str, Any]) -> str:
    """Returns a preset's entry in the help."""
    name, preset = item
    indent = 22 * " "
    first, *others = (
        textwrap.fill(text, 98, initial_indent=indent, subsequent_indent=indent)
        for text in preset.described(name)
    )
    return "\n".join([f"  {name:19} {first.strip()}", *others])
