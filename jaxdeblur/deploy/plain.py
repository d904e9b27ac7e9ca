"""Evaluates a traced function in the few primitives that graph converters support at any size.

JAX traces indexing to ``gather``, padding to ``pad`` and conditions to ``cond``. For these a
converter either supports no symbolic sizes or makes a graph that runtimes cannot optimise. Here the
same values are computed by slices, concatenations and selections; constants are folded, and
broadcast only where something needs them at full size; and nested functions are inlined. (It is an
interpreter as JAX documents them: "Writing custom Jaxpr interpreters in JAX".)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

_CALLS = ("jit", "closed_call", "custom_vjp_call", "custom_jvp_call", "checkpoint")


def in_plain_primitives(
    function: Callable[..., tuple[jax.Array, ...]], *inputs: jax.ShapeDtypeStruct
) -> Callable[..., tuple[jax.Array, ...]]:
    """Returns the same function for arrays of these shapes, as plain as its trace allows."""
    closed = jax.make_jaxpr(function)(*inputs)
    return lambda *arrays: tuple(map(_whole, _evaluate(closed.jaxpr, closed.consts, arrays)))


class _Spread(NamedTuple):
    """A constant, with as many dimensions as ``shape``, that is to be broadcast to it.

    ONNX arithmetic broadcasts a bias by itself. To broadcast it to a frame of any size takes eight
    operators, and runtimes then neither fuse it into the convolution nor drop the change of layout
    between two convolutions.
    """

    constant: jax.Array
    shape: tuple[Any, ...]


def _whole(value: Any) -> Any:
    """Returns a value as an array of its full size."""
    if not isinstance(value, _Spread):
        return value
    return lax.broadcast_in_dim(value.constant, value.shape, range(value.constant.ndim))


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in _needed(jaxpr):
        outputs = _apply(equation, [read(variable) for variable in equation.invars])
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations on which the outputs depend; frames restored in a warm-up are unused."""
    live, needed = {id(variable) for variable in jaxpr.outvars}, []
    for equation in reversed(jaxpr.eqns):
        if live & set(map(id, equation.outvars)):
            needed.append(equation)
            live |= set(map(id, equation.invars))
    return needed[::-1]


def _apply(equation: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
    name = equation.primitive.name
    if name in _CALLS:
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if name in _ARITHMETIC and any(isinstance(value, _Spread) for value in inputs):
        # Looked up here, since a converter replaces these functions by its own.
        return [_spread_by_operator(getattr(jnp, _ARITHMETIC[name]), *inputs)]
    inputs = [_whole(value) for value in inputs]
    rule = _RULES.get(name)
    if rule is not None and (outputs := rule(equation, *inputs)) is not None:
        return outputs
    if _is_constant(equation, inputs):
        with jax.ensure_compile_time_eval():
            outputs = equation.primitive.bind(*inputs, **equation.params)
    else:
        outputs = equation.primitive.bind(*inputs, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _spread_by_operator(operator: Callable[..., Any], *inputs: Any) -> Any:
    """Applies an operator to inputs of one shape without broadcasting the constants first."""
    small = [value.constant if isinstance(value, _Spread) else value for value in inputs]
    result = operator(*small)
    shapes = [value.shape for value in inputs if isinstance(value, _Spread)]
    return result if result.shape == shapes[0] else _Spread(result, shapes[0])


def _broadcast(equation: JaxprEqn, x: Any, *sizes: Any) -> Sequence[Any] | None:
    shape = equation.params["shape"]
    if not _is_known(x) or sizes or np.ndim(x) == 0 or all(map(_is_known, shape)):
        return None
    places = dict(zip(equation.params["broadcast_dimensions"], np.shape(x), strict=True))
    constant = jnp.asarray(x).reshape([places.get(axis, 1) for axis in range(len(shape))])
    return [_Spread(constant, shape)]


def _is_constant(equation: JaxprEqn, inputs: list[Any]) -> bool:
    sizes = [size for variable in equation.outvars for size in getattr(variable.aval, "shape", ())]
    return bool(inputs) and all(map(_is_known, [*inputs, *sizes]))


def _is_known(value: Any) -> bool:
    """Whether it is a concrete array or number, neither traced nor a symbolic size."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(
        value, jax.core.Tracer
    )


def _cond(equation: JaxprEqn, index: Any, *operands: Any) -> Sequence[Any] | None:
    """Selects between both branches' results: none has side effects or saves work for long."""
    branches = equation.params["branches"]
    if _is_known(index):
        chosen = branches[int(index)]
        return _evaluate(chosen.jaxpr, chosen.consts, operands)
    if len(branches) != 2:
        return None
    no, yes = (_evaluate(branch.jaxpr, branch.consts, operands) for branch in branches)
    condition = lax.convert_element_type(index, jnp.bool_)
    return [a if a is b else _choose(condition, a, b) for a, b in zip(no, yes, strict=True)]


def _select(equation: JaxprEqn, condition: Any, *cases: Any) -> Sequence[Any] | None:
    if _is_known(condition) and np.ndim(condition) == 0:
        return [cases[int(condition)]]
    return [_choose(condition, *cases)] if condition.dtype == jnp.bool_ else None


def _choose(condition: Any, no: Any, yes: Any) -> Any:
    """Selects by ``condition``; booleans, which ONNX Runtime can't select, by their logic."""
    if no.dtype == jnp.bool_ and np.ndim(condition) == np.ndim(no):
        return lax.bitwise_or(
            lax.bitwise_and(condition, yes), lax.bitwise_and(lax.bitwise_not(condition), no)
        )
    return lax.select_n(condition, no, yes)


def _pad(equation: JaxprEqn, x: Any, value: Any) -> Sequence[Any] | None:
    padding = equation.params["padding_config"]
    if any(inner or any(_is_known(n) and n < 0 for n in ends) for *ends, inner in padding):
        return None
    if _is_known(x) and _is_known(value):
        return None
    for axis, (*ends, _) in enumerate(padding):
        before, after = (
            [lax.broadcast_in_dim(value, [*x.shape[:axis], count, *x.shape[axis + 1 :]], ())]
            if count != 0
            else []
            for count in ends
        )
        x = lax.concatenate([*before, x, *after], axis)
    return [x]


def _gather(equation: JaxprEqn, x: Any, start: Any) -> Sequence[Any] | None:
    """Turns a gather of one window at a known position into a slice."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if not _is_known(start) or np.ndim(start) != 1 or numbers.operand_batching_dims:
        return None
    begin = [0] * x.ndim
    for axis, place in zip(numbers.start_index_map, np.asarray(start), strict=True):
        begin[axis] = int(place)
    end = [first + size for first, size in zip(begin, sizes, strict=True)]
    window = lax.slice(x, begin, end)
    # Collapsed dimensions have size 1; the others keep their order.
    return [lax.squeeze(window, numbers.collapsed_slice_dims)]


_ARITHMETIC = {"add": "add", "sub": "subtract", "mul": "multiply", "max": "maximum"}
"""Primitives and their equivalents in jax.numpy, which broadcast smaller inputs."""

_RULES: dict[str, Callable[..., Sequence[Any] | None]] = {
    "broadcast_in_dim": _broadcast,
    "cond": _cond,
    "select_n": _select,
    "pad": _pad,
    "gather": _gather,
}
