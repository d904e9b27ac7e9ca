"""A model's parameters as a flat dict by name, as trained, saved, loaded and shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Parameters

Model = TypeVar("Model", bound=VideoRestorer)


def split(model: Model) -> tuple[Callable[[Parameters], Model], Parameters]:
    """Returns ``(rebuild, parameters)``; ``rebuild`` makes the model with the parameters given.

    ``rebuild`` may be called inside ``jax.jit``, where it costs nothing at run time.
    """
    graph, state = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    paths = {"/".join(map(str, path)): path for path, _ in flat}

    def rebuild(parameters: Parameters) -> Model:
        leaves = [(path, nnx.Param(parameters[name])) for name, path in paths.items()]
        model: Model = nnx.merge(graph, nnx.from_flat_state(leaves))
        return model

    return rebuild, {"/".join(map(str, path)): variable[...] for path, variable in flat}


_BASE = "base/"  # Begins the names of parameters of a system's base, which is not trained with it.


def as_base(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a network by their names in a system whose base it is."""
    return {_BASE + name: array for name, array in parameters.items()}


def of_base(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a system's base by their own names; empty if there is none."""
    return {
        name.removeprefix(_BASE): array
        for name, array in parameters.items()
        if name.startswith(_BASE)
    }


def is_trained(name: str) -> bool:
    """Returns whether training optimises a parameter: no running statistic, nor that of a base."""
    return not (is_statistic(name) or name.startswith(_BASE))


def is_statistic(name: str) -> bool:
    """Returns whether a parameter is a running statistic, which is saved but not optimised."""
    return name.rsplit("/", 1)[-1] in ("running_mean", "running_var")


def outline(
    build: Callable[[], VideoRestorer],
) -> tuple[Callable[[Parameters], VideoRestorer], dict[str, jax.ShapeDtypeStruct]]:
    """Splits the model of ``build`` like :func:`split`, with shapes instead of allocated arrays."""
    rebuilds = []

    def parameters() -> Parameters:
        rebuild, drawn = split(build())
        rebuilds.append(rebuild)
        return drawn

    shapes = jax.eval_shape(parameters)
    return rebuilds[0], shapes


def count(parameters: Mapping[str, Any]) -> int:
    """Returns the number of scalars in the parameters, without running statistics."""
    return sum(array.size for name, array in parameters.items() if not is_statistic(name))
