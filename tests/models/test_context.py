"""Training clips include the frames around them, so that restored frames see whole windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.restorer import VideoRestorer, replicate_ends
from jaxdeblur.models.scale_choice import scales_of
from jaxdeblur.models.strcnn import StrcnnConfig

STRCNN = StrcnnConfig(m=2, width=4, blocks=1, head_width=0, residual=True)
FSTA = dataclasses.replace(
    FSTA_SMALL,
    widths=(4,),
    growths=(4,),
    dense_layers=1,
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    attention_levels=(0,),
    fusion="concat",
)
LIVE = dataclasses.replace(FSTA, window=4, causal=True)
CHOICE = dataclasses.replace(STRCNN, m=1, scales=(2, 1))


def random_clip(frames: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(frames), (1, frames, 16, 16, 3))


def inside_of(model: VideoRestorer) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that restores the frames of a clip whose context lies within it."""

    @jax.jit
    def restore(clip: jax.Array) -> jax.Array:
        length = clip.shape[1] - sum(model.context)
        return model.training_outputs(clip, clip[:, :length]).restored[-1]

    return restore


@pytest.mark.parametrize("network", [STRCNN, FSTA, LIVE])
def test_with_repeated_ends_around_it_a_clip_is_restored_as_a_video(network: Any) -> None:
    model = models.build(network)
    before, after = model.context
    assert before + after == (4 if network is not LIVE else 3)
    clip = random_clip(3)
    inside = inside_of(model)(replicate_ends(clip, before, after))
    np.testing.assert_allclose(inside, jax.jit(model.restore_clip)(clip), atol=1e-5)


@pytest.mark.parametrize(("network", "time"), [(STRCNN, 2), (FSTA, 2), (LIVE, 3)])
def test_what_is_inside_sees_the_frames_around_it(network: Any, time: int) -> None:
    """The first restored frame depends on the first context frame, as in the middle of a video."""
    model = models.build(network)
    clip = random_clip(5 + (time == 3))
    restore = inside_of(model)
    first, other = restore(clip)[0, 0], restore(clip.at[:, 0].set(0.0))[0, 0]
    assert float(jnp.abs(first - other).max()) > 1e-6


@pytest.mark.parametrize(
    ("network", "context"), [(CHOICE, (1, 1)), (LIVE, (3, 0)), (STRCNN, (2, 2))]
)
def test_the_loss_compares_what_is_inside_alone(network: Any, context: tuple[int, int]) -> None:
    model = models.build(network)
    assert model.context == context
    clip = random_clip(2 + sum(context))
    sharp = random_clip(2)
    outputs = jax.eval_shape(model.training_outputs, clip, sharp)
    shapes = [(1, 2, 16 // scale, 16 // scale, 3) for scale in scales_of(model)]
    assert [level.shape for level in outputs.restored] == shapes
    assert [target.shape for target in outputs.targets] == shapes
    target = jax.jit(lambda: model.training_outputs(clip, sharp).targets[-1])()
    np.testing.assert_array_equal(target, sharp)


@pytest.mark.parametrize("network", [FSTA, STRCNN])
def test_a_photograph_trains_alike_with_and_without_copies_around_it(network: Any) -> None:
    """data/config.py requests no copies, since the model repeats the ends of a clip."""
    model = models.build(network)
    photograph, sharp = random_clip(1), random_clip(1)
    copies = replicate_ends(photograph, *model.context)
    restore = jax.jit(lambda clip: model.training_outputs(clip, sharp).restored[-1])
    np.testing.assert_allclose(restore(photograph), restore(copies), atol=1e-5)
