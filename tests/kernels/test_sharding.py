"""Under a mesh each operation and its gradients are what they are on one device."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AxisType, Mesh, NamedSharding

import kernels
from kernels import Sharding, mosaic_expand, mosaic_squeeze

MOSAIC = {"softmax_squeeze": mosaic_squeeze, "softmax_expand": mosaic_expand}
INTERPRETED = pytest.param(
    "interpreted",
    marks=pytest.mark.skipif(
        not hasattr(mosaic_gpu, "InterpretGPUParams"), reason="JAX 0.11 has the interpreter"
    ),
)

B, T, P, M, C = 2, 2, 36, 3, 5


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices; tests/conftest.py asks for 8 virtual ones of the CPU")
    return jax.make_mesh((2, 2, 2), ("data", "frames", "rows"), axis_types=(AxisType.Auto,) * 3)


def normal(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


CASES = {
    "softmax_squeeze": ("btpc,cm", normal((B, T, P, C), (C, M))),
    "softmax_expand": ("bpd,dk,k,bkc", normal((B, P, C), (C, M), (M,), (B, M, C))),
}


def value_and_gradients(
    name: str, implementation: str, sharding: Sharding | None, *arguments: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    function = partial(getattr(kernels, name), implementation=implementation, sharding=sharding)
    if implementation == "interpreted":
        function = partial(MOSAIC[name].run, sharding, True)
    y, pull = jax.vjp(function, *arguments)
    return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("implementation", ["einsum", INTERPRETED])
@pytest.mark.parametrize("name", CASES)
def test_batch_time_and_pixels(name: str, implementation: str, mesh: Mesh) -> None:
    layout, arguments = CASES[name]
    sharding = Sharding(mesh, batch="data", time="frames", pixels="rows")
    if implementation == "interpreted":  # one layout of the slow interpreter is enough
        sharding = Sharding(mesh, batch="data", pixels=("frames", "rows"))
    placed = [
        jax.device_put(a, NamedSharding(mesh, sharding.spec(term)))
        for a, term in zip(arguments, layout.split(","), strict=True)
    ]
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 2))
    found = run(name, implementation, sharding, *placed)
    expected = run(name, "einsum", None, *arguments)
    chex.assert_trees_all_close(found, expected, atol=2e-5)
    assert found[1][0].sharding.is_equivalent_to(placed[0].sharding, placed[0].ndim)
