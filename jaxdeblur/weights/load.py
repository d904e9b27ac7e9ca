"""Loading a model: from a run folder, a ``.safetensors`` file, or the weights that ship.

And the first parameters of a run from any of these, which may be of other scales.

Loading runs no code from a file: configs are JSON checked field by field, weights are plain arrays.
Of training nothing is imported, and Orbax only where a run folder is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from jaxdeblur.errors import UserError
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.models.registry import network_from_json
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import as_levels, gates, level_parameters
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.paths.windows import PathsConfig
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights import shipped

CONFIG_NAME = "config.json"
PATHS_ALONE = "paths"
"""What ``--ckpt`` calls blur paths without a network."""

RUNS = Path("runs")
"""Where runs are, unless their command says otherwise."""


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

    @property
    def of_photographs(self) -> bool:
        """Whether it was trained on nothing but single frames."""
        data = self.metadata.get("data")
        return isinstance(data, dict) and data.get("single") == 1


def load_model(name_or_path: str | Path, *, dtype: str | None = None) -> LoadedModel:
    """Loads the model of a run folder, a ``.safetensors`` file, or the name of shipped weights.

    Args:
      name_or_path: a folder or file, or else one of ``jaxdeblur.weights.shipped.names()``.
      dtype: of the computation, in place of the config's.

    Raises:
      UserError: there is no such thing, it is damaged, or it does not fit its own config.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return _load_run(path, dtype)
    if path.is_file():
        return _load_file(path, path.name, dtype)
    if str(name_or_path) in shipped.names():
        return _load_file(shipped.path(str(name_or_path)), str(name_or_path), dtype)
    if str(name_or_path) == PATHS_ALONE:  # float32 whatever ``dtype`` is
        config = PathsConfig()
        return LoadedModel(PathRestorer(config), PATHS_ALONE, config, 0, PATHS_ALONE, {})
    known = ", ".join([*shipped.names(), PATHS_ALONE])
    raise UserError(
        # Without an option's name: --ckpt, --start-from, --mix-with and others all come here.
        f"{name_or_path}: no such run folder or .safetensors file, and not the name of weights "
        f"that ship ({known})"
    )


def starting_parameters(
    model: VideoRestorer, drawn: Parameters, source: str, option: str = "--start-from"
) -> Parameters:
    """The parameters of ``source`` for ``model``, which may run at other scales than it.

    Blur looks alike at every size, so the network of one scale starts that of several, and the
    other way round. Gates come from a source of the same scales, and are else as drawn.

    Args:
      model: the network.
      drawn: its random parameters.
      source: a run, a file, or the name of weights that ship.
      option: that named the source.

    Raises:
      UserError: they do not fit the network; it names the option.
    """
    loaded = load_model(source)
    whole = split(loaded.model)[1]
    chosen_by = whole if loaded.model.scales == model.scales else drawn
    parameters = as_levels(level_parameters(whole, loaded.network), model.config)
    parameters |= gates(chosen_by)
    check_fits(drawn, parameters, f"{option}={source}: weights of another network")
    return {name: jax.numpy.array(parameters[name]) for name in drawn}


def load_restorer(name_or_path: str | Path, *, dtype: str | None = None) -> LoadedModel:
    """As :func:`load_model`; a network over blur paths comes with the paths, to restore frames.

    Raises:
      UserError: as ``load_model``, or the weights that the network is over do not ship.
    """
    loaded = load_model(name_or_path, dtype=dtype)
    if not (below := getattr(loaded.network, "over_paths", "")):
        return loaded
    base = load_model(below, dtype=dtype).model
    return loaded._replace(model=PathRestorer(PathsConfig(), base, loaded.model))


def _load_run(folder: Path, dtype: str | None) -> LoadedModel:
    from jaxdeblur.weights.checkpoints import CHECKPOINTS_NAME, Checkpoints  # Orbax takes a second

    config = read_config(folder)
    network = network_from_json(config["network"], str(folder / CONFIG_NAME))
    if not (folder / CHECKPOINTS_NAME).is_dir():
        raise UserError(f"{folder}: it has no {CHECKPOINTS_NAME}/ yet")
    if dtype is not None:
        network = dataclasses.replace(network, dtype=dtype)
    rebuild, template = outline(lambda: registry.build(network))
    found = Checkpoints(folder).restore_weights(template)
    if found is None:
        raise UserError(f"{folder}: it has no checkpoint yet")
    step, parameters = found
    check_finite(parameters, folder)
    metadata = {name: config[name] for name in ("training", "data")}
    source = f"{folder} at step {step}"
    return LoadedModel(rebuild(parameters), config["preset"], network, step, source, metadata)


def _load_file(path: Path, source: str, dtype: str | None) -> LoadedModel:
    arrays, header = read_safetensors(path)
    try:
        about = json.loads(header.get("jaxdeblur", ""))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("step"), int):
        raise UserError(f"{path}: its header does not say which network it is for")
    network = network_from_json(about.get("network"), str(path))
    if dtype is not None:
        network = dataclasses.replace(network, dtype=dtype)
    rebuild, template = outline(lambda: registry.build(network))
    check_fits(template, arrays, f"{path}: weights of another network")
    for name, array in arrays.items():
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise UserError(f"{path}: {name} is {array.dtype}, not numbers with a fraction")
    parameters = {name: jax.numpy.asarray(arrays[name], jax.numpy.float32) for name in template}
    check_finite(parameters, path)
    preset = str(about.get("preset", ""))
    return LoadedModel(rebuild(parameters), preset, network, about["step"], source, about)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file by name, and its metadata.

    Raises:
      UserError: it is damaged, or holds numbers that NumPy has no type for.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    except AttributeError as error:
        raise UserError(f"{path}: its numbers are of a type that is not read ({error})") from error


def check_finite(parameters: Mapping[str, Any], where: Path) -> None:
    """Raises :class:`UserError` where weights of the file or run ``where`` are not finite."""
    # A pixel that is not a number would come out as the one that went in, as if all were well.
    if bad := [name for name, a in parameters.items() if not np.isfinite(np.asarray(a)).all()]:
        raise UserError(f"{where}: its {bad[0]} is not finite; the weights are broken")


def check_fits(template: dict[str, Any], arrays: dict[str, Any], message: str) -> None:
    """Compares names and shapes of arrays with those of ``template``.

    Raises:
      UserError: they differ; after ``message`` it lists what is missing, unknown or of another
        shape, ten of each.
    """
    kinds = {
        "missing": [name for name in template if name not in arrays],
        "unknown": [name for name in arrays if name not in template],
        "of another shape": [
            f"{name} {tuple(arrays[name].shape)}, which should be {tuple(array.shape)}"
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
    """What a run folder's ``config.json`` says, with the kinds of values that every one has.

    Raises:
      UserError: there is none, or it is no run's; the message names the file and what is wrong.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no run folder (it has no {CONFIG_NAME})") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, too many digits
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object was expected")
    missing = [name for name in ("preset", "network", "training", "data") if name not in values]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} is missing; this is no run folder")
    if not isinstance(values["preset"], str) or not isinstance(values["data"], dict):
        raise UserError(f"{path}: preset is a name and data an object")
    return values


def newest_run(runs: Path = RUNS) -> Path:
    """The run folder in ``runs`` whose newest checkpoint was written last.

    Raises:
      UserError: no folder in ``runs`` has a checkpoint.
    """
    from jaxdeblur.weights.checkpoints import Checkpoints

    written = {
        newest.stat().st_mtime_ns: folder
        for folder in runs.glob("*")
        if (newest := Checkpoints(folder).newest()) is not None
    }
    if not written:
        raise UserError(f"--ckpt: no run with a checkpoint is in {runs}/; name one by --ckpt=RUN")
    return written[max(written)]
