"""What a GPU that is lent for minutes at a time is used for, in four parts.

    python -m benchmarks.gpu_day kernels --minutes=10 --out=gpu
    python -m benchmarks.gpu_day speed --minutes=10 --out=gpu
    python -m benchmarks.gpu_day train --preset=strcnn_dtb --resume=gpu/state.safetensors --out=gpu
    python -m benchmarks.gpu_day scores --ckpt=gpu/strcnn_dtb.safetensors --minutes=10 --out=gpu

Each part begins nothing that the time left is too short for, judged by the longest so far, keeps
OUT/PART.json after everything it did, and says at the end what it left undone.

``kernels``: every operation by every implementation: error first, then time, share of a copy's
bandwidth, ratio to the einsum under jit and to torch.compile (benchmarks.kernels says how). Also
writes OUT/measured.json; copied to kernels/ it is what implementation="auto" goes by.
``speed``: of each preset with random weights in bfloat16, a stream's frames a second, their 99th
percentile, a clip's frames a second, memory, the attention's share; a training step beside torch's.
``train``: as many steps as fit, in bfloat16 on scenes rendered on the device, from and to one file;
the moving average of the parameters is validated and written as OUT/PRESET.safetensors.
``scores``: the table of benchmarks.quality of a checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from benchmarks import kernels as kernel_times
from benchmarks import quality, train_step
from benchmarks.options import natural, positive
from jaxdeblur import devices, models, presets
from jaxdeblur.data.device_batches import batches_on_device
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.files import replace_when_whole, write_json
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.training.step import (
    TrainState,
    best_parameters,
    compile_train_step,
    initial_train_state,
)
from jaxdeblur.training.validation import Validation
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

MOST_BYTES = 16 * 2**20
"""Of the file that a training goes on from: what is brought back from a lent machine."""

TRAININGS: dict[str, dict[str, Any]] = {
    # docs/training.md, "On a lent GPU", says why.
    "strcnn_dtb": {"steps": 60_000, "frames": 5, "crop": 160, "batch_size": 16},
    "fsta_small": {"steps": 60_000, "frames": 5, "crop": 160, "batch_size": 16},
}
LIKE_ALL = {"optimizer": "muon", "learning_rate": 7e-4, "beta2": 0.99, "average": 0.999}


class Clock:
    """Says whether there is time for one thing more."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def allows(self) -> bool:
        """Whether what took longest would fit once more, with a fifth to spare."""
        return self.left > max(1.2 * self.longest, 5.0)

    def timed(self, work: Callable[[], Any]) -> Any:
        """Do it, and remember how long it took."""
        began = time.monotonic()
        try:
            return work()
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="kernels | speed | train | scores")
    for part in (kernels, speed, train, scores):
        one = parts.add_parser(part.__name__)
        one.set_defaults(part=part)
        one.add_argument("--minutes", type=positive, default=10.0, help="it ends within them (10)")
        one.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results")
        one.add_argument("--rehearse", action="store_true", help="small, without a GPU")
        if part is train:
            one.add_argument("--preset", default="strcnn_dtb", help=f"of {', '.join(TRAININGS)}")
            one.add_argument("--resume", type=Path, help="the file; where it is missing, step 0")
            one.add_argument("--photos", type=Path, help="folder of photographs to render from")
            one.add_argument("--steps", type=natural, help="of the whole schedule")
        if part is scores:
            one.add_argument("--ckpt", required=True, help="run, file or name of weights")
    arguments = parser.parse_args()
    if not arguments.rehearse and jax.default_backend() != "gpu":
        raise UserError("JAX finds no GPU here; --rehearse tries the program without one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    devices.keep_compiled()
    arguments.part(arguments, Clock(arguments.minutes))


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every JSON begins with."""
    device = jax.devices()[0]
    return {
        "part": arguments.part.__name__,
        "device": device.device_kind,
        "jax": jax.__version__,
        "rehearsed": arguments.rehearse,
        "rows": [],
        "left": [],
    }


def keep(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what there is so far."""
    write_json(arguments.out / f"{arguments.part.__name__}.json", found)


def end(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    keep(arguments, found)
    left = found["left"]
    print(f"left undone: {', '.join(left)}" if left else "nothing was left undone")


def kernels(arguments: argparse.Namespace, clock: Clock) -> None:
    """Every operation, implementation and size, the network's own sizes first."""
    found = report(arguments)
    implementations = ["triton_interpret"] if arguments.rehearse else ["mosaic", "triton"]
    sizes = [(16, 8)] if arguments.rehearse else [(640, 360), (1920, 1080), (320, 180), (256, 256)]
    widths = [(16, 8)] if arguments.rehearse else [(64, 16), (64, 128), (128, 64), (96, 32)]
    dtypes = ["float32"] if arguments.rehearse else ["bfloat16", "float32"]
    operations = kernel_times.OPERATIONS[-1:] if arguments.rehearse else kernel_times.OPERATIONS
    copied = kernel_times.copy_speed(2**20 if arguments.rehearse else kernel_times.COPY_BYTES)
    found["copy"] = copied
    print(f"{found['device']}: a copy moves {copied / 1e9:.0f} GB/s", flush=True)
    torch = not arguments.rehearse and has_torch()
    for dtype, (c, m), (w, h), backward, operation, implementation in itertools.product(
        dtypes, widths, sizes, (False, True), operations, implementations
    ):
        case = kernel_times.Case(operation, h, w, c, m, dtype, backward, 1)
        name = f"{implementation} {operation} {dtype} {w}x{h} C{c} M{m}{' +grad' * backward}"
        if not clock.allows():
            found["left"].append(name)
            continue
        row = clock.timed(lambda c=case, i=implementation: kernel_times.row(c, i, copied, torch))
        found["rows"].append({"implementation": implementation, **row})
        print(f"{implementation:7s} {kernel_times.show(row)}", flush=True)
        keep(arguments, found)
        write_json(arguments.out / "measured.json", measured(found["rows"]))
    end(arguments, found)


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of kernels/measured.json: of what is exact, the time of each direction."""
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    size = ("operation", "height", "width", "channels", "maps", "dtype")
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        exact = row["error"] is not None and row["error"] < kernel_times_tolerance(row["dtype"])
        if row["ms"] and exact:
            at = times.setdefault((*(row[name] for name in size), row["backward"]), {})
            at[row["implementation"]] = row["ms"]
            if row["einsum"]:
                at["reference"] = row["ms"] * row["einsum"]
    table = []
    for (*where, backward), of in times.items():
        forward = times.get((*where, False), {}) if backward else dict.fromkeys(of, 0.0)
        both = {name: ms - forward[name] for name, ms in of.items() if name in forward}
        operation, height, width, channels, maps, dtype = where
        if both:
            table.append({
                "generation": int(capability.replace(".", "")),
                "operation": operation, "backward": backward, "dtype": dtype,
                "pixels": height * width, "channels": channels, "maps": maps,
                "milliseconds": both,
            })  # fmt: skip
    return table


def kernel_times_tolerance(dtype: str) -> float:
    """The error beyond which an implementation is not taken, however fast."""
    return 1e-5 if dtype == "float32" else 2e-2


def has_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def speed(arguments: argparse.Namespace, clock: Clock) -> None:
    """Streams and clips of each preset."""
    found = report(arguments)
    names = ["strcnn_dtb_small"] if arguments.rehearse else ["strcnn_dtb", "fsta", "strcnn"]
    sizes = [(48, 32)] if arguments.rehearse else [(1280, 720), (3840, 2160)]
    for size, name in itertools.product(sizes, names):
        what = f"{name} {size[0]}x{size[1]}"
        if not clock.allows():
            found["left"].append(what)
            continue
        count = 4 if arguments.rehearse else 100
        row = clock.timed(lambda n=name, s=size, c=count: kernel_times.attempt(frames_of, n, *s, c))
        found["rows"].append({"what": what, **(row or {"failed": True})})
        print(what, row or "failed", flush=True)
        keep(arguments, found)
    beside = "a training step beside torch's"
    if arguments.rehearse or not clock.allows():
        found["left"].append(beside)
    else:
        network: Any = presets.find("strcnn_dtb").network
        train_step.against_torch("strcnn_dtb", network, (4, 5, 128, 128, 3), 5)
    end(arguments, found)


def frames_of(name: str, width: int, height: int, count: int) -> dict[str, Any]:
    """How fast a preset restores frames of a size, one by one and as a clip."""
    network: Any = dataclasses.replace(presets.find(name).network, dtype="bfloat16")
    model = models.build(network)
    deblurrer = Deblurrer(model)
    stream = deblurrer.open_stream(height, width)
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    seconds = []
    for i in range(count + 5 + model.lookahead):
        began = time.perf_counter()
        jax.block_until_ready(stream.push((frames[i % len(frames)],)))
        seconds.append(time.perf_counter() - began)
    steady = seconds[5 + model.lookahead :]
    restore_clip(model, frames)
    began = time.perf_counter()
    restore_clip(model, frames)
    clip = time.perf_counter() - began
    statistics = jax.devices()[0].memory_stats() or {}
    share = None
    if isinstance(network, FstaConfig) and jax.default_backend() == "gpu":
        share = kernel_times.network_share(name, (width, height), "auto")
    return {
        "frames_a_second": 1 / float(np.median(steady)),
        "percentile_99_ms": 1e3 * float(np.percentile(steady, 99)),
        "clip_frames_a_second": len(frames) / clip,
        "peak_GiB": statistics.get("peak_bytes_in_use", 0) / 2**30,
        "attention": share,
    }


def train(arguments: argparse.Namespace, clock: Clock) -> None:
    """As many steps as fit, a validation and two files after them."""
    found = report(arguments)
    name = arguments.preset
    if name not in TRAININGS and not arguments.rehearse:
        raise UserError(f"--preset={name}: chosen are {', '.join(TRAININGS)}")
    preset = presets.find(name)
    chosen = LIKE_ALL | TRAININGS.get(name, {})
    if arguments.rehearse:
        chosen |= {"steps": 4, "frames": 2, "crop": 32, "batch_size": 1}
    if arguments.steps:
        chosen["steps"] = arguments.steps
    config = dataclasses.replace(preset.training, **chosen)
    network: Any = dataclasses.replace(preset.network, dtype="bfloat16")
    data = dataclasses.replace(
        preset.data, render="device", curriculum=0.5, photos=arguments.photos
    )
    model = models.build(network)
    rebuild, parameters = split(model)
    axes = devices.make_mesh(jax.device_count())
    one = np.array(jax.devices()[:1]).reshape(1, 1)  # one GPU is lent
    mesh = jax.sharding.Mesh(one, axes.axis_names, axis_types=axes.axis_types)
    state = initial_train_state(config, parameters)
    file = arguments.resume or arguments.out / "state.safetensors"
    if file.exists():
        state = read_state(file, state)
    first = int(state.step)
    batches = batches_on_device(
        data,
        data.clip_options(config.frames, config.crop, model.context),
        devices.clips_over(mesh),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first,
        motion_limit=data.motion_limit(config.steps),
    )
    step = compile_train_step(config, rebuild, mesh)
    found["left"] = ["validation"]
    for number, losses in enumerate(rounds(step, state, batches, config.steps, clock)):
        state, mean = losses
        found["rows"].append({"step": int(state.step), "loss": mean})
        if number % 10 == 0:
            print(f"step {int(state.step)}: loss {mean:.5f}", flush=True)
    write_state(file, state)
    best = best_parameters(state)
    restorer = rebuild(best)
    weights = LoadedModel(restorer, name, network, int(state.step), str(file), {"data": "rendered"})
    export_weights(weights, arguments.out / f"{name}.safetensors")
    found["steps"] = [first, int(state.step), config.steps]
    keep(arguments, found)
    print(f"steps {first} to {int(state.step)} of {config.steps}, in {file}", flush=True)
    if clock.left > 20 and not arguments.rehearse:
        found["validation"] = Validation(data, rebuild)(best)
        print("validation", found["validation"])
        found["left"] = []
    end(arguments, found)


def rounds(
    step: Any, state: TrainState, batches: Iterator[Any], last: int, clock: Clock
) -> Iterator[tuple[TrainState, float]]:
    """Train one step, which compiles, then ten at a time; a quarter of the time is for the rest."""
    reserve, count = 0.25 * clock.left, 1
    while int(state.step) < last and (count == 1 or clock.left > reserve + 1.2 * clock.longest):

        def some(state: TrainState = state, count: int = count) -> tuple[TrainState, float]:
            losses = []
            for _ in range(min(count, last - int(state.step))):
                state, metrics = step(state, next(batches))
                losses.append(metrics.loss)
            return state, float(jnp.mean(jnp.stack(losses)))

        state, mean = clock.timed(some)
        if bool(state.failed):
            raise UserError(f"step {int(state.step)}: the loss is not finite; nothing was written")
        count = 10
        yield state, mean


def write_state(file: Path, state: TrainState) -> None:
    """One file that a training goes on from: the optimiser's state in bfloat16, all else exact.

    Raises:
      UserError: it would be larger than MOST_BYTES.
    """
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, array = jax.tree_util.keystr(path), np.asarray(leaf)
        in_short = name.startswith(".optimizer") and array.dtype == np.float32
        arrays[name] = array.astype(jnp.bfloat16) if in_short else array
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_BYTES:
        raise UserError(f"{file}: {size / 2**20:.0f} MiB, and 16 come back from a lent machine")
    with replace_when_whole(file) as part:
        safetensors.numpy.save_file(arrays, part)


def read_state(file: Path, like: TrainState) -> TrainState:
    """The state that ``write_state`` wrote, as ``like`` has it.

    Raises:
      UserError: the file is none, or of another preset.
    """
    try:
        arrays = safetensors.numpy.load_file(file)
    except Exception as error:  # safetensors' own
        raise UserError(f"--resume={file}: {error}") from error
    places = jax.tree_util.tree_leaves_with_path(like)
    there = {jax.tree_util.keystr(path): leaf for path, leaf in places}
    if {n: a.shape for n, a in arrays.items()} != {n: np.shape(a) for n, a in there.items()}:
        raise UserError(f"--resume={file}: is not of this preset")
    leaves = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in there.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def scores(arguments: argparse.Namespace, clock: Clock) -> None:
    """The quality table, as far as the time allows."""
    found = report(arguments)
    loaded = load_model(arguments.ckpt)
    of = SimpleNamespace(
        blur=() if arguments.rehearse else (2, 5, 10, 20, 40),
        scenes=("tiny",) if arguments.rehearse else ("narrow", "wide"),
        sharp_scenes=(), highspeed=(), only=(), taus=(), sharp=(), sharp_every=(1,), max_frames=8,
    )  # fmt: skip
    for test in quality.tests(of):  # type: ignore[arg-type]
        if not clock.allows():
            found["left"].append(test.name)
            continue
        folder = arguments.out / "scores" / Path(arguments.ckpt).stem / test.name
        metrics = clock.timed(lambda t=test, f=folder: quality.score(loaded, t, f))
        found["rows"].append({"test": test.name, "videos": metrics["videos"]})
        print(quality.row(test, metrics), flush=True)
        keep(arguments, found)
    end(arguments, found)


if __name__ == "__main__":
    run_command(main, "benchmarks.gpu_day")
