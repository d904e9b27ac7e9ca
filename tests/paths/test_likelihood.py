"""The likelihood of a path against its covariance matrices in float64, and draws from its model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.images import GAMMA
from jaxdeblur.paths.fit import log_evidence_ratio, refitted
from jaxdeblur.paths.gate import agreement, noise_factor, second_share
from jaxdeblur.paths.likelihood import (
    LEAST_LOG_WEIGHT,
    RADII,
    START,
    Band,
    Fit,
    Likelihood,
    Observed,
    band,
    likelihood,
    observed,
)
from jaxdeblur.paths.path import FREE, KNOTS, SAMPLE_WEIGHTS, exposures
from jaxdeblur.paths.shutter import DUTIES, Shutter
from jaxdeblur.paths.tiles import Tiling, hann
from jaxdeblur.testing import float32_error

LOG_W = np.array([-0.5, 0.0, -1.0])


def turns(path: np.ndarray, fy: np.ndarray, fx: np.ndarray) -> np.ndarray:
    """Returns exp(-2 pi i f.p) at each sample of a path, ``... Y X``."""
    along = path[..., 0, None, None] * fy[:, None] + path[..., 1, None, None] * fx
    return np.exp(-2j * np.pi * along)


class Model:
    """L of one tile, its curvature, and what its factors change."""

    def __init__(self, seen: Observed, where: Band, basis: np.ndarray) -> None:
        self.where, self.basis = where, np.asarray(basis, np.float64)
        parts = np.asarray(seen.spectra, np.float64)
        self.blurred = parts[:, 0] + 1j * parts[:, 1]
        self.offsets = np.asarray(seen.offsets, np.float64)
        self.radial, self.rings = (np.float64(each) for each in (where.radial, where.rings))
        self.sizes = self.rings.sum((1, 2))
        self.weights = SAMPLE_WEIGHTS.astype(np.float64)

    def samples(self, knots: np.ndarray) -> np.ndarray:
        """Returns exp(-2 pi i f.(p - o)) at the samples of the exposures, ``3 J Y X``."""
        path = np.einsum("mjp,pc->mjc", self.basis, knots) - self.offsets[:, None]
        return turns(path, self.where.fy, self.where.fx)

    def value(
        self,
        knots: np.ndarray,
        log_lam: np.ndarray,
        log_w: np.ndarray,
        log_factors: np.ndarray | float = 0.0,
    ) -> float:
        """Returns L; ``log_factors`` multiply lam in each ring."""
        power, log_det = self._of(knots, log_lam, log_w, log_factors)
        per_ring = np.einsum("ryx,yx->r", self.rings, power) + 3 * self.sizes * self.where.floor
        full = self.sizes > 0
        total = 3 * (self.sizes[full] * np.log(per_ring[full])).sum()
        return float((total + (self.where.weight * log_det).sum()) / self.sizes.sum())

    def lam(self, log_lam: np.ndarray, log_factors: np.ndarray | float = 0.0) -> np.ndarray:
        """Returns lam at each frequency."""
        factors = np.broadcast_to(log_factors, len(RADII))
        return np.exp(
            np.einsum("r,ryx->yx", log_lam, self.radial)
            + np.einsum("r,ryx->yx", factors, self.rings > 0)
        )

    def _of(
        self,
        knots: np.ndarray,
        log_lam: np.ndarray,
        log_w: np.ndarray,
        log_factors: np.ndarray | float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns B^H C^-1 B and log det C, for the covariance C of the frames, without s_r."""
        kernel = np.einsum("j,mjyx->yxm", self.weights, self.samples(knots))
        covariance = kernel[..., None] * kernel[..., None, :].conj()
        covariance = covariance / self.lam(log_lam, log_factors)[..., None, None]
        covariance = covariance + np.diag(np.exp(-log_w))
        blurred = np.moveaxis(self.blurred, 0, -1)[..., None]
        power = (blurred.conj() * np.linalg.solve(covariance, blurred)).real.sum((-2, -1))
        return power, np.linalg.slogdet(covariance)[1]

    def curvature(self, knots: np.ndarray, log_lam: np.ndarray, log_w: np.ndarray) -> np.ndarray:
        """Returns Kaufman's Gauss-Newton matrix, from the Jacobian of the projected residual."""
        samples, lam, w = self.samples(knots), self.lam(log_lam), np.exp(log_w)
        kernel = np.einsum("j,mjyx->yxm", self.weights, samples)
        fy, fx = np.broadcast_arrays(self.where.fy[:, None], self.where.fx)
        f = -2j * np.pi * np.stack([fy, fx], -1)
        slopes = np.einsum("j,mjp,mjyx,yxc->yxmpc", self.weights, self.basis, samples, f)
        stacked = np.concatenate([np.sqrt(w) * kernel, np.sqrt(lam)[..., None]], -1)
        data = np.sqrt(w) * np.moveaxis(self.blurred, 0, -1)
        data = np.concatenate([data, np.zeros((*fy.shape, 1))], -1)
        den = (np.abs(stacked) ** 2).sum(-1)
        sharp = (stacked.conj() * data).sum(-1) / den
        moved = np.sqrt(w)[:, None] * slopes.reshape(*fy.shape, 3, 12) * sharp[..., None, None]
        moved = np.concatenate([moved, 0 * moved[..., :1, :]], -2)
        along = np.einsum("yxk,yxkq->yxq", stacked.conj(), moved) / den[..., None]
        jacobian = moved - stacked[..., None] * along[..., None, :]
        power, _ = self._of(knots, log_lam, log_w, 0.0)
        per_ring = np.einsum("ryx,yx->r", self.rings, power) + 3 * self.sizes * self.where.floor
        of_ring = 3 * self.sizes / np.where(self.sizes > 0, per_ring, 1.0)
        precision = np.einsum("r,ryx->yx", of_ring, self.rings)
        squares = np.einsum("yx,yxkp,yxkq->pq", precision, jacobian.conj(), jacobian).real
        return 2 / self.sizes.sum() * squares


def straight(velocity: np.ndarray) -> np.ndarray:
    """Returns the knots of straight paths, ``N 6 2``, for velocities ``N 2``."""
    return KNOTS[FREE][:, None] * velocity[:, None]


def draw_tiles(
    rng: np.random.Generator,
    knots: np.ndarray,
    duties: np.ndarray,
    log_w: tuple[float, float, float] = (0.0, 0.0, 0.0),
    log_lam: np.ndarray = START,
) -> Observed:
    """Draws the spectra of tiles from the model, each along its straight path with its duty cycle.

    The noise power is 1, far above that of rounding.
    """
    count, shape = len(knots), (48, 25)
    fy, fx = np.fft.fftfreq(48) / 2, np.fft.rfftfreq(48) / 2
    radius = np.maximum(np.hypot(fy[:, None], fx), 1e-4)
    lam = np.exp(np.interp(np.log(radius), np.log(RADII), log_lam))

    def normal(*leading: int) -> np.ndarray:
        parts = rng.normal(size=(2, *leading, *shape)) * np.sqrt(0.5)
        return parts[0] + 1j * parts[1]

    velocity = knots[:, -1] / KNOTS[-1]
    times = np.linspace(-0.5, 0.5, 129)[1::2]
    offsets = np.arange(-1, 2)[:, None] * velocity[:, None]
    whole = 2 * np.round(offsets / 2)
    at = duties[:, None, None] * times[:, None] * velocity[:, None]  # about each frame's middle
    path = at[:, None] + (offsets - whole)[:, :, None]
    kernel = turns(path, fy, fx).mean(2)
    noise = normal(count, 3) * np.exp(-0.5 * np.array(log_w))[:, None, None]
    blurred = kernel * (normal(count) / np.sqrt(lam))[:, None] + noise
    parts = jnp.asarray(np.stack([blurred.real, blurred.imag], 2), jnp.float32)
    return Observed(parts, jnp.asarray(whole, jnp.float32), jnp.ones((count, 3)))


def fit_at(knots: np.ndarray, log_lam: np.ndarray = START) -> Fit:
    """Returns fits at these paths, with full weights."""
    spectrum = jnp.tile(jnp.asarray(log_lam, jnp.float32), (len(knots), 1))
    return Fit(jnp.asarray(knots, jnp.float32), spectrum, jnp.zeros((len(knots), 3)))


@jax.jit
def found_at(fit: Fit, seen: Observed) -> Likelihood:
    return likelihood(fit, seen, band(48, 0.24), exposures(0.8))


@pytest.fixture(name="tile", scope="module")
def a_tile() -> tuple[Fit, Observed, Band, Likelihood, Model]:
    """Returns a fit with a random path, spectra drawn for another, and what L has there."""
    rng = np.random.default_rng(3)
    where, basis = band(48, 0.24), exposures(0.8)
    # Spectra as faint as rounding, whose power then matters.
    seen = draw_tiles(rng, straight(np.array([[2.0, 7.0]])), np.array([0.8]))
    seen = seen._replace(spectra=3 * np.sqrt(where.floor) * seen.spectra)
    seen = jax.tree.map(lambda leaf: leaf[0], seen)
    seen = seen._replace(spectra=seen.spectra[:, :, where.rows][..., where.columns])
    spectrum = START + rng.normal(0, 0.5, len(START))
    fit = Fit(
        jnp.asarray(rng.normal(0, 2, (6, 2)), jnp.float32),
        jnp.asarray(spectrum, jnp.float32),
        jnp.asarray(LOG_W, jnp.float32),
    )
    return fit, seen, where, found_at(fit, seen), Model(seen, where, basis)


def arrays(fit: Fit) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(each, np.float64) for each in fit)


def test_the_likelihood_is_that_of_the_covariance(
    tile: tuple[Fit, Observed, Band, Likelihood, Model],
) -> None:
    fit, _, _, found, model = tile
    np.testing.assert_allclose(found.value, model.value(*arrays(fit)), rtol=1e-5)


def test_its_gradient_is_that_of_differences(
    tile: tuple[Fit, Observed, Band, Likelihood, Model],
) -> None:
    fit, _, _, found, model = tile
    knots, *rest = arrays(fit)
    steps = 1e-4 * np.eye(12).reshape(12, 6, 2)
    slopes = [(model.value(knots + d, *rest) - model.value(knots - d, *rest)) / 2e-4 for d in steps]
    assert np.abs(slopes).max() > 0.01
    np.testing.assert_allclose(found.gradient, slopes, rtol=1e-3, atol=1e-5)


def test_its_curvature_is_kaufmans(tile: tuple[Fit, Observed, Band, Likelihood, Model]) -> None:
    fit, _, _, found, model = tile
    expected = model.curvature(*arrays(fit))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.curvature, expected, rtol=0, atol=1e-4 * largest)
    values = np.linalg.eigvalsh(np.asarray(found.curvature, np.float64))
    assert values[0] > -1e-5 * largest
    assert values[6] > 1e-3 * largest, "half of the directions at least are determined"


def test_the_noise_to_signal_ratio_is_updated_by_expectation_maximisation(
    tile: tuple[Fit, Observed, Band, Likelihood, Model],
) -> None:
    """The expected power in a ring is what the slope of L in the ring's factor says."""
    fit, _, _, found, model = tile
    given, n = arrays(fit), model.sizes.sum()
    measured = np.flatnonzero(model.sizes)
    assert measured.tolist() == list(range(len(RADII) - 1))
    steps = 1e-4 * np.eye(len(RADII))
    slopes = [(model.value(*given, d) - model.value(*given, -d)) / 2e-4 for d in steps[measured]]
    wanted = -np.log(1 + n * np.array(slopes) / model.sizes[measured])
    assert np.abs(wanted).max() > 0.1
    step = np.asarray(found.log_nsr - fit.log_nsr)
    np.testing.assert_allclose(step[measured], wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(step[-1], step[-2], rtol=1e-5)  # No frequency is that high.


def test_weights_are_updated_by_expectation_maximisation(
    tile: tuple[Fit, Observed, Band, Likelihood, Model],
) -> None:
    fit, _, _, found, model = tile
    knots, log_lam, log_w = arrays(fit)
    for j in (0, 2):
        step = np.zeros(3)
        step[j] = 1e-4
        ends = [model.value(knots, log_lam, log_w + sign * step) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-4
        wanted = log_w[j] - np.log(1 + slope)
        np.testing.assert_allclose(found.log_weights[j], wanted, rtol=1e-3, atol=1e-4)
        assert abs(wanted - log_w[j]) > 0.01


def test_half_a_step_of_the_weights_is_taken_within_limits() -> None:
    nothing = jnp.zeros(())
    fit = Fit(jnp.zeros((6, 2)), jnp.asarray(START), jnp.array([-1.0, 0.0, -3.9]))
    better = jnp.array([-20.0, 9.0]), jnp.array([0.4, 1, -9])
    found = Likelihood(nothing, nothing[None], nothing[None, None], *better)
    after = refitted(fit, found, jnp.ones(3))
    np.testing.assert_allclose(after.log_weights, [-0.3, 0, LEAST_LOG_WEIGHT], rtol=1e-6)
    assert after.log_nsr.tolist() == [-10, 3]
    assert refitted(fit, found, jnp.array([0.0, 1.0, 1.0])).log_weights[0] == 0


@jax.jit
def repeated(fit: Fit, seen: Observed) -> tuple[Fit, jax.Array, jax.Array]:
    """Refits lam and w of each tile, at its path and each of DUTIES.

    Returns the fits, L and G, ``D N`` of each.
    """

    def of(duty: jax.Array) -> tuple[Fit, jax.Array, jax.Array]:
        inside, where = seen.up_to(0.24)
        basis = exposures(duty)

        def step(fit: Fit, _: None) -> tuple[Fit, jax.Array]:
            found = jax.vmap(lambda f, s: likelihood(f, s, where, basis))(fit, inside)
            return refitted(fit, found, inside.present), found.value

        after, values = jax.lax.scan(step, fit, None, length=12)
        return after, values[-1], log_evidence_ratio(after, values[-1], seen)

    return jax.lax.map(of, jnp.asarray(DUTIES))


VELOCITIES = np.array([[2.0, 11.0], [-9.0, 4.0], [6.0, -8.0], [1.0, 8.0]] * 2)


def test_noise_and_weights_of_drawn_tiles_are_found() -> None:
    """Noise of the first frame is e times as strong."""
    knots = straight(VELOCITIES)
    log_lam = START + np.linspace(-1, 1, len(START))
    seen = draw_tiles(np.random.default_rng(0), knots, np.full(8, 0.7), (-1, 0, 0), log_lam)
    fit, _, _ = repeated(fit_at(knots), seen)
    true = DUTIES.tolist().index(np.float32(0.7))
    np.testing.assert_allclose(fit.log_weights[true].mean(0), [-1, 0, 0], atol=0.1)
    np.testing.assert_allclose(fit.log_nsr[true, :, 3:-1].mean(0), log_lam[3:-1], atol=0.25)


def test_the_duty_cycle_of_drawn_tiles_is_found() -> None:
    """The second network acts where all tiles have the same, and not where frames are sharp.

    Nor does it where each tile has its own. In both, frames count as noisier.
    """
    knots, count = straight(VELOCITIES), len(VELOCITIES)

    def shutter_of(duties: np.ndarray) -> tuple[Shutter, jax.Array]:
        seen = draw_tiles(np.random.default_rng(1), knots, duties)
        _, values, gain = repeated(fit_at(knots), seen)
        shutter = Shutter.unknown().add(jnp.stack([values.T] * 2), jnp.ones(count))
        return shutter, gain[-1]

    shutter, gain = shutter_of(np.full(count, 0.95))
    np.testing.assert_allclose(shutter.duty, 0.95, atol=0.06)
    assert float(shutter.disputed) < 0.02
    assert float(shutter.blurred) > 0.1
    np.testing.assert_allclose(second_share(shutter), 1, atol=1e-3)
    assert gain.min() > 0.1  # of an open shutter over sharp frames
    shutter, gain = shutter_of(np.zeros(count))
    assert float(shutter.blurred) < 0.005
    assert gain.max() < -0.1
    np.testing.assert_allclose(noise_factor(agreement(shutter)), 4, atol=1e-3)
    np.testing.assert_allclose(second_share(shutter), 0, atol=1e-3)
    shutter, _ = shutter_of(np.resize([0.25, 0.6, 1.0], count))
    assert float(shutter.disputed) > 0.05
    np.testing.assert_allclose(noise_factor(agreement(shutter)), 4, atol=1e-3)
    np.testing.assert_allclose(second_share(shutter), 0, atol=1e-3)


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
def test_the_light_and_duty_cycle_of_drawn_frames_are_found(gamma: float) -> None:
    """A texture with the power of START moves past the camera, which averages light or values."""
    rng, height, width = np.random.default_rng(4), 320, 448
    velocity, duty = np.array([1.0, 6.0]), 0.7
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    radius = np.maximum(np.hypot(fy, fx), 1 / width)
    texture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / radius)
    values = np.clip(0.5 + 0.2 * texture / texture.std(), 0, 1)
    times = np.linspace(-duty / 2, duty / 2, 65)[1::2]
    turns = (fy * velocity[0] + fx * velocity[1])[..., None]
    kernel = [np.exp(-2j * np.pi * turns * (j + times)).mean(-1) for j in (-1, 0, 1)]
    light = np.fft.irfft2(np.fft.rfft2(values**gamma) * np.stack(kernel), s=(height, width))
    # As of a camera; without noise, the window's errors would outweigh all else.
    noise = 0.01 * rng.normal(size=light.shape)
    frames = np.round(255 * np.clip(np.clip(light, 0, 1) ** (1 / gamma) + noise, 0, 1)) / 255
    tiling = Tiling(height, width, 64, 128, 192)
    inner = jnp.asarray([18, 19, 20, 21, 26, 27, 28, 29])  # Away from the borders.
    knots = straight(np.tile(velocity, (len(tiling.centres), 1)))
    offsets = jnp.asarray(2 * np.round(np.arange(-1, 2)[:, None] * velocity / 2), jnp.float32)
    offsets = jnp.broadcast_to(offsets, (len(knots), 3, 2))

    @jax.jit
    def seen_in(exponent: jax.Array) -> Observed:
        given = jnp.asarray(frames, jnp.float32) ** exponent, tiling, offsets, jnp.ones(5)
        return observed(*given, only=inner)

    each = [repeated(fit_at(knots[:8]), seen_in(g))[1].T for g in (1.0, GAMMA)]
    shutter = Shutter.unknown().add(jnp.stack(each), jnp.ones(8))
    assert bool(shutter.linear) == (gamma > 1)
    np.testing.assert_allclose(shutter.duty, duty, atol=0.06)


def test_the_gain_is_over_sharp_frames_along_the_path() -> None:
    """As fitted in three steps, lam and w included."""
    knots = straight(VELOCITIES[:2])
    seen = draw_tiles(np.random.default_rng(2), knots, np.full(2, 0.8))
    inside, where = seen.up_to(0.24)
    sharp = jax.jit(jax.vmap(lambda f, s: likelihood(f, s, where, exposures(0.0))))
    fit = fit_at(knots)
    for _ in range(3):
        found = sharp(fit, inside)
        fit = refitted(fit, found, inside.present)
    gain = jax.jit(log_evidence_ratio)(fit_at(knots), jnp.array([0.5, 0.25]), seen)
    np.testing.assert_allclose(gain, found.value - jnp.array([0.5, 0.25]), rtol=1e-4)


@pytest.mark.parametrize("scale", [1, 2])
def test_observations_are_every_second_frequency_of_windowed_patches(scale: int) -> None:
    """The power of rounding in them is what the band states."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 96, 96)) / 255
    rounding = (rng.random((3, 96, 96)) - 0.5) / 255
    tiling, middle = Tiling(96, 96, 48, 48, 48), np.array([4])
    offsets = np.zeros((9, 3, 2), np.float32)
    offsets[:, 2] = 4, -6

    def spectra(frames: np.ndarray) -> np.ndarray:
        given = jnp.asarray(frames, jnp.float32), tiling, jnp.asarray(offsets), jnp.ones(5)
        parts = observed(*given, only=jnp.asarray(middle), scale=scale).spectra[0]
        return np.asarray(parts[:, 0] + 1j * parts[:, 1])

    small = frames.reshape(3, 96 // scale, scale, 96 // scale, scale).mean((2, 4))
    n, found = 48 // scale, spectra(frames)
    for j, (y, x) in enumerate(offsets[4].astype(int) // scale):
        top, left = 48 // scale - n // 2 + y, 48 // scale - n // 2 + x
        patch = small[j, top : top + n, left : left + n]
        whole = np.fft.rfft2((patch - patch.mean()) * hann(n))
        np.testing.assert_allclose(found[j], whole[::2, ::2], atol=1e-3)
    where = band(n // 2, 0.2 / scale, scale)
    power = np.abs(spectra(rounding)[:, where.rows][..., where.columns]) ** 2
    inside = where.weight > 0
    np.testing.assert_allclose(power[:, inside].mean(), where.floor, rtol=0.25)


def test_a_frame_that_is_not_there_changes_nothing(
    tile: tuple[Fit, Observed, Band, Likelihood, Model],
) -> None:
    fit, seen, _, every, _ = tile
    ends = seen._replace(present=jnp.asarray([0.0, 1.0, 1.0]))
    a, b = found_at(fit, ends), found_at(fit, ends._replace(spectra=seen.spectra.at[0].set(9.0)))
    many = seen.spectra.size
    np.testing.assert_allclose(a.value, b.value, rtol=float32_error(many))
    size = float(np.abs(b.gradient).max())
    np.testing.assert_allclose(a.gradient, b.gradient, rtol=0, atol=float32_error(many, size))
    assert abs(float(a.value - every.value)) > 0.1
