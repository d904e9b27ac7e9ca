"""The loop around the train step: checkpoints, validation, signals and non-finite losses."""

from __future__ import annotations

import collections
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

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
    with _stop_signals() as asked:
        for step in range(first + 1, config.steps + 1):
            batch = next(batches)
            state, metrics = step_function(state, batch)
            pending.append((step, metrics, batch))
            if len(pending) > _LAG:
                look_at_oldest()
            stop_by = asked()
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


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Records SIGINT, SIGTERM and SIGHUP instead of letting them end the process.

    Yields a function that returns the signal to stop for after this step, if any; it is the same in
    all processes. A second ctrl-C ends the process at once.
    """
    came: list[signal.Signals] = []
    told: jax.Array | None = None

    def asked() -> signal.Signals | None:
        nonlocal told
        first = came[0] if came else None
        if jax.process_count() == 1:
            return first
        # What the processes exchanged after the previous step has arrived by now, so reading it
        # delays no step.
        before, told = told, devices.largest_of_all(first or 0)
        return signal.Signals(int(before)) if before is not None and int(before) else None

    def handle(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signal.Signals(number))

    # SIGHUP ignored under nohup remains so. (Shells make background jobs ignore SIGINT, but it is
    # handled here: whoever sends it there means it.)
    lost_terminal = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    handlers = {
        n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM, *lost_terminal)
    }
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
