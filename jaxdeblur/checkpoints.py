"""Run folders and weights: Orbax checkpoints while training, safetensors to pass on.

A run folder holds ``config.json`` (what was trained, on what) and ``checkpoints/STEP/``. Loading
runs no code from a file: configs are JSON checked field by field, weights are plain arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from jax.sharding import Sharding, SingleDeviceSharding

from jaxdeblur import cluster, models, weights
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole, write_json
from jaxdeblur.models.parameters import Parameters, outline, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import differing_fields, from_json
from jaxdeblur.training import TrainingConfig, TrainState, best_parameters
from jaxdeblur.version import VERSION

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
_STATE, _WEIGHTS, _ABOUT = "state", "weights", "about"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder's ``config.json`` says."""

    preset: str
    network: Any
    training: TrainingConfig
    data: dict[str, Any]
    """The data options as JSON; ``jaxdeblur.data.sources.DataConfig`` reads them."""
    start_from: str | None = None
    """The run folder or weights that its first parameters are of; None: they are drawn."""

    def write(self, folder: Path) -> None:
        """Writes ``config.json``."""
        write_json(
            folder / CONFIG_NAME,
            {
                "jaxdeblur": VERSION,
                "preset": self.preset,
                "network": network_to_json(self.network),
                "training": dataclasses.asdict(self.training),
                "data": self.data,
                "start_from": self.start_from,
            },
        )

    @staticmethod
    def read(folder: Path) -> Run:
        """Reads ``config.json``; :class:`UserError` names the file and what is wrong in it."""
        path = folder / CONFIG_NAME
        values = _read_json(path)
        missing = [name for name in ("preset", "network", "training", "data") if name not in values]
        if missing:
            raise UserError(f"{path}: {', '.join(missing)} is missing; this is no run folder")
        if not isinstance(values["preset"], str) or not isinstance(values["data"], dict):
            raise UserError(f"{path}: preset is a name and data an object")
        start_from = values.get("start_from")  # not in the runs of earlier versions
        if not isinstance(start_from, str | None):
            raise UserError(f"{path}: start_from is a run folder, weights or null")
        return Run(
            preset=values["preset"],
            network=network_from_json(values["network"], str(path)),
            training=from_json(TrainingConfig, values["training"], f"{path}: training"),
            data=values["data"],
            start_from=start_from,
        )


def network_to_json(network: Any) -> dict[str, Any]:
    """A network's config with the name of its class under ``kind``."""
    return {"kind": type(network).__name__, **dataclasses.asdict(network)}


def network_from_json(values: Any, where: str) -> Any:
    """The config that ``network_to_json`` wrote; :class:`UserError` says what does not fit."""
    kinds = models.kinds()
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(
            f"{where}: the network's kind is {kind!r}, not one of {', '.join(sorted(kinds))}; if "
            "it is of an extension, name its file with --extension"
        )
    fields = {name: value for name, value in values.items() if name != "kind"}
    return from_json(kinds[kind], fields, f"{where}: network")


class Checkpoints:
    """The checkpoints of a run, one folder a step, written by Orbax in the background.

    Every process of a run takes part in saving and in restoring its state. Reading changes nothing
    in the folder, so that a run that is going on can be read.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each save
        self.folder = folder
        self.keep = keep

    @functools.cached_property
    def manager(self) -> Any:
        """What saves; it removes half-written checkpoints of an earlier start."""
        return ocp.CheckpointManager(
            self._place.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=True
            ),
        )

    @property
    def _place(self) -> Path:
        return self.folder / CHECKPOINTS_NAME

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, the newest first."""
        names = [path.name for path in self._place.glob("*") if path.is_dir()]
        return sorted((int(n) for n in names if n.isascii() and n.isdigit()), reverse=True)

    def go_on_after(self, step: int) -> None:
        """Makes way for the checkpoints after ``step``, to which a run has gone back.

        Damaged ones are renamed, not removed; a name says what they are.
        """
        cluster.wait_for_all("the state is restored")
        if jax.process_index() == 0:
            for newer in self.steps():
                if newer > step:
                    self._set_aside(newer)
        cluster.wait_for_all("damaged checkpoints are out of the way")
        try:
            self.manager  # noqa: B018  # opened now: a damaged older one shows here
        except (ValueError, TypeError, KeyError, OSError):
            cluster.wait_for_all("older checkpoints are damaged")
            if jax.process_index() == 0:
                for older in self.steps():
                    if older != step:
                        self._set_aside(older)
            cluster.wait_for_all("they are out of the way")

    def _set_aside(self, step: int) -> None:
        place = self._place / str(step)
        names = (self._place / f"damaged-{step}-{n}" for n in itertools.count())
        place.rename(next(name for name in names if not name.exists()))

    def save(self, state: TrainState) -> None:
        """Saves ``state`` as the checkpoint of its step; an existing one of that step is kept.

        Raises:
          UserError: it cannot be written, or the one before, of which that is known only now.
        """
        step = int(state.step)
        manager = self.manager
        if not self._place.is_dir():  # Orbax would make it again, without the run's config
            raise UserError(f"{self._place} is gone: a run's folder stays in place while it trains")
        if step in manager.all_steps():
            return
        weights = best_parameters(state)
        with self._writing():
            manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(state._asdict()),
                        _WEIGHTS: ocp.args.StandardSave(weights),
                        _ABOUT: ocp.args.JsonSave(
                            {"weights": _digest(weights), "state": _digest(_by_path(state))}
                        ),
                    }
                ),
            )

    def restore_state(self, template: TrainState, sharding: Sharding) -> TrainState | None:
        """The newest state that can be read whole, or None if there is no checkpoint at all.

        Damaged checkpoints are skipped with a warning.
        """
        abstract = jax.tree.map(lambda a: _abstract(a, sharding), template._asdict())

        def restore(step: int) -> TrainState:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                item, about = self._read(reader, step, _STATE, abstract)
            state = TrainState(**item)
            _check(about, "state", _by_path(state))
            return state

        found = self._newest(restore)
        return found[1] if found else None

    def restore_weights(self, template: dict[str, Any]) -> tuple[int, Parameters] | None:
        """The newest weights that can be read whole and their step, or None.

        Each process reads by itself, whatever the others do.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader-{me}"
        )
        here = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {name: _abstract(a, here) for name, a in template.items()}

        def restore(step: int) -> Parameters:
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            )
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
                weights, about = self._read(reader, step, _WEIGHTS, abstract)
            _check(about, "weights", weights)
            return weights

        return self._newest(restore)

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        with self._writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the manager."""
        if "manager" in self.__dict__:
            with self._writing():
                self.manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Makes one line of what Orbax and TensorStore raise when a disk is full."""
        with _one_error():
            try:
                yield
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                whole = next((f"; the last whole one is of step {s}" for s in self.steps()), "")
                raise UserError(
                    f"{self._place}: a checkpoint cannot be written: {reason}{whole}"
                ) from error

    def _read(self, reader: Any, step: int, item: str, abstract: Any) -> tuple[Any, dict[str, str]]:
        arguments = ocp.args.Composite(
            **{item: ocp.args.StandardRestore(abstract), _ABOUT: ocp.args.JsonRestore()}
        )
        folder = (self._place / str(step)).absolute()
        found = reader.restore(folder, args=arguments)
        return found[item], found[_ABOUT]

    def _newest(self, restore: Any) -> Any:
        steps = self.steps()
        for step in steps:
            with _one_error():
                try:
                    return step, restore(step)
                except UserError:
                    raise
                except Exception as error:
                    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                        raise  # it says nothing about the file
                    # Whatever a damaged file makes Orbax, TensorStore or JSON raise.
                    reason = " ".join(str(error).split())[:200]
            path = self._place / str(step)
            warnings.warn(f"{path} can't be read and is skipped: {reason}", stacklevel=2)
        if steps:
            raise UserError(f"{self.folder}: none of its {len(steps)} checkpoints can be read")
        return None


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Keeps stderr clear of what Orbax leaves behind when an array can't be read or written.

    It works on the arrays side by side, raises the first error and abandons the others; when these
    are collected, asyncio prints their tracebacks, and Python warns of those that had not begun and
    of what they held open. They add nothing to the error that is reported.
    """
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                yield
            finally:
                gc.collect()
    finally:
        log.setLevel(level)
        sys.unraisablehook = hook


def _check(about: dict[str, str], name: str, parameters: Parameters) -> None:
    if about.get(name) != _digest(parameters):
        raise ValueError("the values are not those that were saved")


def _abstract(array: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _digest(parameters: Parameters) -> str:
    """SHA-256 of names, shapes and values, by which a damaged checkpoint is known."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = parameters[name]
        local = array.addressable_data(0) if isinstance(array, jax.Array) else array
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(local).tobytes())
    return digest.hexdigest()


def _by_path(state: TrainState) -> dict[str, Any]:
    """Every array of a state, by where it stands in it."""
    return {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(state)}


class LoadedModel(NamedTuple):
    """A model with trained parameters, and where they come from."""

    model: VideoRestorer
    preset: str
    network: Any
    step: int
    source: str
    """The run folder and step, the file, or the name of shipped weights."""
    metadata: dict[str, Any]
    """What is known of the training: the data, the options, scores."""


def load_model(name_or_path: str | Path, *, dtype: str | None = None) -> LoadedModel:
    """Loads the model of a run folder, a ``.safetensors`` file, or the name of shipped weights.

    Args:
      name_or_path: a folder or file, or else one of ``jaxdeblur.weights.names()``.
      dtype: of the computation, in place of the config's.

    Raises:
      UserError: there is no such thing, it is damaged, or it does not fit its own config.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return _load_run(path, dtype)
    if path.is_file():
        return _load_file(path, path.name, dtype)
    if str(name_or_path) in weights.names():
        return _load_file(weights.path(str(name_or_path)), str(name_or_path), dtype)
    shipped = ", ".join(weights.names()) or "none are installed"
    raise UserError(
        # Without an option's name: --ckpt, --start-from, --mix-with and others all come here.
        f"{name_or_path}: no such run folder or .safetensors file, and not the name of weights "
        f"that ship ({shipped})"
    )


def _load_run(folder: Path, dtype: str | None) -> LoadedModel:
    run = Run.read(folder)
    if not (folder / CHECKPOINTS_NAME).is_dir():
        raise UserError(f"{folder}: it has no {CHECKPOINTS_NAME}/ yet")
    network = run.network if dtype is None else dataclasses.replace(run.network, dtype=dtype)
    rebuild, template = outline(lambda: models.build(network))
    found = Checkpoints(folder).restore_weights(template)
    if found is None:
        raise UserError(f"{folder}: it has no checkpoint yet")
    step, parameters = found
    _check_finite(parameters, str(folder))
    metadata = {"training": dataclasses.asdict(run.training), "data": run.data}
    source = f"{folder} at step {step}"
    return LoadedModel(rebuild(parameters), run.preset, network, step, source, metadata)


def _load_file(path: Path, source: str, dtype: str | None) -> LoadedModel:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except AttributeError as error:  # a type that NumPy has no name for
        raise UserError(f"{path}: its numbers are of a type that is not read ({error})") from error
    try:
        about = json.loads(header.get("jaxdeblur", ""))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("step"), int):
        raise UserError(f"{path}: its header does not say which network it is for")
    network = network_from_json(about.get("network"), str(path))
    if dtype is not None:
        network = dataclasses.replace(network, dtype=dtype)
    rebuild, template = outline(lambda: models.build(network))
    check_fits(template, arrays, str(path))
    for name, array in arrays.items():
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise UserError(f"{path}: {name} is {array.dtype}, not numbers with a fraction")
    parameters = {name: jax.numpy.asarray(arrays[name], jax.numpy.float32) for name in template}
    _check_finite(parameters, str(path))
    preset = str(about.get("preset", ""))
    return LoadedModel(rebuild(parameters), preset, network, about["step"], source, about)


def _check_finite(parameters: Parameters, where: str) -> None:
    # A pixel that is not a number would come out as the one that went in, as if all were well.
    if bad := [name for name, a in parameters.items() if not np.isfinite(np.asarray(a)).all()]:
        raise UserError(f"{where}: its {bad[0]} is not finite; the weights are broken")


def check_fits(template: dict[str, Any], arrays: dict[str, Any], where: str) -> None:
    """Raises :class:`UserError`, naming the first differences, unless names and shapes agree."""
    shapes = {name: tuple(array.shape) for name, array in template.items()}
    theirs = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes == theirs:
        return
    differences = [
        f"{name} is {theirs.get(name, 'missing')} and should be {shapes.get(name, 'absent')}"
        for name in sorted(set(shapes) | set(theirs))
        if shapes.get(name) != theirs.get(name)
    ]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise UserError(f"{where}: weights of another network: {'; '.join(differences[:3])}{more}")


def check_same_network(ours: Any, theirs: Any, where: str) -> None:
    """Raises :class:`UserError` that names the fields in which two network configs differ."""
    if type(ours) is not type(theirs):
        raise UserError(
            f"{where}: a checkpoint of {type(theirs).__name__}, but {type(ours).__name__} is asked"
        )
    if differences := differing_fields(ours, theirs):
        raise UserError(f"{where}: a checkpoint of another network: {'; '.join(differences)}")


def export_weights(
    loaded: LoadedModel,
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Writes a model as one safetensors file with its config and ``metadata`` in the header.

    Args:
      loaded: the model.
      path: the file, replaced when the new one is whole.
      metadata: training data and licence, scores, commit: whatever a reader should know.
      half: stores float16, half the size; the computation stays as configured.
    """
    _, parameters = split(loaded.model)
    kind = np.float16 if half else np.float32
    arrays = {name: np.asarray(array, kind) for name, array in parameters.items()}
    about = {
        **loaded.metadata,
        **(metadata or {}),
        "jaxdeblur": VERSION,
        "preset": loaded.preset,
        "step": loaded.step,
        "network": network_to_json(loaded.network),
    }
    with replace_when_whole(path) as part:
        safetensors.numpy.save_file(arrays, part, metadata={"jaxdeblur": json.dumps(about)})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: no run folder (it has no {path.name})") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, too many digits
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object was expected")
    return values
