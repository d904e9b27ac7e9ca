"""A trained STRCNN made wider and deeper without changing what it restores.

The new channels see everything and nothing that was there before sees them; new blocks add
nothing. So the larger network starts with all that the smaller one has learnt, and training can
use the room. (The idea is that of Chen et al., "Net2Net", ICLR 2016, with zeros for copies.)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.shapes import Parameters


def grow(
    parameters: Parameters, small: StrcnnConfig, fresh: Parameters, large: StrcnnConfig
) -> Parameters:
    """The parameters of ``small`` for a network of ``large``, which gives the same images.

    Both are at one scale: of a network at several, those of one level (``level_config``).

    Args:
      parameters: of the smaller network, by name.
      small: its configuration.
      fresh: parameters of the larger network as they are drawn; the new channels keep theirs.
      large: its configuration: wider, deeper or both, and else the same.

    Raises:
      UserError: ``large`` is not ``small`` with more width or blocks.
    """
    _check_larger(small, large)

    def start(name: str, drawn: jax.Array) -> jax.Array:
        if name in parameters:
            return _place(name, parameters[name], drawn, small, large)
        # A new block: what its second convolution gives is all that it adds.
        return jnp.zeros_like(drawn) if name.endswith("second/kernel") else drawn

    return {name: start(name, drawn) for name, drawn in fresh.items()}


def _check_larger(small: StrcnnConfig, large: StrcnnConfig) -> None:
    as_small = dataclasses.replace(large, width=small.width, blocks=small.blocks, dtype=small.dtype)
    if as_small != small:
        other = [
            f"{field.name} is {there} there, {here} here"
            for field in dataclasses.fields(small)
            if (there := getattr(small, field.name)) != (here := getattr(as_small, field.name))
        ]
        raise UserError(f"only width and blocks can grow; {', '.join(other)}")
    for field in ("width", "blocks"):
        here, there = getattr(large, field), getattr(small, field)
        if here < there:
            raise UserError(f"a network only grows: {field} is {there} there, {here} here")
    if not small.recurrent or small.feedback == "final":
        raise UserError("only a recurrent network with --feedback=side can grow")
    if large.blocks > small.blocks and large.blending in ("encoder", "decoder"):
        raise UserError(f"with --blending={large.blending} new blocks would move the blending")


def _place(
    name: str, array: jax.Array, drawn: jax.Array, small: StrcnnConfig, large: StrcnnConfig
) -> jax.Array:
    """``drawn`` with the array of the smaller network where its channels lie."""
    if small.width == large.width or array.ndim == 0:
        return array
    *_, layer, kind = name.split("/")
    inputs, outputs = _channels(layer, small, large)
    if kind == "bias":
        return array if outputs is None else drawn.at[outputs].set(array)
    inputs = np.arange(array.shape[-2]) if inputs is None else inputs
    outputs = np.arange(array.shape[-1]) if outputs is None else outputs
    # What was there before sees nothing of what is new.
    return drawn.at[..., outputs].set(0.0).at[:, :, inputs[:, None], outputs].set(array)


def _channels(
    layer: str, small: StrcnnConfig, large: StrcnnConfig
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where a layer's input and output channels lie in the larger network; None: as they are."""
    half, hidden = np.arange(small.width // 2), np.arange(small.width)
    # The blocks work on the stem's and on F_{n-1}'s channels, laid side by side.
    stream = np.concatenate([half, large.width // 2 + half])
    return {
        "stem": (None, hidden),
        "down": (hidden, half),
        "first": (stream, hidden),
        "second": (hidden, stream),
        "compare": (np.concatenate([stream, large.width + stream]), stream),
        "feedback": (stream, half),
        "up": (stream, None),
        "head": (None if small.head_width else stream, None),
    }[layer]
