"""A video restored in parts and joined equals the undivided one: frames, times, other tracks."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import runpy
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
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.restoration import parts
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.part_names import Part, folder_of
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import deblur
from jaxdeblur.video.joiner import decoding_times
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
    """Writes drifting noise with sound, subtitles and chapters, at 25 frames/s or a varying rate."""
    rng = np.random.default_rng(1)
    scene = rng.integers(0, 256, (14, 36, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    steps = np.random.default_rng(2).integers(2, 6, FRAMES) if jitter else np.full(FRAMES, 4)
    times = begin + np.r_[0, np.cumsum(steps)[:-1]]
    kind = {"format": "matroska"} if path.suffix == ".mkv" else {}
    with av.open(str(path), "w", **kind) as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height = 48, 32
        video.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        video.codec_context.time_base = Fraction(1, 100)
        sound = out.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000)
        sound.layout = "mono"
        if path.suffix != ".ts":
            second = {"id": 1, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
            out.set_chapters([{**second, "start": 0, "end": 1500}])
        for index, when in enumerate(times):
            shown = scene[index // 2 : index // 2 + 32, 2 * index : 2 * index + 48]
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
        config = DeblurConfig(part=Part(f"{number}/{PARTS}"), quiet=True)
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
        ("a.mov", "libx264", False),
        ("a.mp4", "libx265", False),
        ("a.webm", "libvpx-vp9", False),
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
    else:  # each part begins with a frame of its own kind
        assert apart.mean() < 4
    assert not folder_of(joined).exists()
