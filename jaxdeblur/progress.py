"""What a person sees of a training run: a progress line, and TensorBoard."""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.errors import tell
from jaxdeblur.training import Metrics, TrainingConfig, learning_rate


class ProgressLine:
    """A line that tells the step, the rate, the loss (or what ``tells`` names) and the time left.

    On a terminal it rewrites itself; elsewhere it prints a line now and then.
    """

    def __init__(
        self, steps: int, *, start: int = 0, every_s: float = 10.0, tells: str = "loss"
    ) -> None:
        self.steps = steps
        self.tells = tells
        self.start = start
        self.every_s = every_s
        self.began = time.monotonic()
        self.shown = -1e9
        self.losses: collections.deque[float] = collections.deque(maxlen=100)
        self.note = ""
        self.on_terminal = sys.stderr.isatty()

    def step(self, step: int, metrics: Metrics) -> None:
        """A step is done; prints if it is time."""
        self.losses.append(float(metrics.loss))
        now = time.monotonic()
        if step == self.start + 1:
            self.began = now  # the first step compiles: it says nothing about the rate
        if now - self.shown < (0.2 if self.on_terminal else self.every_s) and step < self.steps:
            return
        self.shown = now
        rate = (step - self.start - 1) / max(now - self.began, 1e-9)
        left = f"{_clock((self.steps - step) / rate)} left" if rate > 0 else "compiled"
        mean = sum(self.losses) / len(self.losses)
        text = f"step {step}/{self.steps}  {rate:.1f} steps/s  {self.tells} {mean:.4f}"
        text += f"{self.note}  {left}"
        end = "\n" if not self.on_terminal or step == self.steps else ""
        start = "\r\033[K" if self.on_terminal else ""
        tell(f"{start}{text}", end)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """Shows the validation's gain from now on."""
        self.note = f"  validation {scores['psnr']:.2f} dB ({scores['gain']:+.2f})"

    def close(self) -> None:
        """Leaves the terminal on a new line."""
        if self.on_terminal and self.shown > 0:
            tell("")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TensorBoard:
    """Scalars and images of a run for TensorBoard, from step ``start`` on.

    What an earlier start wrote of the steps after it, which are done again, is no longer shown.
    """

    def __init__(
        self, folder: Path, config: TrainingConfig, every: int = 20, start: int = 0
    ) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), flush_secs=10, purge_step=start + 1)
        self.rate = learning_rate(config)
        self.every = every

    def step(self, step: int, metrics: Metrics) -> None:
        """Writes loss, gradient norm and learning rate, now and then."""
        if step % self.every == 0:
            self.writer.add_scalar("train/loss", float(metrics.loss), step)
            self.writer.add_scalar("train/gradient_norm", float(metrics.gradient_norm), step)
            self.writer.add_scalar("train/learning_rate", float(self.rate(step)), step)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """Writes the validation's scores."""
        for name, value in scores.items():
            self.writer.add_scalar(f"validation/{name}", value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes an image."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()
