"""The pipeline: data order is a function of seed and step alone, and pairs remain pairs."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from jaxdeblur.data import batches as batches_module
from jaxdeblur.data.batches import ClipOptions, batches
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.videos import Dataset, DecodedFrames, HighSpeedVideo, PairedVideo
from jaxdeblur.errors import UserError

OPTIONS = ClipOptions(frames=3, crop=16)


def numbered_frames(video: int, frames: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Returns frames whose pixels encode video, row and column; the latter two with the time."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([np.full_like(t, video), 8 * y + t % 8, 8 * x + t // 8], -1).astype(np.uint8)


def paired(videos: int, frames: int = 10, offset: int = 0) -> Dataset:
    return Dataset(
        "numbered",
        "",
        [
            PairedVideo(
                f"video{i}",
                DecodedFrames(numbered_frames(offset + i, frames)),
                DecodedFrames(numbered_frames(offset + i, frames)),
            )
            for i in range(videos)
        ],
    )


def take(count: int, *args, **kwargs) -> list[dict[str, np.ndarray]]:
    with batches(*args, **kwargs) as iterator:
        return list(itertools.islice(iterator, count))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("blurred", "sharp"):
            np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_holds_pairs_of_clips_of_the_options():
    for batch in take(5, [(paired(3), 1.0)], OPTIONS, batch_size=4, seed=0):
        assert set(batch) == {"blurred", "sharp"}
        assert batch["blurred"].shape == (4, 3, 16, 16, 3)
        assert batch["blurred"].dtype == np.uint8
        # The pixels are equal only if both were cropped, turned and reversed alike.
        np.testing.assert_array_equal(batch["blurred"], batch["sharp"])


def test_order_depends_on_seed_and_step_alone():
    sources = [(paired(3), 1.0)]
    straight = take(8, sources, OPTIONS, batch_size=4, seed=3)
    for workers in (0, 2):
        again = take(8, sources, OPTIONS, batch_size=4, seed=3, workers=workers)
        assert_same(again, straight)
    resumed = take(3, sources, OPTIONS, batch_size=4, seed=3, start_step=5)
    assert_same(resumed, straight[5:])
    other = take(1, sources, OPTIONS, batch_size=4, seed=4)
    assert (other[0]["sharp"] != straight[0]["sharp"]).any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_the_slices_of_the_same_global_batch(count):
    sources = [(paired(3), 2.0), (paired(2, offset=10), 1.0)]
    whole = take(7, sources, OPTIONS, batch_size=4, seed=0)
    parts = [
        take(
            5,
            sources,
            OPTIONS,
            batch_size=4,
            seed=0,
            start_step=2,
            process_index=p,
            process_count=count,
        )
        for p in range(count)
    ]
    joined = [
        {name: np.concatenate([p[name] for p in step]) for name in ("blurred", "sharp")}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole[2:])


def test_sources_are_mixed_by_their_shares_and_seen_whole(monkeypatch):
    monkeypatch.setattr(batches_module, "_SHUFFLED_AT_A_TIME", 1)
    sources = [
        (paired(3, frames=3), 0.75),
        (paired(1, frames=3, offset=10), 0.25),
        (paired(1), 0.0),
    ]
    seen = take(30, sources, ClipOptions(frames=3, crop=16, keep_still=1.0), batch_size=4, seed=0)
    videos = np.concatenate([batch["sharp"][:, 0, 0, 0, 0] for batch in seen])
    assert np.mean(videos == 10) == pytest.approx(0.25, abs=0.01)
    counts = [np.sum(videos == v) for v in range(3)]
    assert sum(counts) == 90
    assert max(counts) - min(counts) <= 1  # each clip once an epoch


def orientations(options: ClipOptions) -> set[tuple[int, int, int, bool]]:
    """Returns the (time, row, column) directions seen, and whether rows and columns are swapped."""
    found = set()
    for batch in take(40, [(paired(1, frames=6), 1.0)], options, batch_size=2, seed=1):
        for clip in batch["sharp"].astype(int):
            turned = clip[0, 0, 0, 1] // 8 == clip[0, 0, 1, 1] // 8
            time = np.sign(clip[1, 0, 0, 1] - clip[0, 0, 0, 1])
            rows, columns = (1, 2) if turned else (2, 1)
            down = np.sign(clip[0, 1, 0, rows] // 8 - clip[0, 0, 0, rows] // 8)
            across = np.sign(clip[0, 0, 1, columns] // 8 - clip[0, 0, 0, columns] // 8)
            found.add((int(time), int(down), int(across), bool(turned)))
    return found


def test_every_variation_occurs_and_they_can_be_switched_off():
    assert len(orientations(OPTIONS)) == 16
    plain = ClipOptions(frames=3, crop=16, augment=False)
    assert len(orientations(plain)) == 1


def test_high_speed_clips_are_averages_around_their_sharp_frames():
    # A ramp in time: the mean of an exposure is its middle frame, whatever tau and period are.
    ramp = np.broadcast_to(np.arange(33, dtype=np.uint8)[:, None, None, None], (33, 20, 24, 3))
    data = Dataset("ramp", "", [HighSpeedVideo("v", DecodedFrames(ramp), Exposure(5, 6))])
    options = ClipOptions(frames=4, crop=16, augment=False, taus=(3, 5, 11))
    periods = set()
    for batch in take(30, [(data, 1.0)], options, batch_size=2, seed=0):
        np.testing.assert_array_equal(batch["blurred"], batch["sharp"])
        steps = np.diff(batch["sharp"][:, :, 0, 0, 0].astype(int))
        assert (steps == steps[:, :1]).all()
        periods |= set(steps[:, 0].tolist())
    # tau 3: periods 3 to 5; tau 5: 5 to 8; tau 11: four exposures would fit only at period 7.
    assert periods == {3, 4, 5, 6, 7, 8}
    with pytest.raises(UserError, match=r"v \(33 frames of 24x20\)"):
        take(1, [(data, 1.0)], ClipOptions(frames=4, crop=16, taus=(31,)), batch_size=1, seed=0)


def blinking(still: int, moving: int) -> Dataset:
    """Returns grey videos: levels from 1 with hardly any blur, and levels from 100 with blur.

    Like real blur, theirs makes some pixels darker and some brighter.
    """
    sides = np.where(np.arange(16) < 8, 1, -1)[:, None]
    videos = [
        PairedVideo(
            f"v{i}",
            DecodedFrames(np.full((3, 16, 16, 3), i, np.uint8)),
            DecodedFrames((np.full((3, 16, 16, 3), i) + change * sides).astype(np.uint8)),
        )
        for first, count, change in ((1, still, 1), (100, moving, 9))
        for i in range(first, first + count)
    ]
    return Dataset("blinking", "", videos)


def test_still_clips_are_drawn_anew_but_for_their_share(monkeypatch):
    data = [(blinking(still=20, moving=20), 1.0)]

    def still_share(**options):
        seen = take(60, data, ClipOptions(frames=3, crop=16, **options), batch_size=4, seed=0)
        return np.mean(np.concatenate([batch["blurred"][:, 0, 0, 0, 0] for batch in seen]) < 100)

    assert still_share(keep_still=1.0) == pytest.approx(0.5, abs=0.05)
    monkeypatch.setattr(batches_module, "_MOST_DRAWS", 20)
    assert still_share(keep_still=0.0) == 0
    assert 0.01 < still_share(keep_still=0.1) < 0.12


def test_a_share_of_the_clips_goes_in_as_it_is_to_come_out():
    data = [(blinking(still=0, moving=20), 1.0)]

    def taken(**options):
        clips = ClipOptions(frames=3, crop=16, augment=False, **options)
        return take(60, data, clips, batch_size=4, seed=0)

    def sharp_share(seen):
        same = [(b["blurred"] == b["sharp"]).all(axis=(1, 2, 3, 4)) for b in seen]
        return np.mean(np.concatenate(same))

    assert sharp_share(taken()) == 0
    assert sharp_share(taken(sharp_input=1.0)) == 1
    some = taken(sharp_input=0.25)
    assert sharp_share(some) == pytest.approx(0.25, abs=0.06)
    # A later start gives the same batches.
    with batches(
        data,
        ClipOptions(frames=3, crop=16, augment=False, sharp_input=0.25),
        batch_size=4,
        seed=0,
        start_step=30,
    ) as iterator:
        assert_same(list(itertools.islice(iterator, 30)), some[30:])
    # None is drawn again, however little it would be blurred.
    data = [(blinking(still=20, moving=20), 1.0)]
    seen = np.concatenate([b["blurred"] for b in taken(sharp_input=1.0, keep_still=0.0)])
    assert np.mean(seen[:, 0, 0, 0, 0] < 100) == pytest.approx(0.5, abs=0.05)


def ramp_pairs(frames: int) -> Dataset:
    """Returns a video whose pixels are the frame numbers, plus 100 in blurred frames."""
    clip = np.broadcast_to(
        np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 16, 16, 3)
    )
    return Dataset("ramp", "", [PairedVideo("v", DecodedFrames(clip + 100), DecodedFrames(clip))])


def test_clips_bring_the_frames_around_them_and_a_video_s_ends():
    options = ClipOptions(frames=3, before=2, after=1, crop=16)
    seen = set()
    for batch in take(60, [(ramp_pairs(9), 1.0)], options, batch_size=4, seed=0):
        assert batch["blurred"].shape == (4, 6, 16, 16, 3)
        assert batch["sharp"].shape == (4, 3, 16, 16, 3)
        for blurred, sharp in zip(batch["blurred"], batch["sharp"], strict=True):
            first, way = int(sharp[0, 0, 0, 0]), int(sharp[1, 0, 0, 0]) - int(sharp[0, 0, 0, 0])
            expected = np.clip(first + way * np.arange(-2, 4), 0, 8)
            np.testing.assert_array_equal(blurred[:, 0, 0, 0].astype(int) - 100, expected)
            seen.add((first, way))
    assert seen == {(n, 1) for n in range(7)} | {(n + 2, -1) for n in range(7)}


def test_high_speed_clips_bring_as_much_context_as_the_video_has():
    options = dataclasses.replace(
        AS_THEY_LIE, frames=2, before=2, after=2, taus=(3,), duty=(1.0, 1.0)
    )
    firsts = set()
    for batch in take(60, [(ramp_of(20, 1), 1.0)], options, batch_size=2, seed=0):
        for blurred, sharp in zip(batch["blurred"], batch["sharp"], strict=True):
            number = (blurred[:, 0, 0, 0].astype(int) - int(sharp[0, 0, 0, 0])) // 3
            np.testing.assert_array_equal(sharp[:, 0, 0, 0], blurred[2:4, 0, 0, 0])
            first = int(sharp[0, 0, 0, 0]) - 1
            earlier, later = min(2, first // 3), min(2, (20 - 6 - first) // 3)
            assert number.tolist() == np.clip(np.arange(-2, 4), -earlier, 1 + later).tolist()
            firsts.add(first)
    assert firsts == set(range(15))


def test_shares_of_clips_of_one_frame_and_of_a_video_s_ends():
    def clips(**shares):
        options = ClipOptions(frames=3, before=2, after=1, crop=16, augment=False, **shares)
        seen = take(60, [(ramp_pairs(30), 1.0)], options, batch_size=4, seed=0)
        steps = np.concatenate([b["blurred"][:, :, 0, 0, 0].astype(int) for b in seen])
        return steps, np.concatenate([b["sharp"][:, :, 0, 0, 0].astype(int) for b in seen])

    blurred, sharp = clips(single=0.3)
    single = (np.diff(blurred) == 0).all(axis=1)
    assert single.mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_array_equal(sharp, blurred[:, 2:5] - 100)
    assert len({tuple(s - s[0]) for s in sharp[single]}) == 1
    blurred, sharp = clips(ends=0.5)
    np.testing.assert_array_equal(sharp, blurred[:, 2:5] - 100)
    begins = (np.diff(blurred)[:, :2] == 0).all(axis=1)
    ends = np.diff(blurred)[:, -1] == 0
    # Some clips lie at the ends of the video by chance.
    assert begins.mean() == pytest.approx(0.36, abs=0.1)
    assert ends.mean() == pytest.approx(0.2, abs=0.1)


class Broken(DecodedFrames):
    """Frames, one of which cannot be read."""

    def read(self, times, rows=slice(None), columns=slice(None)):
        if 2 in range(*times.indices(len(self))):
            raise UserError("video1/0002.png: not a readable image")
        return super().read(times, rows, columns)


def test_bad_samples_are_named_counted_and_replaced(caplog):
    data = paired(3)
    broken = [
        data.videos[0],
        PairedVideo("video1", Broken(numbered_frames(1, 10)), data.videos[1].sharp_frames),
        data.videos[2],
    ]
    sources = [(Dataset("numbered", "", broken), 1.0)]
    with pytest.raises(UserError, match=r"video1/0002\.png: .*--max-bad-samples=0"):
        take(20, sources, OPTIONS, batch_size=4, seed=0)
    with caplog.at_level(logging.WARNING):
        seen = take(20, sources, OPTIONS, batch_size=4, seed=0, max_bad_samples=1000)
    assert sum("0002.png" in r.getMessage() for r in caplog.records) > 0
    assert all(batch["blurred"].shape[0] == 4 for batch in seen)
    again = take(20, sources, OPTIONS, batch_size=4, seed=0, workers=0, max_bad_samples=1000)
    assert_same(again, seen)
    all_bad = Dataset(
        "bad",
        "",
        [
            PairedVideo(
                "video1", Broken(numbered_frames(1, 3)), DecodedFrames(numbered_frames(1, 3))
            )
        ],
    )
    with pytest.raises(UserError, match="20 bad samples in a row"):
        take(1, [(all_bad, 1.0)], OPTIONS, batch_size=1, seed=0, max_bad_samples=1000)


def test_clips_that_do_not_fit_are_named_together():
    data = Dataset("small", "", [*paired(1, frames=2).videos, *paired(1, frames=10).videos])
    with pytest.raises(
        UserError, match=r"small: too .* clips of 3 frames of 32x32 .*\(2 frames.*\(10 frames"
    ):
        take(1, [(data, 1.0)], ClipOptions(frames=3, crop=32), batch_size=1, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"crop": 0},
        {"duty": (0.5, 1.5)},
        {"duty": (0.9, 0.95)},  # 5 / 6 is below and 5 / 5 above
        {"taus": (257,)},
        {"linear": 2.0},
        {"sharp_input": -0.1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        ClipOptions(**wrong)


AS_THEY_LIE = ClipOptions(frames=3, crop=16, augment=False, keep_still=1.0)


def test_clips_come_from_all_of_a_video():
    """From every position in its frames, which are wider than high, and from every time."""
    seen = take(100, [(paired(1, frames=10), 1.0)], AS_THEY_LIE, batch_size=4, seed=0)
    rows, columns = np.concatenate([batch["sharp"][:, 0, 0, 0, 1:] for batch in seen]).T
    assert set(rows // 8) == set(range(20 - 16 + 1))
    assert set(columns // 8) == set(range(24 - 16 + 1))
    assert set(rows % 8 + 8 * (columns % 8)) == set(range(10 - 3 + 1))


def ramp_of(frames: int, step: int) -> Dataset:
    """Returns a high-speed video that brightens by ``step`` levels a frame."""
    levels = (step * np.arange(frames)).astype(np.uint8)[:, None, None, None]
    ramp = np.broadcast_to(levels, (frames, 16, 16, 3))
    return Dataset("ramp", "", [HighSpeedVideo("v", DecodedFrames(ramp), Exposure(5, 6))])


def test_exposures_begin_at_every_frame_of_a_high_speed_video():
    options = dataclasses.replace(AS_THEY_LIE, taus=(3,), duty=(1.0, 1.0))
    # A motion limit excludes none: the speed of this motion is unknown.
    seen = take(
        *(100, [(ramp_of(20, 1), 1.0)], options),
        batch_size=4,
        seed=0,
        motion_limit=lambda step: 1.0,
    )
    first = np.concatenate([batch["sharp"][:, 0, 0, 0, 0] for batch in seen])
    assert set(first - 1) == set(range(20 - 9 + 1))


def test_of_an_even_number_of_frames_the_earlier_middle_one_is_sharp():
    """As in evaluation (``Exposure.middle``); otherwise training would aim half a frame off."""
    options = dataclasses.replace(AS_THEY_LIE, taus=(2, 4), duty=(0.8, 1.0))
    for batch in take(20, [(ramp_of(40, 2), 1.0)], options, batch_size=2, seed=0):
        np.testing.assert_array_equal(batch["blurred"], batch["sharp"] + 1)


def test_played_backwards_it_is_the_earlier_one_as_it_is_played():
    """Otherwise half of the clips would train for one middle frame and half for the other."""
    options = dataclasses.replace(AS_THEY_LIE, taus=(2, 4), duty=(0.8, 1.0), augment=True)
    ways = set()
    for share in (0.0, 1.0):
        some = dataclasses.replace(options, sharp_input=share)
        for batch in take(20, [(ramp_of(40, 2), 1.0)], some, batch_size=2, seed=0):
            blurred, sharp = (batch[name].astype(int) for name in ("blurred", "sharp"))
            way = np.sign(sharp[:, 1:2] - sharp[:, :1])
            ways |= set(way[:, 0, 0, 0, 0].tolist())
            expected = sharp if share else sharp + way
            np.testing.assert_array_equal(blurred, np.broadcast_to(expected, blurred.shape))
    assert ways == {-1, 1}


def test_the_share_of_clips_averaged_in_linear_light():
    black_white = np.zeros((20, 16, 16, 3), np.uint8)
    black_white[1::2] = 255
    data = Dataset("blinks", "", [HighSpeedVideo("v", DecodedFrames(black_white), Exposure(2, 2))])

    def grey(share):
        options = dataclasses.replace(AS_THEY_LIE, taus=(2,), duty=(1.0, 1.0), linear=share)
        seen = take(50, [(data, 1.0)], options, batch_size=4, seed=0)
        return np.concatenate([batch["blurred"][:, 0, 0, 0, 0] for batch in seen])

    stored, light = 128, 186  # 255 * 0.5 ** (1 / 2.2)
    assert set(grey(0.0)) == {stored}
    assert set(grey(1.0)) == {light}
    assert np.mean(grey(0.3) == light) == pytest.approx(0.3, abs=0.1)


def test_the_seed_is_of_the_order_and_of_the_crops():
    # First a single clip, whose order no seed can change; then many, each of them a video.
    for videos, what in ((1, slice(1, None)), (8, slice(0, 1))):
        one, other = (
            take(3, [(paired(videos, frames=3), 1.0)], AS_THEY_LIE, batch_size=4, seed=seed)
            for seed in (3, 4)
        )
        assert any(
            (a["sharp"][..., what] != b["sharp"][..., what]).any()
            for a, b in zip(one, other, strict=True)
        )
