"""UserError: what the user gave is wrong; commands print it as one line and exit with code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file or option and says what would be right, in one line."""


def run_command(main: Callable[[], None], name: str) -> None:
    """Runs a command's ``main``; a :class:`UserError` becomes one line on stderr and exit code 2.

    Ctrl-C ends with exit code 130 and one line, as shells expect.
    """
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{name}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
