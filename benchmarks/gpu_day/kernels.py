"""Compares the attention kernels with a copy, the einsum, plain JAX under jit, and torch.compile.

A row is one operation at one size, forward or forward and backward, by every implementation. The
error is measured first, and the time only of correct implementations.
  error    largest difference from the definition in float32 on copies of the arguments, relative to
           the largest value there; in rows with +grad, the worst over results and gradients
  ms       time of one call, the median of 5 runs of many calls in one compiled program
  copy     bytes that must be moved (each pixel read and written once) per second, as a share of
           those of copying 1 GiB in such a program; none ("cache") where everything fits in 64 MB,
           about the size of a GPU's cache, whose speed would be measured, not the memory's
  plain    time of the operation as usually written in JAX, under jit, divided by this time
  torch    time of the same in torch.compile divided by this time, if torch is installed; omitted
           where copy is, since Python starts each torch call, which then takes longer
  MB       memory beyond the arguments
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import kernels
from benchmarks.common import has_torch
from benchmarks.gpu_day.report import Report, attempt
from jaxdeblur import models, presets
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from kernels import tiles

SIZES = ((1920, 1080), (640, 360), (320, 180))
"""fsta's finest level for 3840x2160 and 1280x720 frames, and the second level for the latter."""
# Channels, maps and operation: those of the finest level first, then those of the others.
OF_FSTA = ((64, 16, "softmax_squeeze"), (64, 128, "softmax_expand"))
OTHERS = (
    (96, 16, "softmax_squeeze"),
    (128, 64, "softmax_squeeze"),
    (128, 64, "softmax_expand"),
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""The error, gradients included, beyond which an implementation is not timed, however fast."""
COPY_BYTES, COPIES = 2**30, 20
CACHE_BYTES = 64e6
RUNS = 5
TILES = (64, 128, 256), (2, 3, 4), tuple(132 * blocks for blocks in (2, 3, 4, 6, 8))
"""Pixels, stages and blocks to try."""
# Many calls in one program, so that its launch time of 10 us does not count.
SECONDS_A_RUN, MOST_CALLS = 5e-3, 500


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one size, on one frame."""

    operation: str
    height: int
    width: int
    channels: int
    maps: int
    dtype: str
    backward: bool

    def __str__(self) -> str:
        grad = " +grad" * self.backward
        size = f"{self.width}x{self.height} C{self.channels} M{self.maps}"
        return f"{self.operation} {self.dtype} {size}{grad}"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the arguments."""
        p, m, c = self.height * self.width, self.maps, self.channels
        if self.operation == "softmax_squeeze":
            return [(1, 1, p, c), (c, m)]
        return [(1, p, c), (c, m), (m,), (1, m, c)]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the result, and of the cotangent."""
        p, m, c = self.height * self.width, self.maps, self.channels
        return (1, 1, m, c) if self.operation == "softmax_squeeze" else (1, p, c)

    @property
    def in_cache(self) -> bool:
        """Whether arguments, results and, in a backward pass, all gradients fit in the cache."""
        numbers = sum(map(math.prod, [*self.shapes, self.result])) * (1 + self.backward)
        return numbers * jnp.dtype(self.dtype).itemsize <= CACHE_BYTES

    @property
    def bytes(self) -> int:
        """The least bytes to move: arrays as large as the pixels, once for each needed transfer.

        An expand's cotangent is as large: it is one of the three in its backward pass.
        """
        forward, backward = {"softmax_squeeze": (1, 2), "softmax_expand": (2, 3)}[self.operation]
        numbers = (forward + (backward if self.backward else 0)) * self.channels
        return numbers * self.height * self.width * jnp.dtype(self.dtype).itemsize

    def arguments(self) -> list[Array]:
        """Returns standard normal arguments, with logits of a few units, then any cotangent."""
        # The cotangent is an argument: a constant would be filled in again, or fused away.
        shapes = [*self.shapes, self.result] if self.backward else self.shapes
        keys = jax.random.split(jax.random.key(0), len(shapes))
        made = [jax.random.normal(k, s, self.dtype) for k, s in zip(keys, shapes, strict=True)]
        made[1] /= self.channels**0.5
        return made


def plain(operation: str, *arguments: Array) -> Array:
    """Runs the operation as usually written in JAX: softmax in float32, products in the dtype."""
    # Float32 without TF32, as in the kernels.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def softmax(logits: Array) -> Array:
        return jax.nn.softmax(logits.astype(jnp.float32), -1).astype(arguments[0].dtype)

    if operation == "softmax_squeeze":
        x, weights = arguments
        return product("btmp,btpc->btmc", softmax(product("btpc,cm->btmp", x, weights)), x)
    x, weights, bias, g = arguments
    return product("bpk,bkc->bpc", softmax(product("bpd,dk->bpk", x, weights) + bias), g)


def torch_twin(operation: str, *arguments: Any) -> Any:
    """Does the same in torch, for torch.compile."""
    import torch

    def softmax(logits: Any) -> Any:
        return torch.softmax(logits.float(), -1).to(arguments[0].dtype)

    if operation == "softmax_squeeze":
        x, weights = arguments
        return softmax((x @ weights).transpose(-1, -2)) @ x
    x, weights, bias, g = arguments
    return softmax(x @ weights + bias) @ g


def pulled(function: Callable[..., Array]) -> Callable[..., Any]:
    """Returns a function of the arguments and a cotangent, for the result and its derivatives."""

    def both(*arguments: Array) -> Any:
        *arguments, cotangent = arguments
        result, pull = jax.vjp(function, *arguments)
        return result, *pull(cotangent)

    return both


def measure(
    function: Callable[..., Any],
    arguments: list[Array],
    calls: int,
    check: Callable[[list[Array]], bool] = lambda results: True,
) -> tuple[float, int] | None:
    """Returns the seconds of one call, and the bytes it needs beyond its arguments.

    Returns None if ``check`` rejects the results.
    """

    def many(arguments: list[Array], results: list[Array], zero: Array) -> Any:
        def once(_: Array, carry: tuple[list[Array], list[Array]]) -> Any:
            arguments, _ = carry
            results = jax.tree.leaves(lax.optimization_barrier(function(*arguments)))
            # Not every compiler keeps a mere barrier, and without one it omits all of a call but
            # what is read. So results are handed on whole, and a number of each argument depends
            # on them: no part of a call can be omitted, or be done once for all calls.
            seen = zero * sum(leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in results)
            # After a barrier, so that the update copies one number: fused with the sum, it would
            # read and write the whole argument again.
            firsts = [a[(0,) * a.ndim] + seen.astype(a.dtype) for a in arguments]
            moved = [
                lax.dynamic_update_slice(a, first.reshape((1,) * a.ndim), (0,) * a.ndim)
                for a, first in zip(arguments, lax.optimization_barrier(firsts), strict=True)
            ]
            return moved, results

        return lax.fori_loop(0, calls, once, (arguments, results))

    shapes = jax.tree.leaves(jax.eval_shape(function, *arguments))
    results = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    # The program gets its own arrays back, so that it copies or fills none before the first call.
    holder = [[jnp.copy(a) for a in arguments], results]
    zero = jnp.float32(0)
    program = jax.jit(many, donate_argnums=(0, 1)).lower(*holder, zero).compile()

    def run() -> float:
        began = time.perf_counter()
        holder[:] = jax.block_until_ready(program(*holder, zero))
        return (time.perf_counter() - began) / calls

    run()
    if not check(holder[1]):
        return None
    size = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)
    seconds = statistics.median(run() for _ in range(RUNS))
    return seconds, program.memory_analysis().temp_size_in_bytes + size


def measure_torch(case: Case, arguments: list[Array], calls: int) -> tuple[float, int]:
    """Measures the same for ``torch_twin`` under torch.compile."""
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
    """Returns bytes read and written per second in copying ``size`` bytes in the kernels' loop."""
    # Negated, since a mere copy would be optimised away.
    seconds, _ = measure(jnp.negative, [jnp.zeros(size // 4, jnp.float32)], COPIES)
    return 2 * size / seconds


def largest_error(case: Case, found: Any, exact: Any) -> float:
    """Returns the worst result's largest difference from the exact one, relative to its maximum."""
    ours, theirs = jax.tree.leaves(found), jax.tree.leaves(exact)
    return max(
        float(jnp.abs(one.astype(jnp.float32) - true).max() / jnp.abs(true).max())
        for one, true in zip(ours, theirs, strict=True)
    )


def compared(
    case: Case, implementations: list[str], copied: float, torch: bool, most_calls: int = MOST_CALLS
) -> dict[str, Any]:
    """Measures every implementation of a case; what is unavailable is None.

    ``copied`` is the speed of a copy in bytes per second.
    """
    calls = int(min(most_calls, max(1, SECONDS_A_RUN * copied // case.bytes)))
    arguments = case.arguments()
    wrap = pulled if case.backward else (lambda function: function)
    operation = getattr(kernels, case.operation)
    functions = {"plain": wrap(partial(plain, case.operation))}
    for name in ("einsum", *implementations):
        functions[name] = wrap(partial(operation, implementation=name))
    whole = [a.astype(jnp.float32) for a in arguments]
    exact = jax.jit(functions["einsum"])(*whole)
    del whole
    found: dict[str, dict[str, Any]] = {}
    for name, function in functions.items():
        of = found[name] = {"error": None}

        def is_right(results: list[Array], of: dict[str, Any] = of, name: str = name) -> bool:
            of["error"] = largest_error(case, results, exact)
            return name == "plain" or of["error"] < TOLERANCE[case.dtype]

        of |= _times(case, attempt(measure, function, arguments, calls, is_right), copied)
    if torch and not case.in_cache:
        times = attempt(measure_torch, case, arguments, calls)
        found["torch"] = {"error": None} | _times(case, times, copied)
    return {**dataclasses.asdict(case), "in_cache": case.in_cache, "found": found}


def _times(case: Case, times: tuple[float, int] | None, copied: float) -> dict[str, float | None]:
    if times is None:
        return {"ms": None, "copy": None, "MB": None}
    seconds, memory = times
    share = None if case.in_cache else case.bytes / seconds / copied
    return {"ms": 1e3 * seconds, "copy": share, "MB": memory / 1e6}


def show(row: dict[str, Any]) -> str:
    """Formats a line for each implementation."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def ratio(to: str, ms: float | None) -> str:
        other = row["found"].get(to, {}).get("ms")
        return number(other and ms and other / ms, "5.2f")

    lines = [row["what"]]
    for name, of in row["found"].items():
        copy = "cache" if row["in_cache"] else number(of["copy"], "5.1%")
        lines.append(
            f"  {name:9s} {number(of['ms'], '9.4f')} ms  copy {copy}"
            f"  plain {ratio('plain', of['ms'])}x  torch {ratio('torch', of['ms'])}x"
            f"  {number(of['MB'], '.0f')} MB  error {number(of['error'], '.0e')}"
        )
    return "\n".join(lines)


def cases(rehearse: bool) -> Iterator[Case]:
    """Yields all cases, the most informative first."""
    if rehearse:
        for backward in (False, True):
            yield Case("softmax_expand", 8, 16, 16, 8, "float32", backward)
        return
    for dtype, widths, (w, h), backward in itertools.product(
        ("bfloat16", "float32"), (OF_FSTA, OTHERS), SIZES, (False, True)
    ):
        for channels, maps, operation in widths:
            yield Case(operation, h, w, channels, maps, dtype, backward)


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Measures every operation, implementation and size."""
    rehearse = arguments.rehearse
    copied = copy_speed(2**20 if rehearse else COPY_BYTES)
    report.found["copy"] = copied
    torch = not rehearse and has_torch()
    with_torch = "yes" if torch else "no"
    print(f"{report.found['device']}: a copy moves {copied / 1e9:.0f} GB/s; torch: {with_torch}")
    implementations = [] if rehearse else ["mosaic"]
    most_calls = 2 if rehearse else MOST_CALLS
    todo = (
        (str(case), partial(compared, case, implementations, copied, torch, most_calls))
        for case in cases(rehearse)
    )
    for row in report.each(todo):
        print(show(row) if "found" in row else row, flush=True)


def tiles_of(kernel: tiles.Kernel, case: Case, tried: tiles.Tiles, copied: float) -> dict[str, Any]:
    """Times the kernels with other tiles for one of them; the time is None if it can't run."""
    calls = int(min(MOST_CALLS, max(1, SECONDS_A_RUN * copied // case.bytes)))
    operation = partial(getattr(kernels, case.operation), implementation="mosaic")
    function = pulled(operation) if case.backward else operation
    jax.clear_caches()  # traced programs have other tiles
    kept, tiles.IN_BFLOAT16[kernel] = tiles.IN_BFLOAT16[kernel], tried
    try:
        times = attempt(measure, function, case.arguments(), calls)
    finally:
        tiles.IN_BFLOAT16[kernel] = kept
    return tried._asdict() | _times(case, times, copied)


def sweep(arguments: argparse.Namespace, report: Report) -> None:
    """Times each kernel in bfloat16 at fsta's finest level, with many divisions of its pixels."""
    if arguments.rehearse:
        raise UserError("tiles needs a GPU; kernels --rehearse tries the timing without one")
    copied = copy_speed(COPY_BYTES)
    todo = []
    for channels, maps, operation in OF_FSTA:
        for backward in (False, True):
            case = Case(operation, *SIZES[0][::-1], channels, maps, "bfloat16", backward)
            kernel = operation.removeprefix("softmax_") + " backward" * backward
            for tried in itertools.starmap(tiles.Tiles, itertools.product(*TILES)):
                limited = tiles.limited(tried, maps, channels)
                if limited == tried:
                    work = partial(tiles_of, kernel, case, tried, copied)
                    todo.append((f"{kernel} {tuple(tried)}", work))
    for row in report.each(todo):
        print(row, flush=True)


def network_share(preset: str, width: int, height: int) -> dict[str, float]:
    """Returns the milliseconds of a streamed frame in bfloat16, and of the kernels of eq. 1-6."""
    config: Any = dataclasses.replace(presets.find(preset).network, dtype="bfloat16")
    model = models.build(config)
    rebuild, parameters = split(model)
    state = model.initial_state(1, height, width)
    leaves, structure = jax.tree.flatten((parameters, state))

    def step(frame: Array, *leaves: Array) -> Any:
        parameters, state = jax.tree.unflatten(structure, leaves)
        return rebuild(parameters).step(state, frame)

    whole, _ = measure(step, [jnp.zeros((1, height, width, 3)), *leaves], 3)
    attention = 0.0
    for level in config.attention_levels:
        h, w = (-(-side // 2 ** (level + 1)) for side in (height, width))
        kinds = {
            "softmax_squeeze": config.spatial_maps,
            "softmax_expand": config.spatial_maps * config.temporal_maps,
        }
        for operation, maps in kinds.items():
            case = Case(operation, h, w, config.widths[level], maps, "bfloat16", False)
            attention += measure(getattr(kernels, operation), case.arguments(), 20)[0]
    return {"frame_ms": 1e3 * whole, "attention_ms": 1e3 * attention}
