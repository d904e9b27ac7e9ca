#!/usr/bin/env python3
"""What exported files give and cost beside the package: speed on the same cores, and a window's dB.

    python -m benchmarks.export step.onnx window.onnx

The files are of one network, exported by ``python -m jaxdeblur.export`` as ``--form=step`` and
``--form=window``. Both run on random frames for the time, in turn with the package, so that other
work on the machine slows all alike. For the loss of the window they restore ``--frames``, a folder
of images; with ``--sharp``, the folder of the sharp ones, the loss is of PSNR against these.
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
    parser.add_argument("--sharp", type=Path, help="a folder of the same images, sharp")
    arguments = parser.parse_args()
    width, height = arguments.size
    video = np.random.default_rng(0).random((1, height, width, 3), np.float32)
    step = Session(arguments.step)
    runs = {"jaxdeblur": ours(arguments.ckpt, video), "ONNX Runtime, step": step.steps(video[0])}
    if arguments.window:
        window = Session(arguments.window)
        runs["ONNX Runtime, window"] = window.windows(video[0])
    seconds = timed_in_turn(list(runs.values()), arguments.steps)
    print(f"{width}x{height}, medians of {arguments.steps}: seconds a frame, and in jaxdeblur's")
    for name, each in zip(runs, seconds, strict=True):
        ratio = statistics.median(a / b for a, b in zip(each, seconds[0], strict=True))
        print(f"{name:22} {statistics.median(each):.3f} {ratio:.2f}")
    if arguments.frames and arguments.window:
        report_loss(step, window, arguments.frames, arguments.sharp)


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


def timed_in_turn(runs: list[Callable[[], Any]], count: int) -> list[list[float]]:
    """Seconds of ``count`` calls of each, one of each in turn; four come first and don't count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(4 + count):
        for run, taken in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return [taken[4:] for taken in seconds]


def read_video(folder: Path) -> np.ndarray:
    """The images of a folder, ``T H W 3`` in [0, 1]."""
    from PIL import Image

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    if not images:
        raise UserError(f"{folder}: it holds no images")
    return np.stack(images).astype(np.float32) / 255


def report_loss(step: Session, window: Session, folder: Path, sharp: Path | None) -> None:
    """Prints how far the windows are from the stream, and both from the sharp frames."""
    video = read_video(folder)
    stream, windows = (
        np.clip(list(restored), 0, 1)
        for restored in (step.stream(video), window.each_window(video))
    )
    print(f"the windows against the stream: {psnr(windows, stream):.1f} dB PSNR")
    if sharp:
        truth = read_video(sharp)
        if truth.shape != video.shape:
            raise UserError(f"--sharp={sharp}: not as many images of the same size as {folder}")
        scores = [psnr(each, truth) for each in (video, stream, windows)]
        print(
            "against the sharp frames: input {:.2f}, stream {:.2f}, windows {:.2f}".format(*scores)
        )


def psnr(given: np.ndarray, expected: np.ndarray) -> float:
    """Of all frames together, in dB."""
    return float(-10 * np.log10(np.mean((given - expected) ** 2)))


if __name__ == "__main__":
    run_command(main, "benchmarks/export.py")
