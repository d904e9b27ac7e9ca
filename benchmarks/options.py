"""Numbers on the command lines of the benchmarks, and why a process that they started failed."""

from __future__ import annotations

import argparse
import math


def whole(text: str, least: int = 0) -> int:
    """A whole number from ``least`` on, as the type of an option."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} on, not {text[:50]!r}")
    return number


def natural(text: str) -> int:
    """A whole number from 1 on: what is measured none of has no median."""
    return whole(text, 1)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0, not {text[:50]!r}")
    return number


def reason(stderr: str) -> str:
    """What a process said last, without the name that its errors begin with."""
    said = stderr.strip().splitlines() or ["it said nothing"]
    return said[-1].partition(": error: ")[2] or said[-1]
