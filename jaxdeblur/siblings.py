"""Folders that add models, presets and commands, and without which the rest works as well."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

NAMES = ("jaxdeblur.table1",)


def siblings() -> list[ModuleType]:
    """Returns those of ``NAMES`` that are there.

    Each offers ``COMMANDS``, ``PRESETS`` and ``models()``, as ``jaxdeblur/table1`` describes them.
    """
    return [importlib.import_module(name) for name in NAMES if importlib.util.find_spec(name)]
