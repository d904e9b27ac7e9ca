"""A grown network restores as the one that it came from, and its new parts can learn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur.errors import UserError
from jaxdeblur.models.growth import grow
from jaxdeblur.models.parameters import split
from jaxdeblur.models.registry import construct
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.shapes import Parameters

SMALL = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True, leak=0.1)
CLIP = jax.random.uniform(jax.random.key(7), (1, 4, 12, 16, 3))


def drawn(config: StrcnnConfig, seed: int) -> tuple[VideoRestorer, Parameters]:
    """A network whose biases are not zero either."""
    model = construct(config, nnx.Rngs(seed))
    rebuild, parameters = split(model)
    keys = jax.random.split(jax.random.key(seed), len(parameters))
    moved = {
        name: array + 0.05 * jax.random.normal(key, array.shape)
        for key, (name, array) in zip(keys, parameters.items(), strict=True)
    }
    return rebuild(moved), moved


HEAD = dataclasses.replace(SMALL, head_width=4)  # as wide as the blocks: not to be mistaken
STRCNN = dataclasses.replace(SMALL, blending="none", residual=False)


@pytest.mark.parametrize(
    ("small", "width", "blocks"),
    [(SMALL, 10, 2), (SMALL, 4, 3), (HEAD, 6, 2), (STRCNN, 6, 3), (SMALL, 6, 4)],
)
def test_growing_changes_no_frame(small: StrcnnConfig, width: int, blocks: int) -> None:
    large = dataclasses.replace(small, width=width, blocks=blocks)
    model, parameters = drawn(small, 0)
    rebuild, fresh = split(construct(large, nnx.Rngs(1)))
    grown = grow(parameters, small, fresh, large)
    assert {n: a.shape for n, a in grown.items()} == {n: a.shape for n, a in fresh.items()}
    before = jax.jit(model.restore_clip)(CLIP)
    after = jax.jit(lambda clip: rebuild(grown).restore_clip(clip))(CLIP)
    assert float(jnp.abs(before - CLIP).max()) > 1e-3
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_every_new_part_learns() -> None:
    large = dataclasses.replace(SMALL, width=6, blocks=3)
    _, parameters = drawn(SMALL, 0)
    rebuild, fresh = split(construct(large, nnx.Rngs(1)))
    grown = grow(parameters, SMALL, fresh, large)

    @jax.jit
    @jax.grad
    def gradient_of(parameters: Parameters) -> jax.Array:
        return jnp.mean((rebuild(parameters).restore_clip(CLIP) - 0.5) ** 2)

    # New channels are seen by nobody at first: what sees them moves first, then they do.
    for _ in range(3):
        gradient = gradient_of(grown)
        grown = {name: grown[name] - 0.1 * gradient[name] for name in grown}
    for name, array in gradient_of(grown).items():
        assert float(jnp.abs(array).max()) > 0, name
        if name.endswith("kernel"):
            assert bool(jnp.all(jnp.any(array != 0, axis=(0, 1, 3)))), f"{name}: a dead input"
            assert bool(jnp.all(jnp.any(array != 0, axis=(0, 1, 2)))), f"{name}: a dead output"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 2}, "width is 4 there, 2 here"),
        ({"blocks": 1}, "blocks is 2 there, 1 here"),
        ({"width": 6, "m": 2}, "only width and blocks can grow; m is 1 there, 2 here$"),
    ],
)
def test_what_cannot_grow_is_named(change: dict[str, int], named: str) -> None:
    large = dataclasses.replace(SMALL, **change)
    _, parameters = drawn(SMALL, 0)
    _, fresh = split(construct(large, nnx.Rngs(1)))
    with pytest.raises(UserError, match=named):
        grow(parameters, SMALL, fresh, large)


def test_blocks_do_not_move_the_blending() -> None:
    small = dataclasses.replace(SMALL, blending="encoder")
    _, parameters = drawn(small, 0)
    large = dataclasses.replace(small, blocks=4)
    with pytest.raises(UserError, match="move the blending"):
        grow(parameters, small, parameters, large)
