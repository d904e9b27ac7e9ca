"""What a person sees of a training run: a progress line, and TensorBoard."""

from __future__ import annotations

import collections
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jaxdeblur.errors import ProgressLine, tell
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
        self.writer: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            tell(f"{folder} is not written: pip install tensorboardX")
        else:
            self.writer = SummaryWriter(str(folder), flush_secs=10, purge_step=start + 1)
        self.rate = learning_rate(config)
        self.every = every

    def step(self, step: int, metrics: Metrics) -> None:
        """Writes loss, gradient norm and learning rate, now and then."""
        if self.writer and step % self.every == 0:
            self.writer.add_scalar("train/loss", float(metrics.loss), step)
            self.writer.add_scalar("train/gradient_norm", float(metrics.gradient_norm), step)
            self.writer.add_scalar("train/learning_rate", float(self.rate(step)), step)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """Writes the validation's scores."""
        for name, value in scores.items() if self.writer else ():
            self.writer.add_scalar(f"validation/{name}", value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes an image."""
        if self.writer:
            self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        if self.writer:
            self.writer.close()


def how_to_score(folder: Path) -> str:
    """The command that scores a run."""
    return f"score it: python evaluate.py --ckpt={shlex.quote(str(folder))}"


class RunWatcher:
    """The progress line and TensorBoard of process 0; nothing on the others."""

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        first: int,
        validation: Validation | None,
        on_cores: str | None = None,
    ) -> None:
        self.folder, self.config, self.first = folder, config, first
        self.validation = validation
        self.on_cores = on_cores
        self.scores: dict[str, float] = {}
        self.times: list[float] = []
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
            self._foresee(step)

    def _foresee(self, step: int) -> None:
        """Says once how long it will take, as soon as a step was done that did not compile."""
        if len(self.times) > 1 or self.line is None:
            return
        self.times.append(time.monotonic())
        if len(self.times) < 2:
            return
        hours = (self.times[1] - self.times[0]) * (self.config.steps - step) / 3600
        if hours < 24:
            return
        instead = ""
        if self.on_cores and jax.default_backend() == "cpu":
            instead = f"; --model={self.on_cores} trains on CPU cores in minutes"
        self.line.say(
            f"about {hours:.0f} hours left, {hours / 24:.0f} days, on this machine{instead}"
        )

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """A validation is done: its gain is shown from now on."""
        self.scores = scores
        if self.line:
            self.score = f"  validation {scores['psnr']:.2f} dB ({scores['gain']:+.2f})"
            self.board.validated(step, scores)
            if self.validation and self.validation.image is not None:
                self.board.image(step, "blurred, restored, sharp", self.validation.image)

    def done(self) -> None:
        """Says where the run is, what it gained and how it is scored."""
        if self.line is None:
            return
        gain = ""
        if self.validation and self.scores:
            before, after = self.scores["psnr_blurred"], self.scores["psnr"]
            gain = (
                f" {after - before:+.2f} dB ({before:.2f} to {after:.2f}) on {self.validation.name}"
            )
        self.line.close()
        tell(f"{self.folder}: trained for {self.config.steps} steps{gain and ',' + gain}")
        tell(how_to_score(self.folder))

    def close(self) -> None:
        """Leaves the terminal on a new line, and writes what is left."""
        if self.line:
            self.line.close()
            self.board.close()
