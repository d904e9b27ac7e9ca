"""What sharing a training step out costs: over devices and processes here, over hosts on paper.

    python -m benchmarks.scaling            measures on this machine, about three minutes
    python -m benchmarks.scaling --paper    the formula of docs/scaling.md alone

On the CPU alone, also where there is a GPU. All devices of a process share one core, so that equal
work takes equal time and what is measured beyond it is overhead: dividing the batch, summing the
gradient. Processes get a core each, while there are cores, and overhead is measured against the
time that so many cores should take. Strong scaling keeps the batch of 8 clips, weak scaling gives
each device one clip.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import natural, positive, reason
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.options import Parser

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8  # clips, of the strong scaling and of the largest weak one
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)
GPUS_A_HOST = 8


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="strcnn_dtb", help="the preset of the calculation")
    parser.add_argument("--steps", type=natural, default=12, help="timed for each point")
    parser.add_argument("--paper", action="store_true", help="calculates only")
    parser.add_argument(
        "--peak", type=positive, default=494e12, help="FLOP/s of a GPU (H200, TF32)"
    )
    parser.add_argument(
        "--used", type=positive, default=0.3, help="share of the peak that is reached"
    )
    parser.add_argument("--inside", type=positive, default=450e9, help="bytes/s a GPU, in a host")
    parser.add_argument(
        "--between", type=positive, default=50e9, help="bytes/s a GPU, between hosts"
    )
    parser.add_argument("--latency", type=positive, default=10e-6, help="s a message")
    parser.add_argument("--processes-only", action="store_true", help="leaves the devices out")
    parser.add_argument("--point", type=int, nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        point(*arguments.point, steps=arguments.steps)
        return
    from jaxdeblur import presets

    presets.find(arguments.model)  # before minutes of measuring
    if not arguments.paper:
        measured(arguments.steps, arguments.processes_only)
    on_paper(arguments)


# Measured here.


def measured(steps: int, processes_only: bool) -> None:
    """Prints the tables of strong and weak scaling."""
    times: dict[tuple[int, int, int], float] = {}

    def seconds(devices: int, processes: int, clips: int) -> float:
        key = (devices, processes, clips)
        if key not in times:
            times[key] = run_point(*key, steps)
        return times[key]

    print(f"{os.cpu_count()} cores ({platform_name()}), medians of {steps} steps\n")
    print("| | strong: core-ms a step | overhead | weak: core-ms a clip | overhead |")
    print("|---|---|---|---|---|")
    alone = seconds(1, 1, BATCH), seconds(1, 1, 1)
    rows = [(n, 1, f"{n} device(s)") for n in DEVICES if not processes_only or n == 1]
    rows += [(1, n, f"{n} processes") for n in PROCESSES if n > 1]
    for devices, processes, name in rows:
        n, cores = devices * processes, min(processes, len(os.sched_getaffinity(0)))
        strong = seconds(devices, processes, BATCH) * cores
        weak = seconds(devices, processes, n) * cores / n
        print(
            f"| {name} | {1e3 * strong:.0f} | {100 * (strong / alone[0] - 1):+.0f} % "
            f"| {1e3 * weak:.0f} | {100 * (weak / alone[1] - 1):+.0f} % |",
            flush=True,
        )


def run_point(devices: int, processes: int, clips: int, steps: int) -> float:
    """The seconds of a step of ``clips`` clips on ``processes`` times ``devices`` devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scaling", f"--steps={steps}", "--point"]
    started = [
        subprocess.Popen(
            [*command, *map(str, (devices, processes, clips, number, port))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # All of them on one GPU would be no scaling.
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for number in range(processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise UserError(f"{devices} devices, {processes} processes: {reason(errors)}")
    return float(said[0][0].split()[-1])


def point(
    devices_each: int, processes: int, clips: int, number: int, port: int, *, steps: int
) -> None:
    """One process of one point: prints the median of its steps' seconds."""
    # Before JAX starts its threads, which keep to the core too.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    import jax

    from jaxdeblur import devices, models
    from jaxdeblur.models.parameters import split
    from jaxdeblur.models.strcnn import StrcnnConfig
    from jaxdeblur.options import ClusterConfig
    from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state

    devices.keep_compiled()
    jax.config.update("jax_num_cpu_devices", devices_each)
    if processes > 1:
        devices.join(ClusterConfig(f"127.0.0.1:{port}", processes, number))
    wanted = devices_each * processes
    if jax.default_backend() != "cpu" or jax.device_count() != wanted:
        raise UserError(
            f"{jax.device_count()} devices of kind {jax.default_backend()} where {wanted} of the "
            "CPU are measured; JAX_PLATFORMS=cpu gives those"
        )
    config = TrainingConfig(batch_size=clips, frames=3, crop=48)
    mesh = devices.make_mesh(clips)
    rebuild, parameters = split(models.build(StrcnnConfig(m=1, width=32, blocks=2)))
    state = initial_train_state(config, parameters)
    devices.wait_for_all("the network is built")
    state = jax.device_put(state, devices.replicated(mesh))
    step = compile_train_step(config, rebuild, mesh)
    rng = np.random.default_rng(0)
    shape = (clips // processes, config.frames, config.crop, config.crop, 3)
    batch = {
        name: jax.make_array_from_process_local_data(
            devices.clips_over(mesh), rng.integers(0, 256, shape, np.uint8)
        )
        for name in ("blurred", "sharp")
    }
    durations = []
    for _ in range(2 + steps):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        durations.append(time.perf_counter() - began)
    print(statistics.median(durations[2:]))


def platform_name() -> str:
    """The processor, as Linux calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


# On paper.


def on_paper(arguments: argparse.Namespace) -> None:
    """Prints the efficiency of 1 to 64 hosts by the formula of docs/scaling.md."""
    flops, gradient, clip_bytes = cost_of_a_clip(arguments.model)
    compute = flops / (arguments.used * arguments.peak)
    print(
        f"\n{arguments.model}: {flops / 1e12:.2f} TFLOP a clip and step, gradient "
        f"{gradient / 1e6:.1f} MB, clip {clip_bytes / 1e6:.1f} MB; {arguments.peak / 1e12:.0f} "
        f"TFLOP/s a GPU of which {arguments.used:.0%} are reached, "
        f"{arguments.inside / 1e9:.0f} and {arguments.between / 1e9:.0f} GB/s, "
        f"{arguments.latency * 1e6:.0f} us a message\n"
    )
    print("| hosts | GPUs | all-reduce, ms | 1 clip a GPU | 8 clips | clips/s | MB/s a host |")
    print("|---|---|---|---|---|---|---|")
    for hosts in (1, 2, 4, 8, 16, 32, 64):
        reduce, gpus = all_reduce(gradient, hosts, arguments), hosts * GPUS_A_HOST
        efficiency = [clips * compute / (clips * compute + reduce) for clips in (1, 8)]
        rate = gpus * efficiency[1] / compute
        print(
            f"| {hosts} | {gpus} | {1e3 * reduce:.2f} | {efficiency[0]:.0%} | {efficiency[1]:.0%} "
            f"| {rate:,.0f} | {rate / hosts * clip_bytes / 1e6:,.0f} |"
        )


def all_reduce(gradient: float, hosts: int, arguments: argparse.Namespace) -> float:
    """Seconds to sum the gradient: scattered in each host, in rings between, gathered again."""
    k = GPUS_A_HOST
    inside = 2 * (k - 1) / k * gradient / arguments.inside
    between = 2 * (hosts - 1) / hosts * (gradient / k) / arguments.between
    messages = 2 * (k - 1) + 2 * (hosts - 1)
    return inside + between + messages * arguments.latency


def cost_of_a_clip(name: str) -> tuple[float, float, float]:
    """FLOPs of a train step for one clip, bytes of the gradient and of the clip, for a preset."""
    import jax

    from jaxdeblur import models, presets
    from jaxdeblur.models.parameters import count, outline
    from jaxdeblur.training.step import model_loss

    preset = presets.find(name)
    rebuild, shapes = outline(lambda: models.build(preset.network))
    training_config = preset.training
    side = training_config.crop
    frames = jax.ShapeDtypeStruct((1, training_config.frames, side, side, 3), np.uint8)

    def gradient(parameters: Any, blurred: Any, sharp: Any) -> Any:
        batch = {"blurred": blurred, "sharp": sharp}

        def loss(parameters: Any) -> Any:
            return model_loss(rebuild(parameters), batch, training_config.loss)

        return jax.grad(loss)(parameters)

    flops = flops_of(jax.make_jaxpr(gradient)(shapes, frames, frames).jaxpr)
    return flops, 4.0 * count(shapes), 2.0 * frames.size  # type: ignore[arg-type]


def flops_of(jaxpr: Any) -> float:
    """Multiplications and additions of all convolutions and matrix products in a program."""
    total = 0.0
    for equation in jaxpr.eqns:
        shapes = [tuple(v.aval.shape) for v in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = shapes[1], shapes[-1]
            numbers = equation.params["dimension_numbers"]
            total += 2 * np.prod(out, dtype=float) * np.prod(kernel) / kernel[numbers.rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += (
                2 * np.prod(shapes[-1], dtype=float) * np.prod([shapes[0][i] for i in contracted])
            )
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in inner_programs(equation):
            total += times * flops_of(inner)
    return total


def inner_programs(equation: Any) -> list[Any]:
    """The programs that an equation runs (loops, calls, branches: the last branch)."""
    if equation.primitive.name == "cond":
        return [equation.params["branches"][-1].jaxpr]
    found = []
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            found.append(inner)
    return found


if __name__ == "__main__":
    run_command(main, "benchmarks.scaling")
