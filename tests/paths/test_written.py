"""What is written over a scene stands still while the scene moves: it is found and taken out."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.paths.motion import COARSE, filled, marked_of, moves_of, moving_share, still_of
from jaxdeblur.paths.tiles import Tiling

HEIGHT, WIDTH = 256, 320
TEXT = np.s_[200:220, 100:220]


def video(speed: tuple[int, int], written: bool, white: float = 1.0) -> np.ndarray:
    """Returns five frames of a panned texture, with outlined bars written over it if told to."""
    noise = np.random.default_rng(0).random((HEIGHT + 64, WIDTH + 64, 1)).repeat(3, -1)
    scene = noise.repeat(4, 0).repeat(4, 1)[: HEIGHT + 64, : WIDTH + 64]
    frames = np.stack(
        [scene[32 + t * speed[0] :, 32 + t * speed[1] :][:HEIGHT, :WIDTH] for t in range(-2, 3)]
    )
    if written:
        frames[:, *TEXT] = 0.0
        for x in range(104, 216, 12):
            frames[:, 204:216, x : x + 6] = white
    return frames.astype(np.float32)


@jax.jit
def found(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what stands still, and what is written, in the middle frame."""
    still = still_of(frames, jnp.ones(5))
    return still, marked_of(frames[2], still, moves_of(frames))


def test_what_is_written_is_marked_and_nothing_else() -> None:
    _, marked = found(jnp.asarray(video((0, 5), written=True)))
    assert float(marked[TEXT].mean()) > 0.95
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[198:222, 98:222] = False
    assert float(np.asarray(marked)[outside].max()) == 0


@pytest.mark.parametrize(
    "frames",
    [
        video((0, 5), written=False),
        video((0, 0), written=True),  # A camera on a tripod writes nothing over the scene.
        np.linspace(0, 1, HEIGHT, dtype=np.float32)[None, :, None, None].round(1)
        * np.ones((5, HEIGHT, WIDTH, 3), np.float32),
    ],
    ids=["a scene that moves", "nothing moves", "edges along the motion"],
)
def test_nothing_is_marked_without(frames: np.ndarray) -> None:
    assert float(found(jnp.asarray(frames))[1].max()) == 0


def test_what_is_taken_out_leaves_no_trace() -> None:
    light, dark = (video((0, 5), True, white) for white in (1.0, 0.5))
    marked = found(jnp.asarray(light))[1]
    fill = jax.jit(filled)
    one, other = (np.asarray(fill(each[2:3], marked)) for each in (light, dark))
    full = np.asarray(marked) == 1
    np.testing.assert_allclose(one[0, full], other[0, full], atol=1e-5)
    assert 0.2 < one[0, full].mean() < 0.8
    chex.assert_trees_all_equal(one[0, np.asarray(marked) == 0], light[2, np.asarray(marked) == 0])


def test_tiles_of_text_have_little_texture_that_moves() -> None:
    frames = jnp.asarray(video((0, 5), written=True))
    tiling = Tiling(HEIGHT, WIDTH, *COARSE[:2], COARSE[2])
    share = jax.jit(functools.partial(moving_share, tiling=tiling))
    moving = share(frames[2] @ jnp.ones(3) / 3, found(frames)[0])
    near = np.abs(np.asarray(tiling.centres) - [210, 160]).max(1) < 40
    assert float(moving[near].max()) < 0.9
    far = np.abs(np.asarray(tiling.centres) - [210, 160]).max(1) > 140
    assert float(moving[far].min()) == pytest.approx(1, abs=1e-3)
