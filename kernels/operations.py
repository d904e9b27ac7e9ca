"""The two operations, the choice of implementation (the one named runs or raises), and meshes."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from kernels import reference

Implementation: TypeAlias = Literal["auto", "mosaic", "einsum"]
"""The implementations that a caller can name.

"einsum" is the definition and runs anywhere. "mosaic" is the GPU kernels, for Hopper only: their
matrix products (wgmma) exist on no other GPU. "auto" is the kernels where a program is compiled
for Hopper and they support its sizes, else the einsum; the log says which, and why.
"""

HOPPER = ("H100", "H20", "H800")
"""What the names of Hopper GPUs contain: H100, H20, H200, GH200, H800."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharding:
    """A mesh, and the axis or axes over whose devices the batch is divided evenly."""

    mesh: Mesh
    batch: str | tuple[str, ...]

    def spec(self, dimensions: str) -> PartitionSpec:
        """Returns an array's spec; `dimensions` has a letter for each axis, b for the batch."""
        return PartitionSpec(*(self.batch if letter == "b" else None for letter in dimensions))


def sharded(function: Callable[..., Any], sharding: Sharding | None, layout: str) -> Any:
    """Makes `function` run on each device's part of its arguments; unchanged without a sharding.

    `layout` names the dimensions as an einsum does: "btpc,cm->btm,btmc".
    """
    if sharding is None:
        return function
    taken, given = (
        tuple(sharding.spec(term) for term in side.split(",")) for side in layout.split("->")
    )
    # The replication of a custom call's results cannot be checked (check_vma).
    return jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=taken,
        out_specs=given if len(given) > 1 else given[0],
        check_vma=False,
    )


def sum_over_devices(value: Array, sharding: Sharding | None) -> Array:
    """Sums a value over the devices, if there is a sharding."""
    return value if sharding is None else lax.psum(value, sharding.batch)


def softmax_squeeze(
    x: Float[Array, "B T P C"],
    weights: Float[Array, "C M"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B T M C"]:
    """G[m, c] = sum_p softmax_p(x weights)[p, m] x[p, c] for each frame (attention, eq. 1-2).

    Args:
      x: the pixels of each frame.
      weights: f_s as a 1x1 projection, rounded to the dtype of `x`. A bias would cancel.
      implementation: which implementation runs.
      sharding: how the operands are sharded over a mesh; for the einsum XLA infers it.

    Raises:
      ValueError: the named kernels do not support the shapes.
      NotImplementedError: the named kernels do not run on this device.
    """
    return _run("squeeze", implementation, sharding, reference.softmax_squeeze, x, weights)


def softmax_expand(
    x: Float[Array, "B P D"],
    weights: Float[Array, "D K"],
    bias: Float[Array, " K"],
    g: Float[Array, "B K C"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B P C"]:
    """y[p, c] = sum_k softmax_k(x weights + bias)[p, k] g[k, c] (attention, eq. 5-6).

    Args:
      x: the pixels of the current frame.
      weights, bias: f_p as a 1x1 projection; the weights are rounded to the dtype of `x`.
      g: the values gathered by each combination of maps.
      implementation, sharding: as for `softmax_squeeze`.

    Raises:
      ValueError: the named kernels do not support the shapes.
      NotImplementedError: the named kernels do not run on this device.
    """
    return _run("expand", implementation, sharding, reference.softmax_expand, x, weights, bias, g)


def _run(
    name: str,
    implementation: Implementation,
    sharding: Sharding | None,
    definition: Callable[..., Array],
    *operands: Array,
) -> Array:
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation={implementation!r}: must be one of "
            f"{', '.join(get_args(Implementation))}"
        )
    # Recomputed where it is differentiated; otherwise the maps would be kept.
    einsum = jax.checkpoint(definition)
    if implementation == "einsum":
        return einsum(*operands)
    device, hopper = _target()
    refusal = None if hopper else f"{device} is not a Hopper GPU"
    if refusal and implementation == "mosaic":
        raise NotImplementedError(f"implementation='mosaic': {refusal}; use 'auto' or 'einsum'")
    if not refusal:
        # Imported only where they can run: it takes a second.
        kernels = importlib.import_module(f"kernels.mosaic_{name}")
        refusal = kernels.limit(*operands)
        mosaic = functools.partial(kernels.run, sharding, False)
    if implementation == "mosaic":
        if refusal:
            raise ValueError(f"implementation='mosaic': {refusal}")
        jax.eval_shape(definition, *operands)  # raises where the shapes do not fit together
        return mosaic(*operands)
    if refusal:
        _say_once(f"implementation='auto' uses the einsum: {refusal}")
        return einsum(*operands)
    _say_once(f"implementation='auto' uses the Mosaic kernels on {device}")
    # On a machine with such a GPU, a program can still be compiled for the CPU.
    return lax.platform_dependent(*operands, cuda=mosaic, default=einsum)


def _target() -> tuple[str, bool]:
    """Returns the device that a program is compiled for, and whether it is a Hopper GPU."""
    device = jax.sharding.get_abstract_mesh().abstract_device  # need not be present
    kind = device.device_kind if device else jax.local_devices()[0].device_kind
    return kind, any(name in kind for name in HOPPER)


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
