"""The results of a part, written after each task, and its time limit."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxdeblur.files import write_json

Work = Callable[[], dict[str, Any]]


class Report:
    """OUT/PART.json: ``rows`` of finished tasks, each with its name under ``what``, and ``left``.

    Tasks found there from the same device and version of JAX are not repeated. If a task takes
    longer than the minutes allow, the process records it as left and exits.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.file = arguments.out / f"{arguments.part}.json"
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {
            "part": arguments.part,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "rehearsed": arguments.rehearse,
        }
        before = json.loads(self.file.read_text()) if self.file.exists() else {}
        same = all(before.get(name) == value for name, value in self.found.items())
        self.rows: list[dict[str, Any]] = before["rows"] if same else []
        self.left: list[str] = []
        self.found |= {"rows": self.rows, "left": self.left}
        self._end = time.monotonic() + 60 * arguments.minutes
        self._longest = 0.0
        self._watch = threading.Timer(0.95 * 60 * arguments.minutes, self._stop)
        self._watch.daemon = True

    def __enter__(self) -> Report:
        self.keep()  # first, so that an unwritable folder is noticed at once
        self._watch.start()
        return self

    def __exit__(self, kind: Any, error: Any, at: Any) -> None:
        self._watch.cancel()
        if error is None:
            self._say()

    @property
    def seconds_left(self) -> float:
        """Seconds until the part must have ended."""
        return self._end - time.monotonic()

    def each(self, works: Iterable[tuple[str, Work]]) -> Iterator[dict[str, Any]]:
        """Runs tasks in order while there is time and yields their rows, which record failures.

        There must be time for the longest task so far, with a fifth to spare.
        """
        done = {row["what"] for row in self.rows if "failed" not in row}
        todo = [(what, work) for what, work in works if what not in done]
        self.rows[:] = [row for row in self.rows if "failed" not in row]
        self.left.extend(what for what, _ in todo)
        for what, work in todo:
            if self.seconds_left < max(1.2 * self._longest, 5.0):
                return
            began = time.monotonic()
            row = {"what": what} | (attempt(work) or {"failed": True})
            self._longest = max(self._longest, time.monotonic() - began)
            self.rows.append(row)
            self.left.remove(what)
            self.keep()
            yield row

    def keep(self) -> None:
        """Writes the results so far."""
        write_json(self.file, self.found)

    def _say(self) -> None:
        self.keep()
        print(f"not done: {', '.join(self.left)}" if self.left else "all tasks are done")

    def _stop(self) -> None:
        self._say()
        sys.stdout.flush()
        os._exit(0)


def attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of ``work``, or None with a line on stderr if it raises."""
    try:
        return work(*arguments)
    except Exception as failure:
        said = str(failure).splitlines() or ["no message"]
        print(f"{type(failure).__name__}: {said[0]}", file=sys.stderr, flush=True)
        return None
