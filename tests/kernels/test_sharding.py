"""Each operation and its gradients are the same under a mesh as on one device."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

import kernels
from kernels import Sharding, mosaic_expand, mosaic_squeeze, operations, reference

MOSAIC = {"softmax_squeeze": mosaic_squeeze, "softmax_expand": mosaic_expand}
B, T, P, M, C = 2, 2, 36, 3, 5


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices; tests/conftest.py asks for 8 virtual ones of the CPU")
    return jax.make_mesh((2, 2), ("data", "other"), axis_types=(AxisType.Auto,) * 2)


def normal(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


CASES = {
    "softmax_squeeze": ("btpc,cm", normal((B, T, P, C), (C, M))),
    "softmax_expand": ("bpd,dk,k,bkc", normal((B, P, C), (C, M), (M,), (B, M, C))),
}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces each device's kernels with the einsum: the interpreter supports one device only."""

    def squeeze(x: jax.Array, weights: jax.Array, interpret: bool) -> reference.Partial:
        return reference.squeeze_partial(jnp.swapaxes(reference.project(x, weights), -1, -2), x)

    def squeeze_backward(
        x: jax.Array, weights: jax.Array, saved: Any, dg: jax.Array, interpret: bool
    ) -> tuple[jax.Array, ...]:
        def about_the_whole(x: jax.Array, weights: jax.Array) -> jax.Array:
            logits = jnp.swapaxes(reference.project(x, weights), -1, -2)
            p = jnp.exp(logits - saved.maximum[..., None]) * saved.inverse_total[..., None]
            return reference.einsum("btmp,btpc->btmc", p, x) - (
                jnp.sum(p, axis=-1, keepdims=True) * saved.squeezed
            )

        return jax.vjp(about_the_whole, x, weights)[1](dg)

    def expand(*operands: jax.Array, interpret: bool) -> jax.Array:
        return reference.softmax_expand(*operands)

    def expand_backward(*arguments: Any) -> tuple[jax.Array, ...]:
        *operands, dy, _ = arguments
        return jax.vjp(reference.softmax_expand, *operands)[1](dy)

    monkeypatch.setattr(mosaic_squeeze, "forward", squeeze)
    monkeypatch.setattr(mosaic_squeeze, "backward", squeeze_backward)
    monkeypatch.setattr(mosaic_expand, "forward", expand)
    monkeypatch.setattr(mosaic_expand, "backward", expand_backward)


def value_and_gradients(
    name: str, implementation: str, sharding: Sharding | None, *arguments: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    function = partial(getattr(kernels, name), implementation=implementation, sharding=sharding)
    if implementation == "stand-ins":
        function = partial(MOSAIC[name].run, sharding, False)
    y, pull = jax.vjp(function, *arguments)
    return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("implementation", ["einsum", "stand-ins"])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_divided(name: str, implementation: str, mesh: Mesh) -> None:
    layout, arguments = CASES[name]
    sharding = Sharding(mesh, batch="data")
    placed = [
        jax.device_put(a, NamedSharding(mesh, sharding.spec(term)))
        for a, term in zip(arguments, layout.split(","), strict=True)
    ]
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 2))
    found = run(name, implementation, sharding, *placed)
    expected = run(name, "einsum", None, *arguments)
    chex.assert_trees_all_close(found, expected, atol=2e-5)
    assert found[1][0].sharding.is_equivalent_to(placed[0].sharding, placed[0].ndim)


@pytest.mark.parametrize("name", CASES)
def test_each_device_calls_the_kernels(
    name: str, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_target", lambda: ("NVIDIA H200", True))
    sharding = Sharding(mesh, batch="data")
    run = jax.jit(value_and_gradients, static_argnums=(0, 1, 2))
    traced = run.trace(name, "mosaic", sharding, *CASES[name][1])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 2
    assert "all_reduce" in text
