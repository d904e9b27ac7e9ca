"""``jaxdeblur app``: a page on this machine that restores what is dropped on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from jaxdeblur.console import tell
from jaxdeblur.errors import UserError
from jaxdeblur.files import UNFINISHED, remove
from jaxdeblur.options import Parser


def main(name: str = "jaxdeblur app") -> None:
    """Reads the options and serves the page until ctrl-C.

    Raises:
      UserError: Gradio is not installed, or the port is taken.
    """
    parser = Parser(
        prog=name,
        description="Serves a page on 127.0.0.1: drop a video or photographs, compare before and "
        "after, and download. Nothing leaves this machine, and no file is left behind.",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="where to serve; by default the first free from 7860"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, but open no browser"
    )
    parser.add_argument(
        "--ckpt",
        metavar="TEXT",
        help="a run folder, a .safetensors file, or the name of shipped weights",
    )
    arguments = parser.parse_args()
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise UserError(f"--port must be 1 to 65535, not {arguments.port}")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'gradio>=6,<7'")
    with _working_folder() as folder:
        _keep_to_yourself(folder)
        from jaxdeblur.app.page import serve  # imports Gradio, which reads the environment

        served = serve(folder, arguments.ckpt, arguments.port, browser=not arguments.no_browser)
        tell(f"{name}: open {served} (ctrl-C ends it)")
        threading.Event().wait()


@contextlib.contextmanager
def _working_folder() -> Iterator[Path]:
    """Yields a temporary folder, which is removed at the end, also by a signal."""
    folder = Path(tempfile.mkdtemp(prefix="jaxdeblur-app-"))
    UNFINISHED.append(folder)
    try:
        yield folder
    finally:
        remove(folder)
        UNFINISHED.remove(folder)


def _keep_to_yourself(folder: Path) -> None:
    """Keeps Gradio's files in ``folder``, and Gradio from telling anyone about its use."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = "1"
