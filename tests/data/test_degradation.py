"""What cameras, phones and codecs do to frames: each step as stated, clips reproducible."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from jaxdeblur.data import batches as batches_module
from jaxdeblur.data import degradation
from jaxdeblur.data.batches import batches
from jaxdeblur.data.clips import ClipOptions
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.degradation import (
    Degradation,
    DegradationConfig,
    add_noise,
    apply_gains,
    brighten,
    compress,
    degrade,
    denoise,
    draw_degradation,
    from_light,
    light,
    sharpen,
    stabilise,
    to_bytes,
    to_stored,
    tone_curve,
)
from jaxdeblur.data.layouts import MAPS_FILE, SHARP_FILE
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.data.videos import Dataset, DecodedFrames, PairedVideo
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import MAP_CHANNELS, Video8

NOTHING = Degradation(*[None] * 8)


@functools.cache
def footage(frames: int = 6, side: int = 64, seed: int = 0) -> Video8:
    """A texture that moves by a pixel a frame, with dark and light parts."""
    rng = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(rng.random((side + 16, side + 16, 3)), (1.2, 1.2, 0))
    texture = np.clip(0.5 + (grain - 0.5) / grain.std() / 5, 0, 1)
    moved = [texture[t : t + side, 8 : 8 + side] for t in range(frames)]
    return np.rint(255 * np.stack(moved)).astype(np.uint8)


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((one.astype(np.float64) - other) ** 2))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("side", [64, 33])
def test_a_higher_rate_factor_loses_more(codec: Any, side: int) -> None:
    # Grey, since the colour of single pixels is lost at any factor.
    frames = np.repeat(footage()[:, :side, :side, :1], 3, axis=3)
    losses = []
    for crf in (0, 10, 18, 26, 32):
        coded = compress(frames, crf, codec)
        assert coded.shape == frames.shape
        assert coded.dtype == np.uint8
        losses.append(error(coded, frames))
    assert losses == sorted(losses)
    assert losses[-1] > 4 * losses[0]
    assert losses[-1] < error(frames[::-1], frames), "frames come out in their order"


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_at_rate_factor_0_only_colour_loses_resolution(codec: Any) -> None:
    grey = np.repeat(footage()[..., :1], 3, axis=3)
    assert np.abs(compress(grey, 0, codec).astype(int) - grey).max() <= 3
    assert error(compress(footage(), 0, codec), footage()) > 20


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("side", [16, 64, 96])
def test_a_codec_gives_the_same_bytes_again(codec: Any, side: int) -> None:
    # x264 for AVX-512 and x265 for small frames did not, so once is not enough.
    frames = footage(9, side)
    first = compress(frames, 10, codec)
    for _ in range(4):
        assert np.array_equal(compress(frames, 10, codec), first)


@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_noise_has_the_stated_deviation_at_mid_grey(sigma: float) -> None:
    rng = np.random.default_rng(0)
    deviations = []
    for level in (32, 128, 192):
        grey = np.full((2, 96, 96, 3), level / 255, np.float32)
        noisy = add_noise(grey, sigma, rng)
        assert noisy.dtype == np.float32
        assert 255 * (noisy - grey).mean() == pytest.approx(0, abs=0.05 * sigma)
        deviations.append(255 * float((noisy - grey).std()))
    assert deviations[1] == pytest.approx(sigma, rel=0.02)
    # 0.3 of the variance is read noise; the rest grows with the light.
    expected = [sigma * np.sqrt(0.3 + 0.7 * level / 128) for level in (32, 192)]
    np.testing.assert_allclose(deviations[::2], expected, rtol=0.02)


def test_denoising_takes_noise_and_keeps_edges() -> None:
    edge = np.zeros((1, 64, 64, 3), np.float32) + 0.2
    edge[:, :, 32:] = 0.7
    noisy = add_noise(edge, 5.0, np.random.default_rng(0))
    smooth = denoise(noisy, 12.5)
    assert error(smooth, edge) < 0.4 * error(noisy, edge)
    assert smooth[0, :, 33].mean() - smooth[0, :, 30].mean() > 0.47
    np.testing.assert_allclose(denoise(edge, 0.5), edge, atol=1e-5)


def test_sharpening_overshoots_at_edges_alone() -> None:
    edge = np.full((1, 16, 32, 3), 0.3, np.float32)
    edge[:, :, 16:] = 0.6
    sharp = sharpen(edge, 0.5, 1.0)
    assert sharp.max() > 0.64
    assert sharp.min() < 0.26
    np.testing.assert_allclose(sharp[:, :, :8], 0.3, atol=1e-4)
    np.testing.assert_array_equal(sharpen(edge, 0.0, 1.0), edge)


def test_tone_gains_and_light_are_as_stated() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, None, :, None].repeat(3, axis=3)
    for strength in (-0.3, 0.7):
        curve = tone_curve(ramp, strength)[0, 0, :, 0]
        assert (np.diff(curve) > 0).all()
        np.testing.assert_allclose(curve[[0, -1]], [0, 1], atol=1e-6)
    assert (
        tone_curve(ramp, 0.7)[0, 0, 64, 0] < ramp[0, 0, 64, 0] < tone_curve(ramp, -0.3)[0, 0, 64, 0]
    )
    np.testing.assert_allclose(from_light(light(ramp)), ramp, atol=1e-6)
    bright = brighten(ramp, 2.0)
    assert (bright == 1).mean() == pytest.approx(1 - 0.5 ** (1 / 2.2), abs=0.01)
    assert bright[0, 0, 100, 0] == pytest.approx(2 ** (1 / 2.2) * ramp[0, 0, 100, 0], rel=1e-5)
    pair = np.concatenate([ramp, ramp])
    gained = apply_gains(pair, np.array([0.5, 2.0]))
    np.testing.assert_allclose(gained[0], 0.5 * ramp[0])
    np.testing.assert_allclose(gained[1], np.minimum(2 * ramp[0], 1))


def test_the_truth_keeps_brightness_and_tone_but_no_noise_and_no_codec() -> None:
    sharp = footage()
    blurred = ndimage.uniform_filter(sharp, (1, 1, 5, 1))
    rng = np.random.default_rng(0)
    lossy = NOTHING._replace(noise=5.0, smoothing=8.0, codec=(28, "h264"))
    seen, truth = degrade(blurred, sharp, lossy, rng)
    assert np.array_equal(truth, sharp)
    assert error(seen, blurred) > 1
    gains = np.array([0.8, 0.9, 1.0, 1.1, 1.0, 0.9])
    kept = NOTHING._replace(brightness=1.5, gains=gains, tone=0.5, mask=(0.5, 1.0))
    seen, truth = degrade(blurred, sharp, kept, rng)
    same, _ = degrade(sharp, sharp, kept, rng)
    assert np.array_equal(same, truth)
    assert error(truth, sharp) > 50
    assert error(seen, truth) > 10
    for video in degrade(blurred, sharp, NOTHING, rng):
        assert video.dtype == np.uint8
    assert np.array_equal(degrade(blurred, sharp, NOTHING, rng)[0], blurred)


def test_neighbours_beyond_the_ends_still_repeat_the_last_frame() -> None:
    order = [0, 0, 0, 1, 2, 3, 4, 4]
    clip = footage()[order]
    drawn = NOTHING._replace(noise=6.0, codec=(24, "hevc"))
    seen, truth = degrade(clip, clip, drawn, np.random.default_rng(0))
    for one, other in ((0, 1), (1, 2), (6, 7)):
        assert np.array_equal(seen[one], seen[other])
    assert not np.array_equal(seen[2], seen[3])
    assert np.array_equal(truth, clip)
    still = footage()[[0, 0, 0]]  # a camera on a tripod: each frame has its own noise
    seen, _ = degrade(still, still, NOTHING._replace(noise=6.0), np.random.default_rng(0))
    assert not np.array_equal(seen[0], seen[1])


def test_draws_follow_the_shares_and_ranges() -> None:
    config = DegradationConfig()
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(rng, 7) for _ in range(600)]
    shares = {
        "stabilised": config.stabilised,
        "brightness": config.clipped,
        "gains": config.uneven,
        "noise": config.noisy,
        "smoothing": config.noisy * config.denoised,
        "tone": config.toned,
        "mask": config.sharpened,
        "codec": config.coded,
    }
    for name, share in shares.items():
        of = [getattr(each, name) for each in drawn]
        assert np.mean([value is not None for value in of]) == pytest.approx(share, abs=0.06), name
    noise = [each.noise for each in drawn if each.noise is not None]
    assert 0 <= min(noise) < 1
    assert 9 < max(noise) <= 10
    codecs = [each.codec for each in drawn if each.codec is not None]
    assert {crf for crf, _ in codecs} == set(range(33))
    assert np.mean([name == "hevc" for _, name in codecs]) == pytest.approx(config.hevc, abs=0.06)
    gains = np.array([each.gains for each in drawn if each.gains is not None])
    assert gains.shape[1] == 7
    assert gains.min() > 0.6
    assert gains.max() < 1.6
    never = dataclasses.replace(
        config,
        stabilised=0.0,
        clipped=0.0,
        uneven=0.0,
        noisy=0.0,
        toned=0.0,
        sharpened=0.0,
        coded=0.0,
    )
    assert draw_degradation(rng, 7, never) == NOTHING


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_stabiliser_takes_motion_and_leaves_blur(share: float) -> None:
    sharp = np.stack([np.roll(footage(1)[0], (-4 * t, 2 * t), (0, 1)) for t in range(5)])
    blurred = ndimage.uniform_filter(sharp, (1, 9, 1, 1), mode="wrap")
    seen, truth = stabilise(blurred, sharp, share)
    inner = np.s_[24:40, 24:40]  # what no border reaches
    for t, frame in enumerate(truth):
        left = round(4 * share * (2 - t)), round(2 * share * (t - 2))
        shown = np.roll(sharp[t], (-left[0], -left[1]), (0, 1))
        np.testing.assert_array_equal(frame[inner], shown[inner])
    assert np.array_equal(seen[2], blurred[2])
    assert error(seen[0][inner], ndimage.uniform_filter(truth[0], (9, 1, 1))[inner]) < 1
    for video in (seen, truth):
        assert np.ptp(video[:, 0], axis=0).max() > 0  # mirrored, not left empty
        assert video.dtype == np.uint8


def source() -> Dataset:
    sharp = footage(12, 48)
    blurred = ndimage.uniform_filter(sharp, (1, 1, 5, 1))
    return Dataset("one", "", [PairedVideo("one", *map(DecodedFrames, (blurred, sharp)))])


OPTIONS = ClipOptions(frames=3, before=1, after=1, crop=32, sharp_input=0.3, ends=0.2)


def taken(options: ClipOptions, count: int = 4, **how: Any) -> list[dict[str, np.ndarray]]:
    with batches([(source(), 1.0)], options, batch_size=4, seed=5, **how) as feed:
        return list(itertools.islice(feed, count))


def test_a_degraded_clip_depends_on_seed_and_step_alone() -> None:
    options = dataclasses.replace(OPTIONS, degraded=0.8)
    straight = taken(options)
    for workers, first in ((0, 0), (3, 0), (2, 2)):
        again = taken(options, 4 - first, start_step=first, workers=workers)
        for one, other in zip(again, straight[first:], strict=True):
            for name in ("blurred", "sharp"):
                np.testing.assert_array_equal(one[name], other[name])
    half = [taken(options, process_index=p, process_count=2) for p in (0, 1)]
    joined = [np.concatenate([a["blurred"], b["blurred"]]) for a, b in zip(*half, strict=True)]
    np.testing.assert_array_equal(joined, [batch["blurred"] for batch in straight])


def test_without_a_share_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("drawn without a share")

    plain = taken(OPTIONS)
    monkeypatch.setattr(batches_module, "draw_degradation", never)
    monkeypatch.setattr(batches_module, "degrade", never)
    for one, other in zip(taken(OPTIONS), plain, strict=True):
        np.testing.assert_array_equal(one["blurred"], other["blurred"])
    with pytest.raises(AssertionError, match="without a share"):
        taken(dataclasses.replace(OPTIONS, degraded=1.0), 1, workers=0)


def test_clean_clips_stay_among_degraded_ones_and_sharp_ones_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noisy = NOTHING._replace(noise=5.0)
    monkeypatch.setattr(batches_module, "draw_degradation", lambda rng, frames: noisy)
    options = dataclasses.replace(OPTIONS, degraded=0.5, augment=False, ends=0.0)
    clips = [
        (blurred[1:-1], sharp)
        for batch in taken(options, 20)
        for blurred, sharp in zip(batch["blurred"], batch["sharp"], strict=True)
    ]
    known = {
        frame[y : y + 32, x : x + 32].tobytes()
        for frame in footage(12, 48)
        for y in range(17)
        for x in range(17)
    }
    is_same = np.array([np.array_equal(blurred, sharp) for blurred, sharp in clips])
    is_clean = np.array([sharp[0].tobytes() in known for _, sharp in clips])
    assert is_same.mean() == pytest.approx(0.3, abs=0.12)
    assert is_clean[~is_same].all(), "the truth of blurred clips has no noise"
    assert is_clean[is_same].mean() == pytest.approx(0.5, abs=0.25)


def test_degraded_clips_are_made_by_the_host(tmp_path: Path) -> None:
    assert not DataConfig(degraded=0.5).on_device
    with pytest.raises(UserError, match="--degraded needs --render=host"):
        DataConfig(degraded=0.5, render="device")
    with pytest.raises(UserError, match="--degraded must be 0 to 1, not 2"):
        DataConfig(degraded=2.0)
    (tmp_path / "0").mkdir()
    for file, channels in ((MAPS_FILE, MAP_CHANNELS), (SHARP_FILE, 3)):
        np.save(tmp_path / "0" / file, np.zeros((3, 16, 16, channels), np.uint8))
    config = DataConfig(data=(f"paths:{tmp_path}",), degraded=0.5)
    with pytest.raises(UserError, match="--degraded does not apply to --data=paths:"):
        _ = TrainingData(config).train
    assert config.clip_options(3, 32).degraded == 0.5


def test_bytes_survive_the_way_through_floats() -> None:
    frames = footage()
    assert np.array_equal(to_bytes(to_stored(frames)), frames)
    assert degradation.to_bytes(np.full((1, 1, 1, 3), 1.7, np.float32)).max() == 255
