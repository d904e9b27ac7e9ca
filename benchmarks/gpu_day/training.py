"""Trainings in pieces, from and to one file that is small enough to bring back; their scores."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from benchmarks import quality
from benchmarks.gpu_day.report import Report
from jaxdeblur import devices, models, presets
from jaxdeblur.data.on_device import render_on_device
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.parameters import split
from jaxdeblur.options import read_fields
from jaxdeblur.presets import Preset
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

STEPS_AT_ONCE = 20
RESERVED = 0.2
"""The share of the time that is left for the files and the validation."""

# docs/lab/recipe.md, "On a lent GPU", says why.
LIKE_ALL = {
    "frames": 5, "crop": 160, "steps": 60_000, "optimizer": "muon", "learning_rate": 7e-4,
    "beta2": 0.99, "schedule": "cosine", "average": 0.999, "recompute": False,
}  # fmt: skip
TRAININGS: dict[str, dict[str, dict[str, Any]]] = {
    "strcnn_dtb": {"training": {"batch_size": 16}},
    "fsta_concat": {"training": {"batch_size": 8, "crop": 256, "steps": 36_000}},
    # Of what ships, the one network that all sizes share; its gates are fitted after it.
    "strcnn_dtb_choice": {
        "network": {"scales": (1,)},
        "training": {"batch_size": 32, "loss": "charbonnier"},
        "data": {"scenes": "small"},
    },
}


def chosen(name: str, rehearse: bool = False) -> Preset:
    """A preset as it is trained on a lent GPU."""
    if name not in presets.PRESETS:
        there = ", ".join(sorted(presets.PRESETS))
        raise UserError(f"--preset={name}: no such preset; there are {there}")
    preset, fields = presets.PRESETS[name], TRAININGS.get(name, {})
    half = {"dtype": "bfloat16"} if hasattr(preset.network, "dtype") else {}
    training = LIKE_ALL | fields.get("training", {})
    if rehearse:
        training |= {"steps": 4, "frames": 2, "crop": 32, "batch_size": 1}
    data = {"render": "device", "curriculum": 0.5} | fields.get("data", {})
    return dataclasses.replace(
        preset,
        network=dataclasses.replace(preset.network, **half, **fields.get("network", {})),
        training=dataclasses.replace(preset.training, **training),
        data=dataclasses.replace(preset.data, **data),
    )


def train(arguments: argparse.Namespace, report: Report) -> None:
    """As many steps as fit, then two files and a validation."""
    name = arguments.preset
    preset = chosen(name, arguments.rehearse)
    network: Any = read_fields(arguments, preset.network)
    config, data = read_fields(arguments, preset.training), read_fields(arguments, preset.data)
    rebuild, parameters = split(model := models.build(network))
    mesh = devices.mesh_of(jax.devices()[:1])
    state = initial_train_state(config, parameters)
    file = arguments.resume or arguments.out / "state.safetensors"
    if file.exists():
        state = read_state(file, state)
    first = int(state.step)
    batches = render_on_device(
        None,
        TrainingData(data, config.crop).train,
        data.clip_options(config.frames, config.crop, model.context),
        devices.clips_over(mesh),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=first,
        motion_limit=data.motion_limit(config.steps),
    )
    step = compile_train_step(config, rebuild, mesh)
    report.left.append("validation")
    if not first:
        report.rows.clear()
    for after, loss in rounds(step, state, batches, config.steps, report):
        state = after
        report.rows.append({"step": int(state.step), "loss": loss})
        if len(report.rows) % 20 == 1:
            print(f"step {int(state.step)}: loss {loss:.5f}", flush=True)
    print(f"steps {first} to {int(state.step)} of {config.steps}, in {file}", flush=True)
    report.found["steps"] = [first, int(state.step), config.steps]
    write_state(file, state)
    best = best_parameters(state)
    about = {"data": "rendered"}
    if hasattr(network, "dtype"):  # of the computation, which is not always on a GPU
        network = dataclasses.replace(network, dtype="float32")
    weights = LoadedModel(rebuild(best), name, network, int(state.step), str(file), about)
    export_weights(weights, arguments.out / f"{name}.safetensors")
    report.keep()
    if not arguments.rehearse:
        report.found["validation"] = Validation(TrainingData(data), rebuild)(best)
        report.left.remove("validation")
        print("validation", report.found["validation"])


def rounds(
    step: Any, state: TrainState, batches: Iterator[Any], last: int, report: Report
) -> Iterator[tuple[TrainState, float]]:
    """Train one step, which compiles, then some at a time, each with its mean loss."""
    reserved, longest, count = RESERVED * report.seconds_left, 0.0, 1
    while int(state.step) < last and report.seconds_left > reserved + 1.2 * longest:
        began, losses = time.monotonic(), []
        for _ in range(min(count, last - int(state.step))):
            state, metrics = step(state, next(batches))
            losses.append(metrics.loss)
        mean = float(jnp.mean(jnp.stack(losses)))
        if bool(state.failed):
            raise UserError(f"step {int(state.step)}: the loss is not finite; nothing was written")
        yield state, mean
        longest = max(longest, time.monotonic() - began) if count > 1 else 0.0
        count = STEPS_AT_ONCE


def write_state(file: Path, state: TrainState) -> None:
    """One file that a training goes on from.

    Exact but for the optimiser's arrays, which are bfloat16. A network too large for that has its
    parameters in float16, and its average and the optimiser's matrices begin anew: they remember a
    thousand and twenty steps.

    Raises:
      UserError: even so it would be larger than MOST_BYTES.
    """
    for short in (False, True):
        arrays = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name, array = jax.tree_util.keystr(path), np.asarray(leaf)
            if short and (name.startswith(".average") or _is_momentum(name, array)):
                continue
            if short and name.startswith(".parameters"):
                array = array.astype(np.float16)
            elif name.startswith(".optimizer") and array.dtype == np.float32:
                array = array.astype(jnp.bfloat16)
            arrays[name] = array
        size = sum(array.nbytes for array in arrays.values())
        if size <= MOST_BYTES:
            break
    else:
        raise UserError(f"{file}: {size / 2**20:.0f} MiB, and 16 come back from a lent machine")
    if short:
        print(f"{file}: in float16, without average and momentum, as 16 MiB hold no more")
    with replace_when_whole(file) as part:
        safetensors.numpy.save_file(arrays, part)


def _is_momentum(name: str, array: Any) -> bool:
    return name.startswith(".optimizer") and np.ndim(array) == 4


def read_state(file: Path, like: TrainState) -> TrainState:
    """The state that ``write_state`` wrote, as ``like``, which is new, has it.

    Raises:
      UserError: the file is none, or of another preset.
    """
    try:
        arrays = safetensors.numpy.load_file(file)
    except Exception as error:  # safetensors' own
        raise UserError(f"--resume={file}: {error}") from error
    places = jax.tree_util.tree_leaves_with_path(like)
    there = {jax.tree_util.keystr(path): leaf for path, leaf in places}
    for name, leaf in there.items():
        if name not in arrays and _is_momentum(name, leaf):
            arrays[name] = leaf
        if name not in arrays and name.startswith(".average"):
            arrays[name] = arrays.get(name.replace(".average", ".parameters", 1))
    if {n: np.shape(a) for n, a in arrays.items()} != {n: np.shape(a) for n, a in there.items()}:
        raise UserError(f"--resume={file}: is not of this preset")
    leaves = [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in there.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def scores(arguments: argparse.Namespace, report: Report) -> None:
    """The quality table of benchmarks.quality, as far as the time allows."""
    loaded = load_model(arguments.ckpt)
    of = SimpleNamespace(
        blur=() if arguments.rehearse else (2, 5, 10, 20, 40),
        scenes=("tiny",) if arguments.rehearse else ("narrow", "wide"),
        sharp_scenes=(), highspeed=(), only=(), taus=(), sharp=(), sharp_every=(1,), max_frames=8,
    )  # fmt: skip
    folder = arguments.out / "scores" / Path(arguments.ckpt).stem
    begins = f"{arguments.ckpt}, step {loaded.step}, "

    def score(test: quality.Test) -> dict[str, Any]:
        metrics = quality.score(loaded, test, folder / test.name)
        print(quality.row(test, metrics), flush=True)
        return {"videos": metrics["videos"]}

    tests = quality.tests(of)  # type: ignore[arg-type]
    for _ in report.each((begins + test.name, partial(score, test)) for test in tests):
        pass
