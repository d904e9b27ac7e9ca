"""``jaxdeblur app`` in a headless Chromium: drop, progress, slider, download; nothing is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from jaxdeblur import models
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.weights.load import LoadedModel
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).parents[2]
NETWORK = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HEIGHT, WIDTH, FRAMES = 48, 64, 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, a video with sound, a photograph and a file that is neither."""
    folder = tmp_path_factory.mktemp("inputs")
    model = LoadedModel(models.build(NETWORK, seed=3), "tiny", NETWORK, 0, "test", {})
    export_weights(model, folder / "tiny.safetensors")
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (16, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    write_noise(folder / "long.mp4", 1500)
    with av.open(str(folder / "walk.mp4"), "w") as out:
        video = out.add_stream("libx264", rate=Fraction(30), options={"crf": "1"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = out.add_stream("aac", rate=48000, layout="mono")
        for index in range(FRAMES):
            # The brightness tells which frame it is.
            shown = scene[index : index + HEIGHT, index : index + WIDTH] // 2 + 2 * index
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), "rgb24")
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for index in range(FRAMES * 1600 // 1024):
            wave = np.full((1, 1024), index, np.int16)
            heard = av.AudioFrame.from_ndarray(wave, "s16", "mono")
            heard.sample_rate, heard.pts = 48000, 1024 * index
            out.mux(sound.encode(heard))
        out.mux(sound.encode(None))
    Image.fromarray(scene[:HEIGHT, :WIDTH]).save(folder / "photo.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def write_noise(path: Path, frames: int) -> None:
    """Writes a video that takes longer to restore than a click takes."""
    picture = np.random.default_rng(1).integers(0, 256, (96, 96, 3), np.uint8)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 96, 96, "yuv420p"
        for _ in range(frames):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(video.encode(None))


@pytest.fixture(scope="module")
def address(inputs: Path) -> Iterator[str]:
    """Serves the page, and afterwards checks that it leaves nothing behind."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    temporary = inputs / "temporary"
    temporary.mkdir()
    program = "import sys; from jaxdeblur.commands import main; sys.argv[0] = 'jaxdeblur'; main()"
    options = ["app", "--no-browser", f"--ckpt={inputs / 'tiny.safetensors'}"]
    served = subprocess.Popen(
        [sys.executable, "-c", program, *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stderr is not None
    said: list[str] = []
    with served.stderr as errors:
        for line in errors:
            said.append(line)
            if found := re.search(r"open (http://127\.0\.0\.1:\d+/)", line):
                break
        assert found, said
        reading = threading.Thread(target=lambda: said.extend(errors))
        reading.start()
        try:
            yield found[1]
        finally:
            served.send_signal(signal.SIGTERM)
            served.wait(60)
            reading.join()
    assert served.returncode == 130
    assert not [line for line in said if "Traceback" in line], "".join(said)
    assert list(temporary.iterdir()) == [], "nothing is left behind"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=FLAGS.split(), timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture(
    params=[
        pytest.param(1200, id="wide"),
        pytest.param(390, id="phone", marks=pytest.mark.stress),  # the same page, laid out anew
    ]
)
def page(address: str, browser: Any, inputs: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": request.param, "height": 844})
    page = context.new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#drop input[type=file]", state="attached")
    yield page
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= request.param, "nothing is wider than the screen"
    assert not said
    outside = [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert outside == [], "nothing leaves the machine"
    context.close()
    # A closed tab takes its files with it; Gradio leaves empty ones until the end.
    deadline = time.monotonic() + 60
    while left := [path for path in inputs.glob("temporary/*/*/*") if path.is_file()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def shown(page: Any, name: str) -> str:
    return str(page.inner_text(f"#{name}"))


def drop(page: Any, *paths: Path) -> None:
    page.set_input_files("#drop input[type=file]", [str(path) for path in paths])
    for path in paths:
        page.locator("#found li", has_text=path.name).wait_for()


def preview(page: Any) -> list[float]:
    """Returns the mean brightness of both pictures of the slider."""
    return page.evaluate(
        """async () => {
            const means = [];
            for (const image of document.querySelectorAll("#pair img")) {
                await image.decode();
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
                means.push(data.reduce((a, b) => a + b, 0) / data.length);
            }
            return means;
        }"""
    )


def test_drop_restore_compare_and_download(page: Any, inputs: Path, tmp_path: Path) -> None:
    drop(page, inputs / "walk.mp4", inputs / "photo.png", inputs / "broken.mp4")
    found = shown(page, "found")
    assert "walk.mp4: 64×48; 2 s, 60 frames" in found
    assert "photo.png: 64×48; a photograph" in found
    assert "broken.mp4: not a readable video" in found
    assert "about" in shown(page, "expected")
    page.click("#restore")
    page.wait_for_selector("#said .bar")
    page.wait_for_selector("#results", state="visible")
    said = shown(page, "said")
    assert "walk.mp4 (1 of 2): 60 frames in" in said
    assert "photo.png (2 of 2): done in" in said

    before = preview(page)
    assert len(before) == 2
    page.locator("#frame input[type=number]").fill("50")
    page.locator("#frame input[type=number]").press("Enter")
    page.wait_for_function(f"document.querySelector('#pair img').naturalWidth == {WIDTH}")
    page.wait_for_timeout(2000)
    after = preview(page)
    # Each frame is 2 grey levels brighter in the original, the fourth channel is opaque.
    for first, last in zip(before, after, strict=True):
        assert last - first > 40

    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "walk-sharp.mp4"
    download.value.save_as(tmp_path / "walk-sharp.mp4")
    with (
        av.open(str(tmp_path / "walk-sharp.mp4")) as ours,
        av.open(str(inputs / "walk.mp4")) as theirs,
    ):
        for container in (ours, theirs):
            assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert sum(1 for _ in ours.decode(video=0)) == FRAMES
        ours.seek(0)
        heard = [
            [bytes(packet) for packet in container.demux(audio=0)] for container in (ours, theirs)
        ]
        assert heard[0] == heard[1]

    page.click("#which label:has-text('photo-sharp.png')")
    page.locator("#download", has_text="photo-sharp.png").wait_for()


def test_a_part_is_tried_first(page: Any, inputs: Path) -> None:
    drop(page, inputs / "walk.mp4")
    page.fill("#start input", "1.5")
    page.fill("#seconds input", "0.2")
    page.click("#restore")
    page.locator("#said", has_text="6 frames in").wait_for()
    page.wait_for_selector("#results", state="visible")
    page.click("#try")
    page.locator("#said", has_text="15 frames in").wait_for()
    assert page.input_value("#seconds input") == "10"
    page.wait_for_selector("#cancel:disabled")


def test_cancelling_stops_and_leaves_no_result(page: Any, inputs: Path) -> None:
    drop(page, inputs / "long.mp4")
    page.click("#restore")
    page.wait_for_selector("#cancel:enabled")
    page.click("#cancel")
    page.locator("#said", has_text="long.mp4: cancelled").wait_for()
    page.wait_for_selector("#cancel:disabled")
    assert page.is_hidden("#results")


def test_a_taken_port_and_a_lacking_package_are_one_line(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxdeblur.commands import app

    port = int(address.rstrip("/").rpartition(":")[2])
    code = "from jaxdeblur.commands import main; main()"
    options = ["app", "--no-browser", f"--port={port}"]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    message = f"jaxdeblur app: error: --port={port} is taken; name another with --port\n"
    assert (done.returncode, done.stderr) == (2, message)
    monkeypatch.setattr(sys, "argv", ["jaxdeblur app"])
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the page needs Gradio: pip install"):
        app.main()


def test_nothing_to_restore_is_said(page: Any) -> None:
    page.click("#restore")
    page.locator("#said", has_text="Drop a video or a photograph first.").wait_for()
