"""Compile every kernel with every tile of the table for one GPU, on a machine that has none.

    cd tests/kernels; JAX_PLATFORMS=cpu python compile_without_a_gpu.py targets/sm_90.txtpb

prints one line of JSON for each: its kernel, row of the table and error, null if it compiled.
Needs the plugin wheels, jax-cuda12-plugin and jax-cuda12-pjrt or the same of cuda13.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels import mosaic_expand, mosaic_squeeze, tiles, triton_expand, triton_squeeze
from kernels.reference import Saved

PIXELS = 1000  # an odd number of tiles, the last one partly masked
CALLS = {"triton": "__gpu$xla.gpu.triton", "mosaic": "mosaic_gpu"}


def rows(target: str) -> Iterator[tuple[str, str, tiles.Row]]:
    """The family, dtype and row of each row of the tables that are for a GPU."""
    for row in tiles.TABLE:
        yield "triton", "bfloat16" if row.bytes == 2 else "float32", row
    if target == "sm_90":
        yield from (("mosaic", name, row) for name, table in tiles.MOSAIC.items() for row in table)


def cases(target: str) -> Iterator[tuple[str, str, tiles.Row, Any, list[Any]]]:
    """Each kernel of each row at the most numbers of that row, with the shapes of its arguments."""
    for family, name, row in rows(target):
        c = min(tiles.MOSAIC_WIDEST[name] if family == "mosaic" else 128, row.numbers // 16)
        m, p, dtype = row.numbers // c, PIXELS, jnp.dtype(name)
        squeeze, expand = {
            "triton": (triton_squeeze, triton_expand),
            "mosaic": (mosaic_squeeze, mosaic_expand),
        }[family]

        def array(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        f32 = jnp.float32
        logits, x, g = array(1, 2, m, p), array(1, 2, p, c), array(2, m, c)
        pixel_logits, pixels = array(2, p, m), array(2, p, c)
        weights, bias = array(c, m), array(m)
        number, dg = array(1, 2, m, dtype=f32), array(1, 2, m, c, dtype=f32)
        saved = Saved(number, number, dg)
        arguments = {
            "softmax_squeeze": (squeeze.softmax_forward, [logits, x]),
            "projected_squeeze": (squeeze.projected_forward, [x, weights, bias]),
            "softmax_squeeze_backward": (squeeze.softmax_backward, [logits, x, saved, dg]),
            "projected_squeeze_backward": (
                squeeze.projected_backward,
                [x, weights, bias, saved, dg],
            ),
            "softmax_expand": (expand.softmax_forward, [pixel_logits, g]),
            "projected_expand": (expand.projected_forward, [pixels, weights, bias, g]),
            "softmax_expand_backward": (expand.softmax_backward, [pixel_logits, g, pixels]),
            "projected_expand_backward": (
                expand.projected_backward,
                [pixels, weights, bias, g, pixels],
            ),
        }
        for kernel in row.kernels:
            yield family, kernel, row, *arguments[kernel]


def main(target: str) -> None:
    """Compile all cases for the GPU that the file `target` describes, two at a time."""
    # From jax 0.11; it works through 0.12 (docs/kernels.md).
    warnings.filterwarnings("ignore", message="The Pallas Triton backend")
    jax.devices()  # registers the plugin
    topology = topologies.get_topology_desc(
        "gpu", "cuda", topology="1x1x1", target_config=Path(target).read_text()
    )
    mesh = Mesh(np.array(topology.devices).reshape(1), ("gpu",))
    there = NamedSharding(mesh, PartitionSpec())

    def compiles(case: tuple[str, str, tiles.Row, Any, list[Any]]) -> str:
        family, kernel, row, function, shapes = case
        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=there), shapes
        )
        error = None
        try:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                traced = jax.jit(lambda *a: function(*a, interpret=False)).trace(*shapes)
                program = traced.lower(lowering_platforms=("cuda",))
            if CALLS[family] not in program.compile().as_text():
                error = f"the compiled program has no {family} kernel"
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        return json.dumps({"family": family, "kernel": kernel, "row": str(row), "error": error})

    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(compiles, cases(Path(target).stem)):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
