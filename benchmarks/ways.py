"""Measures the page and the parts: how long users wait.

    python -m benchmarks.ways page                         from the command to the page
    python -m benchmarks.ways clip VIDEO [--fast]          from drop to download, in Chromium
    python -m benchmarks.ways parts VIDEO [OPTION ...]     four parts against the undivided video

``page`` starts ``jaxdeblur app`` several times. ``clip`` drops VIDEO, restores it and downloads it,
twice: at first everything is compiled or loaded, the second time it is there. ``parts`` restores
VIDEO in one process, then in parts by as many processes at once as there are cores, joins them, and
gives times, each process's peak memory, and how far the frames are apart. OPTIONS are those of
deblur.py. All need an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.common import machine
from jaxdeblur import devices
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser
from jaxdeblur.video.pixels import to_packed_rgb
from jaxdeblur.video.reader import VideoReader

COMMAND = [sys.executable, "-c", "from jaxdeblur.commands import main; main()"]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
LIMIT_MS = 3_600_000


@contextlib.contextmanager
def served() -> Iterator[tuple[str, float]]:
    """Yields the page's address, and the seconds until it answered."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, "app", "--no-browser"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"open (http\S+)", line):
                urllib.request.urlopen(found[1]).read()
                yield found[1], time.monotonic() - began
                break
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def page(arguments: argparse.Namespace) -> None:
    """Prints seconds from the command to the page."""
    seconds = []
    for _ in range(arguments.repeats):
        with served() as (_, took):
            seconds.append(took)
    print(
        f"{statistics.median(seconds):.1f} s to the page ({min(seconds):.1f} to {max(seconds):.1f})"
    )


def clip(arguments: argparse.Namespace) -> None:
    """Prints seconds from drop to download."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser_path is None:
        raise UserError("clip needs Chromium")
    with served() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS.split())
        for tried in ("first", "second"):
            tab = browser.new_page()
            tab.set_default_timeout(LIMIT_MS)
            tab.goto(address)
            if arguments.fast:
                tab.click("#quality label:has-text('Fast')")
            began = time.monotonic()
            tab.set_input_files("#drop input[type=file]", str(arguments.video))
            tab.wait_for_selector("#found li")
            tab.click("#restore")
            tab.wait_for_selector("#results", state="visible")
            with tab.expect_download() as download:
                tab.click("#download")
            download.value.path()
            took = time.monotonic() - began
            print(f"{tried} time: {took:.1f} s from drop to download; {tab.inner_text('#said')}")
            tab.close()
        browser.close()


def parts(arguments: argparse.Namespace) -> None:
    """Prints times and memory of parts and of the undivided video, and how far they are apart."""
    with tempfile.TemporaryDirectory() as folder:
        suffix = arguments.video.suffix
        whole, joined = (Path(folder) / f"{name}{suffix}" for name in ("whole", "joined"))
        given = [*COMMAND, "deblur", str(arguments.video)]
        undivided = [[*given, str(whole), *arguments.options]]
        divided = [
            [*given, str(joined), f"--part={number}/{arguments.parts}", *arguments.options]
            for number in range(1, arguments.parts + 1)
        ]
        at_once = arguments.at_once or devices.cores()
        for warm in (True, False):  # the first time compiles into the shared cache
            for target in (whole, joined):
                target.unlink(missing_ok=True)
            one, memory = run_all(undivided, 1)
            several, each = run_all(divided, at_once)
            began = time.monotonic()
            subprocess.run([*given, str(joined), "--join"], check=True)
            join = time.monotonic() - began
            print(
                f"{'first' if warm else 'second'} time: undivided {one:.1f} s, {memory:.1f} GB; "
                f"{arguments.parts} parts, {at_once} at once, {several:.1f} s and {join:.1f} s to "
                f"join ({one / (several + join):.2f} times as fast), {each:.1f} GB a process"
            )
        apart = [
            np.abs(a.astype(int) - b).max() for a, b in zip(rgb(whole), rgb(joined), strict=True)
        ]
        print(f"frames are at most {max(apart)} grey levels apart (encoding included)")


def run_all(commands: list[list[str]], at_once: int) -> tuple[float, float]:
    """Runs commands, some at once; returns seconds, and the largest peak of memory in GB."""
    peak, ended = 0.0, threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            for process in list(running):
                with contextlib.suppress(psutil.Error):
                    peak = max(peak, psutil.Process(process.pid).memory_info().rss / 1e9)

    watching = threading.Thread(target=watch)
    watching.start()
    began, waiting = time.monotonic(), list(commands)
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(subprocess.Popen(waiting.pop(0)))
        time.sleep(0.05)
        for process in list(running):
            if process.poll() is not None:
                running.remove(process)
                if process.returncode:
                    ended.set()
                    raise UserError(f"{process.args}: exit code {process.returncode}")
    ended.set()
    watching.join()
    return time.monotonic() - began, peak


def rgb(path: Path) -> Iterator[np.ndarray]:
    """Yields the frames of a video."""
    with VideoReader(path) as reader:
        for picture in reader:
            yield to_packed_rgb(picture.planes, reader.info.layout, 8)


def main() -> None:
    """Reads the options and measures."""
    parser = Parser(prog="benchmarks.ways", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_page = commands.add_parser("page")
    of_page.add_argument("--repeats", type=int, default=5)
    of_clip = commands.add_parser("clip")
    of_clip.add_argument("video", type=Path)
    of_clip.add_argument("--fast", action="store_true")
    of_parts = commands.add_parser("parts")
    of_parts.add_argument("video", type=Path)
    of_parts.add_argument("--parts", type=int, default=4)
    of_parts.add_argument("--at-once", type=int)
    arguments, options = parser.parse_known_args()
    if options and arguments.command != "parts":
        raise UserError(f"unrecognized arguments: {' '.join(options)}")
    arguments.options = options
    if "video" in arguments and not arguments.video.is_file():
        raise UserError(f"{arguments.video}: no such video file")
    print(machine())
    {"page": page, "clip": clip, "parts": parts}[arguments.command](arguments)


if __name__ == "__main__":
    run_command(main, "benchmarks.ways")
