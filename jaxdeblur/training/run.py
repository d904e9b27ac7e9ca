"""A training run, from its options to its folder: data, devices, checkpoints, validation."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from jaxdeblur import devices
from jaxdeblur.console import tell
from jaxdeblur.data.batches import batches
from jaxdeblur.data.layouts import resolve
from jaxdeblur.data.on_device import render_on_device
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import count, of_base, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Batch, Parameters
from jaxdeblur.training.loop import NonFiniteError, run_steps
from jaxdeblur.training.progress import RunWatcher, Validation
from jaxdeblur.training.run_folder import (
    Run,
    RunCheckpoints,
    check_folder,
    make_folder,
    save_failure,
)
from jaxdeblur.training.step import (
    TrainState,
    compile_train_step,
    initial_train_state,
    micro_batch_count,
)
from jaxdeblur.weights.load import about_base, load_model, starting_parameters


class _Network(NamedTuple):
    """What a run trains, and on which devices."""

    model: VideoRestorer
    rebuild: Callable[[Parameters], VideoRestorer]
    parameters: Parameters
    """Drawn from the run's seed."""
    mesh: jax.sharding.Mesh


def train(
    run: Run,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_cores: str | None = None,
) -> TrainState:
    """Trains ``run`` in ``folder`` to its last step.

    Errors in the options and the data are found before the folder is made.

    Args:
      run: preset, network, training, data and, for a new run, the source of its first parameters: a
        run folder or weights, of the same or other scales (``starting_parameters``).
      folder: of the run; new, or one that ``resume`` or ``overwrite`` allows.
      resume: continues from the newest checkpoint that can be read.
      overwrite: replaces the run in the folder.
      on_cores: the preset to suggest if this run would take days without a GPU.

    Raises:
      UserError: options, data or checkpoints cannot be used, or a loss is not finite.
      Stopped: on SIGINT, SIGTERM or SIGHUP, after the state is saved.
    """
    check_folder(run, folder, resume=resume, overwrite=overwrite)
    network = _build(run)
    with contextlib.ExitStack() as resources:
        checkpoints = RunCheckpoints(folder, run.training.keep)
        resources.callback(checkpoints.close)
        has_begun = resume and bool(checkpoints.steps())
        begun = Run.read(folder) if has_begun else None
        run, state = _start(run, network, begun)
        if resume:  # a run without a checkpoint stopped before its first one: it starts again
            state = checkpoints.restore_state(state) or state
            devices.check_same(int(state.step), f"steps of the checkpoints read in {folder}")
        first = int(state.step)
        data = TrainingData(run.data, run.training.crop)
        feed = resources.enter_context(
            _batches(run, data, network.model.context, network.mesh, first)
        )
        validation = Validation(data, network.rebuild) if run.training.validate_every else None
        make_folder(run, folder, resume)
        _say_what_begins(run, network, data, first, folder)
        if first < run.training.steps:
            if on_cores and jax.default_backend() == "cpu":
                other = f"--model={on_cores} trains on CPU cores in minutes"
                _say(f"{run.preset} is made for a GPU; {other}")
            checkpoints.go_on_after(first)
            if run.start_from is not None and not has_begun:
                checkpoints.save(state)  # its source may disappear
            state = _run(run, network, state, feed, checkpoints, validation, folder)
        _say(f"score it: python evaluate.py --ckpt={shlex.quote(str(folder))}")
        return state


def _build(run: Run) -> _Network:
    """Builds the network and checks that it can be trained as the run says.

    Raises:
      UserError: it cannot.
    """
    networks = run.network, getattr(run.network, "fusion", None)
    if any(getattr(network, "dtype", "") == "float16" for network in networks):
        raise UserError("--dtype=float16: most gradients are too small for it; use bfloat16")
    mesh = devices.make_mesh(run.training.batch_size)
    model = registry.build(run.network, run.training.seed)
    rebuild, parameters = split(model)
    _check_options(run, model)
    micro_batch_count(run.training, model, mesh)
    return _Network(model, rebuild, parameters, mesh)


def _start(run: Run, network: _Network, begun: Run | None) -> tuple[Run, TrainState]:
    """Returns the state before the first step, and the run with the origin of its parameters.

    Args:
      run: the run.
      network: its network.
      begun: the run as it began, if it goes on from a checkpoint; its source is not needed then.

    Raises:
      UserError: the parameters of the source do not fit the network.
    """
    parameters = network.parameters
    if begun is not None:
        run = dataclasses.replace(run, start_from=begun.start_from, base=begun.base)
    elif run.start_from is not None:
        parameters = starting_parameters(network.model, parameters, run.start_from)
        if of_base(parameters):
            run = dataclasses.replace(run, base=about_base(load_model(run.start_from)))
    state = initial_train_state(run.training, parameters)
    devices.wait_for_all("the network is built")
    return run, jax.device_put(state, devices.replicated(network.mesh))


def _run(
    run: Run,
    network: _Network,
    state: TrainState,
    feed: Iterator[Batch],
    checkpoints: RunCheckpoints,
    validation: Validation | None,
    folder: Path,
) -> TrainState:
    """Trains from a state to the last step; a batch with a loss that is not finite is kept."""
    config = run.training
    watcher = RunWatcher(folder, config, int(state.step), validation)
    with contextlib.closing(watcher):
        try:
            state = run_steps(
                state,
                feed,
                compile_train_step(config, network.rebuild, network.mesh),
                config,
                save=checkpoints.save,
                watch=watcher.step,
                validate=watcher.validate if validation else None,
            )
        except NonFiniteError as error:
            path = save_failure(folder, error)
            raise UserError(f"{error}; the batch and the parameters are in {path}") from error
        watcher.done()
    return state


def _say_what_begins(
    run: Run, network: _Network, data: TrainingData, first: int, folder: Path
) -> None:
    _say(
        f"{run.preset}: {count(network.parameters):,} parameters, {network.mesh.size} "
        f"{jax.devices()[0].platform} device(s), clips made "
        f"{'on them' if run.data.on_device else 'by the host'}, step {first} of "
        f"{run.training.steps}, in {folder}"
    )
    for spec in data.high_speed:
        _say(f"{spec}: high-speed frames, which are averaged into blur")


def _check_options(run: Run, model: VideoRestorer) -> None:
    """Checks that the network can read the data and that its base is known.

    Raises:
      UserError: it cannot.
    """
    of_maps = model.trains_on_maps
    if any((resolve(spec).layout == "paths") != of_maps for spec in run.data.data):
        raise UserError(
            "--data: a network over blur paths trains on paths:FOLDER, all others on frames"
        )
    if of_base(split(model)[1]) and run.start_from is None:
        raise UserError("--start-from: give the weights of the base, which is not trained")
    if of_maps and (run.training.validate_every or run.data.sharp_input):
        raise UserError("--validate-every and --sharp-input must be 0 on maps of blur paths")


@contextlib.contextmanager
def _batches(
    run: Run, data: TrainingData, context: tuple[int, int], mesh: jax.sharding.Mesh, first: int
) -> Iterator[Iterator[Batch]]:
    """Opens the global batches from step ``first`` on; batch k depends only on the seed and k."""
    config, on_device = run.training, run.data.on_device
    options = run.data.clip_options(config.frames, config.crop, context)
    limit = run.data.motion_limit(config.steps)
    order = {"batch_size": config.batch_size, "seed": config.seed, "start_step": first}
    feed: Iterator[Batch] | None = None
    with contextlib.ExitStack() as threads:
        if not on_device or run.data.folders:
            local = batches(
                data.train,
                options,
                **order,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=run.data.workers,
                max_bad_samples=run.data.max_bad_samples,
                motion_limit=limit,
                render=not on_device,
            )
            feed = devices.global_batches(threads.enter_context(local), mesh)
        if on_device:
            sharding = devices.clips_over(mesh)
            feed = render_on_device(
                feed, data.train, options, sharding, **order, motion_limit=limit
            )
        assert feed is not None
        yield feed


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tell(text)
