"""What a GPU that is lent for minutes at a time is used for, in parts.

    python -m benchmarks.gpu_day kernels --minutes=10 --out=gpu
    python -m benchmarks.gpu_day speed --minutes=10 --out=gpu
    python -m benchmarks.gpu_day memory --preset=strcnn_dtb --out=gpu     needs no GPU

Each part begins nothing that the time left is too short for, judged by the longest so far, and is
stopped at 95 % of it; keeps OUT/PART.json after everything it did; says at the end what it left;
and leaves out what it finds done there on the same device. --rehearse tries it, small, on a CPU.

``kernels``: both operations at fsta's sizes by every implementation: error first, then time, share
of a copy's bandwidth, ratio to the einsum and to torch.compile.
``tiles``: the kernels with their pixels divided in many ways, to choose kernels/tiles.py by; it
needs a GPU even to be rehearsed.
``speed``: of each preset with random weights in bfloat16, frames a second of a stream and of a
clip, the 99th percentile, memory, the attention's share, torch's twin; a training step beside its.
``memory``: by XLA's compiler, for a GPU that need not be there: memory of a training step and of a
stream, FLOPs of a clip, and the steps an hour that would make at an assumed share of the peak.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch takes its share too

import jax

from benchmarks.common import positive
from benchmarks.gpu_day import kernels, memory, speed
from benchmarks.gpu_day.report import Report
from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser, add_fields, frame_size

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
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, dest="part", metavar=" | ".join(PARTS))
    for name in PARTS:
        one = parts.add_parser(name)
        one.add_argument("--minutes", type=positive, default=10.0, help="it ends within them")
        one.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results")
        one.add_argument("--rehearse", action="store_true", help="small, without a GPU")
        if name == "memory":
            one.add_argument("--preset", default="strcnn_dtb", help="what is trained")
            add_fields(one, chosen.network, "network")
            add_fields(one, chosen.training, "training")
            one.add_argument("--target", type=Path, default=memory.TARGET, help=memory.TARGET_HELP)
            one.add_argument("--size", type=frame_size, default="1280x720", help="of the stream")
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
