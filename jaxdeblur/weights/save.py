"""Writes a run as one safetensors file to share: ``jaxdeblur export RUN OUT.safetensors``.

Besides the arrays, the file describes their network and what a reader should know about them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxdeblur import VERSION
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.parameters import split
from jaxdeblur.models.registry import network_to_json
from jaxdeblur.options import differing_fields
from jaxdeblur.weights.load import LoadedModel, load_model, starting_parameters


def write_safetensors(arguments: argparse.Namespace) -> LoadedModel:
    """Writes the file that the options describe; returns the model written to it.

    Raises:
      UserError: --licence is missing, or a run cannot be read or does not fit the others.
    """
    loaded = load_model(arguments.run)
    metadata = given_metadata(arguments, loaded)
    if "licence of the data" not in loaded.metadata | metadata:
        raise UserError("--licence is missing; give the licence of the data that it was trained on")
    metadata["data"] = data_of(loaded)
    if arguments.after or "after" not in loaded.metadata:
        metadata["after"] = [_about(load_model(run)) for run in arguments.after]
    if arguments.mix_with:
        loaded = _mixed(loaded, *arguments.mix_with)
    loaded = loaded._replace(metadata=loaded.metadata | metadata)
    export_weights(loaded, arguments.file, half=arguments.half)
    return loaded


def given_metadata(arguments: argparse.Namespace, loaded: LoadedModel) -> dict[str, Any]:
    """Returns the licence and scores that the options give, and a commit unless one is known."""
    given = {
        "licence of the data": arguments.licence,
        "commit": "commit" not in loaded.metadata and _commit(),
        "scores": [_totals(path) for path in arguments.scores],
    }
    return {name: value for name, value in given.items() if value}


def export_weights(loaded: LoadedModel, path: Path, *, half: bool = False) -> None:
    """Writes a model as one safetensors file with its config and metadata in the header.

    ``half`` stores float16, half the size; the dtype of the computation does not change.
    """
    _, parameters = split(loaded.model)
    kind = np.float16 if half else np.float32
    arrays = {name: np.asarray(array, kind) for name, array in parameters.items()}
    about = {
        **loaded.metadata,
        "jaxdeblur": VERSION,
        "preset": loaded.preset,
        "step": loaded.step,
        "network": network_to_json(loaded.network),
    }
    with replace_when_whole(path) as part:
        safetensors.numpy.save_file(arrays, part, metadata={"jaxdeblur": json.dumps(about)})


def _about(run: LoadedModel) -> dict[str, Any]:
    """Returns the metadata of another run that the weights come from."""
    about = {"preset": run.preset, "step": run.step, "data": data_of(run)}
    return about | {"training": run.metadata["training"]}


def _mixed(loaded: LoadedModel, source: str, share: str) -> LoadedModel:
    """Returns the model with the weighted mean of two networks' parameters.

    The other network may run at other sizes, or be the base of a system: then only what both have
    is averaged, as ``starting_parameters`` finds it.
    """
    try:
        part = float(share)
    except ValueError:
        part = -1.0
    if not 0 <= part <= 1:
        raise UserError(f"--mix-with: the share must be 0 to 1, not {share}")
    rebuild, ours = split(loaded.model)
    theirs = starting_parameters(loaded.model, ours, source, "--mix-with")
    here, there = loaded.network, load_model(source).network
    if not isinstance(there, type(here)):
        here = getattr(here, "base", here)  # that of a system
    if differences := differing_fields(here, _as_if_of(here, there)):
        raise UserError(f"--mix-with={source}: the networks differ: {'; '.join(differences)}")
    mean = {name: (1 - part) * ours[name] + part * theirs[name] for name in ours}
    mixed = {"with": Path(source).name, "share": part}
    return loaded._replace(model=rebuild(mean), metadata={**loaded.metadata, "mixed": mixed})


def _as_if_of(here: Any, there: Any) -> Any:
    """Returns a network's config with the fields of another that make no other parameters."""
    both = {field.name for field in dataclasses.fields(there)} & {"scales", "dtype"}
    return dataclasses.replace(there, **{n: getattr(here, n) for n in both if hasattr(here, n)})


def data_of(run: LoadedModel) -> dict[str, Any]:
    """Returns the data options with folder names in place of machine-specific paths.

    Raises:
      UserError: the weights do not say how they were trained.
    """
    values = run.metadata.get("data")
    if not isinstance(values, dict):
        raise UserError(f"{run.source}: does not say how it was trained")
    return {
        **values,
        "data": [_without_folder(spec) for spec in values.get("data", ())],
        "photos": values.get("photos") and Path(values["photos"]).name,
        "validate_on": _without_folder(values.get("validate_on", "")),
    }


def _without_folder(spec: str) -> str:
    layout, colon, path = spec.rpartition(":")
    return f"{layout}{colon}{Path(path).name}"


def _totals(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        dataset, protocol = metrics["dataset"], metrics["protocol"]
        where = {"data": dataset["name"], "variant": dataset["variant"], "by": protocol["name"]}
        totals = {name: metrics[name] for name in ("psnr", "psnr_blurred", "ssim", "ssim_blurred")}
        totals = {name: round(value, 4) for name, value in totals.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--scores={path}: no metrics.json of an evaluation ({error})") from error
    return {**where, **totals}


def _commit() -> str:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):  # such as an installed package
        return "unknown"
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
