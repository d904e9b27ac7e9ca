"""A training run, from its options to its folder: data, devices, checkpoints, validation."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

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
from jaxdeblur.shapes import Batch
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
    networks = run.network, getattr(run.network, "fusion", None)
    if any(getattr(network, "dtype", "") == "float16" for network in networks):
        raise UserError("--dtype=float16: most gradients are too small for it; use bfloat16")
    check_folder(run, folder, resume=resume, overwrite=overwrite)
    config = run.training
    mesh = devices.make_mesh(config.batch_size)
    model = registry.build(run.network, config.seed)
    rebuild, parameters = split(model)
    _check_options(run, model)
    has_begun = resume and bool(RunCheckpoints(folder).steps())
    if has_begun:
        begun = Run.read(folder)
        run = dataclasses.replace(run, start_from=begun.start_from, base=begun.base)
    elif run.start_from is not None:
        parameters = starting_parameters(model, parameters, run.start_from)
        if of_base(parameters):
            run = dataclasses.replace(run, base=about_base(load_model(run.start_from)))
    micro_batch_count(config, model, mesh)  # raises before the folder is made
    state = initial_train_state(config, parameters)
    devices.wait_for_all("the network is built")
    state = jax.device_put(state, devices.replicated(mesh))
    with contextlib.ExitStack() as resources:
        checkpoints = RunCheckpoints(folder, config.keep)
        resources.callback(checkpoints.close)
        if resume:
            # A run without a checkpoint stopped before its first one: it starts again.
            state = checkpoints.restore_state(state) or state
            devices.check_same(int(state.step), f"steps of the checkpoints read in {folder}")
        first = int(state.step)
        data = TrainingData(run.data, config.crop)
        feed = resources.enter_context(_batches(run, data, model.context, mesh, first))
        validation = Validation(data, rebuild) if config.validate_every else None
        make_folder(run, folder, resume)
        _say(
            f"{run.preset}: {count(parameters):,} parameters, {mesh.size} "
            f"{jax.devices()[0].platform} device(s), clips made "
            f"{'on them' if run.data.on_device else 'by the host'}, step {first} of "
            f"{config.steps}, in {folder}"
        )
        for spec in data.high_speed:
            _say(f"{spec}: high-speed frames, which are averaged into blur")
        score_it = f"score it: python evaluate.py --ckpt={shlex.quote(str(folder))}"
        if first >= config.steps:
            _say(score_it)
            return state
        if on_cores and jax.default_backend() == "cpu":
            _say(
                f"{run.preset} is made for a GPU; --model={on_cores} trains on CPU cores in minutes"
            )
        checkpoints.go_on_after(first)
        if not has_begun and run.start_from is not None:  # its source may disappear
            checkpoints.save(state)
        watcher = RunWatcher(folder, config, first, validation)
        resources.callback(watcher.close)
        step = compile_train_step(config, rebuild, mesh)
        try:
            state = run_steps(
                state,
                feed,
                step,
                config,
                save=checkpoints.save,
                watch=watcher.step,
                validate=watcher.validate if validation else None,
            )
        except NonFiniteError as error:
            path = save_failure(folder, error)
            raise UserError(f"{error}; the batch and the parameters are in {path}") from error
        watcher.done()
        _say(score_it)
        return state


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
