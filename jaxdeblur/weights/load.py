"""Loads models from run folders, ``.safetensors`` files and the weights that ship.

Any of these can also give a run its first parameters, even if they are for other scales.

Loading runs no code from a file: configs are JSON checked field by field, weights are plain arrays.
No training code is imported, and Orbax only if a run folder is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from jaxdeblur import VERSION
from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import as_base, of_base, outline, split
from jaxdeblur.models.registry import network_from_json
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import gates, renamed, scales_of
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.single_restorer import SingleFrameConfig
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights import shipped

CONFIG_NAME = "config.json"
RUNS = Path("runs")
"""The default folder of runs."""


class About(NamedTuple):
    """Which network a model is, and where it comes from."""

    preset: str
    network: Any
    """Its config."""
    step: int
    source: str
    """The run folder and step, the file, or the name of shipped weights."""


class LoadedModel(NamedTuple):
    """A model with trained parameters, and their origin."""

    model: VideoRestorer
    preset: str
    network: Any
    step: int
    source: str
    """The run folder and step, the file, or the name of shipped weights."""
    metadata: dict[str, Any]
    """What is known about the training: data, options, scores."""

    @property
    def about(self) -> About:
        """What an evaluation says of the model."""
        return About(self.preset, self.network, self.step, self.source)

    @property
    def of_photographs(self) -> bool:
        """Whether it was trained on single frames only."""
        data = self.metadata.get("data")
        return isinstance(data, dict) and data.get("single") == 1


def load_model(name_or_path: str | Path, *, dtype: str | None = None) -> LoadedModel:
    """Loads a model from a run folder, a ``.safetensors`` file or by the name of shipped weights.

    Args:
      name_or_path: a folder or file, else one of ``shipped.names()``.
      dtype: dtype of the computation, in place of the config's.

    Raises:
      UserError: nothing has this name, or it is damaged or does not fit its own config.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return _load_run(path, dtype)
    if path.is_file():
        return _load_file(path, path.name, dtype)
    if (name := str(name_or_path)) in shipped.names():
        return _load_file(shipped.path(name), name, dtype, base=shipped.is_base(name))
    raise UserError(
        # Names no option: --ckpt, --start-from, --mix-with and others all lead here.
        f"{name_or_path}: no such run folder or .safetensors file, nor the name of shipped "
        f"weights ({', '.join(shipped.names())})"
    )


def starting_parameters(
    model: VideoRestorer, drawn: Parameters, source: str, option: str = "--start-from"
) -> Parameters:
    """Returns the parameters of ``source`` for ``model``, which may run at other scales.

    Blur looks alike at every size, so a network at one scale can start one at several scales, and
    vice versa. Gates come from a source with the same scales, else from ``drawn``. A network alone
    starts the base of a system, whose other parameters come from ``drawn``.

    Args:
      model: the network.
      drawn: its random initial parameters.
      source: a run, a file, or the name of shipped weights.
      option: the option that named the source.

    Raises:
      UserError: the parameters do not fit the network; the message names the option.
    """
    loaded = load_model(source)
    whole = split(loaded.model)[1]
    if of_base(drawn) and not of_base(whole):
        parameters = drawn | as_base(whole)
    else:
        chosen_by = whole if scales_of(loaded.model) == scales_of(model) else drawn
        parameters = renamed(whole, scales_of(loaded.model), scales_of(model))
        parameters |= gates(chosen_by)
    check_fits(drawn, parameters, f"{option}={source}: weights of another network")
    return {name: jax.numpy.array(parameters[name]) for name in drawn}


def about_base(source: LoadedModel) -> dict[str, Any]:
    """Returns what is known about the base of a system that starts from these weights."""
    if of_base(split(source.model)[1]):
        return source.metadata.get("base", {})
    left_out = ("network", "jaxdeblur")
    about = {name: value for name, value in source.metadata.items() if name not in left_out}
    return about | {"preset": source.preset, "step": source.step}


def runs_paths(name_or_path: str | Path) -> bool:
    """Returns whether blur paths run with these weights, as :func:`load_model` loads them.

    Neither parameters nor a device are touched. False where loading raises an error.
    """
    path, name = Path(name_or_path), str(name_or_path)
    try:
        if path.is_dir():
            about = read_config(path)
        else:
            if not path.is_file() and (shipped.is_base(name) or name not in shipped.names()):
                return False
            file = path if path.is_file() else shipped.path(name)
            with safetensors.safe_open(file, framework="numpy") as opened:
                about = json.loads((opened.metadata() or {})["jaxdeblur"])
        network = network_from_json(about["network"], name)
    except (UserError, safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError):
        return False
    return isinstance(network, PathsConfig | SingleFrameConfig)


def _load_run(folder: Path, dtype: str | None) -> LoadedModel:
    from jaxdeblur.weights.checkpoints import Checkpoints  # Orbax takes a second

    config = read_config(folder)
    with _telling_version(config):
        network = _for_here(network_from_json(config["network"], str(folder / CONFIG_NAME)), dtype)
        rebuild, template = outline(lambda: registry.build(network))
    found = Checkpoints(folder).restore_weights(template)
    if found is None:
        raise UserError(f"{folder}: contains no checkpoint yet")
    step, parameters = found
    check_finite(parameters, folder)
    metadata = {name: config[name] for name in ("training", "data", "base") if config.get(name)}
    source = f"{folder} at step {step}"
    return LoadedModel(rebuild(parameters), config["preset"], network, step, source, metadata)


@contextlib.contextmanager
def _telling_version(about: dict[str, Any]) -> Iterator[None]:
    """Adds to an error which other version wrote the file or run, if one did."""
    try:
        yield
    except UserError as error:
        version = about.get("jaxdeblur")
        if not isinstance(version, str) or version == VERSION:
            raise
        raise UserError(f"{error}; jaxdeblur {version} wrote it, this is {VERSION}") from error


def _for_here(network: Any, dtype: str | None) -> Any:
    """Returns the config with this dtype, and without a demand for the kernels of one GPU."""
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    changes: dict[str, Any] = {
        name: _for_here(value, dtype)
        for name, value in fields.items()
        if dataclasses.is_dataclass(value)
    }
    if fields.get("implementation") == "mosaic":
        changes["implementation"] = "auto"
    if dtype is not None and "dtype" in fields:
        changes["dtype"] = dtype
    elif dtype is not None and not changes:
        raise UserError(f"--dtype={dtype}: this network always computes in its own dtype")
    return dataclasses.replace(network, **changes)


def _load_file(path: Path, source: str, dtype: str | None, *, base: bool = False) -> LoadedModel:
    arrays, header = read_safetensors(path)
    try:
        about = json.loads(header["jaxdeblur"])
        network = about["network"]
        if base:  # of a system: a network by itself
            about, network, arrays = about["base"], network["base"], of_base(arrays)
        step, preset = int(about["step"]), str(about["preset"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header does not say which network it is for") from error
    with _telling_version(about):
        network = _for_here(network_from_json(network, str(path)), dtype)
        rebuild, template = outline(lambda: registry.build(network))
        check_fits(template, arrays, f"{path}: weights of another network")
    for name, array in arrays.items():
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise UserError(f"{path}: {name} is {array.dtype}, but must be floating point")
    # Converted by NumPy: JAX would compile a program for each shape.
    parameters = {
        name: jax.numpy.asarray(np.asarray(arrays[name], np.float32)) for name in template
    }
    check_finite(parameters, path)
    return LoadedModel(rebuild(parameters), preset, network, step, source, about)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file by name, and its metadata.

    Raises:
      UserError: the file is damaged, or holds numbers that NumPy has no type for.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def check_finite(parameters: Mapping[str, Any], where: Path) -> None:
    """Raises :class:`UserError` if weights of the file or run ``where`` are not finite."""
    # A pixel that is not a number would be output as the unchanged input, hiding the error.
    if bad := [name for name, a in parameters.items() if not np.isfinite(np.asarray(a)).all()]:
        raise UserError(f"{where}: {bad[0]} is not finite; the weights are broken")


def check_fits(template: dict[str, Any], arrays: dict[str, Any], message: str) -> None:
    """Compares names and shapes of arrays with those of ``template``.

    Raises:
      UserError: they differ; after ``message`` the error lists what is missing, unknown or of
        another shape, at most ten of each.
    """
    kinds = {
        "missing": [name for name in template if name not in arrays],
        "unknown": [name for name in arrays if name not in template],
        "wrong shape": [
            f"{name} {tuple(arrays[name].shape)} instead of {tuple(array.shape)}"
            for name, array in template.items()
            if name in arrays and tuple(arrays[name].shape) != tuple(array.shape)
        ],
    }
    if any(kinds.values()):
        listed = [
            f"{kind}: {', '.join(names[:10])}{f' and {len(names) - 10} more' * (len(names) > 10)}"
            for kind, names in kinds.items()
            if names
        ]
        raise UserError(f"{message}; {'; '.join(listed)}")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a run folder's ``config.json`` and checks the kinds of values that every run has.

    Raises:
      UserError: it is missing or not a run's; the message names the file and what is wrong.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not a run folder (it has no {CONFIG_NAME})") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, too many digits
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    kinds = {"preset": str, "network": dict, "training": dict, "data": dict}
    given = values if isinstance(values, dict) else {}
    if wrong := [name for name, kind in kinds.items() if not isinstance(given.get(name), kind)]:
        raise UserError(
            f"{folder}: not a run folder ({CONFIG_NAME}: {', '.join(wrong)} missing or of another "
            "type)"
        )
    return given


def newest_run(runs: Path = RUNS) -> Path:
    """Returns the run folder in ``runs`` whose newest checkpoint was written last.

    Raises:
      UserError: no folder in ``runs`` has a checkpoint.
    """
    from jaxdeblur.weights.checkpoints import CHECKPOINTS_NAME

    written = [path for path in runs.glob(f"*/{CHECKPOINTS_NAME}/*") if path.name.isdigit()]
    if not written:
        raise UserError(f"--ckpt: no run in {runs}/ has a checkpoint; give one with --ckpt=RUN")
    return max(written, key=lambda path: path.stat().st_mtime_ns).parents[1]
