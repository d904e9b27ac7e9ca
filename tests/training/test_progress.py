"""What a run says of itself: how long it will take, and at its end what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.training import progress
from jaxdeblur.training.progress import RunWatcher
from jaxdeblur.training.step import Metrics, TrainingConfig
from jaxdeblur.training.validation import Validation

METRICS = Metrics(jnp.float32(1), jnp.float32(1), jnp.bool_(False))


class Scored(Validation):
    """A validation whose scores are known."""

    def __call__(self, parameters: Any) -> dict[str, float]:
        return {"psnr": 30.25, "psnr_blurred": 28.0, "gain": 2.25}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (30.0, "about 833 hours left, 35 days, on this machine; --model=fsta_small trains on CPU"),
        (0.5, ""),
    ],
)
def test_days_are_foreseen(
    seconds: float, said: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """From the second step, which compiles nothing, and once."""
    now = [0.0]
    watcher = RunWatcher(tmp_path, TrainingConfig(steps=100_002), 0, None, "fsta_small")
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for step, passed in ((1, 500.0), (2, seconds), (3, seconds)):
        now[0] += passed
        watcher.step(step, METRICS)
    watcher.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if "days" in line]
    assert len(lines) == bool(said)
    assert not said or said in lines[0]


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
