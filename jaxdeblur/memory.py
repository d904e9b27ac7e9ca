"""Freed memory stays with the process, which makes everything on a CPU faster."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3), from malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed() -> None:
    """Tells glibc not to give large freed blocks back to the system; call it before work begins.

    XLA allocates its buffers anew for every program that it runs. By default glibc maps each large
    one from the system and returns it after use, so every page of every step is zeroed by the
    kernel again: a fifth of a training step (``benchmarks/allocation.py``). The most memory that
    the process takes stays about the same, but it holds it to its end. The environment can speak
    against it with ``MALLOC_MMAP_MAX_``; elsewhere than on glibc nothing is done.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_MAX_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    # Other arenas than the main one can't hold large blocks and would map them all the same.
    mallopt(_M_ARENA_MAX, 1)
