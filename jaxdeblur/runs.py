"""A training run, from its options to its folder: data, devices, checkpoints, validation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import UInt8

from jaxdeblur import cluster, models, training
from jaxdeblur.checkpoints import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    Checkpoints,
    Run,
    check_fits,
    check_same_network,
    load_model,
)
from jaxdeblur.cluster import ClusterConfig
from jaxdeblur.data import sources
from jaxdeblur.data.device import batches_on_device
from jaxdeblur.data.pipeline import batches
from jaxdeblur.data.sources import DataConfig
from jaxdeblur.errors import UserError, tell
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole
from jaxdeblur.metrics import MAX_PSNR, psnr
from jaxdeblur.models.coarse_to_fine import (
    for_levels,
    gates,
    join_levels,
    level_configs,
    level_parameters,
)
from jaxdeblur.models.growth import grow
from jaxdeblur.models.parameters import Parameters, count, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import from_json
from jaxdeblur.progress import ProgressLine, TensorBoard
from jaxdeblur.restoration import PixelClip, restore_clip
from jaxdeblur.training import Batch, Metrics, NonFiniteError, TrainingConfig, TrainState

TENSORBOARD_NAME = "tensorboard"


def check_folder(run: Run, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder in which ``run`` can't be written, before anything is done.

    Raises:
      UserError: the folder exists and is not to be overwritten, is no run folder, or holds a run of
        another network or optimiser.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={folder}: it is a file; a run needs a folder")
    occupied = folder.is_dir() and any(folder.iterdir())
    if resume:
        if not occupied:
            raise UserError(f"--resume: there is no run in {folder}")
        there = Run.read(folder)
        check_same_network(run.network, there.network, f"--resume: {folder}")
        _check_same_state(run.training, there.training, f"--resume: {folder}")
    elif occupied and not overwrite:
        raise UserError(f"--out={folder} exists; go on with --resume or replace it by --overwrite")
    elif occupied:
        try:
            Run.read(folder)
        except UserError as error:
            raise UserError(
                f"--overwrite: {folder} is no run folder and left as it is ({error})"
            ) from error


def _check_same_state(ours: TrainingConfig, theirs: TrainingConfig, where: str) -> None:
    """Refuses what would need another optimiser state or average than the checkpoints hold."""
    for option, here, there in (
        ("--optimizer", ours.optimizer, theirs.optimizer),
        ("--train-only", ours.train_only, theirs.train_only),
        ("--average", ours.average, theirs.average),
    ):
        if here != there and (option != "--average" or not (here and there)):
            raise UserError(
                f"{where}: it was begun with {option}={there}, whose state {option}={here} cannot "
                "go on with; to change it, begin another run with --start-from"
            )


def _make_folder(run: Run, folder: Path, resume: bool) -> None:
    """Empties the folder unless its run goes on, and writes the config."""
    cluster.wait_for_all("every process has looked at the folder")
    if jax.process_index() == 0:
        try:
            if folder.is_dir() and not resume:
                _remove_run(folder)
            if folder.is_dir() and any(folder.iterdir()):
                run.write(folder)
            else:  # with its config or not at all, so that a kill here leaves no half of a run
                folder.parent.mkdir(parents=True, exist_ok=True)
                with replace_folder_when_whole(folder) as part:
                    run.write(part)
        except OSError as error:
            raise UserError(f"--out={folder}: {error.strerror}") from error
    cluster.wait_for_all("the run folder is there")


def _remove_run(folder: Path) -> None:
    """Removes what a run has written; what else lies in its folder stays."""
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    for name in (CHECKPOINTS_NAME, TENSORBOARD_NAME):
        shutil.rmtree(folder / name, ignore_errors=True)
    for failure in folder.glob("failure-*.safetensors"):
        failure.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def train(
    run: Run,
    folder: Path,
    *,
    processes: ClusterConfig,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainState:
    """Trains ``run`` in ``folder`` to its last step.

    Everything that can be wrong with the options and the data is found before the folder is made.

    Args:
      run: preset, network, training, data and, of a new run, where its first parameters are: a run
        folder or weights; a network of fewer scales starts one of more (``for_levels``).
      folder: of the run; new, or one that ``resume`` or ``overwrite`` allow.
      processes: how the devices are used.
      resume: goes on from the newest checkpoint that can be read.
      overwrite: replaces the run in the folder.

    Raises:
      UserError: options, data or checkpoints that can't be used, or a loss that is not finite.
      training.Stopped: after SIGINT or SIGTERM, once the state is saved.
    """
    if getattr(run.network, "dtype", "") == "float16":
        raise UserError("--dtype=float16: most gradients are too small for it; bfloat16 holds them")
    check_folder(run, folder, resume=resume, overwrite=overwrite)
    config, data = run.training, data_from_json(run, folder)
    if config.crop % processes.rows:
        raise UserError(f"--rows={processes.rows} does not divide the {config.crop} rows of --crop")
    mesh = cluster.make_mesh(config.batch_size, processes.rows)
    model = models.build(run.network, config.seed)
    rebuild, parameters = split(model)
    has_begun = resume and bool(Checkpoints(folder).steps())
    if has_begun:
        run = dataclasses.replace(run, start_from=Run.read(folder).start_from)
    elif run.start_from is not None:
        parameters = starting_parameters(model, parameters, run.start_from, may_grow=True)
    state = training.initial_train_state(config, parameters)
    cluster.wait_for_all("the network is built")
    state = jax.device_put(state, cluster.replicated(mesh))
    with contextlib.ExitStack() as resources:
        checkpoints = Checkpoints(folder, config.keep)
        resources.callback(checkpoints.close)
        if resume:
            # Without a checkpoint the run had not come to its first one: it starts again.
            state = checkpoints.restore_state(state, cluster.replicated(mesh)) or state
            cluster.check_same(int(state.step), f"steps of the checkpoints read in {folder}")
        first = int(state.step)
        feed = resources.enter_context(_batches(run, data, mesh, first))
        validation = Validation(data, rebuild) if config.validate_every else None
        _make_folder(run, folder, resume)
        _say(
            f"{run.preset}: {count(parameters):,} parameters, {jax.device_count()} "
            f"{jax.devices()[0].platform} device(s), clips made "
            f"{'on them' if data.on_device else 'by the host'}, step {first} of {config.steps}, "
            f"in {folder}"
        )
        if first >= config.steps:
            return state
        checkpoints.go_on_after(first)
        if not has_begun and run.start_from is not None:  # whatever becomes of what that names
            checkpoints.save(state)
        watcher = _Watcher(folder, config, first, validation)
        resources.callback(watcher.close)
        step = training.compile_train_step(config, rebuild, mesh)
        try:
            return training.run_steps(
                state, feed, step, config, saver=checkpoints, watcher=watcher, validate=validation
            )
        except NonFiniteError as error:
            path = save_failure(folder, error)
            raise UserError(
                f"{error}; the batch is in {path}: look at it with python train.py --replay={path}"
            ) from error


@contextlib.contextmanager
def _batches(
    run: Run, data: DataConfig, mesh: jax.sharding.Mesh, first: int
) -> Iterator[Iterator[Batch]]:
    """The global batches from step ``first`` on; batch k is a function of the seed and k alone."""
    config = run.training
    limit = data.motion_limit(config.steps)
    if data.on_device:
        yield batches_on_device(
            data,
            cluster.clips_over(mesh),
            frames=config.frames,
            crop=config.crop,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=first,
            motion_limit=limit,
        )
        return
    with batches(
        sources.training_sources(data, config.seed, frames=config.frames, crop=config.crop),
        data.clip_options(config.frames, config.crop),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        max_bad_samples=data.max_bad_samples,
        motion_limit=limit,
    ) as local:
        yield training.global_batches(local, mesh)


def starting_parameters(
    model: VideoRestorer,
    template: Parameters,
    source: str,
    option: str = "--start-from",
    *,
    may_grow: bool = False,
) -> Parameters:
    """The parameters of ``source`` for ``model``.

    ``model`` may have more levels (``for_levels``) and, if they are STRCNNs and it ``may_grow``,
    wider and deeper ones (``grow``), and choose between them where ``source`` does not or has other
    scales: then ``template`` are its parameters as they are drawn, and its gates stay so.

    Raises:
      UserError: they do not fit the network; it names ``option``.
    """
    loaded = load_model(source)
    whole = split(loaded.model)[1]
    try:
        theirs = for_levels(level_parameters(whole, loaded.network), model.config)
        if may_grow:
            theirs = [
                _grown(*level)
                for level in zip(
                    theirs,
                    for_levels(level_configs(loaded.network), model.config),
                    level_parameters(template, model.config),
                    level_configs(model.config),
                    strict=True,
                )
            ]
    except UserError as error:
        raise UserError(f"{option}={source}: {error}") from error
    drawn_gates = may_grow and loaded.network.scales != model.config.scales
    drawn_gates = drawn_gates or (may_grow and not gates(whole))
    chosen_by = gates(template) and gates(template if drawn_gates else whole)
    joined = join_levels(theirs, model.config) | chosen_by
    check_fits(template, joined, f"{option}={source}")
    return {name: jnp.array(joined[name]) for name in template}


def _grown(parameters: Parameters, small: Any, drawn: Parameters, large: Any) -> Parameters:
    """The parameters of one level, grown if they have to."""
    if not isinstance(small, StrcnnConfig) or not isinstance(large, StrcnnConfig):
        return parameters
    if (small.width, small.blocks) == (large.width, large.blocks):
        return parameters
    return grow(parameters, small, drawn, large)


class Validation:
    """PSNR on videos that never train, on the uint8 frames that a user would get."""

    def __init__(self, data: DataConfig, rebuild: Callable[[Parameters], VideoRestorer]) -> None:
        self.rebuild = rebuild
        self.image: UInt8[np.ndarray, "H W 3"] | None = None
        self.clips = []
        # Process 0 alone scores, so the others need not read or render what it scores on.
        for video in sources.validation_videos(data) if jax.process_index() == 0 else ():
            frames = range(min(len(video), data.validate_frames))
            self.clips.append(
                (
                    np.stack([video.blurred(i) for i in frames]),
                    np.stack([video.sharp(i) for i in frames]),
                )
            )

    def __call__(self, parameters: Parameters) -> dict[str, float]:
        """The scores of these parameters, means over videos, in dB; empty but on process 0."""
        # With its own copy: the others wait at their next step.
        if jax.process_index() != 0:
            return {}
        local = {name: jnp.asarray(array.addressable_data(0)) for name, array in parameters.items()}
        model = self.rebuild(local)
        before, after = [], []
        for number, (blurred, sharp) in enumerate(self.clips):
            restored = restore_clip(model, blurred)
            before.append(_mean_psnr(blurred, sharp))
            after.append(_mean_psnr(restored, sharp))
            if number == 0:
                middle = len(sharp) // 2
                self.image = np.concatenate(
                    [clip[middle] for clip in (blurred, restored, sharp)], axis=1
                )
        gains = np.subtract(after, before)
        return {
            "psnr": float(np.mean(after)),
            "psnr_blurred": float(np.mean(before)),
            "gain": float(gains.mean()),
            "least_gain": float(gains.min()),
        }


def _mean_psnr(frames: PixelClip, sharp: PixelClip) -> float:
    """As scores are averaged everywhere: an identical frame counts ``MAX_PSNR``."""
    pairs = zip(frames, sharp, strict=True)
    return float(np.mean([min(psnr(a, b), MAX_PSNR) for a, b in pairs]))


class _Watcher:
    """The progress line and TensorBoard of process 0; nothing on the others."""

    def __init__(
        self,
        folder: Path,
        config: training.TrainingConfig,
        first: int,
        validation: Validation | None,
    ) -> None:
        self.validation = validation
        self.line: ProgressLine | None = None
        if jax.process_index() == 0:
            self.line = ProgressLine(config.steps, start=first)
            self.board = TensorBoard(folder / TENSORBOARD_NAME, config, start=first)

    def step(self, step: int, metrics: Metrics) -> None:
        if self.line:
            self.line.step(step, metrics)
            self.board.step(step, metrics)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        if self.line:
            self.line.validated(step, scores)
            self.board.validated(step, scores)
            if self.validation and self.validation.image is not None:
                self.board.image(step, "blurred, restored, sharp", self.validation.image)

    def close(self) -> None:
        if self.line:
            self.line.close()
            self.board.close()


def save_failure(folder: Path, error: NonFiniteError) -> Path:
    """Writes the batch that was not finite, and the parameters that met it, as safetensors."""
    path = folder / f"failure-{error.step:06d}-process-{jax.process_index()}.safetensors"
    arrays = {f"batch/{name}": _local(array) for name, array in error.batch.items()}
    arrays |= {f"parameters/{name}": _local(a) for name, a in error.state.parameters.items()}
    with replace_when_whole(path) as part:
        about = json.dumps({"step": error.step})
        safetensors.numpy.save_file(arrays, part, metadata={"jaxdeblur": about})
    return path


def replay(path: Path) -> list[str]:
    """Runs the batch of a failure again; says per clip and parameter what is not finite."""
    if not path.is_file():
        raise UserError(f"--replay={path}: no such file")
    run = Run.read(path.parent)
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--replay={path}: not a readable safetensors file ({error})") from error
    rebuild, template = split(models.build(run.network))
    parameters = {
        name.removeprefix("parameters/"): jnp.asarray(array)
        for name, array in arrays.items()
        if name.startswith("parameters/")
    }
    check_fits(template, parameters, f"--replay={path}")
    if not {"batch/blurred", "batch/sharp"} <= set(arrays):
        raise UserError(f"--replay={path}: it holds no batch")
    lines = []

    def loss(parameters: Parameters, batch: Batch) -> jax.Array:
        return training.model_loss(rebuild(parameters), batch, run.training.loss)

    gradient_of = jax.jit(jax.value_and_grad(loss))
    for i in range(arrays["batch/blurred"].shape[0]):
        clip = {name: arrays[f"batch/{name}"][i : i + 1] for name in ("blurred", "sharp")}
        value, gradients = gradient_of(parameters, clip)
        bad = [name for name, g in gradients.items() if not bool(jnp.isfinite(g).all())]
        bad_text = f"gradients not finite: {', '.join(bad[:5])}" if bad else "gradients finite"
        blurred = clip["blurred"]
        lines.append(
            f"clip {i}: loss {float(value):.6g}, {bad_text}; frames {blurred.shape[1]} of "
            f"{blurred.shape[2]}x{blurred.shape[3]}, values {blurred.min()} to {blurred.max()}"
        )
    broken = [name for name, a in parameters.items() if not bool(jnp.isfinite(a).all())]
    lines.append(f"parameters not finite: {', '.join(broken)}" if broken else "parameters finite")
    return lines


def _local(array: jax.Array | np.ndarray) -> np.ndarray:
    """This process's part of an array."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array.addressable_data(0) if array.is_fully_replicated else array)
    return _joined(array.addressable_shards)


def _joined(shards: Sequence[Any]) -> np.ndarray:
    """The part of an array that lies on this process's devices, which share it out in any way."""
    begins = np.array([[part.start or 0 for part in shard.index] for shard in shards])
    places = begins - begins.min(0)
    whole = np.zeros(
        np.max(places + [shard.data.shape for shard in shards], 0), shards[0].data.dtype
    )
    for shard, place in zip(shards, places, strict=True):
        sizes = zip(place, shard.data.shape, strict=True)
        whole[tuple(slice(begin, begin + size) for begin, size in sizes)] = shard.data
    return whole


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tell(text)


def data_from_json(run: Run, folder: Path) -> DataConfig:
    """The data options of a run."""
    return from_json(DataConfig, run.data, f"{folder / CONFIG_NAME}: data")
