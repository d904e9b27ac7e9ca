"""The first parameters of a run from other weights, which may be of other sizes."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import as_levels, gates, level_parameters
from jaxdeblur.shapes import Parameters
from jaxdeblur.weights.load import check_fits, load_model


def starting_parameters(
    model: VideoRestorer, drawn: Parameters, source: str, option: str = "--start-from"
) -> Parameters:
    """The parameters of ``source`` for ``model``, which may run at other scales than it.

    Blur looks alike at every size, so the network of one scale starts that of several, and the
    other way round. Gates come from a source of the same scales, and are else as drawn.

    Args:
      model: the network.
      drawn: its random parameters.
      source: a run, a file, or the name of weights that ship.
      option: that named the source.

    Raises:
      UserError: they do not fit the network; it names the option.
    """
    loaded = load_model(source)
    whole = split(loaded.model)[1]
    chosen_by = whole if loaded.model.scales == model.scales else drawn
    parameters = as_levels(level_parameters(whole, loaded.network), model.config)
    parameters |= gates(chosen_by)
    check_fits(drawn, parameters, f"{option}={source}")
    return {name: jnp.array(parameters[name]) for name in drawn}
