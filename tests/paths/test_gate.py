"""The gate by hand, its fit, the trust in a video, and what the user is told."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gate import fitted, gains, mixed
from jaxdeblur.paths.gate import (
    FITTED,
    FITTED_LARGE,
    agreement,
    facts,
    gate,
    noise_factor,
    remarks,
    second_share,
)
from jaxdeblur.paths.shutter import DUTIES, Shutter
from jaxdeblur.paths.stabiliser import Stabiliser
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.wiener import Luminance


def gate_of(
    change: float = 0.1,
    residual: float = 0.02,
    of_base: float = 0.1,
    length: float = 5.0,
    ratio: float = -1.0,
    agreed: float = 1.0,
    side: int = 64,
) -> float:
    """Returns the gate of a frame in which all of these are the same everywhere."""
    tiling = Tiling(side, side, 32, 64, 96)
    nothing, tiles = jnp.zeros((side, side)), len(tiling.centres)
    shares = jnp.zeros((tiles, 1, 64, 64))
    made = Luminance(nothing + change, nothing + residual, nothing, shares)
    blurred = jnp.zeros((side, side, 3))
    lengths, ratios = jnp.full(tiles, length), jnp.full(tiles, ratio)
    known = lengths, ratios, jnp.float32(agreed)
    cells = gate(made, blurred, blurred + of_base, *known, tiling)
    assert cells.shape == (side // 16, side // 16, 3)
    np.testing.assert_allclose(cells[..., 0], cells[0, 0, 0], rtol=1e-5)
    return float(cells[0, 0, 0])


def test_the_gate_believes_what_explains_the_frame_and_what_the_base_wants_too() -> None:
    logarithms = np.log([5 + 0.25, (0.02 / 0.1) ** 2, 1.0])
    expected = 1 / (1 + np.exp(-FITTED[0] - logarithms @ np.array(FITTED[1:])))
    np.testing.assert_allclose(gate_of(), expected, atol=0.002)
    assert gate_of(residual=0.1) < gate_of() < gate_of(residual=0.002)
    assert gate_of(of_base=0.01) < gate_of() < gate_of(of_base=0.3)
    assert gate_of(length=0.2) < gate_of() < gate_of(length=20)


def test_in_large_frames_what_explains_them_is_enough_where_tiles_agree() -> None:
    large = functools.partial(gate_of, side=400)
    logarithms = np.log([5 + 0.25, (0.02 / 0.1) ** 2])
    expected = 1 / (1 + np.exp(-FITTED_LARGE[0] - logarithms @ np.array(FITTED_LARGE[1:])))
    np.testing.assert_allclose(large(), expected, atol=0.002)
    assert large(of_base=0.01) == large()
    assert large(residual=0.1) < large() < large(length=0.2)
    np.testing.assert_allclose(large(agreed=0.0), gate_of(agreed=0.0), rtol=1e-5)
    assert large(agreed=0.0, of_base=0.01) < large(agreed=0.5, of_base=0.01) < large()


def test_without_a_base_the_likelihood_objects_in_its_place() -> None:
    assert gate_of(of_base=0.0, ratio=-0.1) == 0
    assert gate_of(of_base=0.0, ratio=0.1) > gate_of()


def test_an_open_shutter_that_tiles_contradict_gives_the_second_network_no_say() -> None:
    """In both videos, tiles prefer an open shutter by as much; in the second, different ones."""
    agreed, apart = (3,) * 12, (1, 3, 6) * 4
    for best, expected in ((agreed, 1.0), (apart, 0.0)):
        others = np.arange(len(DUTIES)) != np.array(best)[:, None]
        seen = jnp.asarray(np.stack([0.15 * others, 0.15 * others]), jnp.float32)
        seen = seen.at[..., 0].add(0.1)
        shutter = Shutter.unknown().add(seen, jnp.ones(12)).add(seen, jnp.ones(12))
        assert float(shutter.blurred) > 0.1
        np.testing.assert_allclose(second_share(shutter), expected, rtol=0, atol=0.01)


def test_frames_count_as_noisier_the_less_the_lead_outweighs_what_tiles_disagree_by() -> None:
    def factor(lead: float) -> float:
        """Returns u where all tiles agree; x is ``lead``."""
        away = np.abs(np.arange(len(DUTIES)) - 5.0)
        cost = 0.02 * lead * 1.5 / away[0]  # 12 tiles, and 6 that are assumed to be sharp.
        seen = jnp.asarray(np.broadcast_to(cost * away, (2, 12, len(DUTIES))), jnp.float32)
        return float(noise_factor(agreement(Shutter.unknown().add(seen, jnp.ones(12)))))

    leads = (0.9, 4.5, 6.3, 8.2)
    np.testing.assert_allclose([factor(lead) for lead in leads], [4, 4, 2, 1], atol=1e-4)


def test_the_second_network_leaves_a_moving_video_that_sharp_frames_explain_to_the_base() -> None:
    def share(duty: float, tiles: int, certain: float = 0.3) -> float:
        """Returns the second network's share where all tiles prefer this duty cycle."""
        away = jnp.abs(jnp.asarray(DUTIES) - duty)
        seen = jnp.broadcast_to(certain * away, (2, 12, len(DUTIES)))
        shutter = Shutter.unknown().add(seen, jnp.asarray(np.arange(12) < tiles, jnp.float32))
        return float(second_share(shutter))

    assert share(0.0, 0) == 0  # a tripod
    assert share(0.0, 12) == 0
    assert share(0.85, 12) == 1
    assert 0 < share(0.85, 12, certain=0.11) < 1


def test_the_second_network_has_no_say_where_nothing_moves_or_tiles_contradict_each_other() -> None:
    def share(best: tuple[int, ...], tiles: int, certain: float = 0.1) -> float:
        away = np.abs(np.arange(len(DUTIES)) - np.array(best)[:, None])
        seen = jnp.asarray(np.stack([certain * away] * 2), jnp.float32)
        shutter = Shutter.unknown().add(seen, jnp.asarray(np.arange(12) < tiles, jnp.float32))
        return float(second_share(shutter))

    assert share((5,) * 12, 12) == 1
    assert share((5,) * 12, 0) == 0
    assert share((1, 3, 6) * 4, 12) == 0
    # Strong evidence outweighs that tiles differ: x is 2.8.
    assert 0 < share((1, 3, 6) * 4, 12, certain=0.3) < 0.1


def test_where_nothing_moves_the_user_is_told_of_frames_by_themselves() -> None:
    still = remarks(facts(Shutter.unknown(1), Stabiliser.unknown(1, 1)))
    assert len(still) == 1
    assert "--single" in still[0]
    known = remarks(facts(Shutter.unknown(1), Stabiliser.unknown(1, 1, given=True)))
    assert len(known) == 1
    assert "--single" not in known[0]


def test_a_gate_is_fitted_to_what_it_should_have_let_through() -> None:
    """The share that is best in every cell follows from known numbers."""
    rng, known = np.random.default_rng(0), jnp.array([-1.0, 0.5, -0.8, -0.4])
    logarithms = jnp.asarray(rng.normal(size=(6, 400, 3)), jnp.float32)
    best = jax.nn.sigmoid(known[0] + logarithms @ known[1:])
    change = jnp.asarray(rng.uniform(0.001, 0.01, best.shape), jnp.float32)
    sums = jnp.stack([change, best * change, change], -1)
    cells = jnp.concatenate([logarithms, sums], -1)
    found = fitted(cells, np.ones(len(cells)))
    np.testing.assert_allclose(found, known, atol=0.02)
    np.testing.assert_allclose(gains(found, cells), mixed(best, cells), atol=1e-3)
    np.testing.assert_allclose(mixed(0 * best, cells), 0, atol=1e-6)

    known = jnp.array([2.0, -1.0, -1.5])  # of large frames
    best = jax.nn.sigmoid(known[0] + logarithms[..., :2] @ known[1:])
    sums = jnp.stack([change, best * change, change], -1)
    cells = jnp.concatenate([logarithms, sums], -1)
    found = fitted(cells, np.ones(len(cells)), len(FITTED_LARGE))
    np.testing.assert_allclose(found, known, atol=0.02)
    np.testing.assert_allclose(gains(found, cells), mixed(best, cells), atol=1e-3)
