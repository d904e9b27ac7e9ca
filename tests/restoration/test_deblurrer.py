"""Deblurrer, the Python entry point: its examples, its two views, devices and types."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from PIL import Image

import jaxdeblur
from jaxdeblur import Deblurrer, models
from jaxdeblur.errors import UserError
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.restoration.placement import program
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.video.pixels import RGB8, PixelLayout

NETWORK = StrcnnConfig(m=1, width=4, blocks=2, head_width=0, residual=True)
BLURRED = np.random.default_rng(0).integers(0, 256, (4, 16, 18, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return models.build(NETWORK)


def test_the_examples_in_the_docs_run(model, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "deblur.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert [len(example.strip().splitlines()) <= 6 for example in examples] == [True, True]
    shown: list[np.ndarray] = []
    names = {"weights": model, "blurred": BLURRED, "show": lambda *frames: shown.extend(frames)}
    for example in examples:
        (file := tmp_path / "example.py").write_text(example)
        names = runpy.run_path(str(file), names)
        np.testing.assert_array_equal(np.stack(shown), names["sharp"])
        shown.clear()


def test_both_views_equal_the_clip(model):
    deblurrer = Deblurrer(model)
    clip = restore_pixels(model, BLURRED).astype(int)
    assert np.abs(deblurrer(BLURRED) - clip).max() <= 1
    assert deblurrer(BLURRED[:0]).shape == (0, 16, 18, 3)
    assert deblurrer(BLURRED.astype(np.uint16) * 257).dtype == np.uint16


def test_after_the_warm_up_nothing_is_compiled(model):
    deblurrer = Deblurrer(model)
    before = program("network", False)._cache_size()
    deblurrer.warm_up(20, 26)
    assert program("network", False)._cache_size() == before + 1
    list(deblurrer.stream(np.zeros((3, 20, 26, 3), np.uint8)))
    assert program("network", False)._cache_size() == before + 1


@pytest.mark.parametrize(
    ("height", "options", "layout"),  # heights that no other test uses
    [
        (22, {}, RGB8),
        (24, {"tile": "none"}, RGB8),
        (28, {"tile": "8x16"}, RGB8),
        (30, {}, PixelLayout("grey")),
    ],
)
def test_a_size_is_compiled_for_before_its_first_frame(
    height, options, layout, model, caplog, log_compiles
):
    deblurrer = Deblurrer(model, **options)
    frame = [np.zeros(shape, np.uint8) for shape in layout.plane_shapes(height, 26)]
    deblurrer.compile(height, 26, layout)
    steps = [r for r in caplog.messages if "XLA compilation of jit(network)" in r]
    assert len(steps) == 1
    stream = deblurrer.open_stream(height, 26, layout)
    caplog.clear()
    stream.push(tuple(frame))
    assert not [r for r in caplog.messages if "XLA compilation of jit(network)" in r]


def test_a_stream_gives_frames_before_it_has_all(model):
    deblurrer = Deblurrer(model)
    given = 0

    def camera():
        nonlocal given
        for frame in BLURRED:
            given += 1
            yield frame

    stream = deblurrer.stream(camera())
    next(stream)
    assert given == 1 + model.lookahead


def test_strength_and_tiles(model):
    tiled = Deblurrer(model, tile="8x16")
    assert np.abs(tiled(BLURRED).astype(int) - Deblurrer(model)(BLURRED)).max() <= 1
    np.testing.assert_array_equal(Deblurrer(model, strength=0.0)(BLURRED), BLURRED)


def test_blur_paths_without_a_network_run_too():
    stream = Deblurrer(PathRestorer(PathsConfig())).open_stream(16, 18)
    stream.push(BLURRED[0])
    assert next(stream.flush())[0].shape == BLURRED[0].shape
    assert not stream.found, "frames of 16x18 pixels hold no tile"


def test_the_64_bit_mode_of_jax_is_refused(model):
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(UserError, match="JAX's 64-bit mode is on"):
            Deblurrer(model)
    finally:
        jax.config.update("jax_enable_x64", False)


def test_the_light_of_blur_paths_is_one_of_two():
    with pytest.raises(UserError, match="--light must be one of found, stored, linear, not"):
        Deblurrer(PathRestorer(PathsConfig()), light="Linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "--strength"),
        ({"tile": "large"}, "--tile"),
        ({"dtype": "bfloat16"}, "a model has its own"),
    ],
)
def test_wrong_arguments(options, message, model):
    with pytest.raises(UserError, match=message):
        Deblurrer(model, **options)


def test_what_is_no_frame_is_one_clear_line(model):
    for wrong in (BLURRED / 255.0, BLURRED.astype(np.int64), BLURRED[..., 0], BLURRED[0]):
        with pytest.raises(UserError, match="a frame must be an array H W 3 in uint8 or uint16"):
            list(Deblurrer(model).stream(iter(wrong)))
    # A wrong later frame gives the same kind of error. (The tests' type checks exclude floats.)
    with pytest.raises(UserError, match=r"a frame must be an array H W 3 .*, not 16 18 in uint8"):
        list(Deblurrer(model).stream(iter([BLURRED[0], BLURRED[1, ..., 0]])))
    for wrong in (BLURRED[1].astype(np.uint16), BLURRED[1, :8]):
        right = "a frame of this stream must be 16 18 3 in uint8, not "
        with pytest.raises(UserError, match=right) as caught:
            list(Deblurrer(model).stream(iter([BLURRED[0], wrong])))
        assert len(str(caught.value)) < 200


def test_what_is_no_clip_is_one_clear_line(model, monkeypatch):
    # Users' runs do not check types, unlike the tests.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong, what in (
        (None, "not NoneType"),
        (BLURRED[0], r"not 16 18 3 in uint8; to restore a single frame, pass clip\[None\]"),
        ([BLURRED[0]], "not list"),
    ):
        with pytest.raises(UserError, match=f"a clip must be an array T H W 3 .*{what}"):
            Deblurrer(model)(wrong)
    with pytest.raises(UserError, match=r"a frame must be an array H W 3 .*not Image"):
        list(Deblurrer(model).stream(iter([Image.fromarray(BLURRED[0])])))


def test_importing_the_package_does_not_import_jax():
    code = "import sys, jaxdeblur; sys.exit('jax' in sys.modules)"
    root = Path(jaxdeblur.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    with pytest.raises(AttributeError):
        _ = jaxdeblur.Nothing
