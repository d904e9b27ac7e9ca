"""What a run prints at its end: the result, and the command that scores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdeblur.training.progress import RunWatcher
from jaxdeblur.training.step import Metrics, TrainingConfig
from jaxdeblur.training.validation import Validation

METRICS = Metrics(jnp.float32(1), jnp.float32(1), jnp.bool_(False))


class Scored(Validation):
    """A validation whose scores are known."""

    def __call__(self, parameters: Any) -> dict[str, float]:
        return {"psnr": 30.25, "psnr_blurred": 28.0, "gain": 2.25}


def test_a_run_ends_with_what_to_do_next(tmp_path: Path, capsys: Any) -> None:
    validation = object.__new__(Scored)  # without the videos
    validation.name, validation.image = "rendered:wide", np.zeros((8, 8, 3), np.uint8)
    watcher = RunWatcher(tmp_path, TrainingConfig(steps=7), 0, validation)
    watcher.validate(7, {})
    watcher.done()
    watcher.close()
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"{tmp_path}: trained for 7 steps, +2.25 dB (28.00 to 30.25) on rendered:wide",
        f"score it: python evaluate.py --ckpt={tmp_path}",
    ]
