"""The scenes that results are reported on: eq. 1 holds, no pixel changes, the cache heals."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data.drawing import compress, look_up, pack_texels
from jaxdeblur.data.photographs import SPLITS
from jaxdeblur.data.test_scenes import moments as moments_module
from jaxdeblur.data.test_scenes import pools as scene_pool
from jaxdeblur.data.test_scenes import rendered_videos
from jaxdeblur.data.test_scenes.moments import render_clip, render_moment, render_scene
from jaxdeblur.data.test_scenes.pools import render_pool
from jaxdeblur.data.test_scenes.scenes import (
    _OBJECT_RADIUS,
    _OBJECT_SWING,
    _PERSPECTIVE_LIMIT,
    _ZOOM_LIMIT,
    SCENES,
    SceneConfig,
    position,
    sample_scene,
)
from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder
from jaxdeblur.video.image_file import write_png

TINY = dataclasses.replace(
    SCENES["tiny"],
    motion=(3.0, 5.0),
    linear_light=0.5,
    highlights=1.0,
    noise=(0.0, 4 / 255),
    compression=0.5,
)
KEY = jax.random.key(7)
PIXELS = (0.0019584, 0.0034640)
"""A weighted sum of the blurred and of the sharp frames that KEY gives."""
DRAWN = {
    ".textures": 1.5475,
    ".origin": 0.51127,
    ".texels": 1.1292,
    ".camera.velocity": 8.1311,
    ".camera.amplitude": 1.24644,
    ".camera.cycles": 0.22954,
    ".camera.phase": 3.08404,
    ".tilt": 0.0485175,
    ".turning": 0.995736,
    ".zooming": 1.03082,
    ".slope": 0.000391653,
    ".objects.number": 1.66,
    ".objects.start": 39.0947,
    ".objects.follows": 0.584862,
    ".objects.path.velocity": 5.0971,
    ".objects.path.amplitude": 0.680537,
    ".objects.path.cycles": 0.23264,
    ".objects.path.phase": 3.17917,
    ".objects.angle": 3.25893,
    ".objects.spin": 0.0236274,
    ".objects.radius": 25.0577,
    ".objects.swing": 0.0584854,
    ".objects.swing_phase": 3.16176,
    ".objects.is_box": 0.413333,
    ".objects.aspect": 0.457283,
    ".objects.edge": 1.73156,
    ".exposure": 0.801665,
    ".gamma": 1.66,
    ".highlights": 0.264279,
    ".noise": 0.00346229,
    ".compression": 0.158643,
    ".motion": 19.3001,
}
"""The mean size of every number of a hundred wide scenes."""


@pytest.fixture(scope="module")
def photographs():
    """Blocky noise with pure black and white in it: detail at every place, highlights too."""
    values = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    values[:, ::5] = 255
    return jnp.asarray(values.repeat(3, axis=1).repeat(3, axis=2))


@functools.cache
def compiled(function, *options):
    """``function`` compiled once, its last arguments fixed."""
    return jax.jit(lambda *arguments: function(*arguments, *options))


def plain(scene, gamma=1.0, highlights=0.0):
    """The scene with nothing between the mean of its moments and the frame but rounding."""
    zero = jnp.zeros(())
    return scene._replace(
        gamma=jnp.float32(gamma), highlights=jnp.float32(highlights), noise=zero, compression=zero
    )


@pytest.fixture(scope="module")
def scene():
    """One with objects in it that move."""
    keys = jax.random.split(KEY, 20)
    draw = compiled(sample_scene, (4, 96), TINY)
    return next(s for s in map(draw, keys) if s.objects.number == 2 and s.objects.follows[0] == 0)


def moments_of(scene, photographs):
    """Every averaged moment of a clip as (T, sub_frames, H, W, 3), rendered one at a time."""
    packed = pack_texels(photographs[scene.textures])
    offsets = ((np.arange(TINY.sub_frames) + 0.5) / TINY.sub_frames - 0.5) * scene.exposure
    times = np.arange(TINY.frames) - (TINY.frames - 1) / 2
    moment = compiled(render_moment, TINY.size)
    return np.moveaxis([[moment(scene, packed, t + at) for at in offsets] for t in times], 2, -1)


def test_blurred_is_the_mean_of_the_moments_and_sharp_the_middle_one(scene, photographs):
    blurred, sharp = compiled(render_scene, TINY)(KEY, plain(scene), photographs)
    moments = moments_of(scene, photographs)
    np.testing.assert_allclose(blurred, moments.mean(axis=1), atol=0.51 / 255)
    np.testing.assert_allclose(sharp, moments[:, 1], atol=0.51 / 255)
    assert np.abs(blurred - sharp).mean() > 0.02  # else the test would show nothing


def test_a_short_exposure_is_a_share_of_the_period(scene, photographs):
    """Most presets draw it; taken for the whole period, every clip would be blurred too far."""
    short = plain(scene)._replace(exposure=jnp.float32(0.3))
    blurred, sharp = compiled(render_scene, TINY)(KEY, short, photographs)
    moments = moments_of(short, photographs)
    np.testing.assert_allclose(blurred, moments.mean(axis=1), atol=0.51 / 255)
    np.testing.assert_allclose(sharp, moments[:, 1], atol=0.51 / 255)
    whole, same = compiled(render_scene, TINY)(KEY, plain(scene), photographs)
    np.testing.assert_array_equal(sharp, same)
    assert np.abs(blurred - sharp).mean() < 0.6 * np.abs(whole - same).mean()


def test_linear_light_averages_light_and_clips_highlights(scene, photographs):
    linear = plain(scene, 2.2, 0.8)
    blurred, sharp = compiled(render_scene, TINY)(KEY, linear, photographs)
    moments = moments_of(scene, photographs)
    light = moments**2.2
    light = light + 0.8 * 10 * np.maximum(light - 0.9, 0)
    assert light.max() > 1.1  # some of it is more than the sensor holds
    # The deepest shadows are steep in light ** (1 / 2.2), and rounding is not all there is.
    expected = np.clip(light.mean(axis=1), 0, 1) ** (1 / 2.2)
    np.testing.assert_allclose(blurred, expected, atol=1.1 / 255)
    np.testing.assert_allclose(sharp, np.clip(light[:, 1], 0, 1) ** (1 / 2.2), atol=1.1 / 255)
    # A mean in linear light is brighter than the mean of the stored values.
    assert (np.asarray(blurred) - moments.mean(axis=1)).mean() > 0.01


@pytest.mark.parametrize(("gamma", "highlights"), [(1.0, 0.0), (2.2, 1.0)])
def test_a_scene_that_stands_still_is_sharp(scene, photographs, gamma, highlights):
    still = plain(scene, gamma, highlights)
    paths = (scene.camera, scene.objects.path, scene.turning.at[1:].set(0.1), scene.objects.spin)
    camera, path, *_ = jax.tree.map(jnp.zeros_like, paths)
    still = still._replace(
        camera=camera,
        objects=scene.objects._replace(path=path, spin=jnp.zeros(2)),
        turning=scene.turning.at[0].set(0),
        zooming=scene.zooming.at[0].set(0),
    )
    blurred, sharp = compiled(render_scene, TINY)(KEY, still, photographs)
    np.testing.assert_allclose(blurred, sharp, atol=1.01 / 255)  # a tie may round either way
    assert np.mean(np.asarray(blurred) != np.asarray(sharp)) < 1e-3
    np.testing.assert_array_equal(sharp, np.broadcast_to(sharp[:1], sharp.shape))


def render_batch(key, photographs, config, count):
    return jax.lax.map(
        lambda key: render_clip(key, photographs, config), jax.random.split(key, count)
    )


def test_the_key_decides_everything_and_values_are_whole_bytes(photographs):
    first, again = (compiled(render_batch, TINY, 2)(KEY, photographs) for _ in range(2))
    other = compiled(render_batch, TINY, 2)(jax.random.key(8), photographs)
    for a, b, c in zip(first, again, other, strict=True):
        assert a.shape == (2, 3, 32, 48, 3)
        np.testing.assert_array_equal(a, b)
        assert np.mean(np.asarray(a) == np.asarray(c)) < 0.1
        np.testing.assert_allclose(a * 255, np.round(a * 255), atol=1e-4)
        assert a.min() >= 0
        assert a.max() <= 1
    # On every machine: pixels that round the other way do not show in a weighted sum, but another
    # scene, noise or compression does.
    weights = np.random.default_rng(0).standard_normal(first[0].shape)
    found = [float(np.mean(weights * np.asarray(clip))) for clip in first]
    np.testing.assert_allclose(found, PIXELS, atol=2e-5, err_msg="raise RENDERER_VERSION")


def test_all_at_once_as_on_an_accelerator_gives_the_same_clips(photographs, monkeypatch):
    expected = compiled(render_batch, TINY, 2)(KEY, photographs)
    monkeypatch.setattr(moments_module, "_one_after_the_other", lambda: False)
    clips = jax.jit(lambda key: render_batch(key, photographs, TINY, 2))(KEY)
    for a, b in zip(clips, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1.01 / 255)
        assert np.mean(np.abs(a - b) > 1e-6) < 0.01


def speeds(config, count=300):
    """Mean speeds over a long time of the camera and of each object present, and ``motion``."""
    draw = jax.vmap(sample_scene, in_axes=(0, None, None))
    scene = compiled(draw, (4, 96), config)(jax.random.split(KEY, count))

    def speed(path):  # the sines are bounded
        ends = [
            path.velocity * time
            + np.sum(
                path.amplitude * np.sin(2 * np.pi * path.cycles[..., None, :] * time + path.phase),
                axis=-1,
            )
            for time in (-5000.0, 5000.0)
        ]
        return np.linalg.norm(ends[1] - ends[0], axis=-1) / 10000

    return speed(scene.camera), speed(scene.objects.path), np.asarray(scene.motion)


def test_speeds_fill_the_range_and_no_more():
    camera, own, motion = speeds(SCENES["narrow"])
    assert 2.4 < camera.min() < 2.7
    assert 5.8 < camera.max() < 6.1
    assert own.max() < 6.1
    assert np.all((own < 0.01) | (own > 2.4))  # they stand, or move as fast as the camera may
    assert np.all(motion >= camera - 0.02)
    assert np.all(motion <= 6 * (1 + SCENES["narrow"].parallax))


def test_handheld_scenes_are_slow_more_often_than_fast():
    camera, _, _ = speeds(SCENES["handheld"])
    slow, fast = np.mean(camera < 7), np.mean(camera > 20)  # of a square root: 1/2 and 0.15
    assert 0.45 < slow < 0.65  # with the tripods
    assert 0.08 < fast < 0.22
    assert camera.max() < 28.5


def test_footage_reaches_the_largest_blur():
    camera, _, _ = speeds(SCENES["footage"])
    assert 37 < camera.max() < 40.5
    assert 0.4 < np.mean(camera < 14) < 0.7  # of a uniform number to the power 1.5: 1/2
    # A tripod: the share of scenes that config.still says.
    assert 0.03 < np.mean(camera < 0.01) < 0.15
    # An exposure is averaged of moments about a pixel apart.
    assert SCENES["footage"].motion[1] / SCENES["footage"].sub_frames < 1.1


def shifts_between(image, other, reach):
    """The whole-pixel shift at which two grey images agree best, by trying them all."""
    inner = image[reach:-reach, reach:-reach]
    h, w = inner.shape
    candidates = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    errors = [np.mean((other[y : y + h, x : x + w] - inner) ** 2) for y, x in candidates]
    return np.array(candidates[int(np.argmin(errors))]) - reach


def test_the_picture_moves_as_the_path_says(scene, photographs):
    """One frame to the next the background moves by the camera's path, to the pixel."""
    straight = plain(scene)._replace(
        tilt=jnp.zeros(()),
        texels=jnp.ones(3),
        slope=jnp.zeros(2),
        turning=scene.turning.at[0].set(0),
        zooming=scene.zooming.at[0].set(0),
        camera=scene.camera._replace(velocity=jnp.array([3.0, -4.0])),
        objects=scene.objects._replace(number=jnp.int32(0)),
    )
    _, sharp = compiled(render_scene, TINY)(KEY, straight, photographs)
    moved = position(straight.camera, jnp.float32(1)) - position(straight.camera, jnp.float32(0))
    assert jnp.linalg.norm(moved) > 4
    grey = np.asarray(sharp).mean(axis=-1)
    np.testing.assert_allclose(shifts_between(grey[1], grey[2], 6), -np.asarray(moved), atol=0.75)


def test_objects_fit_their_box_and_their_edges_are_soft(monkeypatch):
    """The largest objects under the most zoom and perspective, in each corner, are not cut."""
    size = (96, 128)
    config = dataclasses.replace(SCENES["wide"], size=size, frames=1, objects=1)
    assert config.perspective == _PERSPECTIVE_LIMIT
    black_white = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255)]).astype(np.uint8)
    packed = pack_texels(jnp.asarray(black_white))
    drawn = jax.jit(lambda key: sample_scene(key, (2, 64), config))(KEY)
    still = jax.tree.map(jnp.zeros_like, drawn.camera)

    def worst(corner, phase, is_box):
        corner = jnp.array(corner, jnp.float32)
        return drawn._replace(
            textures=jnp.array([0, 1]),
            camera=still,
            # Objects are largest in the picture where the plane is nearest, zoomed in.
            slope=corner * config.perspective * 2 / jnp.array(size),
            zooming=jnp.array([-_ZOOM_LIMIT * 2 * jnp.pi * 0.05, 0.05, jnp.pi / 2]),
            objects=drawn.objects._replace(
                number=jnp.int32(1),
                start=(corner * jnp.array(size) * 0.4)[None],
                follows=jnp.zeros(1),
                path=jax.tree.map(lambda a: a[None], still),
                radius=jnp.array([_OBJECT_RADIUS[1] * min(size)]),
                swing=_OBJECT_SWING * jnp.array([[0.5, 0.3, 0.2]]),
                swing_phase=jnp.full((1, 3), phase),
                is_box=jnp.array([is_box]),
                aspect=jnp.array([0.8]),
                edge=jnp.array([2.5]),
            ),
        )

    def draw_all():
        draw = jax.jit(lambda scene: render_moment(scene, packed, jnp.float32(0), size)[0])
        return np.stack(
            [
                draw(worst(corner, phase, is_box))
                for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1))
                for phase, is_box in ((0.0, 0.0), (2.0, 0.0), (4.0, 0.0), (0.0, 1.0))
            ]
        )

    images = draw_all()
    monkeypatch.setattr(moments_module, "_one_after_the_other", lambda: False)  # no box at all
    np.testing.assert_allclose(images, draw_all(), atol=1e-6)
    covered = images.mean(axis=(1, 2))
    assert covered.min() > 0.02
    assert covered.max() < 0.5
    assert np.abs(np.diff(images, axis=1)).max() < 0.7  # no hard step from 0 to 1


def test_compression_is_mild_and_grows_with_strength(photographs):
    frames = jnp.asarray(photographs[:2, :30, :44], jnp.float32) / 255  # not multiples of 8
    squeeze = jax.jit(compress)
    errors = [float(jnp.abs(squeeze(frames, s) - frames).mean()) for s in (0.1, 0.5, 1.0)]
    assert 0 < errors[0] < errors[1] < errors[2] < 8 / 255  # of noise, the worst there is
    flat = jnp.full((1, 16, 16, 3), 0.5)
    np.testing.assert_allclose(compress(flat, 1.0), flat, atol=1.5 / 255)


def test_noise_and_compression_touch_the_blurred_frames_alone(scene, photographs):
    render = compiled(render_scene, TINY)
    blurred, sharp = (np.asarray(v) * 255 for v in render(KEY, plain(scene), photographs))
    noisy = plain(scene)._replace(noise=jnp.float32(4 / 255))
    squeezed = plain(scene)._replace(compression=jnp.float32(1.0))
    for changed, spread in ((noisy, (3, 5)), (squeezed, (1, 12))):
        other, same = render(KEY, changed, photographs)
        np.testing.assert_array_equal(np.asarray(same) * 255, sharp)
        inner = (blurred > 20) & (blurred < 235)  # where nothing is clipped
        difference = (np.asarray(other) * 255 - blurred)[inner]
        assert spread[0] < difference.std() < spread[1]
        assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"sub_frames": 4},
        {"size": (8, 64)},
        {"exposure": (0.5, 1.2)},
        {"motion": (3.0, 2.0)},
        {"motion_skew": 0.0},
        {"perspective": 0.5},
    ],
)
def test_impossible_configurations_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        SceneConfig(**change)


def test_the_manifests_of_the_splits_share_no_photograph(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(100):
        write_png(photos / f"{number}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    shown: dict[str, set[str]] = {}
    for split in SPLITS:
        render_pool(split, TINY, 12, 1, tmp_path / split, photos=photos)
        (manifest,) = (tmp_path / split).glob("*/scenes.json")
        said = json.loads(manifest.read_text())
        names = {name for names in said["shows"] for name in names}
        assert names <= set(said["photographs"])
        assert any(name.startswith("folder/") for name in names)
        shown[split] = {said["photographs"][name] for name in names}
    assert not shown["train"] & shown["validation"]
    assert not shown["train"] & shown["test"]
    assert not shown["validation"] & shown["test"]


def test_pool_is_rendered_once_then_opened_and_healed_if_damaged(tmp_path, monkeypatch):
    steps = []
    pool = render_pool("train", TINY, 3, 1, tmp_path, lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert pool.blurred.shape == pool.sharp.shape == (3, 3, 32, 48, 3)
    assert pool.blurred.dtype == np.uint8
    assert isinstance(pool.blurred, np.memmap)
    assert pool.motion.shape == (3,)
    assert np.all(pool.motion > 2.9)
    (folder,) = tmp_path.iterdir()  # whole, and nothing beside it
    manifest = json.loads((folder / "scenes.json").read_text())
    assert manifest["seed"] == 1
    assert manifest["config"]["size"] == [32, 48]
    assert all(set(names) <= set(manifest["photographs"]) for names in manifest["shows"])
    assert pool.photographs == tuple(map(tuple, manifest["shows"]))

    first = np.array(pool.blurred)
    del pool
    with monkeypatch.context() as patch:  # opened, not rendered
        patch.setattr(scene_pool, "_render_to", None)
        np.testing.assert_array_equal(render_pool("train", TINY, 3, 1, tmp_path).blurred, first)

    whole = (folder / "sharp.npy").read_bytes()
    for name, damaged in (
        ("sharp.npy", whole[:-5]),
        ("motion.npy", b""),
        ("scenes.json", b"{}"),
    ):
        (folder / name).write_bytes(damaged)
        with pytest.warns(RuntimeWarning, match="rendered anew"):
            again = render_pool("train", TINY, 3, 1, tmp_path)
        np.testing.assert_array_equal(again.blurred, first)
        assert (folder / "sharp.npy").read_bytes() == whole
        assert len(list(tmp_path.iterdir())) == 1


def test_pools_of_different_splits_show_different_photographs(tmp_path):
    shown = {}
    for split in ("train", "validation", "test"):
        pool = render_pool(split, TINY, 3, 1, tmp_path)
        shown[split] = {name for names in pool.photographs for name in names}
    assert shown["test"] == {
        "skimage/coffee.png",
        "skimage/motorcycle_left.png",
        "sklearn/flower.jpg",
    }
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]


def test_an_interrupted_or_impossible_pool_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_pool("train", TINY, 3, 1, tmp_path, interrupt)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="are free"):
        render_pool("train", dataclasses.replace(TINY, size=(4096, 4096)), 10**9, 1, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        render_pool("train", TINY, 3, 1, tmp_path / "file" / "cache")


def test_rendered_videos_are_fixed_and_blurred_as_asked(tmp_path):
    change = {"scenes": 3, "size": (32, 48), "frames": 3, "cache_dir": tmp_path}
    videos = rendered_videos(config=TINY, **change)
    assert [video.name for video in videos] == ["rendered_00", "rendered_01", "rendered_02"]
    video = videos[0]
    assert (len(video), video.height, video.width) == (3, 32, 48)
    assert video.blurred(1).shape == (32, 48, 3)
    assert np.mean(video.blurred(1) != video.sharp(1)) > 0.5
    assert video.blurred(0).flags.owndata
    assert max(len(video.photographs) for video in videos) > 1  # the objects' too
    assert set(video.photographs) <= {
        "skimage/coffee.png",
        "skimage/motorcycle_left.png",
        "sklearn/flower.jpg",
    }
    varied = dataclasses.replace(TINY, still=0.5, exposure=(0.2, 0.7))
    linear = rendered_videos(config=varied, blur_pixels=10, linear=True, **change)
    assert linear[0].name == "rendered_10px_linear_00"
    (manifest,) = (
        json.loads(path.read_text())["config"]
        for path in tmp_path.glob("*/scenes.json")
        if '"motion": [\n      10.0' in path.read_text()
    )
    assert manifest["sub_frames"] == 11
    assert (manifest["exposure"], manifest["still"]) == ([1.0, 1.0], 0.0)
    assert manifest["linear_light"] == 1.0


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAXDEBLUR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "jaxdeblur"
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.fixture(scope="module")
def hundred():
    """A hundred scenes of one kind, drawn together."""
    draw = jax.vmap(sample_scene, in_axes=(0, None, None))
    return compiled(draw, (4, 96), SCENES["wide"])(jax.random.split(KEY, 100))


def test_the_same_seed_draws_the_same_scenes(hundred):
    """Weights were scored and pools are kept by it: what it draws may not change unnoticed."""
    found = {
        jax.tree_util.keystr(path): float(np.abs(np.asarray(values, np.float64)).mean())
        for path, values in jax.tree_util.tree_leaves_with_path(hundred)
    }
    assert found == pytest.approx(DRAWN, rel=1e-3), "raise RENDERER_VERSION"


def test_motion_is_that_of_the_fastest_layer_that_is_there(hundred):
    """The curriculum goes by it: what stands near moves faster than the background."""
    scene = hundred
    camera = np.linalg.norm(scene.camera.velocity, axis=-1)
    things = scene.objects
    own = np.linalg.norm(things.path.velocity, axis=-1) + things.follows * camera[:, None]
    there = np.arange(own.shape[1]) < np.asarray(things.number)[:, None]
    fastest = np.maximum(camera, np.where(there, own, 0).max(axis=1))
    np.testing.assert_allclose(scene.motion, fastest, rtol=1e-5)
    assert np.mean(fastest > 1.01 * camera) > 0.2
    assert np.any(np.where(there, 0, own).max(axis=1) > fastest)


def test_between_texels_the_picture_is_linear():
    """A ramp along each side, looked up off the texels and beyond an edge, where it is mirrored."""
    y, x = np.mgrid[:8, :8]
    ramp = np.stack([10 * y, 20 * x, 0 * x], axis=-1).astype(np.uint8)
    packed = pack_texels(jnp.asarray(ramp)[None])[0]
    rows, columns = jnp.array([[1.25], [5.5], [-2.0]]), jnp.array([0.75, 6.0])
    found = np.asarray(look_up(packed, rows, columns)) * 255
    expected = np.array([[12.5], [55.0], [20.0]]), np.array([15.0, 120.0])
    for channel, values in zip(found, expected, strict=False):
        np.testing.assert_allclose(channel, np.broadcast_to(values, (3, 2)), atol=1e-3)


def test_what_stands_nearer_moves_the_same_way_and_further():
    """Parallax: by ``follows`` times the camera's way, against it, as the background does."""
    size = (64, 96)
    config = dataclasses.replace(SCENES["narrow"], size=size, frames=1, objects=1)
    black_white = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255)]).astype(np.uint8)
    packed = pack_texels(jnp.asarray(black_white))
    drawn = compiled(sample_scene, (2, 64), config)(KEY)
    still = jax.tree.map(jnp.zeros_like, drawn.camera)
    scene = drawn._replace(
        textures=jnp.array([0, 1]),
        camera=still._replace(velocity=jnp.array([4.0, -6.0])),
        tilt=jnp.zeros(()),
        slope=jnp.zeros(2),
        turning=drawn.turning.at[0].set(0),
        zooming=drawn.zooming.at[0].set(0),
        objects=drawn.objects._replace(
            number=jnp.int32(1),
            start=jnp.zeros((1, 2)),
            follows=jnp.array([1.3]),
            path=jax.tree.map(lambda a: a[None], still),
            radius=jnp.array([8.0]),
            spin=jnp.zeros(1),
        ),
    )

    def middle(time):
        cover = np.asarray(compiled(render_moment, size)(scene, packed, time)[0], np.float64)
        grid = np.mgrid[: size[0], : size[1]]
        return (grid * cover).sum((1, 2)) / cover.sum()

    moved = middle(jnp.float32(1)) - middle(jnp.float32(0))
    np.testing.assert_allclose(moved, [-1.3 * 4, 1.3 * 6], atol=0.05)
