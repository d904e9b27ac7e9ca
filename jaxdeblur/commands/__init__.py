"""The command ``jaxdeblur``, the door to all that a user runs."""

from __future__ import annotations

import importlib
import sys

from jaxdeblur import VERSION
from jaxdeblur.console import run_command
from jaxdeblur.options import Parser
from jaxdeblur.siblings import siblings

COMMANDS = {
    "deblur": ("jaxdeblur.commands.deblur", "restores videos, folders of frames and images"),
    "app": ("jaxdeblur.commands.app", "the same on a page in the browser"),
    "evaluate": ("jaxdeblur.commands.evaluate", "scores a model on a data set"),
    "train": ("jaxdeblur.commands.train", "trains a model"),
    "export": ("jaxdeblur.commands.export", "writes weights as .safetensors, .onnx or .stablehlo"),
    "synthesis": ("jaxdeblur.commands.synthesis", "averages high-speed video into a data set"),
    "path-clips": ("jaxdeblur.commands.path_clips", "draws training clips for blur paths"),
    "fit-gates": ("jaxdeblur.commands.fit_gates", "fits the gates of a network at several sizes"),
}
"""Each command's module and summary; the module's ``main`` takes the name for messages."""

for _sibling in siblings():
    COMMANDS |= _sibling.COMMANDS


def main() -> None:
    """Runs the command that the first argument names, with the arguments after it."""
    run_command(_run_named, "jaxdeblur")


def _run_named() -> None:
    commands = "\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(
        prog="jaxdeblur",
        usage="jaxdeblur COMMAND [OPTION ...]",
        description=f"Video deblurring in JAX.\n\ncommands:\n{commands}",
        epilog="`jaxdeblur COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"jaxdeblur {VERSION}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands above"
    )
    command = parser.parse_args(sys.argv[1:2]).command
    name = f"jaxdeblur {command}"
    sys.argv[:2] = [name]
    # Imported when chosen, so that `jaxdeblur --help` does not wait for JAX.
    module = importlib.import_module(COMMANDS[command][0])
    together = command in ("train", "evaluate")
    run_command(lambda: module.main(name), name, together=together)
