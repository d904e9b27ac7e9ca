"""PyAV, imported when something of it is used: whoever reads no video needs none."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
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


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Within it a video may be encoded without the process becoming a real-time one.

    SVT-AV1 gives its threads and the one that opens it the highest real-time priority where it is
    run by root, as in most containers: all other work on those cores then waits.
    """
    ordinary = sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER
    try:
        yield
    finally:
        if ordinary and os.sched_getscheduler(0) != os.SCHED_OTHER:
            for thread in map(int, os.listdir("/proc/self/task")):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
