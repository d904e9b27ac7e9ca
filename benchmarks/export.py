#!/usr/bin/env python3
"""What exported files give and cost beside the package: speed on the same cores, and a window's dB.

    python -m benchmarks.export step.onnx window.onnx

The files are of one network, exported by ``python -m jaxdeblur.export`` as ``--form=step`` and
``--form=window``. Both run on random frames for the time; for the loss of the window, which is the
PSNR of the window against the stream, they restore ``--frames``, a folder of images.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeblur.deploy.forms import size_of
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.options import Parser, frame_size


def main() -> None:
    """Prints a table."""
    parser = Parser(prog="benchmarks/export.py", description=__doc__)
    parser.add_argument("step", type=Path, help="an .onnx of --form=step")
    parser.add_argument("window", type=Path, nargs="?", help="one of --form=window")
    parser.add_argument("--ckpt", default="strcnn_dtb_choice", help="the weights they are of")
    parser.add_argument("--size", type=frame_size, default=(320, 180), help="of the frames")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--frames", type=Path, help="a folder of images, for the loss")
    arguments = parser.parse_args()
    width, height = arguments.size
    video = np.random.default_rng(0).random((1, height, width, 3), np.float32)
    print(f"{width}x{height}, seconds a frame, median of {arguments.steps}")
    step = Session(arguments.step)
    print(f"ONNX Runtime, step     {timed(step.steps(video[0]), arguments.steps):.3f}")
    if arguments.window:
        window = Session(arguments.window)
        print(f"ONNX Runtime, window   {timed(window.windows(video[0]), arguments.steps):.3f}")
    print(f"jaxdeblur              {timed(ours(arguments.ckpt, video), arguments.steps):.3f}")
    if arguments.frames and arguments.window:
        report_loss(step, window, arguments.frames)


class Session:
    """An exported file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("onnxruntime is not installed: pip install onnxruntime") from error
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options)
        self.run = session.run
        self.about = json.loads(session.get_modelmeta().custom_metadata_map["jaxdeblur"])

    def start(self, height: int, width: int) -> dict[str, np.ndarray]:
        """The state before the first frame."""
        return {
            f"state.{leaf['name']}": np.zeros(
                [size_of(n, height, width) for n in leaf["shape"]], leaf["type"]
            )
            for leaf in self.about["state"]
        }

    def steps(self, frame: np.ndarray) -> Callable[[], Any]:
        """Restores the same frame again and again, as a stream."""
        state = self.start(*frame.shape[:2])

        def one() -> None:
            nonlocal state
            _, state = self.step(frame, state)

        return one

    def step(self, frame: np.ndarray, state: dict[str, Any], repeated: bool = False) -> Any:
        """One frame, ``H W 3``; gives the restored one and the next state."""
        image = np.ascontiguousarray(frame.transpose(2, 0, 1)[None])
        out, *after = self.run(None, {"frame": image, "repeated": np.array(repeated), **state})
        return out[0].transpose(1, 2, 0), dict(zip(state, after, strict=True))

    def stream(self, video: np.ndarray) -> Iterator[np.ndarray]:
        """Restores a video by its recipe."""
        state, late = self.start(*video.shape[1:3]), self.about["lookahead"]
        for i in range(len(video) + late):
            restored, state = self.step(video[min(i, len(video) - 1)], state, i >= len(video))
            if i >= late:
                yield restored

    def windows(self, frame: np.ndarray) -> Callable[[], Any]:
        """Restores a window of the same frame."""
        window = np.tile(frame.transpose(2, 0, 1)[None], (1, self.about["frames"], 1, 1))
        return lambda: self.run(None, {"frames": window})

    def each_window(self, video: np.ndarray) -> Iterator[np.ndarray]:
        """Restores a video, each frame from a window of its own."""
        offsets = np.arange(self.about["frames"]) - self.about["restored"]
        for i in range(len(video)):
            places = np.clip(i + offsets, 0, len(video) - 1)
            window = video[places].transpose(0, 3, 1, 2).reshape(1, -1, *video.shape[1:3])
            yield self.run(None, {"frames": np.ascontiguousarray(window)})[0][0].transpose(1, 2, 0)


def ours(weights: str, video: np.ndarray) -> Callable[[], Any]:
    """The package's own stream of the same frame, from and to 8 bits."""
    import jax

    from jaxdeblur.restoration.deblurrer import Deblurrer

    pixels = np.round(255 * video[0]).astype(np.uint8)
    stream = Deblurrer(weights, tile="none").open_stream(*pixels.shape[:2])
    return lambda: jax.block_until_ready(stream.push(pixels))


def timed(one: Callable[[], Any], count: int) -> float:
    """Median seconds of a call, after a few that are not counted."""
    for _ in range(4):
        one()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def report_loss(step: Session, window: Session, folder: Path) -> None:
    """Prints how far the windows are from the stream."""
    from PIL import Image

    paths = sorted(folder.iterdir())
    video = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]) / 255
    video = video.astype(np.float32)
    errors = [
        np.mean((np.clip(a, 0, 1) - np.clip(b, 0, 1)) ** 2)
        for a, b in zip(step.stream(video), window.each_window(video), strict=True)
    ]
    print(f"the windows against the stream: {-10 * np.log10(np.mean(errors)):.1f} dB PSNR")


if __name__ == "__main__":
    run_command(main, "benchmarks/export.py")
