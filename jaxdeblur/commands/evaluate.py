"""``evaluate.py`` and ``jaxdeblur evaluate``: scores a model on a data set; writes a report."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdeblur.errors import UserError, tell
from jaxdeblur.options import Parser, add_extension_option, add_fields, load_extension, read_fields

if TYPE_CHECKING:
    from jaxdeblur.data.videos import Dataset
    from jaxdeblur.evaluation.config import EvaluationConfig


def main(name: str = "evaluate.py") -> None:
    """Reads the options and evaluates."""
    import jax

    from jaxdeblur import devices
    from jaxdeblur.evaluation.config import EvaluationConfig
    from jaxdeblur.evaluation.evaluate import evaluate
    from jaxdeblur.evaluation.metrics import PROTOCOLS
    from jaxdeblur.evaluation.own_kind import of_its_own_kind
    from jaxdeblur.evaluation.results import default_folder
    from jaxdeblur.options import ClusterConfig
    from jaxdeblur.weights.load import load_restorer, newest_run

    parser = Parser(
        prog=name,
        description="Restores a data set and scores it. With no other option: test videos of the "
        "kind that the run trains on.\n\nprotocols:\n"
        + "\n".join(_paragraph(name, p.summary) for name, p in PROTOCOLS.items()),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--ckpt",
        nargs="?",
        const=True,  # no text, so that an empty --ckpt="$RUN" is not taken for it
        metavar="RUN",
        help="a run folder, a .safetensors file, or the name of shipped weights; without a value "
        "the newest run in runs/",
    )
    what.add_argument(
        "--restored",
        type=Path,
        metavar="FOLDER",
        help="frames that any other program restored, a folder of images for each video",
    )
    parser.add_argument("--name", default="", help="what the report calls them")
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for the results; by default RUN/evaluation-DATA, or "
        "evaluations/NAME-DATA for standalone weights",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the evaluation in that folder"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the computation")
    add_fields(parser, EvaluationConfig(), "evaluation")
    parser.set_defaults(data="")  # the run says
    add_fields(parser, ClusterConfig(), "devices and processes")
    add_extension_option(parser)
    arguments = parser.parse_args()
    if arguments.extension:
        load_extension(arguments.extension)
    config = read_fields(arguments, EvaluationConfig())

    devices.keep_freed_memory()
    devices.keep_compiled()
    processes = read_fields(arguments, ClusterConfig())
    devices.use_cores(1, processes)
    devices.join(processes)
    if arguments.ckpt is None:
        if arguments.dtype:
            raise UserError("--dtype is of a network, and --restored has none")
        _evaluate_restored(arguments, config)
        return
    if arguments.name:
        raise UserError("--name is of frames that another program restored (--restored)")
    if arguments.ckpt is True:
        arguments.ckpt = str(newest_run())
        if jax.process_index() == 0:
            tell(f"scored is the newest run, {arguments.ckpt}; --ckpt=RUN names another")
    loaded = load_restorer(arguments.ckpt, dtype=arguments.dtype)
    if loaded.of_photographs and not config.single:
        config = dataclasses.replace(config, single=True)
        if jax.process_index() == 0:
            tell("each frame is restored by itself: the network was trained on photographs")
    if not config.data:
        config = of_its_own_kind(config, loaded.metadata if Path(arguments.ckpt).is_dir() else {})
        if jax.process_index() == 0:
            which = f"--split={config.split}" if config.split != "test" else "test videos"
            tell(f"scored on {config.data}, {which}, as trained on; --data names another data set")
    dataset = _open(config)
    out = arguments.out or default_folder(arguments.ckpt, dataset, config)
    metrics = evaluate(loaded, dataset, config, out, overwrite=arguments.overwrite)
    if jax.process_index() == 0:
        _show(metrics, out)


def _evaluate_restored(arguments: Any, config: EvaluationConfig) -> None:
    """Scores the frames of ``--restored``."""
    import jax

    from jaxdeblur.evaluation.evaluate import evaluate
    from jaxdeblur.evaluation.restored import RestoredFrames
    from jaxdeblur.evaluation.results import default_folder

    if config.single:
        raise UserError("--single is of a network, and --restored has none")
    if not config.data:
        raise UserError("--restored: name the data set that the frames are of, with --data")
    dataset = _open(config)
    name = arguments.name or arguments.restored.name
    frames = RestoredFrames.find(
        arguments.restored, name, dataset.videos, max_pixels=config.max_pixels
    )
    out = arguments.out or default_folder(f"{name}.frames", dataset, config)
    metrics = evaluate(frames, dataset, config, out, overwrite=arguments.overwrite)
    if jax.process_index() == 0:
        _show(metrics, out)


def _open(config: EvaluationConfig) -> Dataset:
    from jaxdeblur.data.datasets import open_dataset

    dataset = open_dataset(
        config.data,
        config.split,
        variant=config.variant,
        exposure=config.exposure,
        light=config.light,
        sharp_input=config.sharp_input,
        only=config.only,
        exclude=config.exclude,
        max_pixels=config.max_pixels,
    )
    if config.single:
        which = ", ".join(filter(None, [dataset.variant, "each frame by itself"]))
        dataset = dataclasses.replace(dataset, variant=which)
    return dataset


def _show(metrics: dict[str, Any], out: Path) -> None:
    from jaxdeblur.evaluation.results import table

    print(table(metrics))
    print(f"\nopen {out / 'report.html'} in a browser; the numbers are in metrics.json")


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12} {text}", 98, initial_indent="  ", subsequent_indent=15 * " ")
