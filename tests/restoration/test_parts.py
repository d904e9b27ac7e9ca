"""A video restored in parts and joined equals the undivided one: frames, times, other tracks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.parameters import split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Time
from jaxdeblur.restoration import parts
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.part_names import Portion, folder_of
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import deblur
from jaxdeblur.video.joiner import decoding_times
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.weights.load import LoadedModel
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).parents[2]
# Without memory, so that parts equal the whole exactly: its window needs neighbours on both sides.
NETWORK = StrcnnConfig(
    m=1, width=4, blocks=1, head_width=0, residual=True, recurrent=False, blending="none"
)
FRAMES, PARTS = 90, 3


@pytest.fixture(scope="module")
def deblurrer() -> Deblurrer:
    return Deblurrer(models.build(NETWORK, seed=3))


@pytest.fixture(scope="module", autouse=True)
def short_overlap() -> Any:
    """Otherwise the parts of such a short video overlap as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "OVERLAP", 12)
        yield


def a_video(path: Path, codec: str = "libx264", *, jitter: bool = False, begin: int = 0) -> Path:
    """Writes drifting noise with sound and a chapter, at 25 frames/s or a varying rate."""
    rng = np.random.default_rng(1)
    scene = rng.integers(0, 256, (14, 34, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    steps = np.random.default_rng(2).integers(2, 6, FRAMES) if jitter else np.full(FRAMES, 4)
    times = begin + np.r_[0, np.cumsum(steps)[:-1]]
    kind = {"format": "matroska"} if path.suffix == ".mkv" else {}
    with av.open(str(path), "w", **kind) as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height = 64, 64
        video.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        video.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        video.codec_context.time_base = Fraction(1, 100)
        sound = out.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000)
        sound.layout = "mono"
        if path.suffix != ".ts":
            second = {"id": 1, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
            out.set_chapters([{**second, "start": 0, "end": 1500}])
        for index, when in enumerate(times):
            shown = scene[index // 2 : index // 2 + 64, 2 * index : 2 * index + 64]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), "rgb24")
            frame = frame.reformat(format=video.pix_fmt)
            frame.pts, frame.time_base = int(when), Fraction(1, 100)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for index in range(int(times[-1] / 100 * 48000) // 960):
            wave = (8000 * np.sin(np.arange(960) / 20 + index)).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(wave, "s16", "mono")
            heard.sample_rate, heard.pts = 48000, 960 * index
            out.mux(sound.encode(heard))
        out.mux(sound.encode(None))
    return path


def read(path: Path) -> dict[str, Any]:
    """Returns all that a player would show: frames, their times, other packets, chapters."""
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        frames = list(container.decode(track))
        shown = {
            "times": [frame.pts * frame.time_base for frame in frames],
            "pixels": np.stack([frame.to_ndarray(format="rgb24") for frame in frames]),
            "size": (track.width, track.height, track.codec_context.name),
            "chapters": [
                (each["start"] * each["time_base"], each["metadata"])
                for each in container.chapters()
            ],
            "tags": dict(container.metadata),
        }
    with av.open(str(path)) as container:
        others = [stream for stream in container.streams if stream.type != "video"]
        shown["packets"] = [
            (packet.stream.index, packet.pts, bytes(packet))
            for packet in container.demux(*others)
            if packet.size
        ]
    return shown


def in_parts(deblurrer: Deblurrer, video: Path, output: Path, order: Any = None) -> None:
    for number in order or range(1, PARTS + 1):
        config = DeblurConfig(part=Portion(f"{number}/{PARTS}"), quiet=True)
        (job,) = plan([str(video), str(output)], config)
        parts.restore_part(lambda _: deblurrer, job, config, "tiny")
    config = DeblurConfig(join=True, quiet=True)
    (job,) = plan([str(video), str(output)], config)
    parts.join_parts(job, config)


def undivided(deblurrer: Deblurrer, video: Path, output: Path) -> None:
    config = DeblurConfig(quiet=True)
    (job,) = plan([str(video), str(output)], config)
    deblur(deblurrer, job, config)


@pytest.mark.parametrize(
    ("name", "codec", "jitter"),
    [
        ("a.mkv", "ffv1", True),
        ("a.mp4", "libx264", True),
        pytest.param("a.mov", "libx264", False, marks=pytest.mark.stress),
        pytest.param("a.mp4", "libx265", False, marks=pytest.mark.stress),
        pytest.param("a.webm", "libvpx-vp9", False, marks=pytest.mark.stress),
        ("a.ts", "libx264", False),
    ],
)
def test_parts_equal_the_undivided_video(
    name: str, codec: str, jitter: bool, deblurrer: Deblurrer, tmp_path: Path
) -> None:
    video = a_video(tmp_path / name, codec, jitter=jitter)
    whole, joined = tmp_path / f"whole-{name}", tmp_path / f"joined-{name}"
    undivided(deblurrer, video, whole)
    in_parts(deblurrer, video, joined, [2, 3, 1])
    ours, theirs = read(joined), read(whole)
    assert len(ours["times"]) == FRAMES
    assert ours["times"] == theirs["times"]
    for what in ("size", "packets", "chapters", "tags"):
        assert ours[what] == theirs[what], what
    apart = np.abs(ours["pixels"].astype(int) - theirs["pixels"])
    if codec == "ffv1":  # which loses nothing
        assert apart.max() == 0
        assert np.abs(ours["pixels"].astype(int) - read(video)["pixels"]).max() > 3
    else:
        # Each part begins with a frame of its own kind, and libx265 encodes the same frames
        # differently each time (2 to 6 grey levels apart). The next frame differs by 26.
        moved = np.abs(np.diff(theirs["pixels"].astype(int), axis=0)).mean()
        assert apart.mean() < moved / 3
    assert not folder_of(joined).exists()


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_part_has_frames_before_and_after(ahead: int, tmp_path: Path) -> None:
    video = a_video(tmp_path / "a.mkv", "ffv1", jitter=True, begin=150)
    with VideoReader(video) as whole:
        times = [picture.pts for picture in whole]
    shares = []
    for number in range(1, PARTS + 1):
        with parts.PartSource(video, Portion(f"{number}/{PARTS}"), 10**6, ahead) as source:
            given = [picture.pts for picture in source]
        own = [time for time in given if source.begin <= time < source.end]
        first, last = times.index(own[0]), times.index(own[-1])
        assert given == times[max(0, first - 12) : last + 1 + ahead]
        shares.append(own)
    assert list(itertools.chain(*shares)) == times
    assert min(map(len, shares)) > 20


def test_what_the_networks_remember_comes_with_a_part(tmp_path: Path) -> None:
    """Without frames before a part, a recurrent network restores its first ones otherwise."""
    rebuild, weights = split(models.build(dataclasses.replace(NETWORK, recurrent=True), seed=3))
    # Random weights may remember for ever; smaller ones forget.
    recurrent = Deblurrer(rebuild({name: 0.7 * value for name, value in weights.items()}))
    video = a_video(tmp_path / "a.mkv", "ffv1")
    undivided(recurrent, video, tmp_path / "whole.mkv")
    whole, apart = read(tmp_path / "whole.mkv")["pixels"].astype(int), {}
    for overlap in (0, 24):
        joined = tmp_path / f"{overlap}.mkv"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "OVERLAP", overlap)
            in_parts(recurrent, video, joined)
        apart[overlap] = np.abs(read(joined)["pixels"] - whole).sum()
    assert apart[24] < apart[0] / 20


def test_the_number_comes_from_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="--part=/4: neither SLURM_ARRAY_TASK_ID nor JOB"):
        Portion("/4")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert Portion("/4") == (1, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Portion("/4") == (3, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    assert Portion("/4") == (4, 4)
    assert Portion("2/4") == (2, 4)


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "3/0", "a/4", "1/4/2", "-1/4", "/", "１/4"])
def test_wrong_parts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--part={re.escape(text)}"):
        Portion(text)


def test_decoding_times_increase_and_precede_what_is_shown() -> None:
    shown = [0, 16, 8, 4, 12, 32, 24, 20, 28, 100, 60, 33]
    times = decoding_times(shown, 4)
    assert all(a < b for a, b in itertools.pairwise(times))
    assert all(dts <= pts for dts, pts in zip(times, shown, strict=True))
    assert decoding_times([5, 6, 9], 1) == [5, 6, 9]


@pytest.mark.parametrize(
    ("options", "output", "named"),
    [
        ({"part": "1/2"}, "out.avi", "--part: OUTPUT must be a video whose format stores times"),
        ({"part": "1/2"}, "out", "--part: OUTPUT must be a video"),
        ({"part": "1/2", "start": Time(1.0)}, "out.mkv", "--part cannot be combined with --start"),
        ({"join": True}, "out.mkv", "out.mkv.parts: contains no parts"),
        ({"join": True, "part": "1/2"}, "out.mkv", "--part and --join cannot be combined"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    options: dict[str, Any], output: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "in.mkv").write_bytes(b"never opened")
    if "part" in options:
        options = {**options, "part": Portion(options["part"])}

    def divided() -> None:
        config = DeblurConfig(**options)
        (job,) = plan([str(tmp_path / "in.mkv"), str(tmp_path / output)], config)
        parts.join_parts(job, config)

    with pytest.raises(UserError, match=named):
        divided()


def test_parts_that_do_not_fit_are_refused(deblurrer: Deblurrer, tmp_path: Path) -> None:
    video, output = a_video(tmp_path / "a.mkv", "ffv1"), tmp_path / "out.mkv"

    def restore(number: int, **options: Any) -> None:
        config = DeblurConfig(part=Portion(f"{number}/2"), quiet=True, **options)
        (job,) = plan([str(video), str(output)], config)
        parts.restore_part(lambda _: deblurrer, job, config, "tiny")

    def refuses_to_join(named: str) -> None:
        (job,) = plan([str(video), str(output)], DeblurConfig(join=True))
        with pytest.raises(UserError, match=named):
            parts.join_parts(job, DeblurConfig(join=True))
        assert not output.exists()

    restore(1)
    refuses_to_join("part 2 of 2 is missing; restore it with --part=2/2")
    restore(2, strength=0.5)
    refuses_to_join("restored from another file or with other options")
    with pytest.raises(UserError, match=r"2-of-2.mkv: already exists \(--overwrite replaces it\)"):
        restore(2)
    restore(2, overwrite=True)
    record = folder_of(output) / "2-of-2.json"
    written = record.stat().st_mtime_ns
    restore(2, skip_done=True)
    assert record.stat().st_mtime_ns == written
    said = record.read_text()
    record.write_text(json.dumps({**json.loads(said), "frames": []}))
    refuses_to_join("has 45 frames, not the 0 of its record")
    record.write_text(said)
    with video.open("ab") as file:
        file.write(b"more")
    refuses_to_join("a.mkv has changed since")


@pytest.mark.stress
def test_one_of_four_processes_is_killed_and_run_again(tmp_path: Path) -> None:
    weights, video = tmp_path / "tiny.safetensors", a_video(tmp_path / "in.mkv", "ffv1")
    network = models.build(NETWORK, seed=3)
    export_weights(LoadedModel(network, "tiny", NETWORK, 0, "test", {}), weights)
    output = tmp_path / "out.mkv"
    command = [sys.executable, str(ROOT / "deblur.py"), f"--ckpt={weights}", str(video)]

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)

    def run(*options: str) -> tuple[int, str]:
        process = start(*options)
        said = process.communicate(timeout=300)[1]
        return process.returncode, said

    started = [start(str(output), f"--part={number}/4") for number in range(1, 5)]
    deadline = time.monotonic() + 300
    while not list(folder_of(output).glob(".3-of-4.*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    started[2].kill()
    for process in started:
        process.communicate(timeout=300)
    assert [process.returncode for process in started] == [0, 0, -signal.SIGKILL, 0]
    code, said = run(str(output), "--join")
    assert (code, "part 3 of 4 is missing" in said) == (2, True), said
    assert not output.exists()
    for options in (
        [str(output), "--part=3/4"],
        [str(output), "--join"],
        [f"{tmp_path}/whole.mkv"],
    ):
        assert run(*options)[0] == 0
    ours, theirs = read(output), read(tmp_path / "whole.mkv")
    assert ours["times"] == theirs["times"]
    assert ours["packets"] == theirs["packets"]
    assert np.abs(ours["pixels"].astype(int) - theirs["pixels"]).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.mkv", "out.mkv", "tiny.safetensors", "whole.mkv"
    ]  # fmt: skip


def test_all_parts_take_what_the_first_found_out(
    deblurrer: Deblurrer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, output = a_video(tmp_path / "a.mkv", "ffv1"), tmp_path / "out.mkv"
    found = {"duty": 0.4, "light": "linear", "stabilised": True}
    looked, taken = [], []
    monkeypatch.setattr(parts, "find_out", lambda *_, **__: looked.append(1) or found)

    def deblurrer_of(options: dict[str, Any]) -> Deblurrer:
        taken.append(options)
        return deblurrer

    for number in (2, 1):
        config = DeblurConfig(part=Portion(f"{number}/2"), quiet=True)
        (job,) = plan([str(video), str(output)], config)
        parts.restore_part(deblurrer_of, job, config, "tiny")
    assert len(looked) == 1
    shared = {"light": "linear", "stabilised": True}
    assert taken == [{}, shared, shared]  # the first network only looks
    written = folder_of(output) / "estimate.json"
    assert json.loads(written.read_text()) == found
    # What the user says goes first; a duty cycle that was found is none to be certain of.
    assert parts.as_options(found, DeblurConfig(duty=0.7)) == {**found, "duty": 0.7}
    assert parts.as_options(found, DeblurConfig(light="stored")) == {**shared, "light": "stored"}
    by_hand = parts.as_options(found, DeblurConfig(stabilised="no"))
    assert by_hand == {**shared, "stabilised": False}
    written.write_text("{")
    with pytest.raises(UserError, match=r"estimate.json: is damaged; remove it"):
        parts.restore_part(deblurrer_of, job, dataclasses.replace(config, overwrite=True), "tiny")
