"""Scenes rendered for training: blur is the average of eq. 1, and scenes keep their limits."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data import textures
from jaxdeblur.data.batches import batches
from jaxdeblur.data.clips import ClipOptions
from jaxdeblur.data.render import HostRenderer, _blur, motion_of, render_scene
from jaxdeblur.data.scenes import SCENES, Scene, SceneConfig, position, sample_scene, step_times
from jaxdeblur.data.textures import RenderedScenes, find_photographs, open_scenes

FRAMES, CROP = 3, 32
TINY = dataclasses.replace(SCENES["tiny"], motion=(3.0, 5.0), objects=1, noise=(0.0, 0.0))
VARIED = dataclasses.replace(
    SCENES["handheld"], size=(48, 48), motion=(0.0, 20.0), objects=1, compression=0.0
)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Smooth random textures, without detail between pixels."""
    rng = np.random.default_rng(0)
    values = rng.random((4, 12, 12, 3)).repeat(8, axis=1).repeat(8, axis=2)
    for _ in range(4):
        for axis in (1, 2):
            values = (np.roll(values, 1, axis) + values + np.roll(values, -1, axis)) / 3
    return (255 * values).astype(np.uint8)


@functools.cache
def drawn(config: SceneConfig, seed: int = 7) -> Scene:
    draw = jax.jit(lambda key: sample_scene(key, (4, 96), config, FRAMES, CROP))
    return draw(jax.random.key(seed))


def sharp_at(scene: Scene, textures: np.ndarray, config: SceneConfig, shift: float) -> np.ndarray:
    """Renders the sharp frames of the scene with all times later by ``shift`` frames."""

    def later(path: jax.Array) -> jax.Array:
        steps = path.shape[-2]
        at = jnp.arange(steps) / 16 - (steps - 1) / 32 + shift
        moved = jax.vmap(jax.vmap(position, in_axes=(None, 0)), in_axes=(0, None))
        return moved(path.reshape(-1, steps, 2), at).reshape(path.shape)

    turned = [
        swing.at[2].add(2 * jnp.pi * swing[1] * shift) for swing in (scene.turning, scene.zooming)
    ]
    moved = scene._replace(
        camera=later(scene.camera),
        objects=scene.objects._replace(path=later(scene.objects.path)),
        turning=turned[0],
        zooming=turned[1],
    )
    return np.asarray(_render(KEY, moved, textures, config)[1], np.float64)


_render = jax.jit(
    lambda key, scene, textures, config: render_scene(key, scene, textures, config, FRAMES, CROP),
    static_argnums=3,
)


@pytest.mark.parametrize("seed", [1, 7])
def test_blurred_is_the_average_of_the_exposure(pictures: np.ndarray, seed: int) -> None:
    """Eq. 1 over many moments, each rendered sharp, with rotation, zoom, depth and an object."""
    scene = drawn(TINY, seed)._replace(exposure=jnp.float32(0.8))
    blurred, sharp = (np.asarray(v, np.float64) for v in _render(KEY, scene, pictures, TINY))
    moments = [sharp_at(scene, pictures, TINY, 0.8 * n / 17) for n in range(-8, 9)]
    average = np.mean(moments, axis=0)
    np.testing.assert_array_equal(moments[8], sharp)
    missing = np.mean((average - sharp) ** 2)
    assert missing > 15  # otherwise the test would show nothing
    assert np.mean((blurred - average) ** 2) < 0.08 * missing


def test_a_scene_that_stands_still_is_sharp(pictures: np.ndarray) -> None:
    still = dataclasses.replace(VARIED, still=1.0, compression=0.0, noise=(0.0, 0.0), objects=0)
    blurred, sharp = _render(KEY, drawn(still), pictures, still)
    np.testing.assert_allclose(blurred, sharp, atol=1)  # a tie may round either way
    np.testing.assert_array_equal(sharp, np.broadcast_to(sharp[:1], sharp.shape))


def test_a_way_shifts_by_whole_pixels_and_keeps_fine_detail_between() -> None:
    rows, columns = np.mgrid[:8, :8]
    image = np.cos(2 * np.pi * (3 * columns - 2 * rows) / 8) + rows**2  # with its finest waves
    way = np.array([[0.0, 0.0], [0.0, 3.0], [-2.0, 1.0]])
    moved = [np.roll(image, (int(y), int(x)), axis=(0, 1)) for y, x in way]
    blur = jax.jit(_blur)
    found = np.asarray(blur(jnp.asarray(image)[None], jnp.asarray(way)[None]))[0, 0]
    np.testing.assert_allclose(found, np.mean(moved, axis=0), atol=1e-4)
    # Half a pixel each way weakens a wave by a cosine; spread over four pixels, by its square: 0.5.
    wave = np.cos(2 * np.pi * columns / 4)
    half = jnp.array([[[0.0, 0.5], [0.0, -0.5]]])
    found = np.asarray(blur(jnp.asarray(wave)[None], half))[0, 0]
    np.testing.assert_allclose(found, np.cos(np.pi / 4) * wave, atol=0.02)


@pytest.mark.stress
def test_the_host_leaves_out_what_a_scene_does_not_need(pictures: np.ndarray) -> None:
    """Narrower margins, one kernel for four equal ones, no absent object: equal frames."""
    host = HostRenderer(RenderedScenes(VARIED, pictures), FRAMES, CROP)
    reaches = set()
    for seed in range(3):
        key, scene, motion = host.draw(seed)
        whole = _render(key, scene, jnp.asarray(pictures), VARIED)
        for ours, other in zip(host.clip(seed), whole, strict=True):
            assert ours.shape == (FRAMES, CROP, CROP, 3)
            assert ours.dtype == np.uint8
            assert np.abs(ours.astype(int) - np.asarray(other, int)).max() <= 2
        reaches.add(host.reach_of(motion))
    assert min(reaches) < VARIED.reach


def test_speeds_fill_the_range_and_no_more() -> None:
    config = SCENES["narrow"]
    draw = jax.vmap(lambda key: sample_scene(key, (4, 320), config, 8, 96))
    scene = jax.jit(draw)(jax.random.split(KEY, 200))
    limited = jax.jit(
        jax.vmap(lambda key: sample_scene(key, (4, 320), config, 8, 96, jnp.float32(1.0)))
    )(jax.random.split(KEY, 50))

    def speed(path: jax.Array) -> np.ndarray:
        steps = np.diff(np.asarray(path), axis=-2) * 16
        return np.linalg.norm(steps, axis=-1).mean(axis=-1)

    camera, own = speed(scene.camera), speed(scene.objects.path)
    assert 2.4 < camera.min() < 2.8
    assert 5.7 < camera.max() < 6.4  # with the tremble
    assert np.all((own < 0.01) | ((own > 2.4) & (own < 6.1)))
    assert 0.9 < speed(limited.camera).mean() < 1.2


def test_hands_rest_and_change_their_speed_within_an_exposure() -> None:
    def unevenness(config: SceneConfig) -> tuple[float, float]:
        """Returns how much the speeds of a frame's halves differ, and the slowest frame's share."""
        draw = jax.vmap(lambda key: sample_scene(key, (4, 320), config, 9, 96))
        scene = jax.jit(draw)(jax.random.split(KEY, 100))
        path = np.asarray(scene.camera)[:, 16:-16].reshape(100, -1, 2)
        halves = np.linalg.norm(path[:, 8::8] - path[:, :-8:8], axis=-1) + 1e-3
        frames = halves[:, ::2] + halves[:, 1::2]
        change = np.abs(halves[:, ::2] - halves[:, 1::2]) / frames
        return float(change.mean()), float(np.median(frames.min(axis=1) / frames.mean(axis=1)))

    moving = dataclasses.replace(SCENES["handheld"], motion=(20.0, 20.0), still=0.0, brief=1.0)
    hands, tripod = unevenness(moving), unevenness(SCENES["narrow"])
    assert hands[0] > 2 * tripod[0]
    assert hands[1] < 0.25 < tripod[1]


def test_the_middle_of_a_path_is_its_origin() -> None:
    scene = drawn(dataclasses.replace(TINY, tremble=0.0))
    np.testing.assert_allclose(position(scene.camera, jnp.float32(0)), 0, atol=1e-5)
    assert step_times(FRAMES)[0] == -(FRAMES + 2) / 2
    motion = jax.jit(lambda scene: motion_of(scene, TINY, FRAMES, CROP))(scene)
    middle = motion.background.shape[2] // 2
    np.testing.assert_allclose(motion.background[:, :, middle], 0, atol=1e-4)


def test_every_clip_is_a_new_scene_that_depends_on_seed_and_step(pictures: np.ndarray) -> None:
    scenes = RenderedScenes(dataclasses.replace(TINY, objects=0), pictures)
    options = ClipOptions(frames=2, before=1, crop=16)

    def take(count: int, **change: int) -> list[dict[str, np.ndarray]]:
        settings = {"batch_size": 2, "seed": 3, **change}
        with batches([(scenes, 1.0)], options, **settings) as feed:  # type: ignore[arg-type]
            return [next(feed) for _ in range(count)]

    first, second = take(2)
    assert first["blurred"].shape == (2, 3, 16, 16, 3)
    assert first["sharp"].shape == (2, 2, 16, 16, 3)
    clips = [*first["sharp"], *second["sharp"]]
    assert all(np.mean(a != b) > 0.5 for i, a in enumerate(clips) for b in clips[:i])
    (resumed,) = take(1, start_step=1)
    (another,) = take(1, seed=4)
    mine = [take(1, start_step=1, process_index=p, process_count=2)[0] for p in (0, 1)]
    for name in ("blurred", "sharp"):
        np.testing.assert_array_equal(resumed[name], second[name])
        np.testing.assert_array_equal(np.concatenate([m[name] for m in mine]), second[name])
        assert np.mean(another[name] != first[name]) > 0.5


def test_scenes_hold_their_crops_and_textures_are_cut_once(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))
    monkeypatch.setattr(textures, "_LEAST_TEXTURES", 2)
    scenes = open_scenes(SCENES["tiny"], 40)
    assert scenes.config.size == (40, 48)
    found = find_photographs("train")
    size = scenes.config.texture_size
    assert scenes.textures.shape == (len(found), size, size, 3)
    (folder,) = tmp_path.iterdir()
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["photographs"] == {photograph.name: photograph.digest for photograph in found}
    monkeypatch.setattr(textures, "cut_textures", None)  # opened, not cut
    again = open_scenes(SCENES["tiny"], 40).textures
    assert not again.flags.writeable  # memory-mapped
    np.testing.assert_array_equal(again, scenes.textures)
