"""Clips and streams: any length and size, equal results in both views, bounded memory."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from jaxdeblur import devices, models
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import Strcnn, StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.restoration import placement
from jaxdeblur.restoration.placement import (
    choose_tiles,
    free_memory,
    program,
    step_memory,
)
from jaxdeblur.restoration.stream import (
    Stream,
    _to_integers,
    restore_frames,
    restore_pixels,
    to_floats,
)
from jaxdeblur.restoration.tiling import TileGrid

CONFIG = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True)


@pytest.fixture(scope="module")
def model() -> Strcnn:
    return Strcnn(CONFIG, rngs=nnx.Rngs(0))


def video(frames: int, height: int = 16, width: int = 18, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(frames)
    return rng.integers(0, np.iinfo(dtype).max, (frames, height, width, 3), dtype, endpoint=True)


def test_a_clip_goes_to_floats_and_back_unchanged():
    levels = jnp.arange(256, dtype=jnp.uint8)
    assert to_floats(levels).dtype == jnp.float32
    np.testing.assert_array_equal(_to_integers(to_floats(levels), jnp.uint8), levels)


def test_a_clip_is_clipped_and_rounded():
    values = jnp.array([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 7.0], jnp.float32)
    levels = _to_integers(values, jnp.uint8)
    np.testing.assert_array_equal(levels, [0, 0, 0, 1, 255, 255])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_stream_equals_clip_to_one_grey_level(model, frames):
    blurred = video(frames)
    streamed = np.stack(list(restore_frames(partial(Stream, model), iter(blurred))))
    clip = restore_pixels(model, blurred)
    assert streamed.shape == clip.shape == blurred.shape
    assert streamed.dtype == clip.dtype == np.uint8
    assert np.abs(streamed.astype(int) - clip).max() <= 1
    assert np.abs(clip.astype(int) - blurred).max() > 1, "the model changes nothing"


def test_frames_that_do_not_divide_are_padded_with_their_own_border():
    """1080 rows are not a multiple of 16; the rows beyond them must not be black."""
    model = models.build(dataclasses.replace(CONFIG, scales=(4, 2, 1)))
    assert model.multiple == 8
    odd = video(3, 19, 26)
    whole = np.pad(odd, ((0, 0), (0, 5), (0, 6), (0, 0)), mode="edge")
    expected = restore_pixels(model, whole)[:, :19, :26]
    np.testing.assert_array_equal(restore_pixels(model, odd), expected)
    assert (
        np.abs(
            np.stack(list(restore_frames(partial(Stream, model), odd))).astype(int) - expected
        ).max()
        <= 1
    )


def test_16_bits_are_kept(model):
    deep = video(3, dtype=np.uint16)
    restored = np.stack(list(restore_frames(partial(Stream, model), deep)))
    assert restored.dtype == np.uint16
    # Any stage in 8 bits would cause errors of up to half an 8-bit step, or 128 levels.
    clip = np.asarray(model.restore_clip(jnp.asarray(deep / 65535, jnp.float32)[None])[0])
    assert np.abs(restored - np.clip(clip, 0, 1) * 65535).max() <= 2


def test_frames_alone_do_not_depend_on_each_other(model):
    blurred = video(3)
    alone = np.stack(list(restore_frames(partial(Stream, model, alone=True), blurred)))
    each = [next(restore_frames(partial(Stream, model), frame[None])) for frame in blurred]
    np.testing.assert_array_equal(alone, each)
    together = np.stack(list(restore_frames(partial(Stream, model), blurred)))
    assert np.abs(together.astype(int) - alone).max() > 1


def test_no_frames_in_no_frames_out(model):
    assert list(restore_frames(partial(Stream, model), iter(()))) == []


def test_a_stream_refuses_another_size(model):
    frames = video(2)
    restoration = Stream(model, 16, 18)
    assert list(restoration.flush()) == []
    assert restoration.push((frames[0],)) is None
    for wrong in (frames[1][:8], (frames[1][:8],)):
        with pytest.raises(UserError, match="be 16 18 3 in uint8, not 8 18 3 in uint8"):
            restoration.push(wrong)
    assert len(list(restoration.flush())) == 1


def test_one_array_needs_no_tuple(model):
    one, other = Stream(model, 16, 18), Stream(model, 16, 18)
    for frame in video(2):
        bare, in_tuple = one.push(frame), other.push((frame,))
        assert type(bare) is type(in_tuple)
    assert isinstance(bare, tuple)
    np.testing.assert_array_equal(bare[0], in_tuple[0])


def test_strength_mixes_with_the_frame_that_went_in(model):
    blurred = video(3)

    def restored_at(strength: float) -> np.ndarray:
        restoration = Stream(model, 16, 18, strength=strength)
        frames = [restoration.push((frame,)) for frame in blurred]
        due = [frame for frame in frames if frame is not None]
        return np.stack([frame[0] for frame in [*due, *restoration.flush()]]).astype(int)

    none, half, full = (restored_at(strength) for strength in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, blurred)
    assert np.abs(half - (none + full) / 2).max() <= 1


def test_a_mixture_is_of_what_would_be_written():
    """The network's output is clipped at white before it is mixed."""
    bright = Strcnn(CONFIG, rngs=nnx.Rngs(0))
    bright.head.kernel[...] = 0 * bright.head.kernel[...]
    bright.head.bias[...] = 0 * bright.head.bias[...] + 2.0
    blurred = video(2)
    mixture = Stream(bright, 16, 18, strength=0.5)
    frames = [mixture.push((frame,)) for frame in blurred]
    frames = [frame for frame in frames if frame is not None]
    mixed = np.stack([frame[0] for frame in [*frames, *mixture.flush()]]).astype(int)
    assert np.abs(mixed - (blurred.astype(int) + 255) / 2).max() <= 1


def test_a_camera_may_use_its_memory_again(model):
    blurred = video(4)
    # With this alignment a CPU device may use the memory without copying it.
    memory = np.empty(blurred[0].nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    buffer = memory[begin : begin + blurred[0].nbytes].reshape(blurred[0].shape)

    def camera():
        for frame in blurred:
            buffer[:] = frame
            yield buffer

    np.testing.assert_array_equal(
        list(restore_frames(partial(Stream, model), camera())),
        list(restore_frames(partial(Stream, model), blurred)),
    )
    # The original input is mixed in, although its memory holds another frame by then.
    as_it_was = Stream(model, 16, 18, strength=0.0)
    frames = [frame for frame in map(as_it_was.push, camera()) if frame is not None]
    frames += as_it_was.flush()
    np.testing.assert_array_equal([np.asarray(frame[0]) for frame in frames], blurred)


def test_one_compilation_a_size(model, caplog, log_compiles):
    size = (24, 30)  # a size that no other test uses
    before = program("network", False)._cache_size()
    assert choose_tiles(model, *size) is None
    list(restore_frames(partial(Stream, model), video(4, *size)))
    list(restore_frames(partial(Stream, Strcnn(CONFIG, rngs=nnx.Rngs(1))), video(3, *size)))
    compiled = [r for r in caplog.messages if "XLA compilation of jit(network)" in r]
    assert len(compiled) == 1, compiled
    assert program("network", False)._cache_size() == before + 1


@pytest.mark.parametrize("tiles", [None, TileGrid(16, 16)])
def test_a_base_and_its_paths_are_a_program_each(tiles, caplog, log_compiles, monkeypatch):
    monkeypatch.setattr("jaxdeblur.paths.self_ensemble._MOST", 0)
    base = Strcnn(dataclasses.replace(CONFIG, m=2), rngs=nnx.Rngs(0))
    paths = PathRestorer(PathsConfig(), base)
    size = (27, 35)  # a size that no other test uses
    assert step_memory(paths, *size, tiles=tiles) > step_memory(
        PathRestorer(PathsConfig()), *size, tiles=tiles
    )
    caplog.clear()
    frames = video(4, *size)
    restored = list(restore_frames(partial(Stream, paths, tiles=tiles), frames))
    assert not [r for r in caplog.messages if "XLA compilation of jit(base)" in r]
    assert not [r for r in caplog.messages if "XLA compilation of jit(network)" in r]
    # Frames below 64 pixels hold no tile, so the output is the base's.
    of_base = restore_frames(partial(Stream, base), frames)
    np.testing.assert_allclose(restored, list(of_base), atol=0 if tiles is None else 1)


@pytest.mark.stress  # compiles the paths' programs
def test_paths_are_the_same_over_a_base_in_tiles(monkeypatch):
    """In frames that hold tiles of paths, with blur along a path: 7 pixels a frame."""
    monkeypatch.setattr("jaxdeblur.paths.self_ensemble._MOST", 0)
    size, speed = (80, 88), 7
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.random((size[0], size[1] + 5 * speed, 3)), (2, 2, 0))
    scene = (scene - scene.min()) / np.ptp(scene)
    moments = np.stack([scene[:, x : x + size[1]] for x in range(5 * speed)])
    frames = np.round(255 * moments.reshape(5, speed, *size, 3).mean(1)).astype(np.uint8)
    base = Strcnn(dataclasses.replace(CONFIG, m=2), rngs=nnx.Rngs(0))
    paths = PathRestorer(PathsConfig(duty=1.0, light="stored", stabilised="no"), base)
    whole, tiled = (
        np.stack(list(restore_frames(partial(Stream, paths, tiles=tiles), frames))).astype(int)
        for tiles in (None, TileGrid(48, 48))
    )
    of_base = np.stack(list(restore_frames(partial(Stream, base), frames)))
    assert np.abs(whole - of_base).mean() > 2, "no path was used"
    assert np.abs(tiled - whole).max() <= 1


def test_frames_are_the_caller_s_own(model):
    for frame in restore_frames(partial(Stream, model), video(3)):
        frame[:4] = 0  # as someone may draw on a live picture


def test_no_frame_follows_the_last_one(model):
    on_its_way = Stream(model, 16, 18)
    on_its_way.push((video(1)[0],))
    assert len(list(on_its_way.flush())) == 1
    with pytest.raises(ValueError, match="was already flushed"):
        on_its_way.push((video(1)[0],))


def test_tiles_are_chosen_by_memory(model):
    whole = step_memory(model, 32, 512)
    assert choose_tiles(model, 32, 512, budget=whole) is None
    grid = choose_tiles(model, 32, 512, budget=int(0.9 * whole))
    assert grid is not None
    assert step_memory(model, 32, 512, tiles=grid) <= 0.9 * whole
    with pytest.raises(Exception, match="does not fit"):
        choose_tiles(model, 32, 512, budget=1000)


def test_freed_memory_is_returned_where_a_step_takes_more_than_half(model, monkeypatch):
    saves = []
    monkeypatch.setattr(placement, "step_memory", lambda *_, **__: 1000)
    monkeypatch.setattr(devices, "save_memory", lambda: saves.append(True))
    assert choose_tiles(model, 512, 512, budget=2000) is None
    assert not saves
    assert choose_tiles(model, 512, 512, budget=1999) is None
    assert saves


def test_tiles_fit_by_what_the_compiler_says_not_by_the_guess_before(model, monkeypatch):
    def step_memory(*_, tiles=None, **__):
        if tiles is None:
            return 1000
        return 900 if tiles.height * tiles.width > 128 * 256 else 400

    monkeypatch.setattr(placement, "step_memory", step_memory)
    # By its pixels alone, a tile of 256x256 would take less than half the memory of the frame.
    assert choose_tiles(model, 512, 512, budget=500) == TileGrid(128, 256)


def test_memory_of_a_container_is_free_where_it_holds_files_that_were_read(tmp_path):
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "900\n"),
        ("memory.stat", "anon 200\nfile 700\ninactive_file 600\n"),
    ):
        (tmp_path / name).write_text(text)
    assert devices.free_memory(tmp_path) == 700


def test_free_memory_is_that_of_the_machine():
    assert 2**26 < free_memory(jax.devices()[0]) < 2**46
