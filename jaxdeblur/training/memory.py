"""How much of a batch a train step takes on at a time, by the memory that there is.

The sum of the gradients of parts of a batch is that of the whole, so the step stays the same. What
it takes is estimated from what the backward pass keeps, which tracing tells in a second; compiling
would tell to the byte, and takes minutes for the largest networks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import is_statistic, split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Parameters
from jaxdeblur.training.step import TrainingConfig, initial_train_state, model_loss

# What XLA takes beside what is kept from the forward pass: gradients of it, and the shifted copies
# of the convolutions' matrix products. 1.2 to 1.4 by its own analysis (benchmarks/train_step.py).
_WORKSPACE = 1.4
# Of the memory of a GPU that JAX gets; cuDNN and fragments take some of it.
SHARE_OF_GPU = 0.85
# Of the memory that a CPU's machine has left: the data's threads and other people need some too.
_SHARE_OF_HOST = 0.5
# A larger step of a network made for a GPU is recomputed on CPU cores: it takes days there anyway,
# and should harm nothing else. With it strcnn_dtb took 2.1 GiB after its first step
# (benchmarks/train_step.py --memory).
_MOST_OF_HOST = int(2.5 * 2**30)


class Fitted(NamedTuple):
    """How a train step fits into memory."""

    config: TrainingConfig
    """With ``micro_batch`` and ``recompute`` chosen."""
    needed: int
    """Bytes that it takes by estimate, of a GPU or of all devices of a CPU together."""
    available: int | None
    """Bytes that there are; None where nothing tells."""

    def describe(self) -> str:
        """For the log."""
        config = self.config
        at_once = "all clips" if config.micro_batch == config.batch_size else "the gradients of "
        if config.micro_batch != config.batch_size:
            at_once += f"{config.micro_batch} of {config.batch_size} clips"
        again = ", recomputing in the backward pass" if config.recompute == "always" else ""
        have = "" if self.available is None else f" of {self.available / 2**30:.1f} GiB"
        return f"{at_once} at a time{again}: about {self.needed / 2**30:.1f} GiB{have}"


def fit_to_memory(
    config: TrainingConfig,
    model: VideoRestorer,
    mesh: Mesh,
    available: int | None,
) -> Fitted:
    """Chooses what ``config`` leaves open: the fastest way that fits, or else the smallest.

    Args:
      config: of the training; a ``micro_batch`` of 0 and a ``recompute`` of "auto" are open.
      model: the network.
      mesh: the devices that share the batch.
      available: bytes there are (:func:`available_memory`); None takes the fastest way.

    Raises:
      UserError: the batch of a network that can't be taken in parts is to be.
    """
    shares = mesh.shape["data"]
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    rebuild, parameters = split(model)
    state = jax.eval_shape(lambda p: initial_train_state(config, p), parameters)
    # The gradients, their sum, the updates: three times the parameters beside the state.
    fixed = _size(state) + 3 * _size(parameters)
    # On a CPU several clips at once are no faster than one after another, on a GPU they are.
    fewest, most = (shares, shares) if on_cpu else (shares, config.batch_size)
    counts = [n for n in range(most, fewest - 1, -shares) if config.batch_size % n == 0]
    if any(map(is_statistic, parameters)) or not model.clips_are_independent:
        if config.micro_batch not in (0, config.batch_size):
            raise UserError(
                f"--micro-batch={config.micro_batch}: this network normalises by its whole batch"
            )
        counts = [config.batch_size]
    if config.micro_batch:
        if config.micro_batch % shares:
            raise UserError(
                f"--micro-batch={config.micro_batch} must be a multiple of the {shares} devices "
                "that share the batch"
            )
        counts = [config.micro_batch]
    ways: tuple[Literal["auto", "always", "never"], ...] = (config.recompute,)
    if config.recompute == "auto":
        ways = ("never", "always")
    fitted = None
    for recompute in ways:
        for count in counts:
            trial = dataclasses.replace(config, micro_batch=count, recompute=recompute)
            clips = -(-count // shares)
            kept = _kept_by(trial, rebuild, parameters, clips)
            if recompute == "always":
                # While a part is computed again it keeps what it would have kept; the largest parts
                # of our networks (stem and head at full size) are about half of the whole.
                whole = dataclasses.replace(trial, recompute="never")
                kept += _kept_by(whole, rebuild, parameters, clips) // 2
            together = -(-shares // jax.process_count()) if on_cpu else 1
            needed = together * int(fixed + _WORKSPACE * kept)
            fitted = Fitted(trial, needed, available)
            if available is None or needed <= available:
                return fitted
    assert fitted is not None  # there is always a way to try
    return fitted


def _kept_by(
    config: TrainingConfig,
    rebuild: Callable[[Parameters], VideoRestorer],
    parameters: Parameters,
    clips: int,
) -> int:
    """Bytes that the forward pass of some clips leaves to the backward pass."""
    frames = {"blurred": config.frames + sum(rebuild(parameters).context), "sharp": config.frames}
    batch = {
        name: jax.ShapeDtypeStruct((clips, length, config.crop, config.crop, 3), jnp.uint8)
        for name, length in frames.items()
    }

    def backward(parameters: Parameters, batch: Any) -> Any:
        def loss(parameters: Parameters) -> jax.Array:
            model = rebuild(parameters)
            if config.recompute == "always":
                model.save_memory()
            return model_loss(model, batch, config.loss, config.vgg19)

        return jax.vjp(loss, parameters)[1]

    return _size(jax.eval_shape(backward, parameters, batch))


def _size(arrays: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def available_memory() -> int | None:
    """Bytes that a training may take of a GPU, or of a CPU's machine; None where nothing tells.

    The least of all processes, so that all of them compile the same step.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        left = _left_on_host()
        mine: float | None = _MOST_OF_HOST
        if left is not None:
            mine = min(_SHARE_OF_HOST * left, _MOST_OF_HOST)
    else:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        mine = None if limit is None else SHARE_OF_GPU * limit
    least = devices.least(-1 if mine is None else int(mine / 2**20), "memory")
    return None if least < 0 else least * 2**20


def _left_on_host() -> int | None:
    """Bytes that the machine, or the container on it, has left."""
    left = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                left.append(1024 * int(line.split()[1]))
    except OSError:  # not Linux
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        left.append(devices.free_in_container())
    return max(min(left), 0) if left else None
