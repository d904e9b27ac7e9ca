#!/usr/bin/env python3
"""Prepares the page and serves it on this machine: ``python web/serve.py``, or ``make web``.

It fetches ONNX Runtime Web with npm and exports the networks, unless they exist. Any static server
will do; this one also sends the two headers that WebAssembly needs for threads.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxdeblur.errors import UserError, run_command, tell
from jaxdeblur.options import Parser
from jaxdeblur.weights.shipped import default_name

HERE = Path(__file__).resolve().parent
RUNTIME = "onnxruntime-web@1.30.0"
FILES = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded*.wasm", "ort-wasm-simd-threaded*.mjs")


def main() -> None:
    """Reads the options, prepares and serves."""
    parser = Parser(prog="web/serve.py", description=__doc__)
    parser.add_argument(
        "--ckpt", help="weights; by default the shipped ones for video, one picture and a camera"
    )
    parser.add_argument("--port", type=int, default=8000, help="port on http://127.0.0.1")
    parser.add_argument("--folder", type=Path, default=HERE, help="folder to prepare and serve")
    parser.add_argument("--prepare-only", action="store_true", help="do not serve")
    arguments = parser.parse_args()
    prepare(arguments.folder, arguments.ckpt)
    if not arguments.prepare_only:
        serve(arguments.folder, arguments.port)


def prepare(folder: Path, weights: str | None = None) -> None:
    """Puts the page, the runtime and the networks into a folder.

    The shipped weights are exported once. ``weights`` replace all that are there.
    """
    folder.mkdir(exist_ok=True)
    if folder.resolve() != HERE:
        shutil.copy(HERE / "index.html", folder)
    if not (folder / "runtime").is_dir():
        fetch_runtime(folder / "runtime")
    networks = {"model": weights}
    if weights is None:
        networks = {
            "model": default_name("fast video"),
            "photo": default_name("photograph"),
            "live": default_name("camera"),
        }
    for name, source in networks.items():
        model = folder / f"{name}.onnx"
        if weights or not model.with_suffix(".json").is_file():
            export(str(source), model)
    if weights:  # else a single picture and a camera would use others
        for name in ("photo", "live"):
            for suffix in (".json", ".onnx"):
                (folder / name).with_suffix(suffix).unlink(missing_ok=True)


def export(weights: str, model: Path) -> None:
    """Writes the network and, beside it, its metadata for the page.

    Raises:
      UserError: the network cannot be exported.
    """
    about = model.with_suffix(".json")
    if Path(weights).exists():  # the export runs in another folder
        weights = str(Path(weights).resolve())
    tell(f"exporting {weights} ...")
    command = [sys.executable, "-m", "jaxdeblur.export", weights, str(model.resolve())]
    if subprocess.run(command, check=False, cwd=HERE.parent).returncode:
        raise UserError(f"{weights} cannot be exported; see above")
    import onnx

    texts = {entry.key: entry.value for entry in onnx.load(str(model)).metadata_props}
    about.write_text(json.dumps(json.loads(texts["jaxdeblur"]), indent=1), encoding="utf-8")


def fetch_runtime(target: Path) -> None:
    """Fetches the parts of ONNX Runtime Web that the page loads.

    Raises:
      UserError: npm is not installed or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed; it is needed to fetch {RUNTIME}")
    tell(f"fetching {RUNTIME} ...")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", RUNTIME]
        done = subprocess.run(
            [*command, "--prefix", scratch], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"npm could not fetch {RUNTIME}: {done.stderr[-500:]}")
        part = Path(scratch) / "runtime"
        part.mkdir()
        for pattern in FILES:
            for file in (Path(scratch) / "node_modules/onnxruntime-web/dist").glob(pattern):
                shutil.copy(file, part)
        shutil.copytree(part, target)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the headers that allow threads to share memory."""

    extensions_map = {  # noqa: RUF012  # as in the base class
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Adds these headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Returns a server of a folder, for this machine only; port 0 takes any free port.

    Raises:
      UserError: the port is taken or none.
    """
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port={port}: {reason}") from error


def serve(folder: Path, port: int) -> None:
    """Serves until ctrl-C."""
    with server(folder, port) as running:
        tell(f"serving http://127.0.0.1:{running.server_port} (ctrl-C to stop)")
        running.serve_forever()


if __name__ == "__main__":
    run_command(main, "web/serve.py")
