"""Feeds frames at a camera's rate and measures what a viewer waits: latency and dropped frames.

    python -m benchmarks.live
    python -m benchmarks.live --size=640x360 --fps=30 --seconds=20 --ckpt=RUN

The camera does not wait: a frame that finds the inbox full is dropped. Latency is from the moment
a frame is taken to that when its restored pixels are in memory; it includes the frames that the
network looks ahead, which no speed can take away.
"""

from __future__ import annotations

import collections
import queue
import threading
import time

import jax
import numpy as np

from benchmarks.options import natural, positive
from jaxdeblur import models, presets
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.options import Parser, frame_size
from jaxdeblur.restoration.deblurrer import Deblurrer


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--size", type=frame_size, default="160x96", help="WIDTHxHEIGHT of frames")
    parser.add_argument("--fps", type=positive, default=24.0, help="the camera's rate")
    parser.add_argument("--seconds", type=positive, default=10.0, help="how long")
    parser.add_argument("--inbox", type=natural, default=2, help="frames that may wait")
    parser.add_argument("--model", default="strcnn_dtb_small", help="a preset, random weights")
    parser.add_argument("--ckpt", help="trained weights instead of a preset")
    arguments = parser.parse_args()
    width, height = arguments.size
    deblurrer = Deblurrer(arguments.ckpt or models.build(presets.find(arguments.model).network))

    began = time.perf_counter()
    deblurrer.warm_up(height, width)
    warm_up = time.perf_counter() - began
    camera = Camera(height, width, arguments.fps, arguments.seconds, arguments.inbox)
    latencies, sizes = watch(deblurrer, camera, height, width)

    if not latencies:
        raise UserError(
            f"--seconds={arguments.seconds:g}: no frame was restored while the camera ran; the "
            f"network looks {deblurrer.model.lookahead} frames ahead"
        )

    ahead = deblurrer.model.lookahead / arguments.fps
    milliseconds = 1000 * np.array(latencies)
    device = jax.devices()[0].device_kind
    print(f"{device}; {arguments.ckpt or arguments.model}; {width}x{height} at {arguments.fps:g}/s")
    print(f"warm-up before the first frame: {warm_up:.1f} s")
    print(
        f"latency: median {np.median(milliseconds):.1f} ms, "
        f"99th percentile {np.percentile(milliseconds, 99):.1f} ms, "
        f"of which look-ahead {1000 * ahead:.1f} ms ({deblurrer.model.lookahead} frames)"
    )
    print(f"dropped: {camera.dropped} of {camera.taken} frames; restored: {sizes}")


class Camera:
    """Takes frames at a fixed rate, whether anybody is ready for them or not.

    Attributes:
      inbox: (time taken, frame), then None.
      taken, dropped: how many frames.
    """

    def __init__(self, height: int, width: int, fps: float, seconds: float, inbox: int):
        self.inbox: queue.Queue[tuple[float, np.ndarray] | None] = queue.Queue(inbox)
        self.taken = self.dropped = 0
        self._frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
        self._fps, self._count = fps, round(seconds * fps)

    def run(self) -> None:
        """Takes all frames."""
        began = time.perf_counter()
        for index in range(self._count):
            due = began + index / self._fps
            time.sleep(max(0.0, due - time.perf_counter()))
            self.taken += 1
            try:
                self.inbox.put_nowait((time.perf_counter(), self._frames[index % 8]))
            except queue.Full:
                self.dropped += 1
        self.inbox.put(None)


def watch(deblurrer: Deblurrer, camera: Camera, height: int, width: int) -> tuple[list[float], int]:
    """Restores what the camera takes; gives the latency of each frame and their number."""
    stream = deblurrer.open_stream(height, width)
    taken: collections.deque[float] = collections.deque()
    latencies: list[float] = []
    thread = threading.Thread(target=camera.run, daemon=True)
    thread.start()
    while (item := camera.inbox.get()) is not None:
        when, frame = item
        taken.append(when)
        restored = stream.push((frame,))
        if restored is not None:
            np.asarray(restored[0])
            latencies.append(time.perf_counter() - taken.popleft())
    rest = sum(1 for _ in stream.flush())
    thread.join()
    return latencies, len(latencies) + rest


if __name__ == "__main__":
    run_command(main, "benchmarks.live")
