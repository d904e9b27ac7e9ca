"""Time the attention kernels on a GPU against a copy, the einsum under jit, and torch.compile.

    python -m benchmarks.kernels                    every size; hours, most of it compiling
    python -m benchmarks.kernels --maps=16 --channels=64 --dtypes=bfloat16
    python -m benchmarks.kernels --cpu              the program itself, tried without a GPU

The last line is the share of the attention in the time of one 4K frame of the network.

Each row is one operation at one size, forward or forward and backward:
  ms       time of one call, the median of 5 runs of many calls in one compiled program
  copy     bytes that must be moved (each pixel read and written once), in bytes a second, as a
           share of what a plain copy of 1 GiB reaches in the same run
  einsum   time of the einsum as one would write it, under jit, over the kernel's time
  torch    time of the same in torch.compile over the kernel's time, where torch is installed
  MB       memory beyond the arguments: kernel / einsum / torch
  error    largest difference from the float32 definition, relative to its largest value
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch takes its share too

import jax
import jax.numpy as jnp
from jax import Array, lax

import kernels
from kernels import reference

OPERATIONS = ("softmax_squeeze", "projected_squeeze", "softmax_expand", "projected_expand")
COPY_BYTES = 2**30
RUNS = 5
# Calls in one program, so that 10 us of launching it do not count: a GPU moves 10 GB in 2 to 10 ms.
BYTES_A_RUN, MOST_CALLS = 10e9, 500


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    operation: str
    height: int
    width: int
    channels: int
    maps: int
    dtype: str
    backward: bool
    frames: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the arguments."""
        f, p, m, c = self.frames, self.height * self.width, self.maps, self.channels
        return {
            "softmax_squeeze": [(1, f, m, p), (1, f, p, c)],
            "projected_squeeze": [(1, f, p, c), (c, m), (m,)],
            "softmax_expand": [(f, p, m), (f, m, c)],
            "projected_expand": [(f, p, c), (c, m), (m,), (f, m, c)],
        }[self.operation]

    @property
    def bytes(self) -> int:
        """The least that must move: what is as big as the pixels, once each way it is needed."""
        logits, values = self.maps, self.channels
        forward, backward = {
            "softmax_squeeze": (logits + values, 2 * (logits + values)),
            "projected_squeeze": (values, 2 * values),
            "softmax_expand": (logits + values, 2 * logits + values),
            "projected_expand": (2 * values, 3 * values),
        }[self.operation]
        numbers = forward + (backward if self.backward else 0)
        return numbers * self.frames * self.height * self.width * jnp.dtype(self.dtype).itemsize

    def arguments(self) -> list[Array]:
        """Standard normal arguments, with logits of a few units."""
        keys = jax.random.split(jax.random.key(0), len(self.shapes))
        made = [jax.random.normal(k, s, self.dtype) for k, s in zip(keys, self.shapes, strict=True)]
        if self.operation.startswith("projected"):
            made[1] /= self.channels**0.5
        return made


def einsum(operation: str, *arguments: Array) -> Array:
    """The operation as one would write it in JAX: softmax in float32, products in the dtype."""

    def softmax(logits: Array, axis: int, dtype: Any) -> Array:
        return jax.nn.softmax(logits.astype(jnp.float32), axis).astype(dtype)

    # Float32 without TF32, as the kernels have it.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    match operation:
        case "softmax_squeeze":
            logits, x = arguments
            return product("btmp,btpc->btmc", softmax(logits, -1, x.dtype), x)
        case "projected_squeeze":
            x, weights, bias = arguments
            logits = product("btpc,cm->btmp", x, weights) + bias[:, None]
            return product("btmp,btpc->btmc", softmax(logits, -1, x.dtype), x)
        case "softmax_expand":
            logits, g = arguments
            return product("bpk,bkc->bpc", softmax(logits, -1, g.dtype), g)
        case _:
            x, weights, bias, g = arguments
            logits = product("bpd,dk->bpk", x, weights) + bias
            return product("bpk,bkc->bpc", softmax(logits, -1, g.dtype), g)


def torch_twin(operation: str, *arguments: Any) -> Any:
    """The same in torch, for torch.compile."""
    import torch

    def softmax(logits: Any, dtype: Any) -> Any:
        return torch.softmax(logits.float(), -1).to(dtype)

    match operation:
        case "softmax_squeeze":
            logits, x = arguments
            return softmax(logits, x.dtype) @ x
        case "projected_squeeze":
            x, weights, bias = arguments
            return softmax((x @ weights + bias).transpose(-1, -2), x.dtype) @ x
        case "softmax_expand":
            logits, g = arguments
            return softmax(logits, g.dtype) @ g
        case _:
            x, weights, bias, g = arguments
            return softmax(x @ weights + bias, g.dtype) @ g


def pulled(function: Callable[..., Array]) -> Callable[..., Any]:
    """Forward and backward: the result, and the derivatives for a cotangent of ones."""

    def both(*arguments: Array) -> Any:
        result, pull = jax.vjp(function, *arguments)
        return result, pull(jnp.ones_like(result))

    return both


def measure(function: Callable[..., Any], arguments: list[Array], calls: int) -> tuple[float, int]:
    """Seconds of one call, and the bytes it needs beyond its arguments."""

    def many(*arguments: Array) -> Array:
        def once(_: Array, carry: Any) -> Any:
            arguments, seen = carry
            # The barriers keep each call whole, and after the one before.
            results = lax.optimization_barrier(function(*arguments))
            for leaf in jax.tree.leaves(results):
                seen += leaf[(0,) * leaf.ndim].astype(jnp.float32)
            return lax.optimization_barrier((arguments, seen))

        return lax.fori_loop(0, calls, once, (arguments, jnp.float32(0)))[1]

    program = jax.jit(many).lower(*arguments).compile()
    program(*arguments).block_until_ready()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        program(*arguments).block_until_ready()
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds), program.memory_analysis().temp_size_in_bytes


def measure_torch(case: Case, arguments: list[Array], calls: int) -> tuple[float, int]:
    """The same of `torch_twin` under torch.compile."""
    import torch

    on_gpu = [
        torch.from_dlpack(a).detach().clone().requires_grad_(case.backward) for a in arguments
    ]
    torch._dynamo.reset()
    compiled = torch.compile(partial(torch_twin, case.operation))

    def call() -> None:
        result = compiled(*on_gpu)
        if case.backward:
            torch.autograd.grad(result, on_gpu, torch.ones_like(result))

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(RUNS):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() - before


def copy_speed(size: int) -> float:
    """Bytes a second, read and written, of a plain copy of `size` bytes."""
    source = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(jnp.copy)
    copy(source).block_until_ready()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        copy(source).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds)


def or_none(measurement: Callable[..., tuple[float, int]], *arguments: Any) -> tuple[Any, Any]:
    """Measure, or (None, None) with a line on stderr if that runs out of memory or is refused."""
    try:
        return measurement(*arguments)
    except Exception as failure:
        print(f"{type(failure).__name__}: {str(failure).splitlines()[0]}", file=sys.stderr)
        return None, None


def row(case: Case, implementation: Any, copied: float, with_torch: bool) -> dict[str, Any]:
    """Measure one case."""
    arguments = case.arguments()
    calls = int(min(MOST_CALLS, max(1, BYTES_A_RUN // case.bytes)))
    if implementation == "interpret":
        calls = 2
    ours = partial(getattr(kernels, case.operation), implementation=implementation)
    theirs = partial(einsum, case.operation)
    wrap = pulled if case.backward else (lambda function: function)
    seconds, memory = or_none(measure, wrap(ours), arguments, calls)
    other, other_memory = or_none(measure, wrap(theirs), arguments, calls)
    third, third_memory = (
        or_none(measure_torch, case, arguments, calls) if with_torch else (None, None)
    )
    error = None
    if seconds is not None:
        definition = getattr(reference, case.operation)
        found, expected = jax.jit(ours)(*arguments), jax.jit(definition)(*arguments)
        difference = jnp.abs(found.astype(jnp.float32) - expected.astype(jnp.float32))
        error = float(difference.max() / jnp.abs(expected).max())
    return {
        **dataclasses.asdict(case),
        "ms": seconds and seconds * 1e3,
        "copy": seconds and case.bytes / seconds / copied,
        "einsum": seconds and other and other / seconds,
        "torch": seconds and third and third / seconds,
        "MB": [m if m is None else m / 1e6 for m in (memory, other_memory, third_memory)],
        "error": error,
    }


def show(found: dict[str, Any]) -> str:
    """One line of the table."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    name = found["operation"] + (" +grad" if found["backward"] else "")
    memory = "/".join(number(m, ".0f") for m in found["MB"])
    return (
        f"{name:23s} {found['dtype']:8s} {found['frames']}x{found['width']}x{found['height']:<5d}"
        f" C{found['channels']:<4d}M{found['maps']:<3d} {number(found['ms'], '8.3f')} ms"
        f"  copy {number(found['copy'], '6.1%')}  einsum {number(found['einsum'], '5.2f')}x"
        f"  torch {number(found['torch'], '5.2f')}x  {memory} MB"
        f"  error {number(found['error'], '.0e')}"
    )


def network_share(preset: str, size: str, implementation: Any) -> str:
    """The time of one streamed frame, and the attention kernels' share of it, in bfloat16."""
    from flax import nnx

    from jaxdeblur import models, presets

    config: Any = dataclasses.replace(
        presets.PRESETS[preset].network,
        implementation="reference" if implementation == "interpret" else implementation,
        dtype="bfloat16",
    )
    width, height = map(int, size.split("x"))
    model = models.build(config)
    graph, parameters = nnx.split(model)
    state = model.initial_state(1, height, width)
    frame = jnp.zeros((1, height, width, 3))
    leaves, structure = jax.tree.flatten((parameters, state))

    def step(frame: Array, *leaves: Array) -> Any:
        parameters, state = jax.tree.unflatten(structure, leaves)
        return nnx.merge(graph, parameters).step(state, frame)

    whole, _ = measure(step, [frame, *leaves], 3)
    attention = 0.0
    for level in config.attention_levels:
        h, w = (-(-side // 2 ** (level + 1)) for side in (height, width))
        kinds = {
            "projected_squeeze": config.spatial_maps,
            "projected_expand": config.spatial_maps * config.temporal_maps,
        }
        for operation, maps in kinds.items():
            case = Case(operation, h, w, config.widths[level], maps, "bfloat16", False, 1)
            function = partial(getattr(kernels, operation), implementation=implementation)
            attention += measure(function, case.arguments(), 20)[0]
    return (
        f"{preset} {size} bfloat16: a frame {whole * 1e3:.2f} ms, of it eq. 1-2 and 5-6 "
        f"{attention * 1e3:.3f} ms, {attention / whole:.1%}"
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for size, dtype, channels, maps, operation, backward in itertools.product(
        options.pixels,
        options.dtypes,
        options.channels,
        options.maps,
        options.operations,
        (False, True),
    ):
        width, height = map(int, size.split("x"))
        yield Case(operation, height, width, channels, maps, dtype, backward, options.frames)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pixels", type=many(str), default="256x256,1280x720,1920x1080,3840x2160")
    add("--channels", type=many(int), default="32,64,128")
    add("--maps", type=many(int), default="8,16,32,64", help="M, or M*N of an expand")
    add("--dtypes", type=many(str), default="bfloat16,float32")
    add("--operations", type=many(str), default=",".join(OPERATIONS))
    add("--frames", type=int, default=1, help="frames at once (default 1)")
    add("--network", metavar="PRESET", default="fsta", help="preset whose attention to weigh")
    add("--json", metavar="FILE", help="write the rows there too, one object a line")
    add("--cpu", action="store_true", help="small sizes in the interpreter: times mean nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    gpu = jax.default_backend() == "gpu"
    if not gpu and not options.cpu:
        print(
            "benchmarks.kernels: JAX finds no GPU here, and that is what this times; "
            "--cpu only tries the program",
            file=sys.stderr,
        )
        return 2
    implementation = "interpret" if options.cpu else "pallas"
    if options.cpu:
        options.pixels, options.channels, options.maps = ["16x9"], [16], [8]
    try:
        import torch

        with_torch = gpu and torch.cuda.is_available()
    except ImportError:
        with_torch = False
    copied = copy_speed(2**20 if options.cpu else COPY_BYTES)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {implementation}")
    print(
        f"a copy moves {copied / 1e9:.0f} GB/s; torch: {'yes' if with_torch else 'no'}", flush=True
    )
    lines = []
    for case in cases(options):
        found = row(case, implementation, copied, with_torch)
        print(show(found), flush=True)
        lines.append(json.dumps(found))
    size = "32x32" if options.cpu else "3840x2160"
    if options.network:
        print(network_share(options.network, size, implementation), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            file.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
