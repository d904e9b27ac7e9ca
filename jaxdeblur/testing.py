"""Checks that a new model fulfils the contract of ``VideoRestorer``.

``check_model("my_preset")`` runs the checks that the test suite runs for every preset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.models import registry
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.presets import Preset, find
from jaxdeblur.shapes import Clip, SeenClip

HEIGHT, WIDTH = 19, 26  # neither is divisible by four, one is odd


def check_model(
    preset: str | Preset, *, lengths: Sequence[int] = (1, 7), gradients: bool = True
) -> None:
    """Checks the network of a preset, with random parameters on frames of 26 x 19 pixels.

    - A restored clip has as many frames of the same size, in RGB, float32 and finite.
    - The stream restores the same frames as the clip view; its state keeps its shapes and dtypes.
    - A video depends on its own frames, and not on its neighbours in the batch, unless the model
      says that its clips are not independent.
    - Gradients are finite and reach every parameter.

    Args:
      preset: the name of a preset, or a preset of your own.
      lengths: of the clips, in frames; the last should exceed the network's window.
      gradients: whether to check gradients, which take longest to compile.

    Raises:
      AssertionError: the network fails a check.
      UserError: there is no such preset.
    """
    network = (find(preset) if isinstance(preset, str) else preset).network
    model = registry.build(network, seed=1)
    rebuild, parameters = split(model)
    restore = jax.jit(lambda parameters, clip: rebuild(parameters).restore_clip(clip))
    step = jax.jit(lambda parameters, *given: rebuild(parameters).step(*given))

    for length in lengths:
        clip = random_clip(length, batch=2, channels=model.channels)
        restored = restore(parameters, clip)
        chex.assert_shape(restored, (*clip.shape[:-1], 3))
        chex.assert_type(restored, jnp.float32)
        chex.assert_tree_all_finite(restored)
        streamed = _stream(model, lambda *given: step(parameters, *given), clip)
        assert_same_frames(model, streamed, restored)

    one, other, third = (
        random_clip(lengths[-1], seed=seed, channels=model.channels)[0] for seed in (1, 2, 3)
    )
    together = restore(parameters, jnp.stack([one, other]))
    changed = restore(parameters, jnp.stack([one, third]))
    apart = np.abs(together - changed).max(axis=(1, 2, 3, 4))
    assert apart[1] > 1e-3, "a video does not depend on its own frames"
    if model.clips_are_independent:
        # The same program restores both, whose sums have up to 3 x 3 x 64 terms.
        rounding = float32_error(9 * 64)
        assert apart[0] <= rounding, f"a video depends on its neighbour in the batch, by {apart[0]}"
    else:
        assert apart[0] > 0.1, "clips_are_independent is False, but the clips are independent"

    if gradients:
        _check_gradients(rebuild, parameters, random_clip(lengths[-1], channels=model.channels))


def float32_error(terms: int, size: float | int | np.floating = 1.0) -> float:
    """Returns by how much two float32 sums of the same terms may differ, as an absolute tolerance.

    Each addition rounds, and processors differ in its order. Roundings are independent, so they add
    up with the root of their number.

    Args:
      terms: how many numbers are summed, or operations follow each other.
      size: of the largest terms and sums.
    """
    return float(np.finfo(np.float32).eps * size * np.sqrt(terms))


def random_clip(length: int, batch: int = 1, seed: int = 0, channels: int = 3) -> SeenClip:
    """Returns a clip of uniform noise.

    Args:
      length: frames.
      batch: clips.
      seed: of the noise.
      channels: of a frame.
    """
    shape = (batch, length, HEIGHT, WIDTH, channels)
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def assert_same_frames(model: VideoRestorer, ours: Clip, its: Clip) -> None:
    """Raises AssertionError unless two restorations of a clip agree up to rounding."""
    # Statistics over only 12 pixels, as in so small a frame at 1/8 size, amplify rounding.
    rounding = 1e-5 if model.clips_are_independent else 0.05
    largest = max(1.0, float(jnp.abs(its).max()))  # untrained networks may give up to 8
    chex.assert_trees_all_close(ours, its, atol=rounding * largest, rtol=0)


def _stream(model: VideoRestorer, step: Any, clip: SeenClip) -> Clip:
    """Restores the clip frame by frame; the last one is repeated to flush the rest."""
    batch, time, height, width, _ = clip.shape
    state = model.initial_state(batch, height, width)
    restored = []
    for i in range(time + model.lookahead):
        before = state
        state, frame = step(state, clip[:, min(i, time - 1)], jnp.asarray(i >= time))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
        chex.assert_type(frame, jnp.float32)
        restored.append(frame)
    return jnp.stack(restored[model.lookahead :], axis=1)


def _check_gradients(rebuild: Any, parameters: Any, clip: SeenClip) -> None:
    # Moved, since weights that begin at zero pass no gradient.
    rng = np.random.default_rng(0)
    moved = {
        name: array + 0.01 * (rng.random(array.shape, np.float32) - 0.5)
        for name, array in parameters.items()
    }

    def loss(parameters: Any) -> jax.Array:
        return jnp.mean((rebuild(parameters).restore_clip(clip) - 0.3) ** 2)

    gradients = jax.jit(jax.grad(loss))(moved)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, parameters)
    chex.assert_tree_all_finite(gradients)
    without = [name for name, gradient in gradients.items() if not np.any(np.asarray(gradient))]
    assert not without, f"no gradient reaches {without}"
