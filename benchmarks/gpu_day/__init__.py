"""Benchmarks for a GPU that is available for minutes at a time, in parts.

    python -m benchmarks.gpu_day kernels --minutes=10 --out=gpu
    python -m benchmarks.gpu_day speed --minutes=10 --out=gpu
    python -m benchmarks.gpu_day memory --preset=strcnn_dtb --out=gpu     needs no GPU

Each part starts no task that the time left is too short for, judged by the longest so far, and is
stopped at 95 % of its time. It writes OUT/PART.json after each task, prints at the end what is left
and skips tasks done there on the same device. --rehearse tries a part, small, on a CPU.

``kernels``: both operations at fsta's sizes by every implementation: first the error, then time,
share of a copy's bandwidth, ratio to plain JAX and to torch.compile.
``tiles``: the kernels with many divisions of their pixels, to choose those of kernels/tiles.py; it
needs a GPU and cannot be rehearsed.
``speed``: for each preset in bfloat16, frames per second of a stream and of a clip, the 99th
percentile, memory, the attention's share and the torch twin's speed; a training step of both.
``memory``: from XLA's compiler, for a GPU that need not be present: memory of a training step and
of a stream, FLOPs of a clip, and the resulting steps per hour at an assumed share of the peak.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too

import jax

from benchmarks.gpu_day import kernels, memory, speed
from benchmarks.gpu_day.report import Report
from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.options import FrameSize, Parser, add_fields

PARTS = {
    "kernels": kernels.run,
    "tiles": kernels.sweep,
    "speed": speed.run,
    "memory": memory.run,
}


def main() -> None:
    look = Parser(add_help=False)
    look.add_argument("--preset", default="strcnn_dtb")
    look.add_argument("--rehearse", action="store_true")
    known, _ = look.parse_known_args()
    chosen = memory.chosen(known.preset, known.rehearse)
    parser = Parser(description=__doc__)
    parts = parser.add_subparsers(required=True, dest="part", metavar=" | ".join(PARTS))
    for name in PARTS:
        one = parts.add_parser(name)
        one.add_argument("--minutes", type=float, default=10.0, help="time limit")
        one.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the results")
        one.add_argument("--rehearse", action="store_true", help="try it small, without a GPU")
        if name == "memory":
            one.add_argument("--preset", default="strcnn_dtb", help="the preset to train")
            add_fields(one, chosen.network, "network")
            add_fields(one, chosen.training, "training")
            one.add_argument("--target", type=Path, default=memory.TARGET, help=memory.TARGET_HELP)
            one.add_argument("--size", type=FrameSize, default="1280x720", help="frame size")
    arguments = parser.parse_args()
    if arguments.part == "memory" and not arguments.rehearse:
        memory.find_compiler()
    alone = arguments.rehearse or arguments.part == "memory"
    if not alone and jax.default_backend() != "gpu":
        raise UserError("JAX finds no GPU here; --rehearse tries the program without one")
    devices.keep_compiled()
    with Report(arguments) as report:
        PARTS[arguments.part](arguments, report)
    sys.stdout.flush()
