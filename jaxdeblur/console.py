"""How a command talks and ends: messages and progress on stderr, signals, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import NoReturn

from jaxdeblur.errors import UserError, exit_code_of, message_of

# Moves a terminal to the beginning of its line and clears the line.
_ERASE_LINE = "\r\033[K"

AT_INTERRUPTION: list[Callable[[], None]] = []
"""What a signal that ends the command calls first: files.py removes what it has not renamed yet."""


def tell(text: str, end: str = "\n") -> None:
    """Prints to stderr; a closed pipe or terminal does not stop the work."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def run_command(main: Callable[[], None], name: str, *, together: bool = False) -> None:
    """Runs a command's ``main``; a :class:`UserError` becomes one line on stderr and exit code 2.

    So does an OSError that names a file. A missing package, a full disk or running out of memory is
    one line too, with exit code 75: another machine may do better. A signal ends
    with exit code 130 and one line, as shells expect; training saves first.

    Args:
      main: the command.
      name: what its messages begin with.
      together: whether its processes, if several, share one task: one that fails then exits at
        once. In a normal exit it would wait for the others, which may be waiting for it.
    """
    if sys.stderr is None:  # closed: the first file that is opened would get what is printed
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        with _ended_by_signals(name):
            _check_folder()
            main()
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        _leave(130, together)
    except Exception as error:
        if (message := message_of(error)) is not None:
            tell(f"{name}: error: {message}")
            _leave(exit_code_of(error), together)
        if not together:
            raise
        traceback.print_exc()
        _leave(1, together)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder no longer exists; change to another") from error


@contextlib.contextmanager
def _ended_by_signals(name: str) -> Iterator[None]:
    """Lets ctrl-C, SIGTERM and SIGHUP end the command ``name`` cleanly, with exit code 130.

    Signals that are ignored (nohup, a shell's background jobs) remain ignored. The handler itself
    calls ``AT_INTERRUPTION``. A KeyboardInterrupt would not do: callbacks of the garbage collector
    and of weak references lose it, and Python's exit crashes in threads still in native code.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:  # a terminal that closes sends SIGHUP twice
            signal.signal(each, lambda *_: None)
        # Not through sys.stderr, which the signal may have interrupted in the middle of a line.
        line = f"{name}: interrupted\n"
        with contextlib.suppress(OSError):
            os.write(2, (_ERASE_LINE + line if os.isatty(2) else line).encode())
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or interrupted too
            sys.stdout.flush()
        for clean_up in AT_INTERRUPTION:
            clean_up()
        os._exit(130)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(code: int, at_once: bool) -> NoReturn:
    jax = sys.modules.get("jax")
    if at_once and jax is not None and jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class ProgressLine:
    """A line with progress, rate and remaining time: rewritten on a terminal, else every 10 s."""

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "frames",
        quiet: bool = False,
        eager: bool = False,
        stays: bool = False,
    ) -> None:
        """Prepares the line.

        Args:
          what: the beginning of the line.
          total: how many there are in all, if known.
          unit: what is counted, in the plural.
          quiet: whether to print nothing.
          eager: whether to print the first count at once, not only after a while.
          stays: whether to print the last count and keep it; otherwise a terminal is left clear.
        """
        self.what = what
        self._total, self._unit, self._quiet, self._stays = total, unit, quiet, stays
        self._on_terminal = sys.stderr.isatty()
        self._every_s = 0.2 if self._on_terminal else 10.0
        self._shown = -float("inf") if eager else time.monotonic()
        self._is_open = False
        self._first: tuple[int, float] | None = None

    def update(self, done: int, note: str = "") -> None:
        """Sets the count to ``done``; prints it if it is time, with ``note`` beside the rate."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        last = self._stays and done == self._total
        if self._quiet or (now - self._shown < self._every_s and not last):
            return
        self._shown = now
        text = f"{self.what}: {done}{f'/{self._total}' if self._total else ''} {self._unit}"
        # Excludes the first one: it compiles, so its time says nothing about the rate.
        before, began = self._first
        rate = (done - before) / max(now - began, 1e-9)
        text += f"  {rate:.2f} {self._unit}/s" if rate else ""
        text += f"  {note}" if note else ""
        if rate and self._total and self._total > done:
            text += f"  {timedelta(seconds=int((self._total - done) / rate))} left"
        self._is_open = self._on_terminal and not last
        tell(f"{_ERASE_LINE}{text}" if self._on_terminal else text, "" if self._is_open else "\n")

    def say(self, text: str) -> None:
        """Prints another message on its own line."""
        if not self._quiet:
            tell(f"{_ERASE_LINE}{text}" if self._is_open else text)
            self._is_open = False

    def close(self) -> None:
        """Ends the open line of a terminal if it ``stays``, else clears it."""
        if self._is_open:
            tell("" if self._stays else _ERASE_LINE, "\n" if self._stays else "")
            self._is_open = False
