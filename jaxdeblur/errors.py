"""UserError: what the user gave is wrong; commands print it as one line and exit with code 2."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

LONGEST = 3000
"""Characters of a message, which may name 20 files."""


def tell(text: str, end: str = "\n") -> None:
    """Prints to stderr, if anybody still reads it: a closed pipe or terminal ends no work."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


class UserError(Exception):
    """Bad input. The message names the file or option and says what would be right, in one line."""


def run_command(main: Callable[[], None], name: str, *, together: bool = False) -> None:
    """Runs a command's ``main``; a :class:`UserError` becomes one line on stderr and exit code 2.

    So does what the system refuses (an OSError that names a file), and memory that runs out.
    Ctrl-C ends with exit code 130 and one line, as shells expect.

    Args:
      main: the command.
      name: what its messages begin with.
      together: its processes, should there be several, work on one thing: if one fails, it leaves
        at once. At its normal end a process waits for the others, which may be waiting for it.
    """
    if sys.stderr is None:  # closed (2>&-): what is said goes nowhere, and not into another file
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    try:
        main()
    except UserError as error:
        _say(name, str(error))
        _leave(2, together)
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        _leave(130, together)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            reason = str(error).splitlines()[0][:200] if str(error) else ""
            tell(f"{name}: error: not enough memory: {reason}")
            _leave(2, together)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            # A name too long, no permission, a full disk, a file where a folder belongs: all that
            # the system refuses, wherever it was asked.
            _say(name, f"{os.fsdecode(error.filename)}: {error.strerror}")
            _leave(2, together)
        if not together:
            raise
        traceback.print_exc()
        _leave(1, together)


def _say(name: str, message: str) -> None:
    message = " ".join(message.split())
    if len(message) > LONGEST:  # somebody's megabyte on the command line
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    tell(f"{name}: error: {message}")


def _leave(code: int, at_once: bool) -> NoReturn:
    jax = sys.modules.get("jax")
    if at_once and jax is not None and jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
