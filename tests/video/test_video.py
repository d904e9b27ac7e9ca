"""Video files in and out: PyAV reads back what went in, or the writer reports it as lost."""

from __future__ import annotations

import dataclasses
import gc
import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxdeblur.errors import UserError
from jaxdeblur.video.ffmpeg import frame_planes, is_cover, pixel_layout
from jaxdeblur.video.image_file import ImageReader, ImageWriter
from jaxdeblur.video.picture import Picture, rgb8_info
from jaxdeblur.video.pixels import to_packed_rgb
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter

CHROMA_VP9 = "chroma resolution (not supported with libvpx-vp9)"
ROTATED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


@dataclasses.dataclass
class Recipe:
    """A video to be made with PyAV alone."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = (24, 32)
    frames: int = 5
    rate: Fraction = Fraction(30000, 1001)
    time_base: Fraction | None = None
    durations: tuple[int, ...] | None = None
    first_pts: int = 0
    sounds: int = 0
    subtitles: str | None = None
    matrix: tuple[int, ...] | None = None
    aspect: Fraction | None = None
    colour: tuple[int, int, int, int] = (1, 1, 1, 1)
    chapters: bool = False
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    stream_metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    lost: tuple[str, ...] = ()

    def make(self, path: Path) -> Path:
        height, width = self.size
        rng = np.random.default_rng(0)
        with av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled"}) as out:
            out.metadata.update(self.metadata)
            video = out.add_stream(self.codec, rate=self.rate, options=self.options)
            video.width, video.height, video.pix_fmt = width, height, self.pixel_format
            context = video.codec_context
            if self.time_base:
                context.time_base = self.time_base
            if self.aspect:
                context.sample_aspect_ratio = self.aspect
            context.color_range, context.colorspace = self.colour[:2]
            context.color_primaries, context.color_trc = self.colour[2:]
            video.metadata.update(self.stream_metadata)
            if self.matrix:
                video.set_display_matrix(self.matrix)
            if self.chapters:
                unit = Fraction(1, 1000)
                ends = [("begin", 0, 100), ("end", 100, 200)]
                out.set_chapters(
                    [
                        {"id": i, "start": a, "end": b, "time_base": unit, "metadata": {"title": t}}
                        for i, (t, a, b) in enumerate(ends)
                    ]
                )
            sounds = [out.add_stream("aac", rate=8000, layout="mono") for _ in range(self.sounds)]
            for language, sound in zip(("fre", "deu"), sounds, strict=False):
                sound.metadata["language"] = language
            words = out.add_stream(self.subtitles) if self.subtitles else None
            pts = self.first_pts
            for i in range(self.frames):
                frame = av.VideoFrame(width, height, self.pixel_format)
                for plane in frame.planes:
                    deep = frame.format.components[0].bits > 8
                    samples = np.frombuffer(plane, np.uint16 if deep else np.uint8)
                    samples[:] = rng.integers(1, 3, samples.size) * 40
                if self.time_base:
                    frame.pts, frame.time_base = pts, self.time_base
                    pts += self.durations[i] if self.durations else 1
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
            for number, sound in enumerate(sounds):
                for start in range(0, 4096, 1024):
                    tone = np.sin(np.arange(start, start + 1024) / (7 + number))[None]
                    samples = av.AudioFrame.from_ndarray(tone.astype(np.float32), "fltp", "mono")
                    samples.sample_rate, samples.pts = 8000, start
                    samples.time_base = Fraction(1, 8000)
                    out.mux(sound.encode(samples))
                out.mux(sound.encode(None))
            if words is not None:
                packet = av.Packet(b"0,0,Default,,0,0,0,,hello")
                packet.stream, packet.time_base = words, Fraction(1, 1000)
                packet.pts = packet.dts = 20
                packet.duration = 50
                out.mux(packet)
        return path


def facts(path: Path) -> dict[str, Any]:
    """Returns what can be read back from a video."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        first = frames[0]
        unit = video.time_base
        found = {
            "pts": [frame.pts * unit for frame in frames],
            "size": (first.height, first.width),
            "bits": first.format.components[0].bits,
            "grey": len(first.format.components) == 1,
            "alpha": any(c.is_alpha for c in first.format.components),
            "rate": video.average_rate,
            "aspect": video.sample_aspect_ratio,
            "range": first.color_range,
            "colour": (first.colorspace, first.color_primaries, first.color_trc),
            "matrix": [
                np.frombuffer(side, np.int32).tolist()
                for side in map(first.side_data.__getitem__, range(len(first.side_data)))
                if side.type.name == "DISPLAYMATRIX"
            ],
            "chapters": [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"])
                for c in container.chapters()
            ],
            "metadata": {
                key.lower(): value
                for key, value in container.metadata.items()
                if "brand" not in key and key not in ("minor_version",)
                if key.lower() not in ("encoder", "duration")
            },
            "languages": [s.metadata.get("language", "und") for s in container.streams.audio],
        }
    with av.open(str(path)) as container:
        others = [s for s in container.streams if s.type in ("audio", "subtitle")]
        packets = [p for p in container.demux(*others) if p.size] if others else []
        found["packets"] = sorted((p.stream.index, p.pts * p.time_base, bytes(p)) for p in packets)
    return found


def rewrite(source: Path, target: Path, **options: Any) -> VideoWriter:
    """Reads a video and writes it without restoring it."""
    part = {name: options.pop(name) for name in ("start", "duration") if name in options}
    with (
        VideoReader(source, **part) as reader,
        VideoWriter(target, reader.info, source=reader, **options) as writer,
    ):
        for picture in reader:
            writer.write(picture)
    return writer


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0)]


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    planes = [frame_planes(frame, frame.format.name) for frame in frames]
    return [
        np.concatenate([p.ravel() for p in [*main, alpha] if p is not None])
        for main, alpha in planes
    ]


KEPT = {
    "plain": (".mp4", Recipe()),
    "variable rate": (
        ".mp4",
        Recipe(time_base=Fraction(1, 90000), durations=(3000, 9000, 1500, 4500, 3000)),
    ),
    "two sounds": (".mp4", Recipe(sounds=2)),
    "rotation, aspect": (".mp4", Recipe(matrix=ROTATED, aspect=Fraction(4, 3))),
    "rotation in matroska": (".mkv", Recipe(matrix=ROTATED, sounds=1)),
    "quicktime": (".mov", Recipe(matrix=ROTATED, sounds=1)),
    "metadata": (
        ".mp4",
        Recipe(metadata={"title": "A title", "location": "+47.0000+008.0000/"}, chapters=True),
    ),
    "any metadata": (".mp4", Recipe(metadata={"title": "T", "com.maker.lens": "50 mm"})),
    "chapters in matroska": (".mkv", Recipe(chapters=True, metadata={"ARTIST": "me"})),
    "subtitles": (".mkv", Recipe(subtitles="ass", sounds=1)),
    "odd": (".mp4", Recipe("libx264", "yuv444p", size=(23, 31))),
    "odd, chroma shared": (".webm", Recipe("libvpx-vp9", size=(23, 31))),
    "odd, lossless": (".mkv", Recipe("ffv1", size=(23, 31))),
    "odd, motion jpeg": (".mkv", Recipe("mjpeg", "yuvj420p", size=(23, 31), colour=(2, 5, 2, 2))),
    "10 bit": (".mp4", Recipe("libx265", "yuv420p10le", options={"x265-params": "log-level=0"})),
    "10 bit in h264": (".mp4", Recipe("libx264", "yuv422p10le")),
    "10 bit, wide gamut": (".mkv", Recipe("ffv1", "yuv420p10le", colour=(1, 9, 9, 16))),
    "full range": (".mp4", Recipe(pixel_format="yuv420p", colour=(2, 1, 1, 1))),
    "rec. 601": (".mkv", Recipe("ffv1", colour=(1, 5, 5, 6))),
    "grey": (".mp4", Recipe("libx264", "gray")),
    "grey, 16 bit": (".mkv", Recipe("ffv1", "gray16le")),
    "alpha": (".mkv", Recipe("ffv1", "bgra", colour=(2, 0, 2, 2))),
    "alpha, yuv": (".mkv", Recipe("ffv1", "yuva420p")),
    "alpha, 10 bit": (".mov", Recipe("prores_ks", "yuva444p10le", lost=("bit depth above 10",))),
    "rgb": (".mkv", Recipe("ffv1", "gbrp16le", colour=(2, 0, 2, 2))),
    "av1": (".mp4", Recipe("libsvtav1", size=(64, 64), frames=3)),
    "transport stream": (".ts", Recipe(sounds=1, frames=12)),
    "one frame": (".mp4", Recipe(frames=1)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_goes_in_comes_out(name, tmp_path):
    suffix, recipe = KEPT[name]
    source = recipe.make(tmp_path / f"in{suffix}")
    writer = rewrite(source, tmp_path / f"out{suffix}")
    before, after = facts(source), facts(tmp_path / f"out{suffix}")
    assert tuple(writer.lost) == recipe.lost
    assert len(after["pts"]) == recipe.frames
    for fact in before:
        assert after[fact] == before[fact], fact
    if recipe.codec == "ffv1":
        originals, copies = frames_of(source), frames_of(tmp_path / f"out{suffix}")
        for original, copy in zip(originals, copies, strict=True):
            np.testing.assert_array_equal(copy, original)


def test_packets_that_a_stream_cannot_shift_keep_their_times(tmp_path):
    """MP4 places sound before time 0 by an edit list, which must not shift the whole file."""
    source = Recipe(sounds=1).make(tmp_path / "in.mp4")
    assert facts(source)["packets"][0][1] < 0
    rewrite(source, tmp_path / "out.mp4")
    assert facts(tmp_path / "out.mp4")["packets"] == facts(source)["packets"]


def test_a_trimmed_video_keeps_its_trim(tmp_path):
    """The file holds frames from before the cut, which no player shows."""
    unit = Fraction(1, 90000)
    recipe = Recipe(frames=9, time_base=unit, durations=(3000,) * 9, first_pts=-9000)
    source = recipe.make(tmp_path / "in.mp4")
    shown = facts(source)["pts"]
    assert shown[0] == 0
    assert len(shown) < 9
    with VideoReader(source) as reader:
        assert len(list(reader)) == len(shown)
        assert reader.notes == [], "what the trim hides is not missing"
    rewrite(source, tmp_path / "out.mp4")
    assert facts(tmp_path / "out.mp4")["pts"] == shown


def test_the_last_frame_lasts_as_long_as_before(tmp_path):
    recipe = Recipe(time_base=Fraction(1, 90000), durations=(3000, 3000, 3000, 3000, 45000))
    source = recipe.make(tmp_path / "in.mp4")
    with VideoReader(source) as reader:
        pictures = list(reader)
        info = reader.info
    pictures[-1].duration = 45000
    with VideoWriter(tmp_path / "out.mp4", info) as writer:
        for picture in pictures:
            writer.write(picture)
    with av.open(str(tmp_path / "out.mp4")) as container:
        # MP4's edit list counts in milliseconds.
        assert abs(container.streams.video[0].duration - (12000 + 45000)) < 90


def test_a_part_begins_at_zero_and_takes_its_sound_along(tmp_path):
    recipe = Recipe(frames=12, rate=Fraction(25), sounds=1, chapters=True, options={"g": "3"})
    source = recipe.make(tmp_path / "in.mp4")
    whole = facts(source)
    rewrite(source, tmp_path / "out.mp4", start=0.16, duration=0.2)
    part = facts(tmp_path / "out.mp4")
    assert part["pts"] == [Fraction(i, 25) for i in range(5)]
    inside = [data for _, pts, data in whole["packets"] if 0.16 <= pts < 0.36]
    assert [data for _, _, data in part["packets"]] == inside != []
    # The sound keeps its place relative to the frames.
    times = [pts - Fraction(16, 100) for _, pts, _ in whole["packets"] if 0.16 <= pts < 0.36]
    assert [pts for _, pts, _ in part["packets"]] == times
    assert part["chapters"] == [(0, Fraction(4, 100), {"title": "end"})]
    with VideoReader(source, start=0.16, duration=0.2) as reader:
        assert reader.info.frames == 5
    with VideoReader(source, start=0.04, duration=0.04) as reader:
        ends = [float(chapter["end"] * chapter["time_base"]) for chapter in reader.chapters]
        assert ends, "there is a chapter"
        assert max(ends) <= 0.04, "it ends with the part"


def test_a_part_takes_sound_along_that_stands_behind_it_in_the_file(tmp_path):
    """In a fragment of MP4 the sound of a second follows the frames of that second."""
    with av.open(
        str(tmp_path / "in.mp4"),
        "w",
        container_options={"movflags": "empty_moov", "frag_duration": "1000000"},
    ) as out:
        video = out.add_stream("libx264", rate=25, options={"g": "25", "bf": "0"})
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for _ in range(75):
            out.mux(video.encode(av.VideoFrame(32, 24, "yuv420p")))
        for start in range(0, 24000, 800):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            samples.sample_rate, samples.pts = 8000, start
            samples.time_base = Fraction(1, 8000)
            out.mux(sound.encode(samples))
        out.mux([*video.encode(None), *sound.encode(None)])
    rewrite(tmp_path / "in.mp4", tmp_path / "out.mov", start=1.2, duration=0.6)
    part = facts(tmp_path / "out.mov")
    assert len(part["pts"]) == 15
    assert sum(len(data) for _, _, data in part["packets"]) == 6 * 800 * 2


NUMBERED_BY_COLUMN = 20


def numbered_video(path: Path, codec: str, frames: int, options: dict[str, str]) -> Path:
    """Writes frames of noise, for a large file, with their number in binary at the top."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 160, 128, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(160, 128, "yuv420p")
            for plane in frame.planes:
                np.frombuffer(plane, np.uint8)[:] = rng.integers(0, 255, plane.buffer_size)
            top = np.frombuffer(frame.planes[0], np.uint8).reshape(128, -1)[:32]
            for bit in range(8):
                columns = slice(bit * NUMBERED_BY_COLUMN, (bit + 1) * NUMBERED_BY_COLUMN)
                top[:, columns] = 235 if number >> bit & 1 else 16
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def number_of(picture: Picture) -> int:
    middles = picture.planes[0][16, NUMBERED_BY_COLUMN // 2 :: NUMBERED_BY_COLUMN]
    return sum(1 << bit for bit, value in enumerate(middles) if value > 128)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("in.ts", "libx264", {"g": "48"}),  # its demuxer seeks past the requested time
        pytest.param(
            "in.mp4",
            "libx265",
            {"x265-params": "log-level=none:keyint=24:open-gop=1:bframes=3"},
            marks=pytest.mark.stress,
        ),
        ("in.mkv", "libx264", {"g": "24"}),
    ],
)
def test_a_part_begins_at_the_frame_that_was_asked_for(name, codec, options, tmp_path):
    source = numbered_video(tmp_path / name, codec, 100, options)
    for start in (1, 23, 24, 47, 55, 96):
        with VideoReader(source, start=start / 25, duration=0.16) as reader:
            assert [number_of(picture) for picture in reader] == list(range(start, start + 4))


def test_frames_from_before_zero_are_frames(tmp_path):
    """As in a recording whose first frames precede its clock's zero."""
    unit = Fraction(1, 25)
    recipe = Recipe(frames=9, rate=Fraction(25), time_base=unit, first_pts=-4)
    source = recipe.make(tmp_path / "in.ts")
    with VideoReader(source) as reader:
        assert len(list(reader)) == 9
    rewrite(source, tmp_path / "out.ts")
    times = np.diff(facts(tmp_path / "out.ts")["pts"])
    assert list(times) == [Fraction(1, 25)] * 8


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_frames_from_before_zero_come_out_at_their_distances(name, tmp_path):
    """MP4 would hide them, and Matroska would give them no time."""
    unit = Fraction(1, 25)
    recipe = Recipe(frames=9, rate=Fraction(25), time_base=unit, first_pts=-4, sounds=1)
    source = recipe.make(tmp_path / "in.ts")
    rewrite(source, tmp_path / name)
    before, after = facts(source), facts(tmp_path / name)
    assert after["pts"] == [i * unit for i in range(9)]
    times = [pts + 4 * unit for _, pts, _ in before["packets"]]
    assert [pts for _, pts, _ in after["packets"]] == times


def joined(one: bytes, two: bytes) -> bytes:
    """Joins two transport streams; the packet counter of each track continues."""
    counts: dict[int, int] = {}
    packets = bytearray(one + two)
    for place in range(0, len(packets), 188):
        track = int.from_bytes(packets[place + 1 : place + 3], "big") & 0x1FFF
        has_payload = packets[place + 3] >> 4 & 1
        counts[track] = (counts.get(track, -1) + has_payload) % 16
        packets[place + 3] = packets[place + 3] & 0xF0 | counts[track]
    return bytes(packets)


def test_timestamps_that_start_again_are_an_error(tmp_path):
    unit = Fraction(1, 25)
    recipe = Recipe(frames=50, rate=Fraction(25), time_base=unit)
    part = recipe.make(tmp_path / "part.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined(part, part))
    with (
        pytest.raises(UserError, match="the timestamps start over after 50 frames"),
        VideoReader(tmp_path / "joined.ts") as reader,
    ):
        list(reader)


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_matroska_that_is_cut_short_is_an_error(suffix, tmp_path):
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    whole = Recipe(codec, frames=40, size=(64, 64)).make(tmp_path / f"whole{suffix}")
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 5])
    with VideoReader(whole) as reader:
        assert len(list(reader)) == 40
    with (
        pytest.raises(UserError, match=r"truncated or damaged after \d+ frames"),
        VideoReader(cut) as reader,
    ):
        list(reader)


@pytest.mark.parametrize("name", ["in.mp4", "in.ts", "in.mkv"])
def test_of_a_file_that_is_cut_short_what_is_said_to_be_good_can_be_read(name, tmp_path):
    path = tmp_path / name
    movflags = {"movflags": "faststart"} if name == "in.mp4" else {}
    with av.open(str(path), "w", container_options=movflags) as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(100):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                np.frombuffer(plane, np.uint8)[:] = rng.integers(0, 255, plane.buffer_size)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    data = path.read_bytes()
    place = len(data) // 2 // 188 * 188 + 188 * 3
    # Nothing states a transport stream's length, so packets are removed from its middle.
    path.write_bytes(data[:place] + (data[place + 188 * 5 :] if name == "in.ts" else b""))
    with pytest.raises(UserError, match="--duration") as caught, VideoReader(path) as reader:
        list(reader)
    found = re.search(r"after (\d+) frames \(--duration=([\d.]+) restores", str(caught.value))
    assert found is not None
    with VideoReader(path, duration=float(found[2])) as reader:
        assert len(list(reader)) == int(found[1]) > 20


def test_a_live_recording_says_no_length(tmp_path):
    recorded = tmp_path / "live.mkv"
    live = {"container_options": {"live": "1"}}
    with av.open(str(recorded), "w", **live) as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        for _ in range(4):
            out.mux(video.encode(av.VideoFrame(32, 24, "yuv420p")))
        out.mux(video.encode(None))
    with VideoReader(recorded) as reader:
        assert len(list(reader)) == 4


@pytest.mark.parametrize(
    ("codec", "suffix", "tag", "name"),
    [
        ("libx265", ".mp4", "hvc1", "hevc"),  # the tag that Apple's players know
        ("libx265", ".mov", "hvc1", "hevc"),
        ("libvpx-vp9", ".mov", "avc1", "h264"),  # QuickTime cannot hold VP9
    ],
)
def test_what_apples_players_take(codec, suffix, tag, name, tmp_path):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    source = Recipe(codec, size=(64, 64), options=options).make(tmp_path / "in.mkv")
    rewrite(source, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        track = container.streams.video[0]
        assert (track.codec_context.codec_tag, track.codec_context.name) == (tag, name)
        assert len(list(container.decode(track))) == 5


def test_a_gif_is_a_video_with_alpha(tmp_path):
    """Its comment is in Latin-1, which no other tag may be."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)) for _ in range(3)]
    rest = {"append_images": pictures[1:], "duration": 40, "comment": b"caf\xe9"}
    pictures[0].save(tmp_path / "in.gif", save_all=True, **rest)
    assert rewrite(tmp_path / "in.gif", tmp_path / "out.mkv").encoder == "ffv1"
    writer = rewrite(tmp_path / "in.gif", tmp_path / "out.mp4")
    lost = [f"{what} (not supported with libx264)" for what in ("alpha", "chroma resolution")]
    assert (writer.encoder, writer.lost) == ("libx264", lost)
    with VideoReader(tmp_path / "out.mp4") as reader:
        unit = reader.info.time_base
        assert [p.pts * unit for p in reader] == [Fraction(i, 25) for i in range(3)]


@pytest.mark.parametrize(("name", "encoder"), [("h264", "libx264"), ("hevc", "libx265")])
def test_the_name_of_a_codec_stands_for_its_encoder(name, encoder, tmp_path):
    """The encoder's quality, tag and permitted sizes apply under either name."""
    source = Recipe("ffv1", size=(23, 31)).make(tmp_path / "in.mkv")
    for codec in (name, encoder):
        writer = rewrite(source, tmp_path / f"{codec}.mp4", codec=codec, crf=20)
        assert (writer.encoder, writer.pixel_format) == (encoder, "yuv444p")
    one, other = (tmp_path / f"{codec}.mp4" for codec in (name, encoder))
    # Packets are not compared: an encoder's choices inside a frame may differ between runs.
    assert settings_of(one) == settings_of(other)
    assert facts(one) == facts(other)


def settings_of(path: Path) -> tuple[str, bytes]:
    """Returns the codec's tag, and the options that libx264 and libx265 write into the stream."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        written = (video.codec_context.extradata or b"") + packets_of(path)[0]
        found = re.search(rb"options: ([ -~]+)", written)
        assert found, "the encoder wrote no options"
        return video.codec_tag, found[1]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_hevc_of_few_frames_is_written(frames, tmp_path):
    """Its encoder leaves times of one or two frames unset, and MP4 refused these."""
    source = Recipe("ffv1", size=(64, 64), frames=frames).make(tmp_path / "in.mkv")
    for crf in (17, 24):
        rewrite(source, tmp_path / "out.mp4", codec="libx265", crf=crf)
        assert facts(tmp_path / "out.mp4")["pts"] == facts(source)["pts"]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_encoders_that_share_chroma_get_a_size_they_take(codec, tmp_path):
    source = Recipe("ffv1", size=(23, 31)).make(tmp_path / "in.mkv")
    writer = rewrite(source, tmp_path / "out.mp4", codec=codec)
    assert writer.pixel_format == "yuv444p"
    assert facts(tmp_path / "out.mp4")["size"] == (23, 31)


@pytest.mark.parametrize(
    ("recipe", "suffix", "lost"),
    [
        (Recipe(sounds=1, subtitles="ass"), ".mp4", ["subtitle track 2 (ssa)"]),
        (Recipe(matrix=ROTATED, sounds=1), ".ts", ["rotation (not supported by mpegts)"]),
        (Recipe("ffv1", "bgra"), ".webm", ["alpha (not supported with libvpx-vp9)", CHROMA_VP9]),
        (Recipe("libx265", "yuv420p12le"), ".webm", ["bit depth above 8"]),
        (
            *(Recipe("ffv1", "bgra"), ".ts"),
            [f"{what} (not supported with libx264)" for what in ("alpha", "chroma resolution")],
        ),
    ],
)
def test_what_a_container_cannot_hold_is_said(recipe, suffix, lost, tmp_path):
    writer = rewrite(recipe.make(tmp_path / "in.mkv"), tmp_path / f"out{suffix}")
    assert writer.lost == lost
    assert len(facts(tmp_path / f"out{suffix}")["pts"]) == recipe.frames


def test_frames_with_exif_are_read(tmp_path):
    """FFmpeg attaches it to each frame of Motion JPEG, as a type that PyAV 18 has no name for."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by a quarter turn
    file = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, "JPEG", exif=exif)
    with av.open(str(tmp_path / "in.mov"), "w") as out:
        video = out.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "yuvj420p"
        for number in range(3):
            packet = av.Packet(file.getvalue())
            packet.stream, packet.time_base = video, Fraction(1, 25)
            packet.pts = packet.dts = number
            out.mux(packet)
    rewrite(tmp_path / "in.mov", tmp_path / "out.mov")
    found = facts(tmp_path / "out.mov")
    assert len(found["pts"]) == 3
    assert found["matrix"] == [list(ROTATED)]


def test_what_stands_beside_the_pixels_is_said(tmp_path):
    # A closed-caption message (ATSC A/53, part 4) before the first picture.
    caption = b"\xb5\0\x31GA94\x03\xc1\xff\xfc\x94\x2c\xff"
    message = b"\0\0\0\1\x06\x04" + bytes([len(caption)]) + caption + b"\x80"
    raw = Recipe(options={"bf": "0"}).make(tmp_path / "in.h264").read_bytes()
    place = raw.index(b"\0\0\1\x65")
    (tmp_path / "in.h264").write_bytes(raw[:place] + message[1:] + raw[place:])
    with VideoReader(tmp_path / "in.h264") as reader:
        assert reader.info.lost == ("embedded closed captions",)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_avi_counts_frames_at_their_rate(suffix, tmp_path):
    """In finer steps, its muxer would fill each step between two frames with an empty one."""
    recipe = Recipe(frames=6, sounds=0 if suffix == ".ts" else 1, options={"bf": "0"})
    source = recipe.make(tmp_path / f"in{suffix}")
    rewrite(source, tmp_path / "out.avi")
    with av.open(str(tmp_path / "out.avi")) as container:
        video = container.streams.video[0]
        assert (video.frames, video.average_rate) == (6, recipe.rate)
    with VideoReader(tmp_path / "out.avi") as reader:
        assert len(list(reader)) == 6


def test_avi_holds_all_frames_of_a_variable_rate(tmp_path):
    recipe = Recipe(time_base=Fraction(1, 90000), durations=(3000, 9000, 100, 100, 3000))
    source = recipe.make(tmp_path / "in.mp4")
    rewrite(source, tmp_path / "out.avi")
    with VideoReader(tmp_path / "out.avi") as reader:
        assert len(list(reader)) == 5


@pytest.mark.parametrize(
    ("codec", "name", "height", "colour"),
    [
        ("libx264rgb", "out.mkv", 24, (1, 1, 1, 1)),
        ("png", "out.mov", 720, (1, 2, 2, 2)),
        ("prores_ks", "out.mov", 24, (2, 1, 1, 1)),
        ("mjpeg", "out.avi", 24, (1, 1, 1, 1)),
        ("mjpeg", "out.mov", 720, (2, 2, 2, 2)),
    ],
)
def test_colours_stay_where_an_encoder_has_its_own_range_and_matrix(
    codec, name, height, colour, tmp_path
):
    colours = []
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 16, height, "yuv420p"
        video.codec_context.color_range, video.codec_context.colorspace = colour[:2]
        frame = av.VideoFrame(16, height, "yuv420p")
        for plane, value in zip(frame.planes, (120, 100, 160), strict=True):
            np.frombuffer(plane, np.uint8)[:] = value
        out.mux([*video.encode(frame), *video.encode(None)])
    rewrite(source, tmp_path / name, codec=codec)
    for path in (source, tmp_path / name):
        with VideoReader(path) as reader:
            (picture,) = list(reader)
            colours.append(to_packed_rgb(picture.planes, reader.info.layout, 8).astype(int))
    assert np.abs(colours[0] - colours[1]).max() <= 3


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_grey_images_keep_their_contrast(suffix, tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, np.uint8), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "in.png")
    reader = ImageReader([tmp_path / "in.png"] * 2, rate=Fraction(25), max_pixels=10**6)
    with VideoWriter(tmp_path / f"out{suffix}", reader.info) as writer:
        for picture in reader:
            writer.write(picture)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(shown.astype(int) - ramp[..., None]).mean() < 1


@pytest.mark.parametrize(
    ("given", "size", "suffix", "codec", "written", "lost"),
    [
        ("gray", (24, 32), ".webm", None, "yuv420p", []),
        ("bgr0", (23, 31), ".webm", None, "yuv420p", [CHROMA_VP9]),
        ("bgr0", (23, 31), ".mkv", "libx265", "yuv444p", []),
        ("bgra", (23, 31), ".mkv", "libx265", "yuv444p", ["alpha (not supported with libx265)"]),
        (
            *("yuv444p", (64, 64), ".mkv", "libsvtav1", "yuv420p"),
            ["chroma resolution (not supported with libsvtav1)"],
        ),
    ],
)
def test_pixel_formats_are_those_that_players_show(
    given, size, suffix, codec, written, lost, tmp_path
):
    source = Recipe("ffv1", given, size=size, frames=2).make(tmp_path / "in.mkv")
    writer = rewrite(source, tmp_path / f"out{suffix}", codec=codec)
    assert (writer.pixel_format, writer.lost) == (written, lost)
    assert len(facts(tmp_path / f"out{suffix}")["pts"]) == 2


def test_rare_chroma_becomes_one_sample_per_pixel(tmp_path):
    """As of DV cameras, 4:1:1; no encoder that players know has it."""
    source = Recipe("ffv1", "yuv411p").make(tmp_path / "in.mkv")
    with VideoReader(source) as reader:
        assert reader.info.pixel_format == "yuv444p"
        assert [plane.shape for plane in next(iter(reader)).planes] == [(24, 32)] * 3
    assert rewrite(source, tmp_path / "out.mp4", codec="libx264").lost == []


def test_rgb_of_hdr_stays_hdr(tmp_path):
    recipe = Recipe("ffv1", "gbrp10le", colour=(2, 0, 9, 16))
    rewrite(recipe.make(tmp_path / "in.mkv"), tmp_path / "out.mp4", codec="libx265")
    assert facts(tmp_path / "out.mp4")["colour"] == (9, 9, 16)


@pytest.mark.parametrize("suffix", [".m2ts", ".MTS"])
def test_camcorder_streams_have_packets_of_192_bytes(suffix, tmp_path):
    source = Recipe(sounds=1, frames=12).make(tmp_path / "in.m2ts")
    assert rewrite(source, tmp_path / f"out{suffix}").lost == []
    data = (tmp_path / f"out{suffix}").read_bytes()
    assert len(data) % 192 == 0
    assert set(data[4::192]) == {0x47}
    assert facts(tmp_path / f"out{suffix}")["pts"] == facts(source)["pts"]


def test_what_mkvmerge_counted_of_the_old_track_is_not_said_of_the_new(tmp_path):
    counted = {"BPS": "1000", "NUMBER_OF_BYTES-eng": "5", "_STATISTICS_TAGS": "BPS", "title": "T"}
    source = Recipe(stream_metadata=counted).make(tmp_path / "in.mkv")
    rewrite(source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        said = container.streams.video[0].metadata
    assert {key.lower() for key in said} - {"duration", "encoder"} == {"title"}


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_the_time_code_of_a_part_is_that_of_its_first_frame(suffix, tmp_path):
    recipe = Recipe(rate=Fraction(25), frames=50, stream_metadata={"timecode": "10:00:00:00"})
    source = recipe.make(tmp_path / f"in{suffix}")
    for start, expected in ((0.0, "10:00:00:00"), (1.0, "10:00:01:00"), (0.5, "10:00:00:13")):
        target = tmp_path / f"out{start}{suffix}"
        assert rewrite(source, target, start=start).lost == []
        with av.open(str(target)) as container:
            found = {k.lower(): v for k, v in container.streams.video[0].metadata.items()}
        assert found["timecode"] == expected


def test_a_time_code_of_another_kind_is_not_told_of_a_part(tmp_path):
    source = Recipe(frames=50, stream_metadata={"timecode": "ten"}).make(tmp_path / "in.mkv")
    assert rewrite(source, tmp_path / "whole.mkv").lost == []
    writer = rewrite(source, tmp_path / "out.mkv", start=1.0)
    assert writer.lost == ["time code (not of a kind that can be moved to the part)"]


def cover() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    return file.getvalue()


def covered(path: Path) -> Path:
    """Writes a video with a cover picture."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        picture = None
        if path.suffix == ".mkv":
            out.add_attachment("cover.jpg", "image/jpeg", cover())
        else:
            picture = out.add_stream("mjpeg", rate=25)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        # With detail, so that a transport stream of it is long enough to be recognised.
        for picture_of in np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture_of, "rgb24")))
        out.mux(video.encode(None))
        if picture is not None:
            packet = av.Packet(cover())
            packet.stream, packet.pts, packet.dts = picture, 0, 0
            out.mux(packet)
    return path


@pytest.mark.parametrize("given", [".mkv", ".mp4"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".avi", ".ts"])
def test_a_cover_picture_stays_one_or_is_said(given, suffix, tmp_path):
    source = covered(tmp_path / f"in{given}")
    writer = rewrite(source, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        covers = [each for each in container.streams.video if is_cover(each)]
        assert len(container.streams.video) - len(covers) == 1
        if suffix in (".mkv", ".mp4"):
            assert bytes(next(container.demux(covers[0]))) == cover()
    others = [what for what in writer.lost if "timestamps" not in what]
    assert others == ([] if suffix in (".mkv", ".mp4") else ["cover picture"])


def test_a_mark_of_3d_is_said(tmp_path):
    recipe = Recipe(options={"x264-params": "frame-packing=3"})
    writer = rewrite(recipe.make(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    assert writer.lost == ["stereo 3D mark (frame packing)"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_part_has_the_cover_picture_too(suffix, tmp_path):
    source = covered(tmp_path / "in.mp4")
    writer = rewrite(source, tmp_path / f"out{suffix}", start=0.04)
    assert writer.lost == []
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        (track,) = [each for each in container.streams.video if is_cover(each)]
        assert bytes(next(container.demux(track))) == cover()


@pytest.mark.parametrize(
    ("suffix", "lost"),
    [
        (".ts", "metadata: location, timecode, title (not supported by mpegts)"),
        (".avi", "metadata: location, timecode (not supported by avi)"),
    ],
)
def test_tags_that_a_container_does_not_hold_are_said(suffix, lost, tmp_path):
    tags = {"title": "T", "location": "+47.0000+008.0000/"}
    recipe = Recipe(metadata=tags, stream_metadata={"timecode": "10:00:00:00"}, frames=12)
    writer = rewrite(recipe.make(tmp_path / "in.mp4"), tmp_path / f"out{suffix}")
    assert [what for what in writer.lost if "timestamps" not in what] == [lost]
    kept = facts(tmp_path / f"out{suffix}")["metadata"]
    assert ("title" in kept) == ("title" not in lost)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), [[0, 1, 2], [3, 4, 5]]),
        ((-1, 0, 0, -1), [[5, 4, 3], [2, 1, 0]]),
        ((0, 1, -1, 0), [[3, 0], [4, 1], [5, 2]]),
        ((-1, 0, 0, 1), [[2, 1, 0], [5, 4, 3]]),
        ((1, 0, 0, -1), [[3, 4, 5], [0, 1, 2]]),
        ((0, 1, 1, 0), [[0, 3], [1, 4], [2, 5]]),
        ((0, -1, -1, 0), [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_frames_are_turned_and_mirrored_as_players_do(matrix, shown):
    a, b, c, d = (65536 * each for each in matrix)
    info = dataclasses.replace(
        rgb8_info(2, 3, Fraction(25)), display_matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30)
    )
    assert info.upright(np.arange(6, dtype=np.uint8).reshape(2, 3)).tolist() == shown


def test_images_of_pixels_that_are_not_square_are_said_to_be(tmp_path):
    info = dataclasses.replace(rgb8_info(2, 3, Fraction(25)), sample_aspect=Fraction(4, 3))
    lost = ImageWriter(tmp_path, info, name="frames").lost
    assert lost == ["pixel aspect ratio (images have square pixels)"]


def test_video_of_png_with_a_profile_is_read(tmp_path):
    """PyAV frees the profile's name twice, which ended the process."""
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (32, 24), "red").save(file, "PNG", icc_profile=profile)
    with av.open(str(tmp_path / "in.mov"), "w") as out:
        video = out.add_stream("png", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "rgb24"
        packet = av.Packet(file.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = video, 0, 0, Fraction(1, 25)
        out.mux(packet)
    with VideoReader(tmp_path / "in.mov") as reader:
        assert reader.info.lost == ()
        assert len(list(reader)) == 1
    gc.collect()


def test_colours_that_are_no_luma_and_chroma_are_refused(tmp_path):
    source = Recipe(pixel_format="yuv444p", colour=(2, 8, 1, 1)).make(tmp_path / "in.mkv")
    with pytest.raises(UserError, match=r"in\.mkv: colours of the kind YCgCo; convert it to"):
        VideoReader(source)


def test_dv_has_the_rate_of_its_frames(tmp_path):
    """FFmpeg's demuxer takes the clock, of 60,000 ticks, for the rate."""
    recipe = Recipe("dvvideo", size=(576, 720), rate=Fraction(25), frames=3)
    with VideoReader(recipe.make(tmp_path / "in.dv")) as reader:
        assert (reader.info.rate, reader.info.frames) == (25, 3)


def test_a_limit_that_ffmpeg_cannot_hold_is_none(tmp_path):
    with VideoReader(Recipe().make(tmp_path / "in.mp4"), max_pixels=10**12) as reader:
        assert len(list(reader)) == 5


def test_alpha_that_the_decoder_ignores_is_said(tmp_path):
    """FFmpeg's own decoder of VP9; its mark would make players look for alpha in the result."""
    source = Recipe("libvpx-vp9", "yuva420p").make(tmp_path / "in.webm")
    writer = rewrite(source, tmp_path / "out.webm")
    assert writer.lost == ["alpha (not decoded)"]
    with av.open(str(tmp_path / "out.webm")) as container:
        assert "alpha_mode" not in {k.lower() for k in container.streams.video[0].metadata}


@pytest.mark.parametrize(
    ("codec", "given", "suffix", "written", "lost"),
    [
        ("libx264rgb", "rgb24", ".mkv", "gbrp", []),
        ("libx264rgb", "rgb24", ".mp4", "gbrp", []),
        ("libx265", "gbrp", ".mkv", "gbrp", []),
        ("libx265", "gbrp10le", ".mkv", "gbrp12le", ["bit depth above 12"]),
        ("libvpx-vp9", "gbrp", ".webm", "gbrp", []),
    ],
)
def test_rgb_video_stays_rgb(codec, given, suffix, written, lost, tmp_path):
    """Neighbouring columns of red and black would be mixed in 4:2:0."""
    quiet = {"x265-params": "log-level=0"} if codec == "libx265" else {}
    recipe = Recipe(codec, given, frames=3, colour=(2, 0, 2, 2), options=quiet)
    source = recipe.make(tmp_path / f"in{suffix}")
    assert rewrite(source, tmp_path / f"out{suffix}", crf=1).lost == lost
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert next(container.decode(video=0)).format.name == written


def no_video(path: Path) -> None:
    path.write_bytes(b"this is not a video" * 100)


def truncated(path: Path) -> None:
    data = Recipe(frames=40, options={"qp": "0"}).make(path.with_name("whole.mp4")).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def truncated_after_its_index(path: Path) -> None:
    whole = path.with_name("whole.mp4")
    Recipe(frames=40, options={"qp": "0"}).make(whole)
    first = path.with_name("fast.mp4")
    with (
        av.open(str(whole)) as source,
        av.open(str(first), "w", container_options={"movflags": "faststart"}) as out,
    ):
        track = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                out.mux(packet)
    data = first.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


def only_sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        out.mux(sound.encode(samples))
        out.mux(sound.encode(None))


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height = 32, 24
        out.start_encoding()


def playlist(path: Path) -> None:
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_video, "not a readable video"),
        (truncated, "not a readable video"),
        (truncated_after_its_index, "truncated|cannot be decoded"),
        (only_sound, "has no video track"),
        (no_frames, "not a readable video|contains no frames"),
        (playlist, "not a readable video"),
        (lambda path: None, "no such video"),
        (lambda path: path.mkdir(), "no such video"),
        (lambda path: path.touch(), "not a readable video"),
    ],
)
def test_what_is_no_video_is_named_in_one_line(make, message, tmp_path):
    path = tmp_path / "in.mp4"
    make(path)
    with pytest.raises(UserError, match=message) as caught, VideoReader(path) as reader:
        list(reader)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_frames_are_refused_before_they_are_decoded(tmp_path):
    source = Recipe().make(tmp_path / "in.mp4")
    with pytest.raises(UserError, match="32x24 exceed --max-pixels=700"):
        VideoReader(source, max_pixels=700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "nonsense"}, "--codec=nonsense: no encoder of video for matroska"),
        ({"codec": "aac"}, "--codec=aac: no encoder of video for matroska"),
        ({"codec": "rawvideo"}, "--codec=rawvideo: no encoder of video for matroska"),
        ({"codec": "ffv1", "crf": 3}, "no such setting"),
        ({"codec": "png"}, "--codec=png: no encoder of video for matroska"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path):
    source = Recipe().make(tmp_path / "in.mkv")
    with pytest.raises(UserError, match=message):
        rewrite(source, tmp_path / "out.mkv", **options)


def test_grey_and_full_range_are_not_stretched_on_the_way(tmp_path):
    for pixel_format in ("gray", "yuvj420p"):
        codec = "ffv1" if pixel_format == "gray" else "mjpeg"
        recipe = Recipe(codec, pixel_format, frames=1, colour=(2, 5, 2, 2))
        source = recipe.make(tmp_path / f"{pixel_format}.mkv")
        rewrite(source, tmp_path / f"{pixel_format}.webm", crf=0)
        with VideoReader(source) as before, VideoReader(tmp_path / f"{pixel_format}.webm") as after:
            (one,), (other,) = list(before), list(after)
            assert after.info.layout.full_range
        assert np.abs(one.planes[0].astype(int) - other.planes[0]).max() <= 4


def test_crf_sets_the_quality(tmp_path):
    source = Recipe(frames=3, size=(64, 64)).make(tmp_path / "in.mp4")
    for crf in (1, 40):
        rewrite(source, tmp_path / f"{crf}.mp4", crf=crf)
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "1.mp4").stat().st_size


def test_a_picture_knows_how_long_it_is_shown(tmp_path):
    """So the last frame of a video of variable rate can be written with its duration."""
    recipe = Recipe("ffv1", time_base=Fraction(1, 1000), durations=(33, 100, 17, 50, 33))
    source = recipe.make(tmp_path / "in.mkv")
    with av.open(str(source)) as container:
        said = [frame.duration for frame in container.decode(video=0)]
    assert any(said)
    with VideoReader(source) as reader:
        assert [picture.duration for picture in reader] == said


@pytest.mark.parametrize(("height", "weights"), [(720, (0.2126, 0.0722)), (576, (0.299, 0.114))])
def test_of_untagged_video_the_matrix_is_what_players_assume(height, weights):
    """Rec. 709 in high definition, Rec. 601 below."""
    _, layout, _ = pixel_layout(av.VideoFrame(64, height, "yuv420p"))
    assert layout.weights == weights


def test_tags_that_are_not_utf_8_are_copied_byte_for_byte(tmp_path):
    """Editors of the nineties wrote such tags; a tag that cannot be decoded is no error."""
    source = Recipe(metadata={"title": "XXYYZZ"}).make(tmp_path / "in.mkv")
    source.write_bytes(source.read_bytes().replace(b"XXYYZZ", b"XX\xff\xfeZZ"))
    rewrite(source, tmp_path / "out.mkv")
    assert b"XX\xff\xfeZZ" in (tmp_path / "out.mkv").read_bytes()
