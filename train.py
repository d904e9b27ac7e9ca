#!/usr/bin/env python3
"""Trains a model: ``python train.py --model=strcnn_dtb``. Each field of a preset is an option."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UserError, run_command, tell
from jaxdeblur.files import ended_by_signals
from jaxdeblur.options import (
    ClusterConfig,
    Parser,
    add_extension_option,
    add_fields,
    load_extension,
    read_fields,
)


def main() -> None:
    """Reads the options and trains."""
    parser = Parser(
        prog="train.py",
        description="Trains a video-deblurring model. With no option: strcnn_dtb on rendered "
        "scenes, into runs/strcnn_dtb.",
        add_help=False,
    )
    parser.add_argument("--model", metavar="PRESET", help="the preset to train (strcnn_dtb)")
    parser.add_argument("--out", type=Path, help="the run folder; runs/PRESET if none is given")
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
        help="a run or weights to take the first parameters from; with --resume only while the "
        "run has no checkpoint",
    )
    add_extension_option(parser)
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="look at a batch whose loss was not finite"
    )
    # These decide what other options there are, and their defaults.
    known, _ = parser.parse_known_args()
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    if not {"-h", "--help"} & set(sys.argv[1:]):
        tell("loading JAX ...")  # which takes seconds
    if known.extension:
        load_extension(known.extension)

    from jaxdeblur import devices, presets
    from jaxdeblur.training.failure import replay
    from jaxdeblur.training.loop import Stopped
    from jaxdeblur.training.run import train
    from jaxdeblur.training.run_folder import Run

    model = known.model or "strcnn_dtb"
    folder = known.out or Path("runs") / model
    began = None
    if known.resume:
        # A run goes on as it was begun, but for the options that are given now.
        began = Run.read(folder)
        if known.model not in (None, began.preset):
            raise UserError(f"--model={known.model}: the run in {folder} is of {began.preset}")
        model = began.preset
    described = [_described(name, p.described(name)) for name, p in presets.PRESETS.items()]
    parser.description = "\n".join([f"{parser.description}\n\npresets:", *described])
    network_defaults: Any
    if began is None:
        preset = presets.find(model)
        network_defaults, training_defaults = preset.network, preset.training
        data_defaults = preset.data
    else:
        network_defaults, training_defaults = began.network, began.training
        data_defaults = began.data
    for config, title in (
        (training_defaults, "training"),
        (data_defaults, "data"),
        (ClusterConfig(), "devices and processes"),
        # Last, so that a field of an extension's network that is called like another is named.
        (network_defaults, f"network ({type(network_defaults).__name__})"),
    ):
        add_fields(parser, config, title)
    arguments = parser.parse_args()

    processes = read_fields(arguments, ClusterConfig())
    devices.keep_freed_memory()
    devices.keep_compiled()
    if arguments.replay:
        print("\n".join(replay(arguments.replay)))
        return
    run = Run(
        preset=model,
        network=read_fields(arguments, network_defaults),
        training=read_fields(arguments, training_defaults),
        data=read_fields(arguments, data_defaults),
        start_from=arguments.start_from or (began.start_from if began else None),
    )
    devices.use_cores(run.training.batch_size, processes, spare=True)
    devices.join(processes)
    try:
        train(
            run,
            folder,
            processes=processes,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            on_cores=presets.PRESETS[model].on_cores if model in presets.PRESETS else None,
        )
    except Stopped as stop:
        tell(f"{stop}; go on with --resume")
        sys.exit(0 if stop.signal.name == "SIGTERM" else 128 + stop.signal)


def _described(name: str, paragraphs: list[str]) -> str:
    indent = 22 * " "
    first, *others = (
        textwrap.fill(text, 98, initial_indent=indent, subsequent_indent=indent)
        for text in paragraphs
    )
    return "\n".join([f"  {name:19} {first.strip()}", *others])


if __name__ == "__main__":
    with ended_by_signals("train.py"):  # until the loop begins, which saves first
        run_command(main, "train.py", together=True)
