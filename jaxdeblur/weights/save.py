"""Writes a run as one safetensors file to pass on: ``jaxdeblur.export RUN OUT.safetensors``.

Beside the arrays the file says which network they are of, and what a reader should know of them.
"""

from __future__ import annotations

import argparse
import json
import math
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
from jaxdeblur.weights.load import LoadedModel, check_fits, load_model

ONLY_SAFETENSORS = ("after", "mix_with")
"""What ``add_options`` adds."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only a ``.safetensors`` file has."""
    group = parser.add_argument_group("a file that ends in .safetensors")
    group.add_argument(
        "--after",
        type=Path,
        nargs="*",
        default=[],
        metavar="RUN",
        help="the runs that it comes from, the first one first",
    )
    group.add_argument(
        "--mix-with",
        nargs=2,
        metavar=("RUN", "SHARE"),
        help="writes the mean of the run's parameters and of another's of the same origin, which "
        "has this share: a fine-tuned network keeps more of what it could before (Wortsman et al. "
        "2022, arXiv:2109.01903)",
    )


def write_safetensors(arguments: argparse.Namespace) -> LoadedModel:
    """Writes the file that the options say; gives what went into it.

    Raises:
      UserError: --licence is missing, or a run cannot be read or does not fit the others.
    """
    if arguments.licence is None:
        raise UserError("--licence says the licence of the data that it was trained on; give it")
    loaded = load_model(arguments.run)
    metadata = given_metadata(arguments)
    metadata["data"] = _data_of(loaded)
    metadata["after"] = [_about(load_model(run)) for run in arguments.after]
    if arguments.mix_with:
        source, share = arguments.mix_with
        loaded = _mixed(loaded, source, share)
        metadata["mixed"] = {"with": Path(source).name, "share": float(share)}
    export_weights(loaded, arguments.file, metadata=metadata, half=arguments.half)
    return loaded


def given_metadata(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say of the weights: licence, scores, and the commit that writes them."""
    return {
        "licence of the data": arguments.licence,
        "commit": _commit(),
        "scores": [_totals(path) for path in arguments.scores],
    }


def export_weights(
    loaded: LoadedModel, path: Path, *, metadata: dict[str, Any] | None = None, half: bool = False
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


def _about(run: LoadedModel) -> dict[str, Any]:
    """What the weights say of another run that they come from."""
    training = run.metadata.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{run.source}: does not say how it was trained")
    return {"preset": run.preset, "step": run.step, "training": training, "data": _data_of(run)}


def _mixed(loaded: LoadedModel, source: str, share: str) -> LoadedModel:
    """The model with the mean of two networks' parameters."""
    try:
        part = float(share)
    except ValueError:
        part = math.nan
    if not 0 <= part <= 1:
        raise UserError(f"--mix-with: the share is 0 to 1, not {share}")
    rebuild, ours = split(loaded.model)
    there = load_model(source, dtype=getattr(loaded.network, "dtype", None))
    theirs = split(there.model)[1]
    check_fits(ours, theirs, f"--mix-with={source}: weights of another network")
    if differences := differing_fields(loaded.network, there.network):
        raise UserError(f"--mix-with={source}: another network: {'; '.join(differences)}")
    mean = {name: (1 - part) * ours[name] + part * theirs[name] for name in ours}
    return loaded._replace(model=rebuild(mean))


def _data_of(run: LoadedModel) -> dict[str, Any]:
    """The data options with names for the folders, whose paths are those of one machine."""
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
    if not (root / ".git").exists():  # installed, perhaps below a repository of something else
        return "unknown"
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
