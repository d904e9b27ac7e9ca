"""Shows the progress of a training run: a progress line, TensorBoard, and scores on other videos.

The videos of the validation are never trained on.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.console import ProgressLine, tell
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.evaluation.metrics import MAX_PSNR, psnr
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.shapes import Parameters, PixelClip
from jaxdeblur.training.step import Metrics, TrainingConfig, learning_rate

_BOARD_EVERY = 20  # steps
_FRAMES = 8  # Of each video of the validation.

TENSORBOARD_NAME = "tensorboard"
"""The folder in a run's folder that TensorBoard reads."""


class Validation:
    """Computes PSNR on videos never trained on, from the uint8 frames that a user would get."""

    def __init__(self, data: TrainingData, rebuild: Callable[[Parameters], VideoRestorer]) -> None:
        self.rebuild = rebuild
        self.name = data.scored("validation").spec
        """The source of the videos."""
        self.single = data.config.single == 1
        """Whether each frame is restored by itself, as in training."""
        # Only process 0 scores, so the others need not read or render the videos.
        self.clips = []
        for video in data.validate if jax.process_index() == 0 else ():
            frames = range(min(len(video), _FRAMES))
            both = (np.stack([of(i) for i in frames]) for of in (video.blurred, video.sharp))
            self.clips.append(tuple(both))

    def __call__(self, parameters: Parameters) -> dict[str, float]:
        """Returns means over videos and the least gain, in dB; empty except on process 0."""
        # Process 0 uses its own copy of the parameters; the others wait at their next step.
        if jax.process_index() != 0:
            return {}
        local = {name: jnp.asarray(array.addressable_data(0)) for name, array in parameters.items()}
        model = self.rebuild(local)
        before, after = [], []
        for blurred, sharp in self.clips:
            if self.single:
                restored = np.concatenate([restore_pixels(model, frame[None]) for frame in blurred])
            else:
                restored = restore_pixels(model, blurred)
            before.append(_mean_psnr(blurred, sharp))
            after.append(_mean_psnr(restored, sharp))
        gains = np.subtract(after, before)
        return {
            "psnr": float(np.mean(after)),
            "psnr_blurred": float(np.mean(before)),
            "gain": float(gains.mean()),
            "least_gain": float(gains.min()),
        }


def _mean_psnr(frames: PixelClip, sharp: PixelClip) -> float:
    """Returns the mean PSNR as in all scores, where an identical frame counts ``MAX_PSNR``."""
    pairs = zip(frames, sharp, strict=True)
    return float(np.mean([min(psnr(a, b), MAX_PSNR) for a, b in pairs]))


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

    def done(self) -> None:
        """Reports the run's folder and its gain."""
        gain = ""
        if self.validation and self.scores:
            gain = ", {gain:+.2f} dB ({psnr_blurred:.2f} to {psnr:.2f})".format_map(self.scores)
            gain += f" on {self.validation.name}"
        self.line.close()
        self.line.say(f"{self.folder}: trained for {self.config.steps} steps{gain}")

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
