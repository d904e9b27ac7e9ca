"""Every implementation of both operations, dtype and shape against float64 NumPy."""

from __future__ import annotations

from functools import partial

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.experimental.pallas import mosaic_gpu

import kernels
from jaxdeblur.testing import float32_error
from kernels import mosaic_expand, mosaic_squeeze, reference

MOSAIC = {"softmax_squeeze": mosaic_squeeze, "softmax_expand": mosaic_expand}
OPERATIONS = tuple(MOSAIC)
# The kernels in JAX's interpreter: correct on any device, but slow.
INTERPRETED = pytest.param(
    "interpreted",
    marks=pytest.mark.skipif(
        not hasattr(mosaic_gpu, "InterpretGPUParams"),
        reason=f"the Mosaic GPU interpreter of JAX {jax.__version__} is private and takes no "
        "transposed operand; that of 0.11 does",
    ),
)
IMPLEMENTATIONS = (
    "einsum",
    # On a CPU this is the einsum; test_dispatch.py tests the choice.
    pytest.param("auto", marks=pytest.mark.stress),
    INTERPRETED,
    pytest.param("mosaic", marks=pytest.mark.gpu),
)
# float16 takes the code path of float32, in fewer parts.
DTYPES = ("float32", "bfloat16", pytest.param("float16", marks=pytest.mark.stress))
# Relative to the largest value. Half precision rounds each weight to 8 or 11 bits.
FORWARD = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 2e-3}
BACKWARD = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 1e-2}


def margin(implementation: str) -> int:
    """On an H100 errors in float32 are up to 1.7 times the bounds above."""
    return 2 if implementation == "mosaic" else 1


# batch, frames, pixels, maps or combinations, channels
SHAPE = (1, 2, 130, 5, 12)
CASES = [
    (SHAPE, "float32"),
    (SHAPE, "bfloat16"),
    pytest.param(SHAPE, "float16", marks=pytest.mark.stress),
    ((2, 1, 1, 1, 3), "float32"),  # one pixel, one map
    pytest.param((1, 1, 64, 16, 64), "float32", marks=pytest.mark.stress),  # nothing to pad
    # several tiles a block, several blocks a frame
    pytest.param((1, 3, 577, 33, 20), "float32", marks=pytest.mark.stress),
]

Arrays = tuple[np.ndarray, ...]


def softmax64(a: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def definition(name: str, *operands: np.ndarray) -> np.ndarray:
    """Computes an operation in float64, as its equation is printed."""
    a = [o.astype(np.float64) for o in operands]
    if name == "softmax_squeeze":
        logits = np.einsum("btpc,cm->btmp", a[0], a[1])
        return np.einsum("btmp,btpc->btmc", softmax64(logits, -1), a[0])
    logits = np.einsum("bpd,dk->bpk", a[0], a[1]) + a[2]
    return np.einsum("bpk,bkc->bpc", softmax64(logits, -1), a[3])


def operands(name: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> list[jax.Array]:
    b, t, p, m, c = shape
    d = c + 1  # an expand may take its logits from features of another depth
    shapes = {
        "softmax_squeeze": [(b, t, p, c), (c, m)],
        "softmax_expand": [(b, p, d), (d, m), (m,), (b, m, c)],
    }[name]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def run(name: str, implementation: str, *arguments: jax.Array) -> jax.Array:
    if implementation == "interpreted":
        return MOSAIC[name].run(None, True, *arguments)
    return jax.jit(partial(getattr(kernels, name), implementation=implementation))(*arguments)


def shape_of(name: str, arguments: list[jax.Array]) -> tuple[int, ...]:
    return jax.eval_shape(partial(run, name, "einsum"), *arguments).shape


def error(found: jax.Array, expected: np.ndarray) -> float:
    found64, expected64 = (np.asarray(a, np.float64) for a in (found, expected))
    return float(np.abs(found64 - expected64).max() / max(1e-30, np.abs(expected64).max()))


def gradients(
    name: str, implementation: str, cotangent: jax.Array, arguments: list[jax.Array]
) -> tuple[jax.Array, ...]:
    @jax.jit
    def pulled(cotangent: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(partial(run, name, implementation), *arguments)[1](cotangent)

    return pulled(cotangent, *arguments)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_forward_is_the_definition(
    name: str, implementation: str, dtype: str, shape: tuple[int, ...]
) -> None:
    arguments = operands(name, shape, dtype)
    if (name, implementation, dtype, shape[-1]) == ("softmax_expand", "mosaic", "float32", 64):
        with pytest.raises(ValueError, match="64 channels"):  # the bias counts as one more
            run(name, implementation, *arguments)
        return
    found = jax.jit(partial(run, name, implementation))(*arguments)
    expected = definition(name, *map(np.asarray, arguments))
    chex.assert_shape(found, expected.shape)
    assert found.dtype == dtype
    assert error(found, expected) <= FORWARD[dtype] * margin(implementation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_those_of_the_definition(
    name: str, implementation: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The expected ones are JAX's in float32; the interpreter also reports races it detects."""
    arguments = operands(name, SHAPE, dtype)
    whole = [a.astype(jnp.float32) for a in arguments]
    cotangent = jax.random.normal(jax.random.key(9), shape_of(name, whole))
    found = gradients(name, implementation, cotangent.astype(dtype), arguments)
    expected = jax.vjp(getattr(reference, name), *whole)[1](
        cotangent.astype(dtype).astype(jnp.float32)
    )
    for argument, one, other in zip(arguments, found, expected, strict=True):
        assert one.dtype == argument.dtype
        scale = max(1.0, float(jnp.abs(other).max()))
        assert np.abs(np.asarray(one, np.float32) - other).max() <= BACKWARD[dtype] * scale
    assert "RACE" not in capsys.readouterr().out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_finite_differences(name: str, implementation: str) -> None:
    arguments = operands(name, SHAPE, "float32")
    directions = operands(name, SHAPE, "float32", seed=1)
    cotangent = jax.random.normal(jax.random.key(9), shape_of(name, arguments))
    found = gradients(name, implementation, cotangent, arguments)
    slope = sum(np.vdot(g, d) for g, d in zip(found, directions, strict=True))

    def along(step: float) -> float:
        moved = [
            np.asarray(a, np.float64) + step * np.asarray(d, np.float64)
            for a, d in zip(arguments, directions, strict=True)
        ]
        return float(np.vdot(definition(name, *moved), cotangent))

    difference = (along(1e-5) - along(-1e-5)) / 2e-5
    assert abs(slope - difference) <= 1e-4 * max(1.0, abs(difference))


@pytest.mark.stress
@pytest.mark.parametrize("implementation", ["einsum", INTERPRETED])
def test_any_shape(implementation: str) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(
        name=st.sampled_from(OPERATIONS),
        shape=st.tuples(
            st.integers(1, 2),
            st.integers(1, 2),
            st.integers(1, 70),
            st.integers(1, 20),
            st.integers(1, 20),
        ),
        dtype=st.sampled_from(list(FORWARD)),
    )
    def check(name: str, shape: tuple[int, ...], dtype: str) -> None:
        arguments = operands(name, shape, dtype)
        found = jax.jit(partial(run, name, implementation))(*arguments)
        assert error(found, definition(name, *map(np.asarray, arguments))) <= FORWARD[dtype]

    check()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_logits_of_ten_thousand(name: str, implementation: str) -> None:
    """They are sums of whole numbers, which float32 does not round."""
    rng = np.random.default_rng(0)
    arguments = [
        jnp.asarray(rng.integers(-20, 21, o.shape), jnp.float32)
        for o in operands(name, (1, 1, 50, 6, 8), "float32")
    ]
    arguments[1] *= 10
    expected = definition(name, *map(np.asarray, arguments))
    assert error(run(name, implementation, *arguments), expected) <= FORWARD["float32"]
    cotangent = jnp.ones(expected.shape)
    chex.assert_tree_all_finite(gradients(name, implementation, cotangent, arguments))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_what_all_pixels_share_moves_no_logit(implementation: str, dtype: str) -> None:
    """A constant channel is gathered unchanged by any map, so no map can improve on that."""
    x = jax.random.normal(jax.random.key(0), (1, 1, 500, 4), dtype).at[..., 0].set(100)
    weights = jax.random.normal(jax.random.key(1), (4, 3)).at[0].set(0)

    def total(weights: jax.Array) -> jax.Array:
        g = run("softmax_squeeze", implementation, x, weights)
        return jnp.sum(g[..., 0].astype(jnp.float32))

    value, gradient = jax.jit(jax.value_and_grad(total))(weights)
    assert value == 300
    # The logits' derivatives are 0 but for the rounding of 100 times the pixel's share.
    assert jnp.max(jnp.abs(gradient[1:])) < 1e-3 * margin(implementation)


def test_the_whole_is_its_parts_joined() -> None:
    x, weights = operands("softmax_squeeze", (1, 2, 90, 5, 7), "float32")
    logits = jnp.swapaxes(kernels.project(x, weights), -1, -2)

    @jax.jit
    def in_parts(logits: jax.Array, x: jax.Array) -> kernels.Partial:
        first, *rest = (
            kernels.squeeze_partial(logits[..., a:b], x[..., a:b, :])
            for a, b in ((0, 50), (50, 60), (60, 90))
        )
        return kernels.combine_partials(first, kernels.combine_partials(*rest))

    joined = in_parts(logits, x)
    found = kernels.finish_partial(joined, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    expected = definition("softmax_squeeze", np.asarray(x), np.asarray(weights))
    assert error(kernels.finish_partial(joined), expected) <= FORWARD["float32"]
    nothing = kernels.squeeze_partial(jnp.full_like(logits, -jnp.inf), x)
    chex.assert_trees_all_close(kernels.combine_partials(joined, nothing), joined)


@pytest.mark.parametrize("implementation", ["auto", pytest.param("mosaic", marks=pytest.mark.gpu)])
def test_inside_scan_and_checkpoint(implementation: str) -> None:
    x, weights = operands("softmax_squeeze", (1, 1, 20, 3, 4), "float32")

    def loss(x: jax.Array, implementation: str) -> jax.Array:
        @jax.checkpoint
        def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            g = run("softmax_squeeze", implementation, carry, weights)
            return carry + jnp.mean(g, axis=-2, keepdims=True), None

        return jnp.sum(jax.lax.scan(step, x, None, length=3)[0] ** 2)

    found = jax.jit(jax.grad(loss), static_argnums=1)(x, implementation)
    # The errors of three steps add up.
    rtol = 1e-5 if implementation == "auto" else 3e-4
    chex.assert_trees_all_close(found, jax.grad(loss)(x, "einsum"), rtol=rtol, atol=1e-4)


def test_vmap() -> None:
    stacked = [jnp.stack([a, 2 * a]) for a in operands("softmax_expand", SHAPE, "float32")]
    found = jax.vmap(partial(run, "softmax_expand", "auto"))(*stacked)
    expected = [run("softmax_expand", "einsum", *(a[i] for a in stacked)) for i in range(2)]
    tolerance = float32_error(SHAPE[-1], float(jnp.abs(jnp.stack(expected)).max()))
    chex.assert_trees_all_close(found, jnp.stack(expected), rtol=0, atol=tolerance)


def test_a_second_derivative_raises_and_the_einsum_has_it() -> None:
    x, *rest = operands("softmax_expand", (1, 1, 6, 3, 4), "float32")

    def hessian(implementation: str) -> jax.Array:
        of = jax.grad(lambda a: jnp.sum(run("softmax_expand", implementation, a, *rest) ** 2))
        return jax.jit(jax.jacrev(of))(x)

    assert jnp.isfinite(hessian("einsum")).all()
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        hessian("interpreted")
