"""Frames whose blur is too long are reduced, on the canvas of their size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.images import halved
from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.motion import tiling_of
from jaxdeblur.paths.octave import Places, around_of, at_full_size, at_octave
from jaxdeblur.paths.tiles import cut

SIZE = 386, 450  # Odd when halved, and hardly not small.


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((2, *SIZE)), jnp.float32)


def test_a_frame_with_little_blur_stays_as_it_is() -> None:
    given, small = images(), jnp.zeros((2, 200, 300))
    kept = at_octave(given, jnp.bool_(False), SIZE)
    np.testing.assert_array_equal(kept, given)
    np.testing.assert_array_equal(at_full_size(kept, jnp.bool_(False), SIZE), given)
    # A small frame is never reduced.
    np.testing.assert_array_equal(at_octave(small, jnp.bool_(True), (200, 300)), small)


def test_a_reduced_frame_is_mirrored_up_to_its_former_size() -> None:
    given = images()
    canvas, half = at_octave(given, jnp.bool_(True), SIZE), halved(given)
    np.testing.assert_allclose(canvas[:, :193, :225], half, atol=1e-6)
    np.testing.assert_array_equal(canvas[:, 193:], canvas[:, :193][:, ::-1])
    np.testing.assert_array_equal(canvas[..., 225:], canvas[..., :225][..., ::-1])
    last = at_octave(jnp.moveaxis(given, 0, -1), jnp.bool_(True), SIZE, axis=-3)
    np.testing.assert_allclose(jnp.moveaxis(last, -1, 0), canvas, atol=1e-6)


def test_a_smooth_frame_comes_back_at_its_size() -> None:
    y, x = (np.linspace(0, 3, n) for n in SIZE)
    smooth = jnp.asarray(np.sin(y)[:, None] * np.cos(x), jnp.float32)
    there = at_octave(smooth, jnp.bool_(True), SIZE)
    back = at_full_size(there, jnp.bool_(True), SIZE)
    np.testing.assert_allclose(back[8:-8, 8:-8], smooth[8:-8, 8:-8], atol=1e-3)


def test_the_tiles_of_a_reduced_frame_are_those_of_an_image_of_its_size() -> None:
    tiling = tiling_of(SIZE)
    small = tiling._replace(height=193, width=225)
    whole, reduced = (Places.of(tiling, jnp.bool_(large)) for large in (False, True))
    np.testing.assert_array_equal(whole.inside, 1)
    np.testing.assert_array_equal(whole.inward, tiling.inward)
    inside = np.flatnonzero(reduced.inside)
    assert len(inside) == len(small.centres) < len(tiling.centres)
    np.testing.assert_array_equal(tiling.centres[inside], small.centres)
    np.testing.assert_array_equal(reduced.inward[inside], small.inward)
    np.testing.assert_allclose(reduced.around[inside], around_of(small))
    # Beyond, each stands for the nearest tile inside.
    apart = np.abs(tiling.centres[:, None] - small.centres).sum(-1)
    np.testing.assert_array_equal(reduced.near, inside[apart.argmin(1)])
    given = images()
    canvas = at_octave(given, jnp.bool_(True), SIZE)
    patches = cut(canvas, tiling, inward=reduced.inward)[inside]
    wanted = cut(halved(given), small, inward=jnp.asarray(small.inward))
    np.testing.assert_allclose(patches, wanted, atol=1e-6)


def test_patches_of_every_scale_show_the_same_places() -> None:
    """What moves a patch inside is in pixels of the frame, and the patch is cut at half size."""
    tiling = tiling_of((400, 480))
    image = jnp.asarray(np.random.default_rng(0).random((3, 400, 480)), jnp.float32)
    nothing, present = jnp.zeros((len(tiling.centres), 3, 2)), jnp.ones(5)
    inward = jnp.asarray(tiling.inward)
    found = observed(image, tiling, nothing, present, inward)
    half = tiling.reduced(2)
    wanted = observed(halved(image), half, nothing, present, jnp.asarray(half.inward), scale=1)
    np.testing.assert_allclose(found.spectra, wanted.spectra, atol=1e-3)
    assert np.abs(observed(image, tiling, nothing, present).spectra - wanted.spectra).max() > 1
