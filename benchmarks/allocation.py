"""What it brings that freed memory stays with the process (``jaxdeblur/devices.py``).

    python -m benchmarks.allocation

Training steps and a stream, each in processes of its own with and without, one after the other and
in turns. The time is that of the processor (user and system), so other work on the machine hardly
counts; most memory is the peak of the resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.options import natural, reason
from jaxdeblur import devices, models, presets
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser
from jaxdeblur.training.step import initial_train_state, train_step

_WARM, _TIMED = 10, 30  # more than any preset looks ahead


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--repeats", type=natural, default=3, help="processes of each, their median"
    )
    parser.add_argument("--model", default="strcnn_dtb_small", help="a preset")
    parser.add_argument("--part", nargs=2, metavar=("WORK", "HOW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure(arguments.model, *arguments.part)))
        return
    presets.find(arguments.model)
    print(f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}, {arguments.model}")
    for work in ("training", "stream"):
        results: dict[str, list[dict[str, float]]] = {"as it is": [], "kept": []}
        for _ in range(arguments.repeats):
            for how, those in results.items():
                command = [sys.executable, "-m", "benchmarks.allocation", "--part", work, how]
                command += ["--model", arguments.model]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise UserError(f"{work}, {how}: {reason(done.stderr)}")
                those.append(json.loads(done.stdout))
        seconds, system, most = (
            {how: statistics.median(one[key] for one in those) for how, those in results.items()}
            for key in ("seconds", "system", "most")
        )
        for how in results:
            print(
                f"  {work:9} {how:9} {1e3 * seconds[how]:8.1f} ms a step, "
                f"{system[how] / seconds[how]:4.0%} of it the system's, at most {most[how]:.0f} MB"
            )
        print(
            f"  {work:9} kept / as it is: time {seconds['kept'] / seconds['as it is']:.2f}, "
            f"most memory {most['kept'] / most['as it is']:.2f}",
            flush=True,
        )


def measure(model: str, work: str, how: str) -> dict[str, float]:
    """Seconds of the processor a step, the system's share of them, and the most memory in MB."""
    if how == "kept":
        devices.keep_freed_memory()
    step = {"training": training_step, "stream": stream_step}[work](model)
    for _ in range(_WARM):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(_TIMED):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {
        "seconds": (user + system) / _TIMED,
        "system": system / _TIMED,
        "most": after.ru_maxrss / 1024,
    }


def training_step(model: str) -> Callable[[], None]:
    """A step of the preset's own training, on noise."""
    preset = presets.find(model)
    config = preset.training
    shape = (config.batch_size, config.frames, config.crop, config.crop, 3)
    clip = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rebuild, parameters = split(models.build(preset.network))
    state = initial_train_state(config, parameters)
    run = jax.jit(lambda s, b: train_step(s, b, config=config, rebuild=rebuild))

    def step() -> None:
        nonlocal state
        state, metrics = run(state, {"blurred": clip, "sharp": clip[::-1]})
        metrics.loss.block_until_ready()

    return step


def stream_step(model: str) -> Callable[[], None]:
    """A frame of 1280x720 pixels in and out."""
    network = models.build(presets.find(model).network)
    rebuild, parameters = split(network)
    run = jax.jit(lambda p, state, frame: rebuild(p).step(state, frame), donate_argnums=1)
    state = network.initial_state(1, 720, 1280)
    frame = np.random.default_rng(0).random((1, 720, 1280, 3), np.float32)

    def step() -> None:
        nonlocal state
        state, restored = run(parameters, state, frame)
        time.sleep(0)
        restored.block_until_ready()

    return step


if __name__ == "__main__":
    run_command(main, "benchmarks.allocation")
