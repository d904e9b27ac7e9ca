"""Shows the progress of a training run: a progress line, and TensorBoard."""

from __future__ import annotations

import collections
import shlex
from pathlib import Path
from typing import Any

import jax

from jaxdeblur.errors import ProgressLine, tell
from jaxdeblur.shapes import Parameters
from jaxdeblur.training.step import Metrics, TrainingConfig, learning_rate
from jaxdeblur.training.validation import Validation

_BOARD_EVERY = 20  # steps

TENSORBOARD_NAME = "tensorboard"
"""The folder in a run's folder that TensorBoard reads."""


def how_to_score(folder: Path) -> str:
    """Returns a message with the command that scores a run."""
    return f"score it: python evaluate.py --ckpt={shlex.quote(str(folder))}"


class RunWatcher:
    """Shows a progress line and writes for TensorBoard, on process 0 only.

    TensorBoard hides what an earlier start wrote for steps after ``first``, which are repeated.
    """

    def __init__(
        self, folder: Path, config: TrainingConfig, first: int, validation: Validation | None
    ) -> None:
        self.folder, self.config = folder, config
        self.validation = validation
        self.scores: dict[str, float] = {}
        self.losses: collections.deque[float] = collections.deque(maxlen=100)
        self.rate = learning_rate(config)
        quiet = jax.process_index() != 0
        self.line = ProgressLine(
            "training", config.steps, unit="steps", quiet=quiet, eager=True, stays=True
        )
        self.board = None if quiet else _board(folder / TENSORBOARD_NAME, first + 1)

    def step(self, step: int, metrics: Metrics) -> None:
        """Shows a completed step."""
        self.losses.append(float(metrics.loss))
        note = f"loss {sum(self.losses) / len(self.losses):.4f}"
        if self.scores:
            note += f"  validation {self.scores['psnr']:.2f} dB ({self.scores['gain']:+.2f})"
        self.line.update(step, note=note)
        if self.board and step % _BOARD_EVERY == 0:
            self.board.add_scalar("train/loss", float(metrics.loss), step)
            self.board.add_scalar("train/gradient_norm", float(metrics.gradient_norm), step)
            # Optax counts steps from 0.
            self.board.add_scalar("train/learning_rate", float(self.rate(step - 1)), step)

    def validate(self, step: int, parameters: Parameters) -> None:
        """Scores the parameters of a step; the gain is shown from now on."""
        assert self.validation is not None
        self.scores = self.validation(parameters)
        if self.board:
            for name, value in self.scores.items():
                self.board.add_scalar(f"validation/{name}", value, step)
            image = self.validation.image
            self.board.add_image("blurred, restored, sharp", image, step, dataformats="HWC")

    def done(self) -> None:
        """Reports the run's folder, its gain and how to score it."""
        gain = ""
        if self.validation and self.scores:
            before, after = self.scores["psnr_blurred"], self.scores["psnr"]
            gain = f", {after - before:+.2f} dB ({before:.2f} to {after:.2f}) on "
            gain += self.validation.name
        self.line.close()
        self.line.say(f"{self.folder}: trained for {self.config.steps} steps{gain}")
        self.line.say(how_to_score(self.folder))

    def close(self) -> None:
        """Leaves the terminal on a new line, and writes pending TensorBoard data."""
        self.line.close()
        if self.board:
            self.board.close()


def _board(folder: Path, purge_step: int) -> Any:
    """Returns a TensorBoard writer, or prints a message and returns None if it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:  # GPU machines on loan have JAX and little else.
        tell(f"{folder}: not written (pip install tensorboardX)")
        return None
    return SummaryWriter(str(folder), flush_secs=10, purge_step=purge_step)
