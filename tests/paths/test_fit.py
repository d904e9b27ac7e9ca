"""What joins the paths of tiles to each other, against autodiff; and the first path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.paths.fit import SHAKE, _coupling, _solve, shake_weight, stiffness
from jaxdeblur.paths.likelihood import Likelihood
from jaxdeblur.paths.path import FREE, KNOTS, through

SHAPE, SMOOTH, ALL = (2, 3), 0.3, jnp.ones(6)


@pytest.fixture(name="flat")
def paths_of_tiles() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 2, (6, 12)), jnp.float32)


def matrix_of(flat: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the quadratic form of the neighbour penalty, and its diagonal."""

    @jax.jit
    def of(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        couple, diagonal = _coupling(flat, SHAPE, SMOOTH, ALL)
        columns = jax.vmap(lambda v: couple(v.reshape(6, 12)).ravel())(jnp.eye(72))
        return columns, diagonal.ravel()

    matrix, diagonal = map(np.asarray, of(flat))
    return matrix, diagonal


def test_neighbours_are_coupled_by_the_slope_of_their_penalty(flat: jax.Array) -> None:
    def penalty(flat: jax.Array) -> jax.Array:
        grid = flat.reshape(*SHAPE, 12)
        pairs = [
            (grid[a, b], grid[c, d])
            for a in range(2)
            for b in range(3)
            for c, d in ((a + 1, b), (a, b + 1))
            if c < 2 and d < 3
        ]
        apart = jnp.stack([one - other for one, other in pairs])
        return SMOOTH * (apart**2 / (1 + jnp.abs(apart))).sum()

    @jax.jit
    def slopes(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _coupling(flat, SHAPE, SMOOTH, ALL)[0](flat), jax.grad(penalty)(flat)

    found, wanted = slopes(flat)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_coupling_is_its_own_adjoint_and_has_its_diagonal(flat: jax.Array) -> None:
    matrix, diagonal = matrix_of(flat)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix), diagonal, rtol=1e-5)
    assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > -1e-5
    np.testing.assert_allclose(matrix @ np.tile(np.arange(12.0), 6), 0, atol=1e-4)


@pytest.mark.parametrize("order", [3, 4])
def test_stiffness_is_the_hessian_of_the_bend(order: int) -> None:
    def penalty(flat: jax.Array) -> jax.Array:
        path = jnp.zeros((len(KNOTS), 2)).at[FREE].set(flat.reshape(6, 2))
        for _ in range(order):
            path = path[1:] - path[:-1]
        return 0.02 * (path**2).sum()

    found, hessian = stiffness(order, 0.02), jax.jit(jax.hessian(penalty))(jnp.arange(12.0))
    np.testing.assert_allclose(found, hessian, rtol=1e-5, atol=1e-8)
    bent = KNOTS[FREE][:, None] ** (order - 1) * np.array([1.0, -2.0])
    np.testing.assert_allclose(found @ bent.ravel(), 0, atol=1e-5)


@pytest.mark.parametrize("of_mean", [1.0, 0.1])
def test_a_step_solves_the_equations_of_all_tiles(flat: jax.Array, of_mean: float) -> None:
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(6, 12, 12))
    curvature = roots @ roots.swapaxes(1, 2) / 12 + 0.1 * np.eye(12)
    gradient, stiff = rng.normal(size=(6, 12)), jnp.asarray(stiffness(4, 0.05))
    none = jnp.zeros((6, 3))
    given = (jnp.asarray(each, jnp.float32) for each in (gradient, curvature))
    found = Likelihood(none[:, 0], *given, none, none)
    weights = SHAPE, SMOOTH, stiff, of_mean
    solve = jax.jit(lambda knots, found: _solve(knots, found, *weights, ALL, None))
    step = solve(flat.reshape(6, 6, 2), found)
    couple, _ = matrix_of(flat)
    mean = np.trace(curvature, axis1=1, axis2=2) / 12
    blocks = curvature + stiff + 0.02 * (mean + 1e-3)[:, None, None] * np.eye(12)
    whole = couple + np.einsum("nm,npq->npmq", np.eye(6), blocks).reshape(72, 72)
    # The bend of the mean path counts less than differences from it.
    bent = np.kron(np.eye(6) - (1 - of_mean) / 6, stiff)
    whole = whole + bent - np.kron(np.eye(6), stiff)
    slope = gradient.ravel() + (couple + bent) @ np.asarray(flat).ravel()
    wanted = -np.linalg.solve(whole, slope)
    # By eight steps of conjugate gradients.
    assert np.linalg.norm(np.asarray(step).ravel() - wanted) < 0.02 * np.linalg.norm(wanted)


def test_tiles_beyond_the_frame_change_nothing_in_it(flat: jax.Array) -> None:
    """The column on the right does not count: the others move as if it did not exist."""
    rng, stiff = np.random.default_rng(1), jnp.asarray(stiffness(4, 0.05))
    roots = rng.normal(size=(6, 12, 12))
    curvature = jnp.asarray(roots @ roots.swapaxes(1, 2) / 12 + 0.1 * np.eye(12), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=(6, 12)), jnp.float32)

    def step(kept: np.ndarray, columns: int, inside: np.ndarray) -> np.ndarray:
        none = jnp.zeros((len(kept), 3))
        found = Likelihood(none[:, 0], gradient[kept], curvature[kept], none, none)
        knots = flat[kept].reshape(-1, 6, 2)
        weights = stiff, 0.1, jnp.asarray(inside, jnp.float32)
        return np.asarray(_solve(knots, found, (2, columns), SMOOTH, *weights, None))

    within = np.array([0, 1, 3, 4])
    whole = step(np.arange(6), 3, np.isin(np.arange(6), within))
    alone = step(within, 2, np.ones(4))
    assert np.abs(alone).max() > 0.1
    # Both by eight steps of conjugate gradients.
    np.testing.assert_allclose(whole[within], alone, atol=0.02 * np.abs(alone).max())


def test_the_bend_of_the_mean_path_counts_less_where_it_is_rough_in_every_direction() -> None:
    rng = np.random.default_rng(0)
    cubic = KNOTS[FREE][:, None] ** 3 * np.array([2.0, -1.0])
    shake, line = rng.normal(size=(6, 2)), np.array([0.6, 0.8])

    def weight(mean: np.ndarray) -> float:
        return float(shake_weight(jnp.asarray(mean, jnp.float32)))

    assert weight(cubic) > 0.999
    assert weight(cubic + 0.2 * shake) < 0.3
    # Uneven instants on a straight way count a twentieth.
    uneven = 0.2 * shake[:, :1] * line
    assert weight(cubic + uneven) > 2 * weight(cubic + 0.2 * shake)
    bend = np.diff(np.insert(cubic + uneven, 3, 0, 0), 4, axis=0)
    roughness = 0.05 * (bend**2).mean(0).sum()
    np.testing.assert_allclose(weight(cubic + uneven), 1 / (1 + roughness / SHAKE), rtol=1e-3)


def displacements(cubic: np.ndarray) -> np.ndarray:
    """Returns how far frames whose exposures last a period move along a cubic path, ``4 2``."""
    times = np.linspace(-0.5, 0.5, 2001)[:, None]
    mean = np.stack([[(j + times) ** k for k in (1, 2, 3)] for j in range(-2, 3)]).mean((2, 3))
    places = mean @ cubic
    return (places - places[2])[[0, 1, 3, 4]]


def test_the_first_path_is_the_cubic_that_blurred_frames_moved_along() -> None:
    cubic = np.array([[8.0, -3.0], [1.0, 2.0], [-0.5, 0.4]])
    seen = jnp.asarray(displacements(cubic), jnp.float32)[None]
    wanted = np.stack([KNOTS[FREE] ** k for k in (1, 2, 3)], -1) @ cubic
    np.testing.assert_allclose(through(seen, jnp.ones(5))[0], wanted, atol=0.05)
    # From one neighbour it is straight.
    found = through(seen, jnp.array([0.0, 0.0, 1.0, 1.0, 0.0]))[0]
    np.testing.assert_allclose(found, KNOTS[FREE][:, None] * seen[0, 2], rtol=0.11, atol=0.01)


def test_the_first_path_fits_displacements_by_least_squares() -> None:
    """The outer frames' residuals count half, and each coefficient has its own ridge."""
    rng = np.random.default_rng(0)
    seen, frames = rng.normal(0, 5, (4, 2)), np.array([-2.0, -1, 1, 2])
    design = np.stack([frames, frames**2, frames**3 + frames / 4], -1)
    weights = np.array([0.5, 1, 0, 0.5])  # The next frame is missing.
    system = np.concatenate([weights[:, None] * design, np.diag(np.sqrt([1e-6, 1e-2, 1e-1]))])
    target = np.concatenate([weights[:, None] * seen, np.zeros((3, 2))])
    cubic = np.linalg.lstsq(system, target, rcond=None)[0]
    wanted = np.stack([KNOTS[FREE] ** k for k in (1, 2, 3)], -1) @ cubic
    found = through(jnp.asarray(seen[None], jnp.float32), jnp.array([1.0, 1, 1, 0, 1]))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-3, atol=1e-3)
