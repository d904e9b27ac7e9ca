"""PyAV, and what reading and writing share: tags and FFmpeg's errors."""

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
                "reading and writing video needs PyAV: pip install 'av>=18,<20'"
            ) from error


av: Any = _WhenUsed()
"""PyAV, imported on first use: a machine that reads no video may lack it."""


def any_tags() -> dict[str, Any]:
    """Returns the options of ``av.open`` for tags in any encoding."""
    # Tags that are not UTF-8 are copied byte for byte. PyAV 19 does so by default and no longer has
    # the option; version 18 raises UnicodeDecodeError without it.
    before_19 = int(av.__version__.partition(".")[0]) < 19
    return {"metadata_errors": "surrogateescape"} if before_19 else {}


# Metadata that describes the old file.
_OF_THE_FILE = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration"),
    # mkvmerge's statistics of each track.
    *("bps", "number_of_frames", "number_of_bytes", "_statistics_tags"),
    *("_statistics_writing_app", "_statistics_writing_date_utc"),
}


def of_the_content(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the tags without those that describe the file itself."""
    # MP4's demuxer returns texts twice, the second time with the language at the end of the key.
    twice = {key for key in metadata if key[:-4] in metadata and key[-4:] in ("-eng", "-und")}
    return {
        key: value
        for key, value in metadata.items()
        if key.lower().removesuffix("-eng") not in _OF_THE_FILE and key not in twice
    }


def reason(error: Exception) -> str:
    """Returns the message of FFmpeg or the system for an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
