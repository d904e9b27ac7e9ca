"""``evaluate.py`` and ``jaxdeblur evaluate``: scores a model on a data set and writes a report."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdeblur.console import tell
from jaxdeblur.errors import UserError
from jaxdeblur.files import local
from jaxdeblur.options import (
    Parser,
    add_extension_option,
    add_fields,
    from_json,
    load_extension,
    read_fields,
)

if TYPE_CHECKING:
    from jaxdeblur.evaluation.config import EvaluationConfig


def main(name: str = "evaluate.py") -> None:
    """Reads the options and evaluates."""
    import jax

    from jaxdeblur import devices
    from jaxdeblur.data.datasets import open_dataset
    from jaxdeblur.evaluation.config import EvaluationConfig
    from jaxdeblur.evaluation.evaluate import evaluate
    from jaxdeblur.evaluation.metrics import PROTOCOLS
    from jaxdeblur.evaluation.results import default_folder, table
    from jaxdeblur.options import ClusterConfig
    from jaxdeblur.weights.load import load_model, newest_run, runs_paths

    parser = Parser(
        prog=name,
        description="Restores a data set and scores it; without --data, test videos of the kind "
        "the run was trained on.\n\nprotocols:\n"
        + "\n".join(_paragraph(name, p.summary) for name, p in PROTOCOLS.items()),
    )
    parser.add_argument(
        "--ckpt",
        nargs="?",
        required=True,
        const=True,  # not text, so that it differs from an empty --ckpt="$RUN"
        metavar="RUN",
        help="a run folder, a .safetensors file, or the name of shipped weights; without a "
        "value, the newest run in runs/",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for the results; by default RUN/evaluation-DATA, or "
        "evaluations/NAME-DATA for standalone weights",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the evaluation in that folder"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="precision of the computation"
    )
    add_fields(parser, EvaluationConfig(), "evaluation")
    parser.set_defaults(data="")  # by default the run's own
    add_fields(parser, ClusterConfig(), "devices and processes")
    add_extension_option(parser)
    arguments = parser.parse_args()
    if arguments.extension:
        load_extension(arguments.extension)
    config = read_fields(arguments, EvaluationConfig())

    is_newest = arguments.ckpt is True
    if is_newest:
        arguments.ckpt = str(newest_run())
    if arguments.out is not None:
        local(arguments.out, "--out")

    devices.keep_freed_memory()
    devices.keep_compiled()
    if runs_paths(arguments.ckpt):
        devices.add_threads()  # this would slow down a network alone
    processes = read_fields(arguments, ClusterConfig())
    devices.use_cores(1, processes)
    devices.join(processes)
    if is_newest and jax.process_index() == 0:
        tell(f"scoring the newest run, {arguments.ckpt}; --ckpt=RUN selects another")
    loaded = load_model(arguments.ckpt, dtype=arguments.dtype)
    if loaded.of_photographs and not config.single:
        config = dataclasses.replace(config, single=True)
        if jax.process_index() == 0:
            tell("each frame is restored by itself: the network was trained on photographs")
    if not config.data:
        config = of_its_own_kind(config, loaded.metadata if Path(arguments.ckpt).is_dir() else {})
        if jax.process_index() == 0:
            which = f"--split={config.split}" if config.split != "test" else "test videos"
            tell(f"scoring on {config.data}, {which}, as in training; --data selects another")
    dataset = open_dataset(
        config.data,
        config.split,
        variant=config.variant,
        exposure=config.exposure,
        light=config.light,
        sharp_input=config.sharp_input,
        only=config.only,
        exclude=config.exclude,
    )
    if config.single:
        which = ", ".join(filter(None, [dataset.variant, "each frame by itself"]))
        dataset = dataclasses.replace(dataset, variant=which)
    out = arguments.out or default_folder(arguments.ckpt, dataset, config)
    metrics = evaluate(
        loaded.model, loaded.about, dataset, config, out, overwrite=arguments.overwrite
    )
    if jax.process_index() == 0:
        print(table(metrics))
        print(f"\nopen {out / 'report.html'} in a browser; the numbers are in metrics.json")


def of_its_own_kind(config: EvaluationConfig, run: dict[str, Any]) -> EvaluationConfig:
    """Returns ``config`` with a run's data set: test videos of its kind, or those held out.

    Without a run's ``data`` these are rendered scenes, and for the maps of blur paths too. Options
    that select videos take precedence.

    Raises:
      UserError: the run's data options cannot be read, the data folder no longer exists, or the
        split is that of training.
    """
    from jaxdeblur.data.config import DataConfig, is_rendered
    from jaxdeblur.data.layouts import RENDERED, resolve
    from jaxdeblur.data.training_data import TrainingData

    if "data" not in run:
        return dataclasses.replace(config, data=RENDERED)
    try:
        data = TrainingData(from_json(DataConfig, run["data"], "data of the run"))
    except UserError as error:
        raise UserError(f"{error}; --data selects another data set") from error
    if config.split == "train":
        raise UserError("--split=train needs --data")
    spec, split, only, variant = data.scored(config.split)
    if not is_rendered(spec) and resolve(spec).layout == "paths":
        spec, split, only, variant = f"{RENDERED}:narrow", config.split, (), None
    return dataclasses.replace(
        config,
        data=spec,
        split=split,
        only=config.only or only,
        variant=config.variant or variant,
    )


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12} {text}", 98, initial_indent="  ", subsequent_indent=15 * " ")
