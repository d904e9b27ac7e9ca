"""The report in a real browser: no errors on the console, and every control works."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdeblur.data.videos import Dataset
from jaxdeblur.evaluation import report
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.metrics import VideoScores
from jaxdeblur.evaluation.results import metrics_of
from jaxdeblur.models.explanation import AttentionMaps, Explanation
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.weights.load import About

HEIGHT, WIDTH, FRAMES = 90, 160, 4
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


def a_shot(index: int, explained: bool) -> report.Shot:
    """Makes the blurred frame dark, the restored grey and the sharp bright, to tell them apart."""
    frames = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (40, 120, 220)]
    explanation = an_explanation(index) if explained else None
    return {**report.shot(0, *frames, explanation), "index": index}


def an_explanation(seed: int) -> Explanation:
    rng = np.random.default_rng(seed)
    m, n, window, h, w = 3, 2, 5, 12, 20

    def softmax(shape: tuple[int, ...], axes: tuple[int, ...]) -> jnp.ndarray:
        x = np.exp(rng.normal(0, 2, shape))
        return jnp.asarray(x / x.sum(axis=axes, keepdims=True), jnp.float32)

    block = AttentionMaps(
        "encoder <2>",
        softmax((1, 1, m, h, w), (3, 4)),
        softmax((1, 1, n, window), (3,)),
        softmax((1, 1, h, w, m * n), (4,)),
        (-2, -1, 0, 1, 2),
    )
    ramp = np.linspace(0.2, 0.9, w, dtype=np.float32)
    weights = jnp.asarray(np.broadcast_to(ramp, (1, 1, h, w)))
    # Six rows of 16-pixel cells reach below the 90 rows; only the topmost gates are open.
    gate = jnp.zeros((1, 1, 6, 10)).at[:, :, 0].set(1.0)
    paths = jnp.array([[[[[45.0, 40.0], [45.0, 120.0]], [[70.0, 20.0], [70.0, 20.0]]]]])
    return Explanation(weights, (block,), gate, paths)


def a_video(name: str, psnr: float, *, explained: bool, shots: int = FRAMES) -> report.VideoReport:
    levels = tuple(psnr + 0.3 * i for i in range(FRAMES))
    scores = VideoScores(
        name=name,
        height=HEIGHT,
        width=WIDTH,
        frames=FRAMES,
        scored_from=0,
        frame_psnr=levels,
        frame_ssim=(0.9,) * FRAMES,
        frame_psnr_blurred=(25.0,) * FRAMES,
        frame_ssim_blurred=(0.8,) * FRAMES,
        temporal_error=1.5,
        temporal_error_blurred=3.0,
        seconds_per_frame=0.0123,
    )
    return report.VideoReport(scores, [a_shot(i, explained) for i in range(shots)])


def an_evaluation(
    *videos: report.VideoReport, protocol: str = "jaxdeblur"
) -> tuple[dict[str, Any], Sequence[report.VideoReport]]:
    """Returns what ``report.write`` takes: metrics and videos, by default three."""
    videos = videos or (
        a_video("walk </script><!-- café", 27.0, explained=True),
        a_video("street", 24.5, explained=False),
        a_video("one shot", 26.0, explained=False, shots=1),
    )
    source = "runs/strcnn_dtb at step 7"
    about = About("strcnn_dtb", StrcnnConfig(), 7, source)
    config = EvaluationConfig(protocol=protocol)
    scores = [video.scores for video in videos]
    dataset = Dataset("<rendered> & more", "", [])
    return metrics_of(about, dataset, config, scores), videos


@pytest.mark.parametrize("size", [(12, 20), (200, 330)])
def test_an_even_map_is_one_even_spread_however_far_it_is_reduced(size: tuple[int, int]) -> None:
    height, width = size
    even = jnp.full((1, 1, 2, height, width), 1 / (height * width))
    mix = jnp.full((1, 1, height, width, 2), 0.5)
    block = AttentionMaps("encoder", even, jnp.ones((1, 1, 1, 1)), mix, (0,))
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    shot = report.shot(0, frame, frame, frame, Explanation(attention=(block,)))
    (shown,) = shot["attention"]
    assert (shown["spatial"]["low"], shown["spatial"]["high"]) == pytest.approx((1, 1), rel=1e-5)


def test_paths_are_a_line_each_and_the_gate_is_that_of_every_pixel() -> None:
    shot = a_shot(0, explained=True)
    assert shot["paths"] == "M40.0 45.0 120.0 45.0M20.0 70.0 20.0 70.0"
    _, data = shot["gate"]["src"].split(",")
    gate = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) / 255
    assert gate.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(gate[[7, 8, 16, 24, 89], 0], [1, 0.97, 0.47, 0, 0], atol=0.01)
    plain = a_shot(0, explained=False)
    assert plain["gate"] is plain["paths"] is None


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, *an_evaluation())
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=ARGUMENTS.split(), timeout=60_000
        )
        yield browser
        browser.close()


class Opened:
    """The page in a tab, with its console messages, errors and network requests."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    @property
    def first(self):
        return self.page.locator("section.video").first

    def stage(self) -> np.ndarray:
        """Returns a screenshot of the first video's stage, with its pictures decoded."""
        self.page.evaluate(
            "Promise.all([...document.querySelectorAll('.stage img[src]')].map(i => i.decode()))"
        )
        return picture(self.first.locator(".stage").screenshot())

    def at(self) -> float:
        divider = self.first.get_by_role("slider", name="Divider")
        return float(divider.get_attribute("aria-valuenow"))


def eventually(check: Callable[[], None], seconds: float = 10.0) -> None:
    """Repeats a check of what the page shows until it holds: maps are decoded asynchronously."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture
def desktop(browser, page_path) -> Iterator[Opened]:
    opened = Opened(browser, page_path, viewport={"width": 1100, "height": 900})
    yield opened
    opened.context.close()
    assert opened.complaints == []


class TestBrowser:
    def test_opens_from_disk_alone(self, desktop, page_path):
        assert desktop.page.title() == "strcnn_dtb on <rendered> & more"
        assert desktop.page.locator("h1").inner_text() == "strcnn_dtb on <rendered> & more"
        assert desktop.page.locator("section.video h2").all_inner_texts() == [
            "walk </script><!-- café",
            "street",
            "one shot",
        ]
        elsewhere = [url for url in desktop.requests if not url.startswith("data:")]
        assert elsewhere == [page_path.as_uri()]
        desktop.stage()  # raises if a picture cannot be decoded

    @pytest.mark.stress
    def test_the_table(self, desktop):
        rows = desktop.page.locator("tbody tr")
        first = rows.first.inner_text().split()
        assert first[-4:] == ["→", "1.5", "12", "ms"]
        assert "−0.05" in rows.nth(1).inner_text()
        # Sorting by gain: best first, then worst first.
        gain = desktop.page.get_by_role("button", name="Gain", exact=True)
        gain.click()
        assert "walk" in rows.first.inner_text()
        gain.click()
        assert "street" in rows.first.inner_text()

    def test_the_divider_follows_the_mouse(self, desktop):
        assert desktop.at() == 50
        desktop.first.locator(".stage").scroll_into_view_if_needed()
        box = desktop.first.locator(".stage").bounding_box()
        y = box["y"] + box["height"] / 2
        for part in (0.25, 0.8):
            desktop.page.mouse.move(box["x"] + part * box["width"], y)
            assert desktop.at() == pytest.approx(100 * part, abs=1)
            # The blurred frame (dark) is left of the divider, the restored one (grey) right of it.
            pixels = desktop.stage()
            row, divider = pixels[len(pixels) // 4], round(part * box["width"])
            assert row[divider - 40].mean() == pytest.approx(40, abs=3)
            assert row[divider + 40].mean() == pytest.approx(120, abs=3)

    @pytest.mark.stress
    def test_the_divider_moves_by_keyboard(self, desktop):
        divider = desktop.first.get_by_role("slider", name="Divider between blurred and restored")
        divider.focus()
        for key, expected in (
            ("ArrowRight", 52),
            ("ArrowLeft", 50),
            ("Shift+ArrowLeft", 40),
            ("PageUp", 50),
            ("End", 100),
            ("ArrowRight", 100),
            ("Home", 0),
        ):
            divider.press(key)
            assert desktop.at() == expected, key
        assert divider.get_attribute("aria-valuetext").startswith("0 % blurred")

    @pytest.mark.stress
    def test_comparing_with_the_sharp_frame(self, desktop):
        desktop.first.get_by_role("button", name="Restored | sharp").click()
        assert desktop.first.locator(".tag").all_inner_texts() == ["Restored", "Sharp"]
        pixels = desktop.stage()
        assert pixels[-20, 80].mean() == pytest.approx(120, abs=3)
        assert pixels[-20, -80].mean() == pytest.approx(220, abs=3)

    @pytest.mark.stress
    def test_scrubbing(self, desktop):
        scrubber = desktop.first.get_by_role("slider", name="Frame", exact=True)
        readout = desktop.first.locator("output")
        assert readout.inner_text().startswith("Frame 2 of 4, 27.30 dB (+2.30)")
        scrubber.press("End")
        assert readout.inner_text().startswith("Frame 4 of 4, 27.90 dB (+2.90)")
        desktop.first.get_by_role("button", name="Previous frame").click()
        assert readout.inner_text().startswith("Frame 3 of 4")
        # A click on the curve selects the frame there.
        curve = desktop.first.locator(".plot svg")
        curve.click(position={"x": 50, "y": 60})
        assert readout.inner_text().startswith("Frame 1 of 4")
        desktop.first.get_by_role("button", name="Play").click()
        desktop.first.locator("output", has_text="Frame 2 of").wait_for()
        desktop.first.get_by_role("button", name="Pause").click()

    @pytest.mark.stress
    def test_full_size(self, desktop):
        box = desktop.first.locator(".stage").bounding_box()
        desktop.first.locator(".stage").click(
            position={"x": 0.6 * box["width"], "y": 0.5 * box["height"]}
        )
        image = desktop.page.locator("dialog img")
        assert image.bounding_box()["width"] == WIDTH
        name = "walk </script><!-- café"
        assert image.get_attribute("alt") == f"Restored frame 2 of {name}, full size"
        desktop.page.keyboard.press("3")
        assert image.get_attribute("alt").startswith("Sharp frame 2")
        desktop.page.keyboard.press("Escape")
        # The "close" event follows once the key press has been handled.
        desktop.page.locator("dialog").wait_for(state="detached")

    @pytest.mark.stress
    def test_blending_weights(self, desktop):
        before = desktop.stage()
        desktop.first.get_by_role("button", name="Blending weights").click()
        legend = desktop.first.locator(".explain")
        legend.get_by_text("0.90: most from this frame").wait_for()
        assert "55 % comes from the frame itself" in legend.inner_text()
        pixels = desktop.stage()
        assert np.abs(pixels.astype(int) - before)[20:60].mean() > 10
        # The weights increase to the right, and so does the brightness of the colours.
        assert pixels[-20, -30].sum() > pixels[-20, 180].sum()
        desktop.first.get_by_role("button", name="Nothing").click()
        after = desktop.stage()
        np.testing.assert_array_equal(after[10:-10, 10:-10], before[10:-10, 10:-10])

    def test_blur_paths(self, desktop):
        before = desktop.stage()
        desktop.first.get_by_role("button", name="Blur paths").click()
        desktop.first.get_by_text("how the image moved there").wait_for()
        shown = desktop.stage()
        height, width = shown.shape[:2]

        def at(pixels: np.ndarray, y: float, x: float) -> np.ndarray:
            return pixels[round(y / HEIGHT * height), round(x / WIDTH * width)]

        for y, x in ((45, 41), (45, 60), (45, 119)):
            assert at(shown, y, x).min() > 230, (y, x)
        row, column = round(70 / HEIGHT * height), round(20 / WIDTH * width)
        dot = shown[row - 2 : row + 3, column - 2 : column + 3]
        assert dot.max() > 150  # small, so its white blends with the rim
        for y, x in ((45, 30), (45, 130), (20, 60)):
            np.testing.assert_array_equal(at(shown, y, x), at(before, y, x))
        desktop.first.get_by_role("button", name="Gate").click()
        desktop.first.get_by_text("1.00: most along the path").wait_for()
        assert "18 % on average" in desktop.first.locator(".explain").inner_text()
        pixels = desktop.stage()
        assert at(pixels, 5, 60).sum() > at(pixels, 80, 60).sum()
        assert at(pixels, 45, 60).max() < 230  # the lines are gone
        desktop.first.get_by_role("button", name="Nothing").click()
        np.testing.assert_array_equal(desktop.stage()[10:-10, 10:-10], before[10:-10, 10:-10])

    def test_attention(self, desktop):
        desktop.first.get_by_role("button", name="Attention, encoder <2>").click()
        panel = desktop.first.locator(".explain")
        panel.get_by_role("button", name="Spatial map 3").click()
        panel.get_by_role("button", name="Spatial map 3", pressed=True).wait_for()
        assert panel.locator(".bars svg").count() == 2
        assert panel.locator(".bars rect").count() == 2 * 5
        # A click selects a pixel: its 3 x 2 weights are those of A_p at that place.
        box = desktop.first.locator(".stage").bounding_box()
        x, y = 0.83, 0.3
        desktop.first.locator(".stage").click(
            position={"x": x * box["width"], "y": y * box["height"]}
        )
        mix = np.asarray(an_explanation(1).attention[0].pixel_mix[0, 0])
        weights = mix[int(y * 12), int(x * 20)]

        def check_mix() -> None:
            cells = panel.locator(".mix div[title]")
            shown = {cell.get_attribute("title") for cell in cells.all()}
            assert len(shown) == 6
            for text in shown:
                m, n, weight = re.fullmatch(r"spatial (\d), temporal (\d): (.*)", text).groups()
                expected = weights[(int(m) - 1) * 2 + int(n) - 1]
                assert float(weight) == pytest.approx(expected, abs=0.006), text

        eventually(check_mix)
        # Typing selects a pixel too.
        panel.get_by_role("spinbutton", name="Pixel x").fill("3")
        panel.get_by_role("spinbutton", name="Pixel x").press("Enter")
        assert panel.get_by_role("spinbutton", name="Pixel x").input_value() == "3"

    @pytest.mark.stress
    def test_only_explained_videos_offer_it(self, desktop):
        assert desktop.page.locator("section.video").nth(1).locator(".explain").count() == 0
        scrubbers = desktop.page.get_by_role("slider", name="Frame", exact=True)
        assert scrubbers.count() == 2

    @pytest.mark.stress
    def test_a_long_video_of_reduced_pictures_and_many_maps(self, browser, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "PICTURE_SIDE", WIDTH // 2)
        # An even mix of 512 has weights below half a grey step of a map that also contains a 1.
        mix = np.full((1, 1, 12, 20, 512), 1 / 512, np.float32)
        mix[..., 0, 0, :] = np.eye(512, dtype=np.float32)[0]
        block = dataclasses.replace(
            an_explanation(0).attention[0],
            spatial_maps=jnp.full((1, 1, 32, 12, 20), 1 / 240),
            temporal_maps=jnp.full((1, 1, 16, 5), 1 / 5),
            pixel_mix=jnp.asarray(mix),
        )
        noise = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
        explanation = Explanation(attention=(block,))
        shot = report.shot(0, *noise, explanation)
        count = 70_000  # no JavaScript call takes 140,000 arguments
        scores = dataclasses.replace(
            a_video("walk", 27.0, explained=False, shots=0).scores,
            frames=count,
            frame_psnr=(27.0,) * count,
            frame_ssim=(0.9,) * count,
            frame_psnr_blurred=(25.0,) * count,
            frame_ssim_blurred=(0.8,) * count,
        )
        path = tmp_path / "report.html"
        report.write(path, *an_evaluation(report.VideoReport(scores, [shot])))
        opened = Opened(browser, path)
        size = f"{round(100 * shot['scale'])} % of its size"
        assert opened.first.locator(".stage .reduced").inner_text() == f"shown at {size}"
        picture = opened.first.locator(".stage img").first
        assert picture.get_attribute("alt") == f"Restored frame 1 of walk, shown at {size}"
        opened.first.get_by_role("button", name="Full size").click()
        dialog = opened.page.locator("dialog")
        assert dialog.locator("img").bounding_box()["width"] == WIDTH
        enlarged = f"Restored frame 1 of walk, enlarged from {size}"
        assert dialog.locator("img").get_attribute("alt") == enlarged
        assert dialog.locator(".reduced").inner_text() == f"enlarged from {size}"
        opened.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        opened.first.get_by_role("button", name="Attention, encoder <2>").click()
        panel = opened.first.locator(".explain")
        panel.get_by_role("spinbutton", name="Pixel x").fill("100")
        panel.get_by_role("spinbutton", name="Pixel x").press("Enter")
        panel.get_by_text("too small to distinguish").wait_for()
        assert panel.locator(".mix div[title]").count() == 512
        opened.context.close()
        assert opened.complaints == []

    @pytest.mark.stress
    def test_a_long_name_leaves_the_table_whole_and_the_slider_long(self, browser, tmp_path):
        path = tmp_path / "report.html"
        video = a_video("a long name " * 6 + "and_one_that_cannot_be_broken", 27.0, explained=False)
        report.write(path, *an_evaluation(video))
        for width, least in ((1280, 300), (1100, 300), (375, 100)):
            opened = Opened(browser, path, viewport={"width": width, "height": 900})
            table = opened.page.locator(".scroll")
            assert table.evaluate("(box) => box.scrollWidth <= box.clientWidth"), width
            slider = opened.first.get_by_role("slider", name="Frame", exact=True)
            assert slider.bounding_box()["width"] > least
            opened.context.close()

    @pytest.mark.stress
    def test_a_phone(self, browser, page_path):
        opened = Opened(
            browser,
            page_path,
            viewport={"width": 390, "height": 844},
            device_scale_factor=2,
            has_touch=True,
            is_mobile=True,
        )
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
        stage = opened.first.locator(".stage")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        y = box["y"] + box["height"] / 2
        # A finger drags the divider from the middle to a quarter.
        session = opened.context.new_cdp_session(opened.page)

        def touch(kind: str, *points: float) -> None:
            places = [{"x": box["x"] + part * box["width"], "y": y} for part in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

        touch("touchStart", 0.5)
        for part in (0.45, 0.35, 0.25):
            touch("touchMove", part)
        touch("touchEnd")
        assert opened.at() == pytest.approx(25, abs=2)
        assert opened.page.locator("dialog").count() == 0
        # A tap opens the full size; right after a drag it would be part of that gesture.
        opened.page.wait_for_timeout(500)
        opened.page.touchscreen.tap(box["x"] + 0.8 * box["width"], y)
        opened.page.locator("dialog img").wait_for()
        opened.context.close()
        assert opened.complaints == []

    @pytest.mark.stress
    def test_day_and_night(self, browser, page_path):
        paper = {}
        for scheme in ("light", "dark"):
            opened = Opened(browser, page_path, color_scheme=scheme)
            colour = "getComputedStyle(document.body).backgroundColor"
            paper[scheme] = sum(map(int, re.findall(r"\d+", opened.page.evaluate(colour))))
            opened.context.close()
        assert paper["light"] > 700
        assert paper["dark"] < 100


class TestFile:
    def test_one_file_with_no_address_in_it(self, page_path):
        text = page_path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\"'\s]*", text))
        assert addresses == {"http://www.w3.org/2000/svg"}  # SVG's namespace, not a link
        assert "{{" not in text
        assert "<title>strcnn_dtb on &lt;rendered&gt; &amp; more</title>" in text

    def test_the_data_is_what_was_given(self, page_path):
        text = page_path.read_text(encoding="utf-8")
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
        data = json.loads(data)
        assert data["videos"][0]["name"] == "walk </script><!-- café"
        assert data["psnr"] == pytest.approx((27.45 + 24.95 + 26.45) / 3)
        assert data["seconds_per_frame"] == pytest.approx(0.0123)

    @pytest.mark.parametrize(("protocol", "psnr"), [("jaxdeblur", 25), ("deepdeblur", 27.5)])
    def test_means_are_over_videos_or_over_the_frames_that_count(self, protocol, psnr):
        long, short = (
            dataclasses.replace(
                a_video("of five", 0, explained=False, shots=0).scores,
                frames=5,
                **{
                    f"frame_{name}": (value,) * count
                    for name in ("psnr", "ssim", "psnr_blurred", "ssim_blurred")
                },
            )
            for value, count in ((30.0, 3), (20.0, 1))
        )
        videos = [report.VideoReport(scores, []) for scores in (long, short)]
        data = report.page_data(*an_evaluation(*videos, protocol=protocol))
        assert (data["psnr"], data["scored_frames"]) == (psnr, 4)
        assert (data["video_mean"]["psnr"], data["pooled"]["psnr"]) == (25, 27.5)

    def test_large_pictures_are_reduced(self, monkeypatch):
        noise = np.random.default_rng(0).integers(0, 256, (3, 128, 192, 3), dtype=np.uint8)
        whole = report.shot(0, *noise)
        assert whole["scale"] == 1
        assert decoded(whole["sharp"]).shape == (128, 192, 3)
        monkeypatch.setattr(report, "PICTURE_SIDE", 48)
        small = report.shot(0, *noise)
        assert small["scale"] == 0.25
        assert decoded(small["sharp"]).shape == (32, 48, 3)

    def test_pictures_look_like_the_frames(self):
        y, x = np.mgrid[:64, :96]
        frame = np.stack([x * 2, y * 3, 255 - x], -1).astype(np.uint8)
        shown = decoded(report.shot(0, frame, frame, frame)["restored"])
        assert np.abs(shown.astype(int) - frame).mean() < 3

    def test_sprites(self):
        maps = np.random.default_rng(0).uniform(0.1, 0.7, (3, 7, 10)).astype(np.float32)
        sprite = report.sprite(maps, 160)
        assert (sprite["count"], sprite["height"], sprite["width"]) == (3, 7, 10)
        values = decoded(sprite["src"]).reshape(3, 7, 10) / 255
        values = sprite["low"] + values * (sprite["high"] - sprite["low"])
        np.testing.assert_allclose(values, maps, atol=0.6 / 510 + 1e-6)

    def test_sprites_shrink_by_averaging(self):
        maps = np.arange(2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8)
        sprite = report.sprite(maps, 4, (0, 255))
        assert (sprite["height"], sprite["width"]) == (3, 4)
        values = decoded(sprite["src"]).reshape(2, 3, 4)
        for i, m in np.ndindex(2, 3):
            block = maps[i, 2 * m : 2 * m + 2, 2:4]
            assert values[i, m, 1] == pytest.approx(block.mean(), abs=0.51)

        wide = report.sprite(np.zeros((1, 4, 12), np.float32), 4)
        assert (wide["height"], wide["width"]) == (2, 4)

    def test_a_map_of_one_value(self):
        sprite = report.sprite(np.full((1, 4, 4), 0.25, np.float32), 160)
        assert sprite["low"] == sprite["high"] == 0.25


def decoded(uri: str) -> np.ndarray:
    return picture(base64.b64decode(uri.partition(",")[2]))


def picture(file: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def test_a_shot_shows_the_maps_of_its_place_in_the_clip() -> None:
    rng = np.random.default_rng(0)

    def maps(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.random(shape), jnp.float32)

    block = AttentionMaps(
        "all", maps(1, 3, 2, 6, 8), maps(1, 3, 2, 5), maps(1, 3, 6, 8, 4), (-2, -1, 0, 1, 2)
    )
    explanation = Explanation(maps(1, 3, 6, 8), (block,))
    frame = np.zeros((12, 16, 3), np.uint8)
    shot = report.shot(2, frame, frame, frame, explanation)
    (shown,) = shot["attention"]
    mix = np.moveaxis(np.asarray(block.pixel_mix[0, 2]), -1, 0)
    for sprite, expected in (
        (shot["weights"], np.asarray(explanation.blending_weights[0, 2])[None]),
        (shown["spatial"], 6 * 8 * np.asarray(block.spatial_maps[0, 2])),  # over an even spread
        (shown["mix"], mix),
    ):
        values = decoded(sprite["src"]).reshape(expected.shape) / 255
        values = sprite["low"] + values * (sprite["high"] - sprite["low"])
        np.testing.assert_allclose(values, expected, atol=0.01 * expected.max())
    # All frames share one scale, so that they can be compared.
    assert (shot["weights"]["low"], shot["weights"]["high"]) == (0, 1)
    np.testing.assert_allclose(shown["temporal"], block.temporal_maps[0, 2], atol=1e-5)
