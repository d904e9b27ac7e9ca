"""PyAV, and what reading and writing have in common: tags, FFmpeg's errors and priorities."""

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
"""PyAV, imported when something of it is used: a machine that reads no video may lack it."""


def any_tags() -> dict[str, Any]:
    """Options of ``av.open`` with which any tags can be read and written."""
    # Tags that are not UTF-8 are copied byte for byte. PyAV does so from version 19 on, which knows
    # no such option any more; version 18 raises UnicodeDecodeError unless it is asked to.
    before_19 = int(av.__version__.partition(".")[0]) < 19
    return {"metadata_errors": "surrogateescape"} if before_19 else {}


# Metadata that describes the old file, or that MP4 holds without being asked to hold any key.
_OF_THE_FILE = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration"),
    # What mkvmerge counts of each track.
    *("bps", "number_of_frames", "number_of_bytes", "_statistics_tags"),
    *("_statistics_writing_app", "_statistics_writing_date_utc"),
}


def of_the_content(metadata: dict[str, str]) -> dict[str, str]:
    """Tags without those that describe the file itself."""
    # MP4's demuxer gives texts twice, the second time with their language at the end of the key.
    twice = {key for key in metadata if key[:-4] in metadata and key[-4:] in ("-eng", "-und")}
    return {
        key: value
        for key, value in metadata.items()
        if key.lower().removesuffix("-eng") not in _OF_THE_FILE and key not in twice
    }


def reason(error: Exception) -> str:
    """What FFmpeg or the system says of an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
