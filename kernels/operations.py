"""The four operations, each joined with its derivative, its implementations and a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from kernels import reference
from kernels.dispatch import Implementation, first_derivative_only, run
from kernels.reference import Partial, Saved
from kernels.sharding import Sharding, combine_over_devices, sharded, sum_over_devices

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def softmax_squeeze(
    logits: Float[Array, "B T M P"],
    x: Float[Array, "B T P C"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B T M C"]:
    """G[m, c] = sum_p softmax_p(logits)[m, p] x[p, c] for each frame (attention, eq. 1-2).

    Raises ValueError for shapes that do not fit together or that a named kernel cannot take.
    """
    return _call(_SOFTMAX_SQUEEZE, implementation, sharding, logits, x)


def projected_squeeze(
    x: Float[Array, "B T P C"],
    weights: Float[Array, "C M"],
    bias: Float[Array, " M"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B T M C"]:
    """`softmax_squeeze` of x with the logits x weights + bias, taken in the same pass over x.

    The weights are rounded to the dtype of x. Raises as `softmax_squeeze` does.
    """
    return _call(_PROJECTED_SQUEEZE, implementation, sharding, x, weights, bias)


def softmax_expand(
    logits: Float[Array, "B P K"],
    g: Float[Array, "B K C"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B P C"]:
    """y[p, c] = sum_k softmax_k(logits)[p, k] g[k, c] for each pixel (attention, eq. 5-6).

    Raises ValueError for shapes that do not fit together or that a named kernel cannot take.
    """
    return _call(_SOFTMAX_EXPAND, implementation, sharding, logits, g)


def projected_expand(
    x: Float[Array, "B P D"],
    weights: Float[Array, "D K"],
    bias: Float[Array, " K"],
    g: Float[Array, "B K C"],
    *,
    implementation: Implementation = "auto",
    sharding: Sharding | None = None,
) -> Float[Array, "B P C"]:
    """`softmax_expand` of g with the logits x weights + bias, taken in the same pass over x.

    The weights are rounded to the dtype of x. Raises as `softmax_expand` does.
    """
    return _call(_PROJECTED_EXPAND, implementation, sharding, x, weights, bias, g)


@dataclass(frozen=True)
class _Operation:
    """One operation: what it takes and gives, and what computes it and its derivative.

    `name` is that of its kernels too. `layout` is read as an einsum's, and drives the check of
    shapes and the sharding. Of a squeeze, the kernels and `reference` give a Partial; the
    derivatives take what was saved of it.
    """

    name: str
    layout: str
    reference: Callable[..., Any]
    reference_backward: Callable[..., Any]
    definition: Callable[..., Any]
    squeezes: bool = False

    @property
    def operands(self) -> list[str]:
        return self.layout.split("->")[0].split(",")

    @property
    def divided(self) -> str:
        """The dimensions that a mesh can divide: batch, time, pixels."""
        return "".join(letter for letter in "btp" if letter in self.layout)


@dataclass(frozen=True)
class _Plan:
    """One call of an operation, but for its arrays; what the compiled programs are known by."""

    operation: _Operation
    implementation: Implementation
    sharding: Sharding | None


def _projected_partial(x: Array, weights: Array, bias: Array) -> Partial:
    logits = reference.project(x, weights, bias)
    return reference.squeeze_partial(jnp.swapaxes(logits, -1, -2), x)


_SOFTMAX_SQUEEZE = _Operation(
    name="softmax_squeeze",
    layout="btmp,btpc->btmc",
    reference=reference.squeeze_partial,
    reference_backward=reference.softmax_squeeze_backward,
    definition=reference.softmax_squeeze,
    squeezes=True,
)
_PROJECTED_SQUEEZE = _Operation(
    name="projected_squeeze",
    layout="btpc,cm,m->btmc",
    reference=_projected_partial,
    reference_backward=reference.projected_squeeze_backward,
    definition=reference.projected_squeeze,
    squeezes=True,
)
_SOFTMAX_EXPAND = _Operation(
    name="softmax_expand",
    layout="bpk,bkc->bpc",
    reference=reference.softmax_expand,
    reference_backward=reference.softmax_expand_backward,
    definition=reference.softmax_expand,
)
_PROJECTED_EXPAND = _Operation(
    name="projected_expand",
    layout="bpd,dk,k,bkc->bpc",
    reference=reference.projected_expand,
    reference_backward=reference.projected_expand_backward,
    definition=reference.projected_expand,
)


def _call(
    operation: _Operation,
    implementation: Implementation,
    sharding: Sharding | None,
    *operands: Array,
) -> Array:
    _check(operation, operands)
    if implementation == "reference" and sharding is None:
        return operation.definition(*operands)
    return _differentiable(_Plan(operation, implementation, sharding), *operands)


def _check(operation: _Operation, operands: tuple[Array, ...]) -> None:
    sizes: dict[str, int] = {}
    for term, operand in zip(operation.operands, operands, strict=True):
        if operand.dtype not in DTYPES:
            raise TypeError(f"{operand.dtype} where float32, bfloat16 or float16 is taken")
        fits = len(term) == operand.ndim and all(
            size > 0 and sizes.setdefault(letter, size) == size
            for letter, size in zip(term, operand.shape, strict=True)
        )
        if not fits:
            shapes = ", ".join(str(o.shape) for o in operands)
            raise ValueError(f"the shapes {shapes} do not fit {operation.layout!r}")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(plan: _Plan, *operands: Array) -> Array:
    return _forward(plan, *operands)[0]


def _differentiable_forward(plan: _Plan, *operands: Array) -> tuple[Array, Any]:
    operands = first_derivative_only(operands)
    result, saved = _forward(plan, *operands)
    return result, (operands, saved)


def _differentiable_backward(plan: _Plan, kept: Any, cotangent: Array) -> tuple[Array, ...]:
    operands, saved, cotangent = first_derivative_only((*kept, cotangent))
    return _backward(plan, operands, saved, cotangent)


_differentiable.defvjp(_differentiable_forward, _differentiable_backward)


@partial(jax.jit, static_argnums=0)
def _forward(plan: _Plan, *operands: Array) -> tuple[Array, Saved | None]:
    operation = plan.operation

    def on_one_device(*operands: Array) -> Any:
        result = run(plan.implementation, operation.name, operation.reference, operands)
        if not operation.squeezes:
            return result
        whole = combine_over_devices(result, plan.sharding)
        inverse = reference.inverse_total(whole.total)
        return whole.maximum, inverse, reference.finish_partial(whole)

    if not operation.squeezes:
        return sharded(on_one_device, plan.sharding, operation.layout)(*operands), None
    layout = operation.layout.replace("->btmc", "->btm,btm,btmc")
    saved = Saved(*sharded(on_one_device, plan.sharding, layout)(*operands))
    summed = operands[operation.operands.index("btpc")]
    return saved.squeezed.astype(summed.dtype), saved


@partial(jax.jit, static_argnums=0)
def _backward(
    plan: _Plan, operands: tuple[Array, ...], saved: Saved | None, cotangent: Array
) -> tuple[Array, ...]:
    operation, terms = plan.operation, plan.operation.operands

    def on_one_device(*arguments: Array) -> tuple[Array, ...]:
        operands = arguments[: len(terms)]
        rest: tuple[Any, ...] = arguments[len(terms) :]
        if operation.squeezes:
            rest = (Saved(*rest[:-1]), rest[-1])
        backward = operation.reference_backward
        gradients = run(plan.implementation, operation.name, backward, operands, rest, rounded)
        # An operand that several devices hold has on each only what that device's part adds.
        return tuple(
            sum_over_devices(
                gradient,
                plan.sharding,
                "".join(letter for letter in operation.divided if letter not in term),
            ).astype(operand.dtype)
            for term, gradient, operand in zip(terms, gradients, operands, strict=True)
        )

    def rounded(backward: Callable[..., Any]) -> Callable[..., tuple[Array, ...]]:
        """Give the derivatives of pixels the dtype of the operand, and leave sums in float32."""

        def both(*arguments: Any, **options: bool) -> tuple[Array, ...]:
            return tuple(
                gradient.astype(operand.dtype if "p" in term else jnp.float32)
                for term, gradient, operand in zip(
                    terms, backward(*arguments, **options), operands, strict=True
                )
            )

        return both

    inputs, output = operation.layout.split("->")
    if saved is None:
        layout = f"{inputs},{output}->{inputs}"
        return sharded(on_one_device, plan.sharding, layout)(*operands, cotangent)
    layout = f"{inputs},btm,btm,btmc,{output}->{inputs}"
    return sharded(on_one_device, plan.sharding, layout)(
        *operands, *saved, cotangent.astype(jnp.float32)
    )
