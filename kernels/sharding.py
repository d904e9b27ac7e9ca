"""How an operation is laid over the devices of a mesh: by batch, by time, and by pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from kernels.reference import Partial

Axes: TypeAlias = str | tuple[str, ...] | None
"""One or more axes of a mesh, or None for a dimension that every device holds whole."""


@dataclass(frozen=True)
class Sharding:
    """Which axes of `mesh` the batch, the frames and the pixels are divided over.

    Each divided size must be a multiple of the number of devices along its axes. Dividing the
    pixels is for frames too big for one device: a squeeze then exchanges one maximum, one sum
    and C accumulators for every map, and an expand exchanges nothing.
    """

    mesh: Mesh
    batch: Axes = None
    time: Axes = None
    pixels: Axes = None

    def spec(self, dimensions: str) -> PartitionSpec:
        """Where an array lies: `dimensions` has a letter for each, b, t and p the divided ones."""
        axes = {"b": self.batch, "t": self.time, "p": self.pixels}
        return PartitionSpec(*(axes.get(letter) for letter in dimensions))


def sharded(function: Callable[..., Any], sharding: Sharding | None, layout: str) -> Any:
    """Run `function` on every device's part of its arguments.

    `layout` names the dimensions as an einsum does, "btmp,btpc->btm,btmc"; an empty sharding
    returns `function` itself.
    """
    if sharding is None:
        return function
    taken, given = (
        tuple(sharding.spec(term) for term in side.split(",")) for side in layout.split("->")
    )
    # The replication of what a custom call returns cannot be checked (check_vma).
    return jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=taken,
        out_specs=given if len(given) > 1 else given[0],
        check_vma=False,
    )


def combine_over_devices(partial: Partial, sharding: Sharding | None) -> Partial:
    """Join the partial squeezes of the devices that hold different pixels of the same frames."""
    if sharding is None or sharding.pixels is None:
        return partial
    maximum = lax.pmax(partial.maximum, sharding.pixels)
    here = jnp.exp(partial.maximum - maximum)
    return Partial(
        maximum,
        lax.psum(partial.total * here, sharding.pixels),
        lax.psum(partial.accumulator * here[..., None], sharding.pixels),
    )


def sum_over_devices(value: Array, sharding: Sharding | None, dimensions: str) -> Array:
    """Add up what the devices along the axes of `dimensions` (letters b, t, p) found."""
    if sharding is None:
        return value
    axes: list[str] = []
    for over in sharding.spec(dimensions):
        axes.extend((over,) if isinstance(over, str) else over or ())
    return lax.psum(value, tuple(axes)) if axes else value
