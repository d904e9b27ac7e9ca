"""Writes a run as one safetensors file to pass on: ``jaxdeblur.export RUN OUT.safetensors``.

Beside the arrays the file says which network they are of, and what a reader should know of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxdeblur import VERSION
from jaxdeblur.data.sources import read_data_config
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.coarse_to_fine import (
    check_scales,
    for_levels,
    gates,
    join_levels,
    level_configs,
    level_parameters,
)
from jaxdeblur.models.parameters import outline, split
from jaxdeblur.models.registry import build, network_to_json
from jaxdeblur.models.strcnn import COARSE, StrcnnConfig
from jaxdeblur.options import differing_fields
from jaxdeblur.weights.load import LoadedModel, check_fits, load_model
from jaxdeblur.weights.start import starting_parameters

ONLY_SAFETENSORS = ("after", "scales", "coarse_from", "coarse_below", "mix_with")
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
        "--scales",
        type=int,
        nargs="+",
        metavar="N",
        help="writes a network of these sizes, as 8 4 2 1, without training: blur looks alike at "
        "every size, so finer levels than the run has are copies of its finest",
    )
    group.add_argument(
        "--coarse-from",
        metavar="RUN",
        help="takes the levels at 1/4 of the size and below from this run, whose width and blocks "
        "may differ",
    )
    group.add_argument(
        "--coarse-below",
        type=int,
        default=COARSE,
        metavar="N",
        help="takes them at 1/N and below; if N is not 4, they must be as wide and deep as those "
        "of the run",
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
    """Writes the file that the options say; gives what went into it."""
    if arguments.licence is None:
        raise UserError("--licence says the licence of the data that it was trained on; give it")
    if arguments.coarse_below != COARSE and not arguments.coarse_from:
        raise UserError("--coarse-below says which levels --coarse-from=RUN gives; name the run")
    loaded = load_model(arguments.run)
    metadata = given_metadata(arguments)
    metadata["data"] = _data_of(loaded)
    metadata["after"] = [_about(load_model(run)) for run in arguments.after]
    if arguments.scales:
        loaded = _at_scales(loaded, tuple(arguments.scales))
    if arguments.mix_with:
        source, share = arguments.mix_with
        loaded = _mixed(loaded, source, share)
        metadata["mixed"] = {"with": Path(source).name, "share": float(share)}
    if arguments.coarse_from:
        loaded = _with_coarse_levels(loaded, arguments.coarse_from, arguments.coarse_below)
        metadata["coarse levels"] = _about(load_model(arguments.coarse_from))
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


def _about(run: LoadedModel) -> dict[str, Any]:
    """What the weights say of another run that they come from."""
    training = run.metadata.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{run.source}: does not say how it was trained")
    return {"preset": run.preset, "step": run.step, "training": training, "data": _data_of(run)}


def _at_scales(loaded: LoadedModel, scales: tuple[int, ...]) -> LoadedModel:
    """The same network at more sizes than it was trained at."""
    check_scales(scales)
    if len(scales) < (least := max(len(loaded.network.scales), 2)):
        raise UserError(f"--scales: {least} or more sizes are needed, not {len(scales)}")
    if getattr(loaded.network, "choose_scale", False):
        raise UserError(
            "--scales: what chooses between the sizes is trained for those of the run; python -m "
            "jaxdeblur.training.fit_gates trains it for others"
        )
    network = dataclasses.replace(loaded.network, scales=scales)
    rebuild, _ = outline(lambda: build(network))
    levels = for_levels(level_parameters(split(loaded.model)[1], loaded.network), network)
    return loaded._replace(model=rebuild(join_levels(levels, network)), network=network)


def _with_coarse_levels(loaded: LoadedModel, source: str, least: int) -> LoadedModel:
    """The model with the levels of another network at 1/``least`` of the size and below."""
    option, other = f"--coarse-from={source}", load_model(source)
    here, there = loaded.network, other.network
    if not isinstance(here, StrcnnConfig) or not isinstance(there, StrcnnConfig):
        raise UserError(f"{option}: only levels of STRCNN and STRCNN+DTB can be put together")
    if here.share_levels or here.scales[0] < least or least < 2:
        raise UserError(f"{option}: the run needs levels of their own at 1/{least} and below")
    network = here
    if least == COARSE:
        level = there.at_scale(COARSE)
        network = dataclasses.replace(here, coarse_width=level.width, coarse_blocks=level.blocks)
    rebuild, template = outline(lambda: build(network))
    whole = split(loaded.model)[1]
    ours = level_parameters(whole, here)
    theirs = for_levels(level_parameters(split(other.model)[1], there), network)
    levels = [
        their_level if scale >= least else our_level
        for scale, our_level, their_level in zip(here.scales, ours, theirs, strict=True)
    ]
    parameters = join_levels(levels, network) | gates(whole)
    _check_alike(network, for_levels(level_configs(there), network), option)
    check_fits(template, parameters, option)
    return loaded._replace(model=rebuild(parameters), network=network)


def _check_alike(network: Any, theirs: list[Any], option: str) -> None:
    """Refuses levels of the same shapes that compute something else with them.

    Args:
      network: of which the levels are to be.
      theirs: the config of each level, of the other network.
      option: that names the other network.
    """
    # What does not change what is computed, and what the shapes show.
    computes_alike = {"dtype": "float32", "implementation": "auto", "nonlocal_bytes": 2**30}
    computes_alike |= {"width": 2, "blocks": 1}
    for ours, other in zip(level_configs(network), theirs, strict=True):
        known = {name: value for name, value in computes_alike.items() if hasattr(ours, name)}
        pair = [dataclasses.replace(level, **known) for level in (ours, other)]
        if differences := differing_fields(*pair):
            raise UserError(f"{option}: another network: {'; '.join(differences)}")


def _mixed(loaded: LoadedModel, source: str, share: str) -> LoadedModel:
    """The model with the mean of two networks' parameters."""
    try:
        part = float(share)
    except ValueError:
        part = math.nan
    if not 0 <= part <= 1:
        raise UserError(f"--mix-with: the share is 0 to 1, not {share}")
    rebuild, ours = split(loaded.model)
    theirs = starting_parameters(loaded.model, ours, source, "--mix-with")
    there = for_levels(level_configs(load_model(source).network), loaded.network)
    _check_alike(loaded.network, there, f"--mix-with={source}")
    mean = {name: (1 - part) * ours[name] + part * theirs[name] for name in ours}
    return loaded._replace(model=rebuild(mean))


def _data_of(run: LoadedModel) -> dict[str, Any]:
    """The data options with names for the folders, whose paths are those of one machine."""
    values: Any = run.metadata.get("data")
    data = read_data_config(values, f"{run.source}: data")
    return {
        **values,  # as the run had them, also those of an earlier version
        "data": [_without_folder(spec) for spec in values.get("data", data.data)],
        "photos": data.photos and Path(data.photos).name,
        "validate_on": _without_folder(data.validate_on),
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
