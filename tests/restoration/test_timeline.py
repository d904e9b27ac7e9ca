"""Duplicates, cuts and changes of brightness: what is found, and what a stream makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.timeline import InTime, Timeline
from jaxdeblur.video.pixels import RGB8, PixelLayout


def scene(seed: int, frames: int = 6, speed: int = 3) -> np.ndarray:
    """Returns a texture that moves to the left, ``frames 64 96 3`` in uint8."""
    texture = np.random.default_rng(seed).random((64, 96 + frames * speed, 3))
    texture = ndimage.gaussian_filter(texture, (3, 3, 0))
    texture = 30 + 200 * (texture - texture.min()) / np.ptp(texture)
    return np.stack([texture[:, t * speed :][:, :96] for t in range(frames)]).astype(np.uint8)


def shots(video: np.ndarray) -> tuple[list[InTime], Timeline]:
    timeline = Timeline(RGB8)
    return [timeline.add((frame,)) for frame in video], timeline


def test_a_video_without_events_has_none() -> None:
    found, timeline = shots(scene(0))
    whole = 0, 63, 0, 95
    assert found[0] == InTime(False, True, 1.0, whole)
    assert found[1:] == [InTime(False, False, 1.0, whole)] * 5
    assert timeline.remarks() == []


@pytest.mark.parametrize("error", [0, 1])
def test_duplicates_are_found_though_a_codec_changes_them(error: int) -> None:
    video = scene(0)[[0, 1, 2, 2, 3]].astype(np.int16)
    video[3, ::7, ::5] += error
    found, timeline = shots(video.astype(np.uint8))
    assert [shot.repeats for shot in found] == [False, False, False, True, False]
    assert timeline.remarks() == ["1 duplicate, which got the result of the frame before"]


def test_a_still_scene_with_noise_is_no_series_of_duplicates() -> None:
    noise = np.random.default_rng(1).integers(0, 2, (5, 64, 96, 3))
    found, _ = shots((scene(0)[0] + noise).astype(np.uint8))
    assert not any(shot.repeats for shot in found)


def test_cuts_are_found_at_any_brightness() -> None:
    video = np.concatenate([scene(0, 3), scene(1, 3) // 2, scene(0, 2)])
    found, timeline = shots(video)
    assert [n for n, shot in enumerate(found) if shot.starts] == [0, 3, 6]
    assert timeline.cuts == 2
    assert found[3].gain == 1.0


def test_brightness_is_followed() -> None:
    level = np.array([1.0, 0.8, 1.0, 0.6, 0.6])
    video = np.round(scene(0, 5) * level[:, None, None, None]).astype(np.uint8)
    found, timeline = shots(video)
    np.testing.assert_allclose([shot.gain for shot in found], 1 / level, rtol=0.04)
    assert timeline.brightened == 3


def test_a_fade_that_leaves_few_grey_levels_starts_anew() -> None:
    level = 0.8 ** np.arange(14)
    video = np.round(scene(0, 14) * level[:, None, None, None]).astype(np.uint8)
    found, _ = shots(video)
    gains = [shot.gain for shot in found]
    assert 4 < max(gains) <= 8
    assert any(shot.starts for shot in found[1:])


def test_bars_are_black_in_all_frames_of_a_scene() -> None:
    video = scene(0)
    video[:, :8], video[:, 60:], video[:, :, :5] = 0, 3, 0
    video[3:, 6:8] = 99  # a subtitle
    found, _ = shots(video)
    assert [shot.inside for shot in found] == [(8, 59, 5, 95)] * 3 + [(6, 59, 0, 95)] * 3
    dark, _ = shots(scene(0) // 30)
    assert dark[0].inside == (0, 63, 0, 95)


def test_luma_of_limited_range() -> None:
    layout = PixelLayout("yuv", 8, (2, 2), full_range=False)
    planes = np.array([[16, 235]], np.uint8), np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8)
    np.testing.assert_allclose(layout.luma(planes), [[0, 1]])


@pytest.fixture(name="deblurrer", scope="module")
def small_deblurrer() -> Deblurrer:
    return Deblurrer("strcnn_dtb_live", tile="none")


def test_a_duplicate_gets_its_twins_result(deblurrer: Deblurrer) -> None:
    video, which = scene(0), [0, 0, 1, 2, 2, 2, 3, 4, 5, 5]
    restored = deblurrer(video)
    assert np.abs(restored.astype(int) - video).max() > 2
    np.testing.assert_array_equal(deblurrer(video[which]), restored[which])


def test_a_cut_is_an_end_on_both_sides(deblurrer: Deblurrer) -> None:
    first, second = scene(0, 4), scene(1, 5)
    restored = deblurrer(np.concatenate([first, second]))
    np.testing.assert_array_equal(restored, np.concatenate([deblurrer(first), deblurrer(second)]))


def test_bars_keep_every_pixel_and_the_picture_is_restored_as_if_mirrored(
    deblurrer: Deblurrer,
) -> None:
    video = scene(0)
    barred = np.pad(video[:, 16:48], ((0, 0), (8, 8), (0, 0), (0, 0)))
    restored = deblurrer(barred)
    assert not restored[:, :8].any()
    assert not restored[:, 40:].any()
    mirrored = np.pad(video[:, 16:48], ((0, 0), (8, 8), (0, 0), (0, 0)), "symmetric")
    np.testing.assert_array_equal(restored[:, 8:40], deblurrer(mirrored)[:, 8:40])


def test_a_change_of_brightness_changes_no_detail(deblurrer: Deblurrer) -> None:
    video, level = scene(0), np.array([1.0, 0.8] * 3)[:, None, None, None]
    flickering = np.round(video * level).astype(np.uint8)
    apart = deblurrer(flickering) - level * deblurrer(video)
    assert np.sqrt((apart**2).mean()) < 1.0


def test_what_is_white_in_a_darker_frame_stays_white(deblurrer: Deblurrer) -> None:
    """Frames get darker as a window comes into view, as by automatic exposure."""
    level = np.array([1.0, 0.8, 0.6, 0.6, 0.6, 0.6])[:, None, None, None]
    video = np.round(scene(0) * level).astype(np.uint8)
    video[:, 20:40, 30:50] = 255
    found, _ = shots(video)
    assert max(shot.gain for shot in found) > 1.3
    assert deblurrer(video)[:, 24:36, 34:46].min() >= 253
