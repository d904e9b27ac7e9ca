"""Compiles every kernel for one GPU at its largest supported sizes, on a machine without a GPU.

    cd tests/kernels; JAX_PLATFORMS=cpu python compile_without_a_gpu.py targets/sm_90.txtpb

prints one line of JSON per kernel: its name and error, null if it compiled. Names after the target
restrict it to these kernels. It needs the plugin wheels jax-cuda12-plugin and jax-cuda12-pjrt, or
those of cuda13.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels import mosaic_expand, mosaic_squeeze, tiles
from kernels.mosaic_squeeze import Saved

PIXELS = 1000  # an odd number of tiles, the last one partly masked


def cases() -> Iterator[tuple[str, Any, list[Any]]]:
    """Yields each kernel in each dtype, with the shapes of its arguments."""
    for dtype, numbers in tiles.NUMBERS.items():
        c = tiles.WIDEST[dtype]
        m, p = numbers // c, PIXELS

        def array(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

        x, g, weights, bias = array(2, p, c), array(2, m, c), array(c, m), array(m)
        number, dg = array(1, 2, m, dtype="float32"), array(1, 2, m, c, dtype="float32")
        frames, saved = array(1, 2, p, c), Saved(number, number, dg)
        yield f"squeeze {dtype}", mosaic_squeeze.forward, [frames, weights]
        yield f"squeeze backward {dtype}", mosaic_squeeze.backward, [frames, weights, saved, dg]
        yield f"expand {dtype}", mosaic_expand.forward, [x, weights, bias, g]
        yield f"expand backward {dtype}", mosaic_expand.backward, [x, weights, bias, g, x]


def main(target: str, *only: str) -> None:
    """Compiles all cases for the GPU that the file `target` describes, two at a time."""
    jax.devices()  # registers the plugin
    topology = topologies.get_topology_desc(
        "gpu", "cuda", topology="1x1x1", target_config=Path(target).read_text()
    )
    mesh = Mesh(np.array(topology.devices).reshape(1), ("gpu",))
    there = NamedSharding(mesh, PartitionSpec())

    def compiles(case: tuple[str, Any, list[Any]]) -> str:
        name, function, shapes = case
        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=there), shapes
        )
        error = None
        try:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                traced = jax.jit(partial(function, interpret=False)).trace(*shapes)
                program = traced.lower(lowering_platforms=("cuda",))
            if 'custom_call_target="mosaic_gpu' not in program.compile().as_text():
                error = "the compiled program has no kernel"
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        return json.dumps([name, error])

    with ThreadPoolExecutor(2) as pool:
        chosen = (case for case in cases() if not only or case[0] in only)
        for line in pool.map(compiles, chosen):
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
