"""Which implementation runs: the one named or an error, and for "auto" the best known, logged."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from kernels import measured

Implementation: TypeAlias = Literal[
    "auto", "reference", "mosaic", "triton", "mosaic_interpret", "triton_interpret"
]
"""The implementations a caller can name.

"reference" is the einsum. "mosaic" and "triton" are GPU kernels, compiled for CUDA only: for
Hopper, and for Ampere and later. "auto" is, where the program is compiled for a GPU, what was
measured to be fastest there, or a kernel where nothing was; elsewhere it is the einsum. The other
two are the kernels run by Pallas' interpreters on any device, for tests: correct and very slow.
"""

NAMES = {"mosaic": "the Mosaic kernels", "triton": "the Triton kernels", "reference": "the einsum"}

UNMEASURED = ("triton", "mosaic")
"""What "auto" tries in turn where nothing was measured: Triton decides more by itself, so less of
what was never run on a GPU is this package's own."""

OLDEST_GPU = 80
"""Ampere, compute capability 8.0: the first with bfloat16 products and asynchronous copies."""

_GENERATIONS = {"H100": 90, "H200": 90, "A100": 80}

_log = logging.getLogger(__name__)


def run(
    implementation: Implementation,
    operation: str,
    reference: Callable[..., Any],
    operands: Sequence[Array],
    rest: Sequence[Any] | None = None,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Any:
    """Call an operation's implementation, or `reference`, on `operands` and `rest`.

    With a `rest` it is the derivative. What is called goes through `wrap`. Raises ValueError where
    the kernels named cannot take these shapes, and ImportError where JAX has lost them.
    """
    arguments = (*operands, *(rest or ()))
    backward = rest is not None
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation={implementation!r} is none of {', '.join(get_args(Implementation))}"
        )
    if implementation == "reference":
        return wrap(reference)(*arguments)

    def kernels(family: str, interpret: bool, arguments: tuple[Any, ...]) -> Any:
        function = wrap(_function(family, operation, "backward" if backward else "forward"))
        return function(*arguments, interpret=interpret)

    if implementation == "auto":
        choice, why = _choose(operation, backward, operands)
        said = f"{NAMES[choice]}, {why}"
        if choice == "reference":
            return wrap(reference)(*_announced(said, arguments))
        return lax.platform_dependent(
            *arguments,
            cuda=lambda *a: kernels(choice, False, _announced(said, a)),
            default=lambda *a: wrap(reference)(*_announced("the einsum", a)),
        )
    family, _, interpret = implementation.partition("_")
    _backend(family)
    if refusal := _refusal(family, operation, operands):
        raise ValueError(f"implementation={implementation!r}: {refusal}")
    if interpret:
        return kernels(family, True, arguments)
    return kernels(family, False, _cuda_only(family, arguments))


def _choose(operation: str, backward: bool, operands: Sequence[Array]) -> tuple[str, str]:
    """What "auto" takes on the GPU that there is, and why."""
    generation = _generation()
    if generation is not None and generation < OLDEST_GPU:
        return "reference", f"because sm_{generation} is older than sm_{OLDEST_GPU}"
    refusals = []
    found = measured.fastest(generation, operation, backward, operands)
    for choice in found or UNMEASURED:
        if choice == "reference":
            return choice, "measured"
        refusal = _absence(choice, generation) or _refusal(choice, operation, operands)
        if not refusal:
            return choice, "measured" if found else "not measured"
        refusals.append(refusal)
    return "reference", f"because {refusals[0]}"


def _absence(family: str, generation: int | None) -> str | None:
    """Say why "auto" cannot take the kernels of a family, or None."""
    if family == "mosaic" and generation != 90:
        return "the Mosaic kernels are for sm_90"
    try:
        _backend(family)
    except ImportError as error:
        return str(error)
    return None


def _backend(family: str) -> None:
    """Raise ImportError, with what to install, where JAX has not what the kernels are made of."""
    module = {"triton": "triton", "mosaic": "mosaic_gpu"}[family]
    try:
        importlib.import_module(f"jax.experimental.pallas.{module}")
    except ImportError as error:
        wanted = {"triton": "'jax>=0.10.2,<0.13'", "mosaic": "'jax[cuda13]>=0.11'"}[family]
        raise ImportError(
            f"JAX {jax.__version__} has no jax.experimental.pallas.{module}, which "
            f"implementation={family!r} needs: pip install {wanted}, or take 'auto' or 'reference'"
        ) from error


def _refusal(family: str, operation: str, operands: Sequence[Array]) -> str | None:
    return _function(family, operation, "limits")(*operands)


def _function(family: str, operation: str, which: str) -> Callable[..., Any]:
    """A function of the kernels: `forward`, `backward`, or `limits` of an operation."""
    kind, half = operation.split("_")
    return getattr(importlib.import_module(f"kernels.{family}_{half}"), f"{kind}_{which}")


def _generation() -> int | None:
    """Ten times the compute capability of the GPU that is compiled for; None where unknown."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return next((g for name, g in _GENERATIONS.items() if name in device.device_kind), None)
    if jax.default_backend() != "gpu":
        return None
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    digits = capability.replace(".", "")
    return int(digits) if digits.isdigit() else None


# Only the lowering knows the platform a program is compiled for. This primitive returns its
# operand, and when it is lowered it says so in the log, or refuses the platform.
_at_lowering_p = Primitive("kernels_at_lowering")
_at_lowering_p.def_abstract_eval(lambda x, *, choice, family: x)
batching.primitive_batchers[_at_lowering_p] = lambda args, dims, **parameters: (
    _at_lowering_p.bind(*args, **parameters),
    dims[0],
)


def _lower(context: Any, operand: Any, *, choice: str | None, family: str | None) -> list[Any]:
    platforms = context.platforms or context.module_context.platforms
    if choice is not None:
        _say_once(choice, ", ".join(platforms))
    elif "cuda" not in platforms:
        raise NotImplementedError(
            f"implementation={family!r} is for CUDA GPUs and this program is compiled for "
            f"{', '.join(platforms)}; 'auto' and 'reference' run there, "
            f"'{family}_interpret' in a test"
        )
    elif family == "mosaic" and _generation() not in (None, 90):
        raise NotImplementedError(
            f"implementation='mosaic' is for Hopper, sm_90, and this program is compiled for "
            f"sm_{_generation()}; 'auto', 'triton' and 'reference' run there"
        )
    return [operand]


mlir.register_lowering(_at_lowering_p, _lower)


@functools.cache
def _say_once(choice: str, platform: str) -> None:
    _log.info("implementation='auto' on %s takes %s", platform, choice)


def _announced(choice: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    first = _at_lowering_p.bind(arguments[0], choice=choice, family=None)
    return (first, *arguments[1:])


def _cuda_only(family: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    first = _at_lowering_p.bind(arguments[0], choice=None, family=family)
    return (first, *arguments[1:])


@jax.custom_jvp
def first_derivative_only(values: Any) -> Any:
    """Return `values`, and raise NotImplementedError where they are differentiated again."""
    return values


@first_derivative_only.defjvp
def _second_derivative(primals: Any, tangents: Any) -> NoReturn:
    raise NotImplementedError(
        "the kernels have first derivatives only; implementation='reference' has all of them"
    )
