"""The user's own file that adds models and presets: ``--extension=FILE`` of the commands."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from jaxdeblur.errors import UserError


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--extension`` to a command's options."""
    parser.add_argument(
        "--extension", metavar="FILE", help="a Python file that adds models and presets"
    )


def load(path: Path | str) -> None:
    """Runs the file, which calls ``models.register`` and adds to ``PRESETS``.

    It is code that the user names on the command line; nothing that a config or a checkpoint says
    ever leads here.

    Raises:
      UserError: there is no such file, or it is no Python.
    """
    path = Path(path)
    # A name of its own, so that a file named as a module of Python's does not take its place.
    name = f"jaxdeblur_extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--extension={path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--extension={path}: no Python: {error}") from error
