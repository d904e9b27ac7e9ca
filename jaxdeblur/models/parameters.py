"""A model's parameters as a flat dict by name: what is trained, saved, loaded and shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Parameters


def split(model: VideoRestorer) -> tuple[Callable[[Parameters], VideoRestorer], Parameters]:
    """Gives ``(rebuild, parameters)``: ``rebuild(parameters)`` is the model with these parameters.

    ``rebuild`` may be called inside ``jax.jit``, where it costs nothing at run time.
    """
    graph, state = nnx.split(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    paths = {"/".join(map(str, path)): path for path, _ in flat}

    def rebuild(parameters: Parameters) -> VideoRestorer:
        leaves = [(path, nnx.Param(parameters[name])) for name, path in paths.items()]
        return nnx.merge(graph, nnx.from_flat_state(leaves))

    return rebuild, {"/".join(map(str, path)): variable[...] for path, variable in flat}


def is_statistic(name: str) -> bool:
    """Whether a parameter is a running statistic: saved like the others, but not optimised."""
    return name.rsplit("/", 1)[-1] in ("running_mean", "running_var")


def outline(
    build: Callable[[], VideoRestorer],
) -> tuple[Callable[[Parameters], VideoRestorer], dict[str, jax.ShapeDtypeStruct]]:
    """:func:`split` of what ``build`` makes, with shapes for parameters: no memory is taken."""
    rebuilds = []

    def parameters() -> Parameters:
        rebuild, drawn = split(build())
        rebuilds.append(rebuild)
        return drawn

    shapes = jax.eval_shape(parameters)
    return rebuilds[0], shapes


def count(parameters: Mapping[str, Any]) -> int:
    """How many numbers the parameters hold, without running statistics."""
    return sum(array.size for name, array in parameters.items() if not is_statistic(name))
