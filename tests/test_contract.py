"""What every model promises, proven for every preset: a new preset is covered with no new line."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.checkpoints import LoadedModel, export_weights, load_model
from jaxdeblur.models.parameters import Parameters, outline, split
from jaxdeblur.presets import PRESETS

HEIGHT, WIDTH = 19, 26  # neither divides by two twice, one is odd
LONGEST = 7

# The example extension has to keep the contract too: importing it adds its preset.
_spec = importlib.util.spec_from_file_location(
    "temporal_mean", Path(__file__).parent.parent / "examples" / "temporal_mean.py"
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["temporal_mean"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["temporal_mean"])

every_preset = pytest.mark.parametrize("name", sorted(PRESETS))


class Compiled:
    """A preset's model with its two views under jit, compiled once for all tests."""

    def __init__(self, name: str) -> None:
        self.network = PRESETS[name].network
        self.model = models.build(self.network, seed=1)
        self.rebuild, self.parameters = split(self.model)
        self.clip_view = jax.jit(lambda p, clip: self.rebuild(p).restore_clip(clip))
        self.one_step = jax.jit(lambda p, *a: self.rebuild(p).step(*a))

    def restore(self, clip: Any) -> jax.Array:
        return self.clip_view(self.parameters, clip)

    def stream(self, clip: Any) -> jax.Array:
        batch, time, height, width, _ = clip.shape
        state = self.model.initial_state(batch, height, width)
        restored = []
        for i in range(time + self.model.lookahead):
            repeated = jnp.asarray(i >= time)
            frame = clip[:, min(i, time - 1)]
            state, out = self.one_step(self.parameters, state, frame, repeated)
            restored.append(out)
        return jnp.stack(restored[self.model.lookahead :], axis=1)


@functools.cache
def compiled(name: str) -> Compiled:
    return Compiled(name)


def random_clip(time: int, batch: int = 1, seed: int = 0) -> jax.Array:
    shape = (batch, time, HEIGHT, WIDTH, 3)
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


@every_preset
@pytest.mark.parametrize("time", [1, 2, LONGEST])
def test_stream_equals_clip_for_odd_sizes_and_lengths(name: str, time: int) -> None:
    model = compiled(name)
    clip = random_clip(time)
    restored = model.restore(clip)
    chex.assert_shape(restored, clip.shape)
    chex.assert_type(restored, jnp.float32)
    chex.assert_tree_all_finite(restored)
    # 1e-5 is asked of STRCNN and 1e-4 of the attention network.
    np.testing.assert_allclose(model.stream(clip), restored, atol=1e-5)


@every_preset
def test_a_video_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    model = compiled(name)
    one, other, third = (random_clip(LONGEST, seed=seed)[0] for seed in (1, 2, 3))
    together = model.restore(jnp.stack([one, other]))
    changed = model.restore(jnp.stack([one, third]))
    np.testing.assert_allclose(together[0], changed[0], atol=1e-6)
    assert float(jnp.abs(together[1] - changed[1]).max()) > 1e-3


@every_preset
def test_with_and_without_jit(name: str) -> None:
    model = compiled(name)
    clip = random_clip(2)
    np.testing.assert_allclose(model.model.restore_clip(clip), model.restore(clip), atol=1e-5)


@every_preset
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    model = compiled(name)
    clip = random_clip(LONGEST)

    def loss(parameters: Any) -> jax.Array:
        levels = model.rebuild(parameters).restore_levels(clip)
        return sum(jnp.mean((level - 0.3) ** 2) for level in levels)

    gradients = jax.jit(jax.grad(loss))(model.parameters)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, model.parameters)
    chex.assert_tree_all_finite(gradients)
    without = [key for key, gradient in gradients.items() if not np.any(np.asarray(gradient))]
    assert not without, f"no gradient reaches {without}"


@every_preset
def test_saved_and_loaded_it_is_the_same_model(name: str, tmp_path: Any) -> None:
    model = compiled(name)
    path = tmp_path / "weights.safetensors"
    export_weights(LoadedModel(model.model, name, model.network, 7, "test", {}), path)
    loaded = load_model(path)
    assert loaded.network == model.network
    assert loaded.step == 7
    chex.assert_trees_all_equal(split(loaded.model)[1], model.parameters)


def test_the_example_extension_is_covered() -> None:
    assert "temporal_mean" in PRESETS


@every_preset
def test_no_gradient_is_summed_in_bfloat16(name: str) -> None:
    """The sum over all pixels that the gradient of a bias is: bfloat16 stops counting at 256."""
    network = PRESETS[name].network
    if not hasattr(network, "dtype"):
        pytest.skip("it computes in float32 alone")
    rebuild, parameters = outline(
        lambda: models.build(dataclasses.replace(network, dtype="bfloat16"))
    )

    def loss(parameters: Parameters, clip: jax.Array) -> jax.Array:
        return rebuild(parameters).restore_clip(clip).sum()

    clip = jax.ShapeDtypeStruct((1, 5, 32, 32, 3), jnp.float32)
    program = str(jax.make_jaxpr(jax.grad(loss))(parameters, clip))
    assert "bf16[" in program
    assert not re.findall(r"bf16\[[\d,]*\] = reduce_sum.*", program)
