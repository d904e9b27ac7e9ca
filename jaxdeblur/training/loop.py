"""The loop around the train step: checkpoints, validation, signals and non-finite losses."""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

from jaxdeblur import devices
from jaxdeblur.shapes import Batch, Parameters
from jaxdeblur.training.step import Metrics, TrainingConfig, TrainState, best_parameters


class Stopped(Exception):
    """A signal stopped the run, after its state was saved."""

    def __init__(self, step: int, by: signal.Signals) -> None:
        super().__init__(f"stopped by {by.name} after step {step}")
        self.signal = by


class NonFiniteError(Exception):
    """A loss or gradient was not finite."""

    def __init__(self, step: int, batch: Batch, state: TrainState) -> None:
        super().__init__(f"the loss or a gradient of step {step} is not finite")
        self.step = step
        self.batch = batch
        self.state = state


# A step's result is read this many steps later, so that the device never waits for the host.
_LAG = 2


def run_steps(
    state: TrainState,
    batches: Iterator[Batch],
    step_function: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    config: TrainingConfig,
    *,
    save: Callable[[TrainState], None],
    watch: Callable[[int, Metrics], None],
    validate: Callable[[int, Parameters], object] | None = None,
) -> TrainState:
    """Trains from ``state`` to ``config.steps``.

    Args:
      state: the state to continue from.
      batches: uint8 clips, from the state's step on.
      step_function: the train step, which donates the state (``compile_train_step``).
      config: of the training.
      save: saves a state as the checkpoint of its step; it may skip a step already saved.
      watch: receives the number and metrics of each completed step.
      validate: scores the parameters after a step; None for no validation.

    Raises:
      Stopped: on SIGINT, SIGTERM or SIGHUP, after the state is saved.
      NonFiniteError: with the first batch whose loss or gradient is not finite.
    """
    pending: collections.deque[tuple[int, Metrics, Batch]] = collections.deque()

    def look_at_oldest() -> None:
        step, metrics, batch = pending.popleft()
        if bool(metrics.failed):
            raise NonFiniteError(step, batch, state)
        watch(step, metrics)

    first = int(state.step)
    with _StopSignals() as stop:
        for step in range(first + 1, config.steps + 1):
            batch = next(batches)
            state, metrics = step_function(state, batch)
            pending.append((step, metrics, batch))
            if len(pending) > _LAG:
                look_at_oldest()
            stop_by = stop.asked()
            last = step == config.steps
            validating = config.validate_every > 0 and (step % config.validate_every == 0 or last)
            saving = step % config.save_every == 0 or last or stop_by is not None
            if saving or validating:
                while pending:  # what is saved must be known to be finite
                    look_at_oldest()
            if saving:  # before the validation, which may fail or be killed
                save(state)
            if validate is not None and validating and stop_by is None:
                validate(step, best_parameters(state))
            if stop_by is not None and not last:
                raise Stopped(step, stop_by)
    return state


class _StopSignals:
    """Within this context, SIGINT, SIGTERM and SIGHUP are recorded and do not end the process.

    A second ctrl-C ends it at once. Several processes all stop after the same step.
    """

    def __init__(self) -> None:
        self._came: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._told: jax.Array | None = None

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # SIGHUP ignored under nohup remains so. (Shells make background jobs ignore SIGINT,
            # but it is handled here: whoever sends it there means it.)
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self) -> signal.Signals | None:
        """Returns the signal to stop for after this step, if any; the same in all processes."""
        if jax.process_count() == 1:
            return self._came
        # What the processes exchanged after the previous step has arrived by now, so reading it
        # delays no step.
        told, self._told = self._told, devices.largest_of_all(self._came or 0)
        return signal.Signals(int(told)) if told is not None and int(told) else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = self._came or signal.Signals(number)
