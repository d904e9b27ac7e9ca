"""What a run shows: its result at the end, and its learning rate on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxdeblur.training.progress import RunWatcher, Validation
from jaxdeblur.training.step import Metrics, TrainingConfig, make_optimizer

METRICS = Metrics(jnp.float32(1), jnp.float32(1), jnp.bool_(False))


class Scored(Validation):
    """A validation whose scores are known."""

    def __call__(self, parameters: Any) -> dict[str, float]:
        return {"psnr": 30.25, "psnr_blurred": 28.0, "gain": 2.25}


def test_a_run_ends_with_its_gain(tmp_path: Path, capsys: Any) -> None:
    validation = object.__new__(Scored)  # without the videos
    validation.name = "rendered:wide"
    watcher = RunWatcher(tmp_path, TrainingConfig(steps=7), 0, validation)
    watcher.validate(7, {})
    watcher.done()
    watcher.close()
    said = f"{tmp_path}: trained for 7 steps, +2.25 dB (28.00 to 30.25) on rendered:wide"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_the_board_shows_the_rate_of_the_step(tmp_path: Path) -> None:
    config = TrainingConfig(steps=100, warmup=40)
    watcher = RunWatcher(tmp_path, config, 0, None)
    shown: dict[str, float] = {}

    class Board:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            shown[name] = value

    watcher.board = Board()
    watcher.step(20, METRICS)
    rule = make_optimizer(config)
    parameters = {"w": jnp.zeros(1)}
    state = rule.init(parameters)
    for _ in range(20):  # a constant gradient, which Adam scales to the rate
        updates, state = rule.update({"w": jnp.ones(1)}, state, parameters)
    assert shown["train/learning_rate"] == pytest.approx(-float(updates["w"][0]), rel=1e-4)
