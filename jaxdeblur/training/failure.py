"""What a loss that is not finite leaves: the batch and the parameters, and their replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models import registry
from jaxdeblur.models.parameters import split
from jaxdeblur.shapes import Batch, Parameters
from jaxdeblur.training.loop import NonFiniteError
from jaxdeblur.training.run_folder import Run
from jaxdeblur.training.step import model_loss
from jaxdeblur.weights.load import check_fits


def save_failure(folder: Path, error: NonFiniteError) -> Path:
    """Writes the batch that was not finite, and the parameters that met it, as safetensors."""
    path = folder / f"failure-{error.step:06d}-process-{jax.process_index()}.safetensors"
    arrays = {f"batch/{name}": _local(array) for name, array in error.batch.items()}
    arrays |= {f"parameters/{name}": _local(a) for name, a in error.state.parameters.items()}
    with replace_when_whole(path) as part:
        about = json.dumps({"step": error.step})
        safetensors.numpy.save_file(arrays, part, metadata={"jaxdeblur": about})
    return path


def replay(path: Path) -> list[str]:
    """Runs the batch of a failure again; says per clip and parameter what is not finite."""
    if not path.is_file():
        raise UserError(f"--replay={path}: no such file")
    run = Run.read(path.parent)
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--replay={path}: not a readable safetensors file ({error})") from error
    rebuild, template = split(registry.build(run.network))
    parameters = {
        name.removeprefix("parameters/"): jnp.asarray(array)
        for name, array in arrays.items()
        if name.startswith("parameters/")
    }
    check_fits(template, parameters, f"--replay={path}")
    if not {"batch/blurred", "batch/sharp"} <= set(arrays):
        raise UserError(f"--replay={path}: it holds no batch")
    lines = []

    def loss(parameters: Parameters, batch: Batch) -> jax.Array:
        return model_loss(rebuild(parameters), batch, run.training.loss, run.training.vgg19)

    gradient_of = jax.jit(jax.value_and_grad(loss))
    for i in range(arrays["batch/blurred"].shape[0]):
        clip = {name: arrays[f"batch/{name}"][i : i + 1] for name in ("blurred", "sharp")}
        value, gradients = gradient_of(parameters, clip)
        bad = [name for name, g in gradients.items() if not bool(jnp.isfinite(g).all())]
        bad_text = f"gradients not finite: {', '.join(bad[:5])}" if bad else "gradients finite"
        blurred = clip["blurred"]
        lines.append(
            f"clip {i}: loss {float(value):.6g}, {bad_text}; frames {blurred.shape[1]} of "
            f"{blurred.shape[2]}x{blurred.shape[3]}, values {blurred.min()} to {blurred.max()}"
        )
    broken = [name for name, a in parameters.items() if not bool(jnp.isfinite(a).all())]
    lines.append(f"parameters not finite: {', '.join(broken)}" if broken else "parameters finite")
    return lines


def _local(array: jax.Array | np.ndarray) -> np.ndarray:
    """This process's part of an array."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array.addressable_data(0) if array.is_fully_replicated else array)
    return _joined(array.addressable_shards)


def _joined(shards: Sequence[Any]) -> np.ndarray:
    """The part of an array that lies on this process's devices, which share it out in any way."""
    begins = np.array([[part.start or 0 for part in shard.index] for shard in shards])
    places = begins - begins.min(0)
    whole = np.zeros(
        np.max(places + [shard.data.shape for shard in shards], 0), shards[0].data.dtype
    )
    for shard, place in zip(shards, places, strict=True):
        sizes = zip(place, shard.data.shape, strict=True)
        whole[tuple(slice(begin, begin + size) for begin, size in sizes)] = shard.data
    return whole
