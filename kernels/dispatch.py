"""Which implementation runs: the one named or an error, and for "auto" the platform's, logged."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

Implementation: TypeAlias = Literal["auto", "pallas", "reference", "interpret"]
"""The implementations a caller can name.

"reference" is the einsum. "pallas" is the GPU kernels, compiled for CUDA only. "auto" is the
kernels where the program is compiled for a supported GPU and the einsum elsewhere. "interpret"
is the kernels run by Pallas' interpreter on any device, for tests: correct and very slow.
"""

OLDEST_GPU = 8.0
"""Ampere, compute capability 8.0: the first with bfloat16 products and asynchronous copies."""

_log = logging.getLogger(__name__)


def run(
    implementation: Implementation,
    pallas: Callable[..., Any],
    reference: Callable[..., Any],
    limits: Callable[..., str | None],
    *arguments: Any,
) -> Any:
    """Call `pallas(*arguments, interpret=...)` or `reference(*arguments)`.

    `limits(*arguments)` says why the kernels cannot take these shapes, or None: then "auto"
    takes the einsum, and a named kernel raises ValueError.
    """
    if implementation == "reference":
        return reference(*arguments)
    refusal = limits(*arguments)
    if implementation == "auto":
        if refusal := refusal or _old_gpu():
            return reference(*_announced(f"the einsum, because {refusal}", arguments))
        return lax.platform_dependent(
            *arguments,
            cuda=lambda *a: pallas(*_announced("the Pallas kernels", a), interpret=False),
            default=lambda *a: reference(*_announced("the einsum", a)),
        )
    if refusal:
        raise ValueError(f"implementation={implementation!r}: {refusal}")
    if implementation == "interpret":
        return pallas(*arguments, interpret=True)
    if implementation == "pallas":
        return pallas(*_cuda_only(arguments), interpret=False)
    raise ValueError(
        f"implementation={implementation!r} is none of auto, pallas, reference and interpret"
    )


def _old_gpu() -> str | None:
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", "")
    if not capability.replace(".", "").isdigit() or float(capability) >= OLDEST_GPU:
        return None
    return f"{device.device_kind} is older than compute capability {OLDEST_GPU}"


# Only the lowering knows the platform a program is compiled for. This primitive returns its
# operand, and when it is lowered it says so in the log, or refuses the platform.
_at_lowering_p = Primitive("kernels_at_lowering")
_at_lowering_p.def_abstract_eval(lambda x, *, choice: x)
batching.primitive_batchers[_at_lowering_p] = lambda args, dims, **parameters: (
    _at_lowering_p.bind(*args, **parameters),
    dims[0],
)


def _lower(context: Any, operand: Any, *, choice: str | None) -> list[Any]:
    platforms = context.platforms or context.module_context.platforms
    if choice is not None:
        _say_once(choice, ", ".join(platforms))
    elif "cuda" not in platforms:
        raise NotImplementedError(
            f"implementation='pallas' is for CUDA GPUs and this program is compiled for "
            f"{', '.join(platforms)}; 'auto' and 'reference' run there, 'interpret' in a test"
        )
    return [operand]


mlir.register_lowering(_at_lowering_p, _lower)


@functools.cache
def _say_once(choice: str, platform: str) -> None:
    _log.info("implementation='auto' on %s takes %s", platform, choice)


def _announced(choice: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_at_lowering_p.bind(arguments[0], choice=choice), *arguments[1:])


def _cuda_only(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_at_lowering_p.bind(arguments[0], choice=None), *arguments[1:])


@jax.custom_jvp
def first_derivative_only(values: Any) -> Any:
    """Return `values`, and raise NotImplementedError where they are differentiated again."""
    return values


@first_derivative_only.defjvp
def _second_derivative(primals: Any, tangents: Any) -> NoReturn:
    raise NotImplementedError(
        "the kernels have first derivatives only; implementation='reference' has all of them"
    )
