"""Damaged videos: what a decoder patches or leaves out is said; what is cut short is refused."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jaxdeblur.errors import UserError
from jaxdeblur.video.reader import VideoReader, _ranges
from jaxdeblur.video.writer import VideoWriter

RNG = np.random.default_rng(0)


def make(
    path: Path,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    frames: int = 12,
    **options: Any,
) -> Path:
    """Writes frames of noise, of which each byte matters."""
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=25, options=options)
        track.width, track.height, track.pix_fmt = 128, 128, pixel_format
        for _ in range(frames):
            noise = RNG.integers(0, 256, (128, 128, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, "rgb24")
            out.mux(track.encode(frame.reformat(format=pixel_format)))
        out.mux(track.encode(None))
    return path


def damage(path: Path, number: int, seed: int = 1) -> None:
    """Replaces 12 bytes in the middle of a packet."""
    with av.open(str(path)) as file:
        place, size = [(each.pos, each.size) for each in file.demux(video=0) if each.size][number]
    data = bytearray(path.read_bytes())
    begin = place + size // 3
    data[begin : begin + 12] = random.Random(seed).randbytes(12)
    path.write_bytes(data)


def read(path: Path, **options: Any) -> tuple[list[Any], list[str]]:
    with VideoReader(path, **options) as reader:
        return list(reader), list(reader.notes)


def test_frames_that_the_decoder_patched_are_named(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", "mpeg2video", b="8M", g="3")
    assert read(source)[1] == []
    damage(source, 6)
    pictures, notes = read(source)
    assert len(pictures) == 12
    assert len(notes) == 1
    assert notes[0].startswith("damaged, and restored as the decoder patched them: frames 7")
    # A part without them is whole.
    assert read(source, duration=0.1)[1] == []


def test_frames_that_the_decoder_leaves_out_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "in.mp4", g="12", bf="0")
    decode = VideoReader._decoded

    def lossy(reader: VideoReader) -> Any:  # as libdav1d does, which says nothing
        frames = list(decode(reader))
        del frames[4:6]
        yield from frames

    monkeypatch.setattr(VideoReader, "_decoded", lossy)
    pictures, notes = read(source)
    assert len(pictures) == 10
    assert notes == ["damaged: 2 frames could not be decoded; the result lacks them"]


def test_numbers_are_told_as_ranges() -> None:
    assert _ranges([3, 7, 8, 9, 11]) == "3, 7 to 9, 11"


@pytest.mark.parametrize("lost", [1, 20])
def test_a_gap_in_a_transport_stream_is_refused_with_what_precedes_it(
    lost: int, tmp_path: Path
) -> None:
    source = make(tmp_path / "in.ts", frames=20, g="6", bf="0")
    data = source.read_bytes()
    middle = len(data) // 188 // 2
    source.write_bytes(data[: middle * 188] + data[(middle + lost) * 188 :])
    with pytest.raises(UserError, match=r"in\.ts: truncated or damaged after \d+ frames \(--dur"):
        read(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(suffix: str, tmp_path: Path) -> None:
    source = make(tmp_path / f"in{suffix}", frames=50, g="1", bf="0", qp="0")
    got = []

    def read_on(reader: VideoReader) -> None:
        for picture in reader:
            got.append(picture)
            if len(got) == 2:
                os.truncate(source, source.stat().st_size * 2 // 3)

    with VideoReader(source) as reader, pytest.raises(UserError, match=r"in\.\w+: .*after \d+ fr"):
        read_on(reader)
    assert 2 <= len(got) < 50


def null_frames(path: Path, seen: list[int], length: int, codec: str = "mjpeg") -> Path:
    """Writes an AVI whose other frames are empty: the last one is shown on."""
    unit = Fraction(1, 25)
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=25)
        track.width, track.height, track.pix_fmt = 64, 64, pixel_format
        track.codec_context.time_base, track.codec_context.max_b_frames = unit, 0
        for number in seen:
            noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, unit
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
        if length > seen[-1] + 1:
            end = av.Packet(0)
            end.stream, end.pts, end.dts, end.time_base = track, length - 1, length - 1, unit
            out.mux(end)
    return path


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
@pytest.mark.parametrize(("seen", "length"), [([*range(6)], 30), ([0, 1, 5, 6], 7), ([0, 1, 5], 9)])
def test_null_frames_of_avi_prolong_the_last_picture(
    codec: str, seen: list[int], length: int, tmp_path: Path
) -> None:
    source = null_frames(tmp_path / "in.avi", seen, length, codec)
    pictures, notes = read(source)
    assert notes == []
    assert [picture.pts for picture in pictures] == seen
    assert pictures[-1].pts + pictures[-1].duration == length
    for suffix in (".avi", ".mp4"):
        target = tmp_path / f"out{suffix}"
        with (
            VideoReader(source) as reader,
            VideoWriter(target, reader.info, source=reader) as writer,
        ):
            for picture in reader:
                writer.write(picture)
        with av.open(str(target)) as container:
            track = container.streams.video[0]
            assert abs(track.duration * track.time_base - Fraction(length, 25)) <= Fraction(1, 500)
        assert len(read(target)[0]) == len(seen)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".h264"), ("libx265", ".hevc")])
def test_a_raw_stream_that_states_no_rate_is_said_to_and_takes_one(
    codec: str, suffix: str, tmp_path: Path
) -> None:
    silent = {"x264-params": "force-cfr=1", "bsf": ""}
    if codec == "libx265":
        silent = {"x265-params": "vui-timing-info=0:log-level=none"}
    source = make(tmp_path / f"in{suffix}", codec, **silent)
    pictures, notes = read(source)
    said = [note for note in notes if "frame rate" in note]
    if codec == "libx265":
        assert said == ["states no frame rate; 25 is assumed (see --fps)"]
    else:
        assert said == [], "libx264 states it"
    with VideoReader(source, rate=Fraction(60)) as reader:
        assert reader.info.rate == 60
        faster = list(reader)
        unit = reader.info.time_base
        assert reader.notes == []
    assert len(faster) == len(pictures) == 12
    assert [picture.pts * unit for picture in faster] == [Fraction(i, 60) for i in range(12)]
    assert {picture.duration * unit for picture in faster} == {Fraction(1, 60)}


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "said"),
    [
        ("in.mjpeg", "mjpeg", "yuvj420p", ["states no frame rate; 25 is assumed (see --fps)"]),
        ("in.m2v", "mpeg2video", "yuv420p", []),
    ],
)
def test_so_do_older_raw_streams(
    name: str, codec: str, pixel_format: str, said: list[str], tmp_path: Path
) -> None:
    source = make(tmp_path / name, codec, pixel_format)
    for rate in (None, Fraction(60)):
        with VideoReader(source, rate=rate) as reader:
            times = [picture.pts * reader.info.time_base for picture in reader]
            assert reader.notes == (said if rate is None else [])
        assert times == [Fraction(i) / (rate or 25) for i in range(12)]


def test_a_video_with_timestamps_takes_no_other_rate(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4")
    with pytest.raises(UserError, match=r"in\.mp4: --fps applies to raw streams"):
        VideoReader(source, rate=Fraction(60))
