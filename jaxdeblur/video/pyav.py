"""PyAV, imported when something of it is used: a machine that reads no video may lack it."""

from __future__ import annotations

import importlib
from typing import Any

from jaxdeblur.errors import UserError


class _WhenUsed:
    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module("av"), name)
        except ModuleNotFoundError as error:
            raise UserError(
                "video is read and written by PyAV: pip install 'av>=18,<20'"
            ) from error


av: Any = _WhenUsed()
