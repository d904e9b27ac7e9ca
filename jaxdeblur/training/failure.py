"""What a loss that is not finite leaves: the batch and the parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxdeblur.files import replace_when_whole
from jaxdeblur.training.loop import NonFiniteError


def save_failure(folder: Path, error: NonFiniteError) -> Path:
    """Writes the batch that was not finite, and the parameters that met it, as safetensors."""
    path = folder / f"failure-{error.step:06d}-process-{jax.process_index()}.safetensors"
    arrays = {f"batch/{name}": _local(array) for name, array in error.batch.items()}
    arrays |= {f"parameters/{name}": _local(a) for name, a in error.state.parameters.items()}
    with replace_when_whole(path) as part:
        about = json.dumps({"step": error.step})
        safetensors.numpy.save_file(arrays, part, metadata={"jaxdeblur": about})
    return path


def _local(array: jax.Array | np.ndarray) -> np.ndarray:
    """This process's part of an array: of a batch its clips, in their order."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return _joined(array.addressable_shards)


def _joined(shards: Iterable[Any]) -> np.ndarray:
    in_order = sorted(shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in in_order])
