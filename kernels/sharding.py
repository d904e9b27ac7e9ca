"""How the batch of an operation is sharded over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec


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
