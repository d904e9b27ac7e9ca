"""A run's folder: the configuration in ``config.json``, the states in ``checkpoints/STEP/``.

Reading it runs no code from a file: the config is JSON that is checked field by field, and states
are plain arrays.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxdeblur import VERSION, devices
from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole, write_json
from jaxdeblur.models.registry import network_from_json, network_to_json
from jaxdeblur.options import differing_fields, from_json
from jaxdeblur.training.loop import NonFiniteError
from jaxdeblur.training.progress import TENSORBOARD_NAME
from jaxdeblur.training.step import TrainingConfig, TrainState, best_parameters
from jaxdeblur.weights.checkpoints import CHECKPOINTS_NAME, Checkpoints
from jaxdeblur.weights.load import CONFIG_NAME, read_config

_STATE = "state"


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run folder's ``config.json``."""

    preset: str
    network: Any
    training: TrainingConfig
    data: DataConfig
    start_from: str | None = None
    """The run folder or weights that provide its first parameters; None draws them."""
    base: dict[str, Any] | None = None
    """What is known about the weights of a system's base."""

    def write(self, folder: Path) -> None:
        """Writes ``config.json``."""
        values = dataclasses.asdict(self) | {"network": network_to_json(self.network)}
        write_json(folder / CONFIG_NAME, {"jaxdeblur": VERSION, **values})

    @staticmethod
    def read(folder: Path) -> Run:
        """Reads ``config.json``.

        Raises:
          UserError: it is missing or invalid; the message names the file and what is wrong.
        """
        path = folder / CONFIG_NAME
        values = read_config(folder)
        return Run(
            preset=values["preset"],
            network=network_from_json(values["network"], str(path)),
            training=from_json(TrainingConfig, values["training"], f"{path}: training"),
            data=from_json(DataConfig, values["data"], f"{path}: data"),
            start_from=values.get("start_from"),
            base=values.get("base"),
        )


class RunCheckpoints(Checkpoints):
    """The checkpoints of a run: the state to resume from, and the weights to use."""

    def save(self, state: TrainState) -> None:
        """Saves ``state`` as the checkpoint of its step; an existing one of that step is kept.

        Raises:
          UserError: it cannot be written, or the previous one could not, which is known only now.
        """
        items = {_STATE: state._asdict(), "weights": best_parameters(state)}
        self.save_items(int(state.step), items)

    def restore_state(self, template: TrainState) -> TrainState | None:
        """Returns the newest state that can be read whole, or None if there is no checkpoint.

        It is placed like ``template``. Damaged checkpoints are skipped with a warning.
        """
        alike = jax.tree.map(lambda a: devices.abstract_array(a, a.sharding), template._asdict())
        found = self.restore_item(_STATE, alike)
        return found and TrainState(**found[1])


def check_folder(run: Run, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Rejects a folder to which ``run`` cannot be written, before anything is done.

    Args:
      run: the run to be written.
      folder: of the run.
      resume: whether the run in it is to continue.
      overwrite: whether the run in it may be replaced.

    Raises:
      UserError: the folder exists and is not to be overwritten, is not a run folder, or holds a run
        of another network or optimiser.
    """
    occupied = folder.exists() and any(folder.iterdir())
    if resume:
        if not occupied:
            raise UserError(f"--resume: there is no run in {folder}")
        there = Run.read(folder)
        if differences := differing_fields(run.network, there.network):
            raise UserError(
                f"--resume: the run in {folder} has another network: {'; '.join(differences)}"
            )
        for option in ("optimizer", "average", "rates"):  # whose state is in the checkpoints
            here, then = getattr(run.training, option), getattr(there.training, option)
            if here != then and (option == "optimizer" or not (here and then)):
                raise UserError(
                    f"--resume: the run in {folder} began with --{option}={then}, whose state "
                    f"--{option}={here} cannot continue; begin another with --start-from"
                )
    elif occupied and not overwrite:
        raise UserError(
            f"--out={folder} exists; continue with --resume or replace it with --overwrite"
        )
    elif occupied:
        Run.read(folder)  # raises if it is not a run's


def make_folder(run: Run, folder: Path, resume: bool) -> None:
    """Removes the folder's previous run unless it is resumed, and writes the config."""
    devices.wait_for_all("every process has looked at the folder")
    if jax.process_index() == 0:
        if folder.is_dir() and not resume:
            # Other files in it are kept.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
            for name in (CHECKPOINTS_NAME, TENSORBOARD_NAME):
                shutil.rmtree(folder / name, ignore_errors=True)
            for failure in folder.glob("failure-*.safetensors"):
                failure.unlink()
        if folder.is_dir() and any(folder.iterdir()):
            run.write(folder)
        else:  # with its config or not at all, so that a kill here leaves no partial run
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replace_folder_when_whole(folder) as part:
                run.write(part)
    devices.wait_for_all("the run folder is there")


def save_failure(folder: Path, error: NonFiniteError) -> Path:
    """Writes this process's clips of the batch that failed, and the parameters before it."""
    path = folder / f"failure-{error.step:06d}-process-{jax.process_index()}.safetensors"
    arrays = {
        f"batch/{name}": np.concatenate([shard.data for shard in clips.addressable_shards])
        for name, clips in error.batch.items()
    }
    for name, array in error.state.parameters.items():
        arrays[f"parameters/{name}"] = np.asarray(array.addressable_data(0))
    with replace_when_whole(path) as part:
        safetensors.numpy.save_file(arrays, part)
    return path
