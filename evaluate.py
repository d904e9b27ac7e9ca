#!/usr/bin/env python3
"""Scores a model on a data set: ``python evaluate.py --ckpt=RUN``; writes metrics and a report."""

from __future__ import annotations

import textwrap
from pathlib import Path

from jaxdeblur.errors import run_command, tell
from jaxdeblur.options import Parser, add_extension_option, add_fields, load_extension, read_fields


def main() -> None:
    """Reads the options and evaluates."""
    import jax

    from jaxdeblur import devices
    from jaxdeblur.data.datasets import open_dataset
    from jaxdeblur.evaluation.config import EvaluationConfig
    from jaxdeblur.evaluation.evaluate import evaluate
    from jaxdeblur.evaluation.metrics import PROTOCOLS
    from jaxdeblur.evaluation.own_kind import of_its_own_kind
    from jaxdeblur.evaluation.results import default_folder, table
    from jaxdeblur.options import ClusterConfig
    from jaxdeblur.restoration.placement import over_rows
    from jaxdeblur.weights.load import load_model

    parser = Parser(
        prog="evaluate.py",
        description="Restores a data set and scores it. With no other option: test videos of the "
        "kind that the run trains on.\n\nprotocols:\n"
        + "\n".join(_paragraph(name, p.summary) for name, p in PROTOCOLS.items()),
    )
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="RUN",
        help="a run folder, a .safetensors file, or the name of shipped weights",
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
    loaded = load_model(arguments.ckpt, dtype=arguments.dtype)
    if not config.data:
        config = of_its_own_kind(config, loaded.metadata if Path(arguments.ckpt).is_dir() else {})
        if jax.process_index() == 0:
            which = f"--split={config.split}" if config.split != "test" else "test videos"
            tell(f"scored on {config.data}, {which}, as trained on; --data names another data set")
    if processes.rows > 1:
        shared_out = over_rows(loaded.model, devices.row_devices(processes.rows))
        loaded = loaded._replace(model=shared_out)
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
    out = arguments.out or default_folder(arguments.ckpt, dataset, config)
    metrics = evaluate(loaded, dataset, config, out, overwrite=arguments.overwrite)
    if jax.process_index() == 0:
        print(table(metrics))
        print(f"\nopen {out / 'report.html'} in a browser; the numbers are in metrics.json")


def _paragraph(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12} {text}", 98, initial_indent="  ", subsequent_indent=15 * " ")


if __name__ == "__main__":
    run_command(main, "evaluate.py", together=True)
