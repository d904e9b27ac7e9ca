#!/usr/bin/env python3
"""Scores a model on a data set: ``python evaluate.py --ckpt=RUN``; writes metrics and a report."""

from __future__ import annotations

from pathlib import Path

from jaxdeblur import extensions
from jaxdeblur.errors import run_command
from jaxdeblur.metrics import PROTOCOLS
from jaxdeblur.options import Parser, add_fields, read_fields


def main() -> None:
    """Reads the options and evaluates."""
    import jax

    from jaxdeblur import cluster, evaluation, memory
    from jaxdeblur.checkpoints import load_model
    from jaxdeblur.compilation import keep_compiled
    from jaxdeblur.data.datasets import open_dataset
    from jaxdeblur.restoration import over_rows

    parser = Parser(
        prog="evaluate.py",
        description="Restores a data set and scores it. With no other option: the rendered test "
        "scenes.\n\nprotocols:\n"
        + "\n".join(f"  {name:12} {p.summary}" for name, p in PROTOCOLS.items()),
    )
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="RUN",
        help="a run folder, a .safetensors file, or the name of weights that ship",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder of the results (RUN/evaluation-DATA, of weights evaluations/NAME-DATA)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation in there")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the computation")
    add_fields(parser, evaluation.EvaluationConfig(), "evaluation")
    add_fields(parser, cluster.ClusterConfig(), "devices and processes")
    extensions.add_option(parser)
    arguments = parser.parse_args()
    if arguments.extension:
        extensions.load(arguments.extension)
    config = read_fields(arguments, evaluation.EvaluationConfig())

    memory.keep_freed()
    keep_compiled()
    processes = read_fields(arguments, cluster.ClusterConfig())
    cluster.use_cores(1, processes)
    cluster.join(processes)
    loaded = load_model(arguments.ckpt, dtype=arguments.dtype)
    if processes.rows > 1:
        shared_out = over_rows(loaded.model, cluster.row_devices(processes.rows))
        loaded = loaded._replace(model=shared_out)
    dataset = open_dataset(
        config.data,
        config.split,
        variant=config.variant,
        exposure=config.exposure,
        only=config.only,
        exclude=config.exclude,
        max_pixels=config.max_pixels,
    )
    out = arguments.out or evaluation.default_folder(arguments.ckpt, dataset, config)
    metrics = evaluation.evaluate(loaded, dataset, config, out, overwrite=arguments.overwrite)
    if jax.process_index() == 0:
        print(evaluation.table(metrics))
        print(f"\nopen {out / 'report.html'} in a browser; the numbers are in metrics.json")


if __name__ == "__main__":
    run_command(main, "evaluate.py", together=True)
