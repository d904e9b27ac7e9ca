"""Every implementation of every operation, dtype and shape against float64 NumPy."""

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
from kernels import reference, tiles, triton_squeeze

OPERATIONS = ("softmax_squeeze", "projected_squeeze", "softmax_expand", "projected_expand")
NO_MOSAIC_INTERPRETER = (
    None
    if hasattr(mosaic_gpu, "InterpretGPUParams")
    else f"the Mosaic GPU interpreter of JAX {jax.__version__} is private and takes no transposed "
    "operand; that of 0.11 does"
)
IMPLEMENTATIONS = (
    "reference",
    # On a CPU the einsum, as the reference is; test_dispatch.py proves what it chooses.
    pytest.param("auto", marks=pytest.mark.stress),
    "triton_interpret",
    pytest.param(
        "mosaic_interpret",
        marks=[
            pytest.mark.stress,
            pytest.mark.skipif(
                NO_MOSAIC_INTERPRETER is not None, reason=str(NO_MOSAIC_INTERPRETER)
            ),
        ],
    ),
    pytest.param("triton", marks=pytest.mark.gpu),
    pytest.param("mosaic", marks=pytest.mark.gpu),
)
# float16 goes the way of bfloat16.
DTYPES = ("float32", "bfloat16", pytest.param("float16", marks=pytest.mark.stress))
# Relative to the largest value there is. Half precision rounds each weight to 8 or 11 bits.
FORWARD = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 2e-3}
BACKWARD = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 1e-2}
# batch, frames, pixels, maps or combinations, channels
SHAPE = (1, 2, 130, 5, 12)
CASES = [
    (SHAPE, "float32"),
    (SHAPE, "bfloat16"),
    pytest.param(SHAPE, "float16", marks=pytest.mark.stress),
    ((2, 1, 1, 1, 3), "float32"),  # one pixel, one map
    ((1, 1, 64, 16, 16), "float32"),  # nothing to pad
    ((1, 3, 577, 33, 20), "float32"),  # several tiles a program, several programs a frame
]

Arrays = tuple[np.ndarray, ...]


def softmax64(a: np.ndarray, axis: int) -> np.ndarray:
    maximum = a.max(axis, keepdims=True)
    e = np.exp(a - np.where(np.isfinite(maximum), maximum, 0))
    total = e.sum(axis, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)


def definition(name: str, *operands: np.ndarray) -> np.ndarray:
    """The four operations in float64, each as its equation is printed."""
    a = [o.astype(np.float64) for o in operands]
    match name:
        case "softmax_squeeze":
            return np.einsum("btmp,btpc->btmc", softmax64(a[0], -1), a[1])
        case "projected_squeeze":
            logits = np.einsum("btpc,cm->btmp", a[0], a[1]) + a[2][:, None]
            return np.einsum("btmp,btpc->btmc", softmax64(logits, -1), a[0])
        case "softmax_expand":
            return np.einsum("bpk,bkc->bpc", softmax64(a[0], -1), a[1])
        case _:
            logits = np.einsum("bpd,dk->bpk", a[0], a[1]) + a[2]
            return np.einsum("bpk,bkc->bpc", softmax64(logits, -1), a[3])


def operands(name: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> list[jax.Array]:
    b, t, p, m, c = shape
    d = c + 1  # an expand may take its logits from features of another depth
    shapes = {
        "softmax_squeeze": [(b, t, m, p), (b, t, p, c)],
        "projected_squeeze": [(b, t, p, c), (c, m), (m,)],
        "softmax_expand": [(b * t, p, m), (b * t, m, c)],
        "projected_expand": [(b * t, p, d), (d, m), (m,), (b * t, m, c)],
    }[name]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def run(name: str, implementation: str, *arguments: jax.Array) -> jax.Array:
    return getattr(kernels, name)(*arguments, implementation=implementation)


def shape_of(name: str, arguments: list[jax.Array]) -> tuple[int, ...]:
    return jax.eval_shape(partial(run, name, "reference"), *arguments).shape


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
    found = jax.jit(partial(run, name, implementation))(*arguments)
    expected = definition(name, *map(np.asarray, arguments))
    chex.assert_shape(found, expected.shape)
    assert found.dtype == dtype
    assert error(found, expected) <= FORWARD[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_those_of_the_reference(name: str, implementation: str, dtype: str) -> None:
    arguments = operands(name, SHAPE, dtype)
    whole = [a.astype(jnp.float32) for a in arguments]
    cotangent = jax.random.normal(jax.random.key(9), shape_of(name, whole))
    found = gradients(name, implementation, cotangent.astype(dtype), arguments)
    expected = gradients(name, "reference", cotangent.astype(dtype).astype(jnp.float32), whole)
    for argument, one, other in zip(arguments, found, expected, strict=True):
        assert one.dtype == argument.dtype
        # The bias of a squeeze shifts all logits of a map alike: its gradient is 0.
        scale = max(1.0, float(jnp.abs(other).max()))
        assert np.abs(np.asarray(one, np.float32) - other).max() <= BACKWARD[dtype] * scale


@pytest.mark.skipif(NO_MOSAIC_INTERPRETER is not None, reason=str(NO_MOSAIC_INTERPRETER))
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_mosaic_kernels_have_no_races(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The interpreter reports what its clocks find; two tiles a block, the second partly masked."""
    shape, dtype = (1, 1, 70, 5, 12), "bfloat16"
    arguments = operands(name, shape, dtype)
    whole = [a.astype(jnp.float32) for a in arguments]
    cotangent = jax.random.normal(jax.random.key(9), shape_of(name, whole), dtype)
    found = gradients(name, "mosaic_interpret", cotangent, arguments)
    expected = gradients(name, "reference", cotangent.astype(jnp.float32), whole)
    for one, other in zip(found, expected, strict=True):
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
def test_any_shape(name: str, shape: tuple[int, ...], dtype: str) -> None:
    arguments = operands(name, shape, dtype)
    found = jax.jit(partial(run, name, "triton_interpret"))(*arguments)
    assert error(found, definition(name, *map(np.asarray, arguments))) <= FORWARD[dtype]


@st.composite
def logits_of_any_range(draw: st.DrawFn, rows: int, columns: int) -> np.ndarray:
    """All equal, within 1e4 of 0, some masked, a row all masked."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))
    logits = draw(st.sampled_from([0.0, -1e4, 1e4])) + scale * rng.uniform(-1, 1, (rows, columns))
    logits[rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = -np.inf
    if draw(st.booleans()):
        logits[rng.integers(rows)] = -np.inf
    return logits.astype(np.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["softmax_squeeze", "softmax_expand"])
def test_any_range_of_logits(name: str, implementation: str) -> None:
    """A fully masked softmax weighs nothing: zero, and so are its gradients."""
    rows, columns = (4, 40) if name == "softmax_squeeze" else (40, 4)
    lead = (1, 1) if name == "softmax_squeeze" else (1,)
    summed = (40 if name == "softmax_squeeze" else 4, 6)

    @jax.jit
    def both(logits: jax.Array, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        y, pull = jax.vjp(partial(run, name, implementation), logits, x)
        return y, pull(jnp.ones_like(y))

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(logits=logits_of_any_range(rows, columns), seed=st.integers(0, 99))
    def check(logits: np.ndarray, seed: int) -> None:
        x = np.random.default_rng(seed).uniform(0, 1, summed).astype(np.float32)
        arguments = [logits.reshape(*lead, *logits.shape), x.reshape(*lead, *x.shape)]
        y, (dlogits, dx) = both(*arguments)
        expected = definition(name, *arguments)
        assert np.abs(y - expected).max() <= FORWARD["float32"]
        assert np.isfinite(dlogits).all()
        assert np.isfinite(dx).all()
        masked = np.isneginf(logits).all(-1)
        assert not np.asarray(y)[..., masked, :].any()
        assert not np.asarray(dlogits)[..., masked, :].any()

    check()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["projected_squeeze", "projected_expand"])
def test_projected_logits_of_ten_thousand(name: str, implementation: str) -> None:
    """Of whole numbers, so that float32 sums them without rounding."""
    rng = np.random.default_rng(0)
    arguments = [
        jnp.asarray(rng.integers(-20, 21, o.shape), jnp.float32)
        for o in operands(name, (1, 1, 50, 6, 8), "float32")
    ]
    arguments[1] *= 10
    expected = definition(name, *map(np.asarray, arguments))
    assert error(run(name, implementation, *arguments), expected) <= FORWARD["float32"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_what_all_pixels_share_moves_no_logit(implementation: str, dtype: str) -> None:
    """Pixels that are all alike are gathered as they are, and no map can better that."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 1, 3, 500)), jnp.float32)
    x = jnp.full((1, 1, 500, 4), 100, dtype)

    def total(logits: jax.Array) -> jax.Array:
        g = kernels.softmax_squeeze(logits, x, implementation=implementation)
        return jnp.sum(g.astype(jnp.float32))

    value, gradient = jax.value_and_grad(total)(logits)
    assert value == 1200
    # Each pixel's share of 400; without float32's rounding it were 0.
    shares = jax.nn.softmax(logits, axis=-1) * 400
    assert jnp.max(jnp.abs(gradient) / shares) < 1e-5


def test_more_partial_results_than_are_joined_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a frame of a video, whose pixels take hundreds of programs; here it takes few."""
    monkeypatch.setattr(tiles, "JOINED_CHUNKS", 2)
    logits, x = operands("softmax_squeeze", (1, 2, 1100, 3, 5), "float32")
    logits = logits + jnp.linspace(0, 20, 1100)  # each part has a larger maximum than the last
    logits = logits - 500  # what fills the last block up counts as nothing, not as 0
    partial = triton_squeeze.softmax_forward(logits, x, interpret=True)
    expected = definition("softmax_squeeze", np.asarray(logits), np.asarray(x))
    assert error(reference.finish_partial(partial), expected) <= FORWARD["float32"]


def test_the_whole_is_its_parts_joined() -> None:
    logits, x = operands("softmax_squeeze", (1, 2, 90, 5, 7), "float32")
    logits = logits.at[0, 0, 2, :60].set(-jnp.inf)
    parts = [
        kernels.squeeze_partial(logits[..., a:b], x[..., a:b, :])
        for a, b in ((0, 50), (50, 60), (60, 90))
    ]
    joined = kernels.combine_partials(parts[0], kernels.combine_partials(parts[1], parts[2]))
    found = kernels.finish_partial(joined, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    expected = definition("softmax_squeeze", np.asarray(logits), np.asarray(x))
    assert error(kernels.finish_partial(joined), expected) <= FORWARD["float32"]
    nothing = reference.squeeze_partial(jnp.full_like(logits, -jnp.inf), x)
    same = kernels.combine_partials(joined, nothing)
    chex.assert_trees_all_close(same, joined)


@pytest.mark.parametrize("implementation", ["auto", "triton_interpret"])
def test_inside_scan_and_checkpoint(implementation: str) -> None:
    logits, x = operands("softmax_squeeze", (1, 1, 20, 3, 4), "float32")

    def loss(x: jax.Array, implementation: str) -> jax.Array:
        @jax.checkpoint
        def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            g = run("softmax_squeeze", implementation, logits, carry)
            return carry + jnp.mean(g, axis=-2, keepdims=True), None

        return jnp.sum(jax.lax.scan(step, x, None, length=3)[0] ** 2)

    found = jax.jit(jax.grad(loss), static_argnums=1)(x, implementation)
    chex.assert_trees_all_close(found, jax.grad(loss)(x, "reference"), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("implementation", ["auto", "triton_interpret"])
def test_vmap(implementation: str) -> None:
    logits, x = (
        jnp.stack([a, 2 * a]) for a in operands("softmax_expand", (1, 1, 20, 3, 4), "float32")
    )
    found = jax.vmap(partial(run, "softmax_expand", implementation))(logits, x)
    expected = jax.vmap(partial(run, "softmax_expand", "reference"))(logits, x)
    chex.assert_trees_all_close(found, expected, atol=1e-6)


def test_a_second_derivative_raises_and_the_reference_has_it() -> None:
    logits, x = operands("softmax_expand", (1, 1, 6, 3, 4), "float32")

    def hessian(implementation: str) -> jax.Array:
        return jax.jacrev(
            jax.grad(lambda a: jnp.sum(run("softmax_expand", implementation, a, x) ** 2))
        )(logits)

    assert jnp.isfinite(hessian("reference")).all()
    for implementation in ("auto", "triton_interpret", "triton", "mosaic"):
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            hessian(implementation)
