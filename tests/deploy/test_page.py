"""web/index.html in a headless Chromium gives the pixels of deblur.py from the same frames."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.models.registry import build
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.weights.load import LoadedModel
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, FRAMES = 54, 91, 5
# 54 and 91 are not multiples of what the network needs: the exported file pads them.
NETWORK = StrcnnConfig(m=1, width=4, blocks=1, head_width=0, residual=True, leak=0.1)

pytestmark = pytest.mark.stress


def serve_module() -> Any:
    spec = importlib.util.spec_from_file_location("serve", ROOT / "web/serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Yields the address of a served page with a small network, and its weights' folder."""
    for package in ("jax2onnx", "onnx"):
        pytest.importorskip(package, reason="the page needs an exported network (docs/deploy.md)")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it fetches ONNX Runtime Web")
    folder, serve = tmp_path_factory.mktemp("site"), serve_module()
    weights, photo = folder / "weights.safetensors", folder / "photo.safetensors"
    for seed, file in ((3, weights), (5, photo)):
        model = LoadedModel(build(NETWORK, seed=seed), "small", NETWORK, 0, "small", {})
        export_weights(model, file)
    try:
        serve.prepare(folder, str(weights))
        for name in ("photo", "live"):
            serve.export(str(photo), folder / f"{name}.onnx")
    except serve.UserError as error:
        if "npm could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    with serve.server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html", folder
        server.shutdown()


@pytest.fixture
def page(site: tuple[str, Path]) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(site[0])
        page.wait_for_selector("body[data-ready]")
        yield page
        assert not said
        here = site[0].rsplit("/", 1)[0]
        assert all(url.startswith((here, "blob:", "data:")) for url in asked), "nothing leaves"
        browser.close()


def write_clip(folder: Path) -> list[str]:
    """Writes a drifting pattern with some noise, as PNG."""
    folder.mkdir()
    rng, names = np.random.default_rng(0), []
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for t in range(FRAMES):
        waves = [np.sin((x + 3 * t) / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
        frame = 128 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 5, (HEIGHT, WIDTH, 3))
        path = folder / f"{t}.png"
        Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8)).save(path)
        names.append(str(path))
    return names


def test_the_page_gives_the_pixels_of_deblur(
    page: Any, site: tuple[str, Path], tmp_path: Path
) -> None:
    names = write_clip(tmp_path / "clip")
    weights, out = site[1] / "weights.safetensors", tmp_path / "out"
    command = [sys.executable, "deblur.py", str(tmp_path / "clip"), f"{out}/", f"--ckpt={weights}"]
    subprocess.run(command, cwd=ROOT, check=True)
    page.select_option("#size", "full")
    page.set_input_files("#file", names)
    page.wait_for_selector("body[data-done]")
    shown = np.array(page.evaluate("restoredPixels()"), np.uint8)
    shown = shown.reshape(FRAMES, HEIGHT, WIDTH, 4)[..., :3].astype(int)
    ours = np.stack([np.asarray(Image.open(path)) for path in sorted(out.iterdir())])
    blurred = np.stack([np.asarray(Image.open(name)) for name in names])
    assert np.abs(shown - ours).max() <= 1
    assert np.abs(shown - blurred).max() > 3, "it has to restore something"
    assert page.inner_text("#download") == f"Download {FRAMES} pictures"
    downloads: list[str] = []
    page.on("download", lambda download: downloads.append(download.suggested_filename))
    page.click("#download")
    page.wait_for_timeout(1000)
    assert "sharp-0.png" in downloads
    assert f"at {WIDTH}x{HEIGHT}" in page.inner_text("#status")


def test_a_single_picture_has_a_network_of_its_own(
    page: Any, site: tuple[str, Path], tmp_path: Path
) -> None:
    name = write_clip(tmp_path / "clip")[0]
    page.set_input_files("#file", name)
    page.wait_for_selector("body[data-done]")
    shown = np.array(page.evaluate("restoredPixels()"), np.uint8)
    shown = shown.reshape(HEIGHT, WIDTH, 4)[..., :3].astype(int)
    for weights, same in (("photo", True), ("weights", False)):
        ckpt, out = site[1] / f"{weights}.safetensors", tmp_path / f"{weights}.png"
        command = [sys.executable, "deblur.py", name, str(out), f"--ckpt={ckpt}"]
        subprocess.run(command, cwd=ROOT, check=True)
        assert (np.abs(shown - np.asarray(Image.open(out))).max() <= 1) == same


def test_a_camera_is_shown_and_stops(page: Any) -> None:
    page.select_option("#size", "240")
    page.click("#camera")
    page.wait_for_function("document.getElementById('status').textContent.includes('frames/s')")
    page.click("#stop")
    page.wait_for_selector("body[data-done]")
    assert page.evaluate("document.getElementById('after').width") == 240
    read = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert any(name.endswith("/live.onnx") for name in read), "a camera has a network of its own"


def test_what_is_no_picture_is_said(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#file", str(tmp_path / "broken.png"))
    page.wait_for_function("document.getElementById('status').textContent.includes('broken.png')")


def test_networks_are_exported_once_but_given_weights_replace_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, exported = serve_module(), []

    def export(weights: str, model: Path) -> None:
        exported.append(model.stem)
        for suffix in (".onnx", ".json"):
            model.with_suffix(suffix).touch()

    monkeypatch.setattr(serve, "export", export)
    (tmp_path / "runtime").mkdir()
    for _ in range(2):
        serve.prepare(tmp_path)
    assert exported == ["model", "photo", "live"]
    serve.prepare(tmp_path, "mine")
    assert exported[3:] == ["model"]
    # Otherwise a single picture and a camera would use the shipped weights.
    assert sorted(path.stem for path in tmp_path.glob("*.onnx")) == ["model"]


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    """Without npm no unfinished file is left."""
    code = (
        "import sys; sys.path.insert(0, 'web'); import serve; serve.shutil.which = lambda n: None"
    )
    code += f"; sys.argv = ['serve', '--folder={tmp_path}', '--prepare-only']"
    code += "; serve.run_command(serve.main, 'web/serve.py')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "npm is not installed" in done.stderr
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["index.html"]'
