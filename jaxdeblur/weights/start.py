"""The first parameters of a run from other weights: of fewer levels, or a smaller network."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxdeblur.errors import UserError
from jaxdeblur.models.growth import grow
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import (
    for_levels,
    gates,
    join_levels,
    level_config,
    level_parameters,
)
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights.load import check_fits, load_model


def starting_parameters(
    model: VideoRestorer,
    template: Parameters,
    source: str,
    option: str = "--start-from",
    *,
    may_grow: bool = False,
) -> Parameters:
    """The parameters of ``source`` for ``model``.

    ``model`` may have more levels (``for_levels``) and, if they are STRCNNs and it ``may_grow``,
    wider and deeper ones (``grow``), and other scales than ``source``: then ``template`` are its
    parameters as they are drawn, and its gates stay so.

    Raises:
      UserError: they do not fit the network; it names ``option``.
    """
    loaded = load_model(source)
    whole = split(loaded.model)[1]
    try:
        theirs = for_levels(level_parameters(whole, loaded.network), model.config)
        if may_grow:
            small, large = level_config(loaded.network), level_config(model.config)
            drawn = level_parameters(template, model.config)
            theirs = [
                _grown(level, small, fresh, large)
                for level, fresh in zip(theirs, drawn, strict=True)
            ]
    except UserError as error:
        raise UserError(f"{option}={source}: {error}") from error
    drawn_gates = may_grow and loaded.model.scales != model.scales
    chosen_by = gates(template) and gates(template if drawn_gates else whole)
    joined = join_levels(theirs, model.config) | chosen_by
    check_fits(template, joined, f"{option}={source}")
    return {name: jnp.array(joined[name]) for name in template}


def _grown(parameters: Parameters, small: Any, drawn: Parameters, large: Any) -> Parameters:
    """The parameters of one level, grown if they have to."""
    if not isinstance(small, StrcnnConfig) or not isinstance(large, StrcnnConfig):
        return parameters
    if (small.width, small.blocks) == (large.width, large.blocks):
        return parameters
    return grow(parameters, small, drawn, large)
