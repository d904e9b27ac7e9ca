"""Time the attention kernels on a GPU against a copy, the einsum under jit, and torch.compile.

    python -m benchmarks.kernels                    every size; hours, most of it compiling
    python -m benchmarks.kernels --maps=16 --channels=64 --dtypes=bfloat16
    python -m benchmarks.kernels --cpu              the program itself, tried without a GPU

The last line is the share of the attention in the time of one 4K frame of the network. With --json
what is measured is kept after every row.

Each row is one operation at one size, forward or forward and backward:
  ms       time of one call, the median of 5 runs of many calls in one compiled program
  copy     bytes that must be moved (each pixel read and written once), in bytes a second, as a
           share of what copying 1 GiB in such a program reaches; "cache" where everything fits in
           64 MB, about what a GPU's cache holds: its speed and not the memory's is seen there
  einsum   time of the einsum as one would write it, under jit, over the kernel's time
  torch    time of the same in torch.compile over the kernel's time, where torch is installed; left
           out where copy is, since Python starts each call of torch's, which then takes longer
  MB       memory beyond the arguments: kernel / einsum / torch
  error    largest difference from the definition of float32 copies of the arguments, relative to
           the largest value there; of results and gradients in rows with +grad, the worst of them
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch takes its share too

import jax
import jax.numpy as jnp
from jax import Array, lax

import kernels
from benchmarks.options import natural
from jaxdeblur import presets
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.files import write_json
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.options import Parser, frame_size
from kernels import reference

Found = TypeVar("Found")

OPERATIONS = ("softmax_squeeze", "projected_squeeze", "softmax_expand", "projected_expand")
DTYPES = ("bfloat16", "float16", "float32")
PIXELS = [(256, 256), (1280, 720), (1920, 1080), (3840, 2160)]
COPY_BYTES, COPIES = 2**30, 20
CACHE_BYTES = 64e6
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
    def result(self) -> tuple[int, ...]:
        """The shape of the result, and of the cotangent."""
        f, p, m, c = self.frames, self.height * self.width, self.maps, self.channels
        return (1, f, m, c) if self.operation.endswith("squeeze") else (f, p, c)

    @property
    def in_cache(self) -> bool:
        """Whether arguments and results, with all gradients in a backward pass, fit there."""
        numbers = sum(map(math.prod, [*self.shapes, self.result])) * (1 + self.backward)
        return numbers * jnp.dtype(self.dtype).itemsize <= CACHE_BYTES

    @property
    def bytes(self) -> int:
        """The least that must move: what is as big as the pixels, once each way it is needed.

        An expand's cotangent is as big: it is one of the backward pass's ``values``.
        """
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
        """Standard normal arguments, with logits of a few units; last the cotangent, if any."""
        # An argument like the others: a constant would be filled in anew, or fused away.
        shapes = [*self.shapes, self.result] if self.backward else self.shapes
        keys = jax.random.split(jax.random.key(0), len(shapes))
        made = [jax.random.normal(k, s, self.dtype) for k, s in zip(keys, shapes, strict=True)]
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
    """Forward and backward: the result, and the derivatives for the cotangent, which is last."""

    def both(*arguments: Array) -> Any:
        *arguments, cotangent = arguments
        result, pull = jax.vjp(function, *arguments)
        return result, *pull(cotangent)

    return both


def measure(function: Callable[..., Any], arguments: list[Array], calls: int) -> tuple[float, int]:
    """Seconds of one call, and the bytes it needs beyond its arguments."""

    def many(arguments: list[Array], results: list[Array], zero: Array) -> Any:
        def once(_: Array, carry: tuple[list[Array], list[Array]]) -> Any:
            arguments, _ = carry
            results = jax.tree.leaves(lax.optimization_barrier(function(*arguments)))
            # A barrier alone is not kept by every compiler, which then leaves out all of a call
            # but what is looked at. So results are handed on whole, and a number of each argument
            # waits for them: no part of a call can be left out, or be done once for all.
            seen = zero * sum(leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in results)
            return [a.at[(0,) * a.ndim].add(seen.astype(a.dtype)) for a in arguments], results

        return lax.fori_loop(0, calls, once, (arguments, results))

    shapes = jax.tree.leaves(jax.eval_shape(function, *arguments))
    results = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    # Given its own arrays back, so that it neither copies nor fills any before the first call.
    holder = [[jnp.copy(a) for a in arguments], results]
    zero = jnp.float32(0)
    program = jax.jit(many, donate_argnums=(0, 1)).lower(*holder, zero).compile()

    def run() -> None:
        holder[:] = jax.block_until_ready(program(*holder, zero))

    seconds = median_of_runs(run) / calls
    size = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)
    return seconds, program.memory_analysis().temp_size_in_bytes + size


def median_of_runs(run: Callable[[], Any]) -> float:
    """Seconds of a run, after one that is not timed."""
    run()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_torch(case: Case, arguments: list[Array], calls: int) -> tuple[float, int]:
    """The same of `torch_twin` under torch.compile."""
    import torch

    on_gpu = [torch.from_dlpack(a).detach().clone() for a in arguments]
    cotangent = on_gpu.pop() if case.backward else None
    for argument in on_gpu:
        argument.requires_grad_(case.backward)
    torch._dynamo.reset()
    compiled = torch.compile(partial(torch_twin, case.operation))

    def call() -> None:
        result = compiled(*on_gpu)
        if case.backward:
            torch.autograd.grad(result, on_gpu, cotangent)

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
    """Bytes a second, read and written, of copying `size` bytes in the loop that kernels run in."""
    # Negated, since a mere copy would be left out.
    seconds, _ = measure(jnp.negative, [jnp.zeros(size // 4, jnp.float32)], COPIES)
    return 2 * size / seconds


def attempt(work: Callable[..., Found], *arguments: Any) -> Found | None:
    """What `work` gives, or None and a line on stderr if it lacks memory or is refused."""
    try:
        return work(*arguments)
    except Exception as failure:
        said = str(failure).splitlines() or ["no message"]
        print(f"{type(failure).__name__}: {said[0]}", file=sys.stderr, flush=True)
        return None


def largest_error(
    case: Case, ours: Callable[..., Array], wrap: Callable[..., Any], arguments: list[Array]
) -> float:
    """The worst of the results: the largest difference from the definition, relative to it."""
    definition = wrap(getattr(reference, case.operation))
    found = jax.tree.leaves(jax.jit(wrap(ours))(*arguments))
    exact = jax.tree.leaves(jax.jit(definition)(*(a.astype(jnp.float32) for a in arguments)))
    if case.operation == "projected_squeeze" and case.backward:
        # The gradient of its bias is 0 but for rounding, which is relative to nothing.
        found, exact = found[:-1], exact[:-1]
    return max(
        float(jnp.abs(ours.astype(jnp.float32) - true).max() / jnp.abs(true).max())
        for ours, true in zip(found, exact, strict=True)
    )


def row(case: Case, implementation: Any, copied: float, with_torch: bool) -> dict[str, Any]:
    """Measure one case; what cannot be is None."""
    calls = int(min(MOST_CALLS, max(1, BYTES_A_RUN // case.bytes)))
    if implementation == "triton_interpret":
        calls = 2
    ours = partial(getattr(kernels, case.operation), implementation=implementation)
    theirs = partial(einsum, case.operation)
    wrap = pulled if case.backward else (lambda function: function)
    nothing = (None, None)
    mine = other = third = nothing
    error = None
    if arguments := attempt(case.arguments):
        mine = attempt(measure, wrap(ours), arguments, calls) or nothing
        other = attempt(measure, wrap(theirs), arguments, calls) or nothing
        if with_torch and not case.in_cache:
            third = attempt(measure_torch, case, arguments, calls) or nothing
        if mine[0]:
            error = attempt(largest_error, case, ours, wrap, arguments)
    seconds = mine[0]
    return {
        **dataclasses.asdict(case),
        "ms": seconds and seconds * 1e3,
        "in_cache": case.in_cache,
        "copy": None if case.in_cache else seconds and case.bytes / seconds / copied,
        "einsum": seconds and other[0] and other[0] / seconds,
        "torch": seconds and third[0] and third[0] / seconds,
        "MB": [memory if memory is None else memory / 1e6 for _, memory in (mine, other, third)],
        "error": error,
    }


def show(found: dict[str, Any]) -> str:
    """One line of the table."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    name = found["operation"] + (" +grad" if found["backward"] else "")
    copy = " cache" if found["in_cache"] else number(found["copy"], "6.1%")
    memory = "/".join(number(m, ".0f") for m in found["MB"])
    return (
        f"{name:23s} {found['dtype']:8s} {found['frames']}x{found['width']}x{found['height']:<5d}"
        f" C{found['channels']:<4d}M{found['maps']:<3d} {number(found['ms'], '8.3f')} ms"
        f"  copy {copy}  einsum {number(found['einsum'], '5.2f')}x"
        f"  torch {number(found['torch'], '5.2f')}x  {memory} MB"
        f"  error {number(found['error'], '.0e')}"
    )


def network_share(preset: str, size: tuple[int, int], implementation: Any) -> str:
    """The time of one streamed frame, and the attention kernels' share of it, in bfloat16."""
    from flax import nnx

    from jaxdeblur import models

    config: Any = dataclasses.replace(
        presets.find(preset).network,
        implementation="reference" if implementation == "triton_interpret" else implementation,
        dtype="bfloat16",
    )
    width, height = size
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
        f"{preset} {width}x{height} bfloat16: a frame {whole * 1e3:.2f} ms, of it eq. 1-2 and 5-6 "
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
        width, height = size
        yield Case(operation, height, width, channels, maps, dtype, backward, options.frames)


def parse() -> argparse.Namespace:
    """The options, all of them checked: a run may take hours."""

    def many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part) for part in text.split(",")]

    def one_of(names: tuple[str, ...]) -> Callable[[str], str]:
        def read(text: str) -> str:
            if text not in names:
                raise argparse.ArgumentTypeError(f"{text[:50]!r} is none of {', '.join(names)}")
            return text

        return read

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pixels", type=many(frame_size), help="WIDTHxHEIGHT,... (256x256 to 3840x2160)")
    add("--channels", type=many(natural), help="(32,64,128)")
    add("--maps", type=many(natural), help="M, or M*N of an expand (8,16,32,64)")
    add("--dtypes", type=many(one_of(DTYPES)), default="bfloat16,float32")
    add("--operations", type=many(one_of(OPERATIONS)), default=",".join(OPERATIONS))
    add("--frames", type=natural, default=1, help="frames at once (1)")
    add("--network", metavar="PRESET", default="fsta", help="whose attention to weigh; '' for none")
    add("--json", metavar="FILE", help="keep the rows there too, after each of them")
    add("--cpu", action="store_true", help="small, in the interpreter: times mean nothing")
    options = parser.parse_args()
    sizes = ([(16, 9)], [16], [8]) if options.cpu else (PIXELS, [32, 64, 128], [8, 16, 32, 64])
    for name, values in zip(("pixels", "channels", "maps"), sizes, strict=True):
        setattr(options, name, getattr(options, name) or values)
    attentive = [
        n for n, preset in presets.PRESETS.items() if isinstance(preset.network, FstaConfig)
    ]
    if options.network and options.network not in attentive:
        raise UserError(f"--network={options.network}: {', '.join(attentive)} have attention")
    return options


def main() -> None:
    options = parse()
    gpu = jax.default_backend() == "gpu"
    if not gpu and not options.cpu:
        raise UserError(
            "JAX finds no GPU here, and that is what this times; --cpu only tries the program"
        )
    implementation = "triton_interpret" if options.cpu else "triton"
    try:
        import torch

        with_torch = gpu and not options.cpu and torch.cuda.is_available()
    except ImportError:
        with_torch = False
    device = jax.devices()[0].device_kind
    rows: list[dict[str, Any]] = []
    report = {"device": device, "jax": jax.__version__, "implementation": implementation}
    report |= {"copy": None, "rows": rows, "network": None}

    def keep() -> None:
        if options.json:
            write_json(options.json, report)

    keep()  # now, so that a name that cannot be written is not found out after the first row
    report["copy"] = copied = copy_speed(2**20 if options.cpu else COPY_BYTES)
    print(f"{device}, jax {jax.__version__}, {implementation}")
    print(
        f"a copy moves {copied / 1e9:.0f} GB/s; torch: {'yes' if with_torch else 'no'}", flush=True
    )
    for case in cases(options):
        rows.append(row(case, implementation, copied, with_torch))
        print(show(rows[-1]), flush=True)
        keep()
    size = (32, 32) if options.cpu else (3840, 2160)
    if options.network:
        share = attempt(network_share, options.network, size, implementation)
        report["network"] = share
        print(share or f"{options.network}: not measured", flush=True)
        keep()


if __name__ == "__main__":
    run_command(main, "benchmarks.kernels")
