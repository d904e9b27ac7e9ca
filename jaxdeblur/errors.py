"""Errors that are not bugs of this program, in one line, and the exit codes that they end with."""

from __future__ import annotations

import errno
import os
import sys

BAD_INPUT, BAD_MACHINE = 2, 75
"""Exit codes: what was asked for cannot be done anywhere, or not here and now (EX_TEMPFAIL)."""

# What the system says when a disk, a device or memory is at fault, not the input.
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.ENOMEM, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT),
}


class UserError(Exception):
    """Bad input. The message names the file or option and says what would be right, in one line."""


def exit_code_of(error: BaseException) -> int:
    """Returns BAD_MACHINE if a fault of this machine is among an error's causes, else BAD_INPUT."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | ModuleNotFoundError):
            return BAD_MACHINE
        if "RESOURCE_EXHAUSTED" in str(cause) or getattr(cause, "errno", None) in _OF_THE_MACHINE:
            return BAD_MACHINE
        cause = cause.__cause__
    return BAD_INPUT


def message_of(error: Exception) -> str | None:
    """Returns one line for an error that is not a bug of this program; None for a bug."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    package = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if package.partition(".")[0] not in ("", "jaxdeblur", "kernels", "benchmarks"):
        # A Python other than the environment's: typically the first thing that goes wrong.
        environment = "run `make install` once, then use .venv/bin/python"
        return f"{sys.executable}: package {package} is not installed; {environment}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = f": {str(error).splitlines()[0][:200]}" if str(error) else ""
        return f"not enough memory{reason}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # A name too long, no permission, a full disk, a file where a folder belongs: whatever
        # the system refuses, in any call.
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return None
