"""What a person sees of a training run: a progress line, and TensorBoard."""

from __future__ import annotations

import collections
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from jaxdeblur.errors import ProgressLine
from jaxdeblur.training.step import Metrics, TrainingConfig, learning_rate
from jaxdeblur.training.validation import Validation

TENSORBOARD_NAME = "tensorboard"
"""The folder in a run's folder that TensorBoard reads."""


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


class RunWatcher:
    """The progress line and TensorBoard of process 0; nothing on the others."""

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        first: int,
        validation: Validation | None,
    ) -> None:
        self.validation = validation
        self.line: ProgressLine | None = None
        self.losses: collections.deque[float] = collections.deque(maxlen=100)
        self.score = ""
        if jax.process_index() == 0:
            self.line = ProgressLine("training", config.steps, unit="steps", eager=True, stays=True)
            self.board = TensorBoard(folder / TENSORBOARD_NAME, config, start=first)

    def step(self, step: int, metrics: Metrics) -> None:
        """A step is done."""
        if self.line:
            self.losses.append(float(metrics.loss))
            loss = f"loss {sum(self.losses) / len(self.losses):.4f}"
            self.line.update(step, note=f"{loss}{self.score}")
            self.board.step(step, metrics)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """A validation is done: its gain is shown from now on."""
        if self.line:
            self.score = f"  validation {scores['psnr']:.2f} dB ({scores['gain']:+.2f})"
            self.board.validated(step, scores)
            if self.validation and self.validation.image is not None:
                self.board.image(step, "blurred, restored, sharp", self.validation.image)

    def close(self) -> None:
        """Leaves the terminal on a new line, and writes what is left."""
        if self.line:
            self.line.close()
            self.board.close()
