"""Blur of one frame alone: found where there is some, and not mistaken for texture."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.images import LUMA
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.paths import single_frame, single_restorer, velocities
from jaxdeblur.paths.single_frame import SHORTEST_SIDE, find
from jaxdeblur.paths.single_restorer import SingleFrameConfig, SingleFrameRestorer, trusted

SIZE = 192, 256  # Not below SHORTEST_SIDE, and small: the search takes most of the time.
MOTION = (4.0, -3.0)  # Pixels in the exposure, (y, x).


class Unchanged(VideoRestorer):
    """A base that returns its input, two frames late."""

    lookahead, multiple = 2, 8

    def __init__(self) -> None:
        self.config = nnx.Param(jnp.zeros(1))

    def _restore_clip(self, clip: jax.Array) -> jax.Array:
        return clip

    def _initial_state(self, batch: int, height: int, width: int) -> Any:
        return jnp.zeros((batch, 2, height, width, 3))

    def _step(self, state: Any, frame: jax.Array, repeated: Any) -> tuple[Any, jax.Array]:
        frames = jnp.concatenate([state, frame[:, None]], 1)
        return frames[:, 1:], frames[:, 0]


def drawn(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Draws rectangles over each other, in colours, in [0, 1]."""
    rng, picture = np.random.default_rng(seed), np.full((*size, 3), 0.5)
    for _ in range(size[0] * size[1] // 200):
        y, x = (rng.integers(0, length) for length in size)
        height, width = rng.integers(3, 30, 2)
        picture[y : y + height, x : x + width] = rng.uniform(0.1, 0.9, 3)
    return picture


def directed(seed: int = 1) -> np.ndarray:
    """Draws sharp texture with a direction, like grass: its power falls off along x."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(SIZE[0])[:, None], np.fft.rfftfreq(SIZE[1])
    radius = np.hypot(fy, 4 * fx) + 0.01
    waves = np.fft.rfft2(rng.normal(size=SIZE)) / radius**1.2
    grass = np.fft.irfft2(waves, s=SIZE)
    grass = 0.5 + 0.15 * grass / grass.std()
    return np.clip(np.repeat(grass[..., None], 3, -1), 0, 1)


def blurred(picture: np.ndarray, motion: tuple[float, float] = MOTION) -> np.ndarray:
    """Blurs along a straight path, around the borders, and rounds to 8 bits."""
    height, width, _ = picture.shape
    turns = motion[0] * np.fft.fftfreq(height)[:, None] + motion[1] * np.fft.rfftfreq(width)
    spectrum = np.fft.rfft2(picture, axes=(0, 1)) * np.sinc(turns)[..., None]
    return as_stored(np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1)))


def as_stored(picture: np.ndarray) -> np.ndarray:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.float32) / 255


@functools.cache
def found(kind: str) -> Any:
    picture = {"sharp": drawn, "directed": directed, "blurred": lambda: blurred(drawn())}[kind]()
    return jax.jit(find)(as_stored(picture) @ LUMA)


@pytest.mark.stress  # Compiling takes half a minute; what it finds is used below.
def test_blur_is_found_and_measured() -> None:
    blur = found("blurred")
    assert float(trusted(blur)) == 1
    middle = blur.field[0] * jnp.sign(blur.field[0, 0])  # A path reversed is the same blur.
    chex.assert_trees_all_close(middle, np.array(MOTION, np.float32), atol=0.3)
    assert float(jnp.abs(blur.field[1:]).max()) < 0.5


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["sharp", "directed"])
def test_sharp_pictures_give_no_evidence(kind: str) -> None:
    assert float(trusted(found(kind))) == 0


@pytest.mark.stress  # Compiling takes half a minute and more.
def test_the_directed_picture_would_deceive_a_spectrum_without_direction() -> None:
    light = jnp.asarray(as_stored(directed()) @ LUMA)
    seen = velocities.view(jnp.stack([light] * 5), jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]))
    tried = jnp.array([[0.0, 0.0], [0.0, 4.0]])[:, None]
    values = velocities._values(seen.fine, jnp.broadcast_to(tried, (2, len(seen.start), 2)), 1)
    assert float((values[0] - values[1]).mean()) > 0.1


@functools.cache
def restorer() -> SingleFrameRestorer:
    return SingleFrameRestorer(SingleFrameConfig(), Unchanged())


@functools.cache
def restored(model: SingleFrameRestorer, everywhere: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns pictures, blurred, directed, sharp and plain, and what a batch of them becomes.

    Unless ``everywhere``, of the first two: the search takes seconds for each.
    """
    plain = np.full((*SIZE, 3), 0.5, np.float32)
    every = blurred(drawn()), as_stored(directed()), as_stored(drawn(2)), plain
    given = np.stack(every if everywhere else every[:2])[:, None]
    return given[:, 0], np.asarray(jax.jit(model.restore_clip)(given))[:, 0]


@pytest.mark.parametrize("everywhere", [pytest.param(True, marks=pytest.mark.stress), False])
def test_the_blurred_picture_gains_and_others_are_the_base(
    everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = restorer()
    if not everywhere:  # A search among short blur alone takes a third of the time.
        monkeypatch.setattr(single_frame, "_FAR", 6.2)
        monkeypatch.setattr(single_frame, "_FARTHEST", 8.1)
        model = SingleFrameRestorer(
            SingleFrameConfig(), Unchanged()
        )  # JAX knows the other's trace.
    given, made = restored(model, everywhere)
    sharp = as_stored(drawn())
    before, after = (psnr(255 * as_stored(each), 255 * sharp) for each in (given[0], made[0]))
    assert after > before + 1.2
    chex.assert_trees_all_equal(made[1:], given[1:])


@pytest.mark.stress  # Compiling takes half a minute and more.
def test_a_stream_restores_the_same() -> None:
    model = restorer()
    given, made = restored(model, True)
    state = model.initial_state(1, *SIZE)
    step = jax.jit(model.step)
    for repeated in (False, True, True):
        state, frame = step(state, given[:1], repeated)
    chex.assert_trees_all_close(frame[0], made[0], atol=2e-3)


@pytest.mark.stress  # Compiling takes half a minute and more.
def test_large_pictures_are_restored_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_restorer, "REDUCED_SIDE", 256)
    sharp = as_stored(np.kron(drawn(3), np.ones((2, 2, 1))))
    given = blurred(sharp, (8.0, -6.0))
    made = np.asarray(jax.jit(restorer().restore_clip)(given[None, None]))[0, 0]
    assert psnr(255 * as_stored(made), 255 * sharp) > psnr(255 * given, 255 * sharp) + 0.8


@pytest.mark.parametrize("size", [(40, 60), (SHORTEST_SIDE - 8, 400)])
def test_small_pictures_are_the_base(size: tuple[int, int]) -> None:
    given = jnp.asarray(blurred(drawn(size=size)))[None, None]
    chex.assert_trees_all_equal(restorer().restore_clip(given), given)
