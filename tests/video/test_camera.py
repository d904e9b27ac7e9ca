"""A camera, simulated by FFmpeg's test pattern in real time."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jaxdeblur.errors import UserError
from jaxdeblur.models.registry import build
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Time
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import restore_all
from jaxdeblur.video import camera
from jaxdeblur.video.camera import CameraReader

RATE = 50


@pytest.fixture
def pattern(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Plays an endless pattern in real time; returns the requests to the device."""
    asked: list[tuple[str, dict[str, str]]] = []

    def open_pattern(name: str, options: dict[str, str]) -> Any:
        asked.append((name, options))
        source = f"testsrc=size=48x32:rate={RATE},format=yuv422p,realtime"
        return av.open(source, format="lavfi")

    monkeypatch.setattr(camera, "open_device", open_pattern)
    return asked


def test_a_slow_reader_gets_the_newest_frames_and_loses_the_rest(pattern: Any) -> None:
    places, ages = [], []
    with CameraReader("camera:0", max_pixels=10**6, duration=1.2) as reader:
        assert (reader.info.height, reader.info.width) == (32, 48)
        assert reader.info.pixel_format == "yuv422p"
        assert reader.info.rate == RATE
        for picture in reader:
            places.append(picture.pts)
            ages.append(time.monotonic() - reader._began - picture.pts / 1000)
            time.sleep(0.1)  # five frames go by
    assert places[0] == 0
    assert all(b - a >= 60 for a, b in itertools.pairwise(places)), "milliseconds"
    assert reader.dropped >= 2 * len(places)
    # However long it runs, each frame that is read is recent.
    assert np.median(ages) < 0.3
    assert pattern == [("0", {})]


def test_a_camera_is_asked_for_a_size_and_a_rate(pattern: Any) -> None:
    rate = Fraction(30000, 1001)
    with CameraReader("camera:front", size=(480, 640), rate=rate, max_pixels=10**6):
        pass
    assert pattern == [("front", {"video_size": "640x480", "framerate": "30000/1001"})]


def test_stop_ends_it(pattern: Any) -> None:
    with CameraReader("camera:0", max_pixels=10**6) as reader:
        threading.Timer(0.3, reader.stop).start()
        began = time.monotonic()
        assert 1 <= len(list(reader)) < 2 * RATE
    assert time.monotonic() - began < 5


def test_too_large_frames_are_refused(pattern: Any) -> None:
    with pytest.raises(UserError, match="frames of 48x32 exceed --max-pixels=1000"):
        CameraReader("camera:0", max_pixels=1000)


class NotReady:
    """A camera as of macOS: each frame is preceded by an error, as long as none is ready."""

    def __init__(self, container: Any):
        self.streams, self._container, self._asked = container.streams, container, 0

    def __enter__(self) -> NotReady:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def decode(self, video: int) -> Iterator[Any]:
        self._asked += 1
        if self._asked % 2:
            raise av.BlockingIOError(35, "Resource temporarily unavailable")
        yield next(self._container.decode(video=video))
        raise av.BlockingIOError(35, "Resource temporarily unavailable")


def test_a_camera_without_a_frame_yet_is_asked_again(
    pattern: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = camera.open_device
    monkeypatch.setattr(camera, "open_device", lambda *given: NotReady(opened(*given)))
    with CameraReader("camera:0", max_pixels=10**6, duration=0.3) as reader:
        assert len(list(reader)) > 2


def a_deblurrer() -> Deblurrer:
    config = StrcnnConfig(m=1, width=2, blocks=1, head_width=0, residual=True)
    return Deblurrer(build(config), tile="none")


def test_a_camera_is_restored_into_a_video(
    pattern: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mkv"
    config = DeblurConfig(duration=Time(1.0), tile="none", fps=25.0)
    jobs = plan(["camera:0", str(out)], config)
    assert jobs[0].use == "camera"
    restore_all(lambda _: a_deblurrer(), jobs, config)
    assert pattern == [("0", {"framerate": "25"})]
    said = capsys.readouterr().err
    assert "frames dropped" in said
    with av.open(str(out)) as written:
        times = [float(frame.time) for frame in written.decode(video=0)]
    assert times[0] == 0
    assert len(times) > 1
    assert times[-1] <= 1.0 + 1 / RATE


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        ("camera:nowhere", DeblurConfig(), "camera:nowhere: cannot open the camera"),
        ("camera:0", DeblurConfig(start=Time(1.0)), "--start applies to video files, "),
    ],
)
def test_bad_input_is_one_line(given: str, config: DeblurConfig, said: str, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(UserError, match=said):
        restore_all(lambda _: a_deblurrer(), plan([given, str(out)], config), config)
    assert not list(tmp_path.iterdir())
