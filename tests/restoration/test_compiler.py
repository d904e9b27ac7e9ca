"""Programs compiled in another process: found in the caches, and not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdeblur import devices, models
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.restoration import compiler
from jaxdeblur.restoration.compiler import compile_apart
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.video.pixels import RGB8

# Without a network, in frames too small for a tile, so that the parts compile quickly.
GIVEN = PathsConfig(duty=0.7, light="stored", stabilised="no")
SIZE = (22, 34)

_START = f"""
from jaxdeblur import devices, models
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.restoration import placement
from jaxdeblur.restoration.compiler import compile_apart
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.video.pixels import RGB8

devices._keeps = True
devices.keep_compiled()
model = models.build({GIVEN!r})
compile_apart(model, *{SIZE}, RGB8, None)
(kept,) = (devices.kept_folder() / "traces").iterdir()
before = set(devices.kept_folder().glob("jit_motion-*"))

def traced(*_):
    raise AssertionError("a part is traced again")

placement._step = traced
Deblurrer(model, tile="none").compile(*{SIZE})
after = set(devices.kept_folder().glob("jit_motion-*"))
assert before, "it was not kept"
assert after == before, "it was not found"
"""


def test_what_another_process_compiled_is_found(tmp_path: Path) -> None:
    # As users compile. The other programs take about a tenth of a second, below which none is kept.
    left_out = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    ran = subprocess.run(
        [sys.executable, "-c", _START],
        env=environment | {"JAXDEBLUR_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "_kept", tmp_path)
    monkeypatch.setattr(devices, "_keeps", True)
    return tmp_path


def test_a_process_that_fails_is_said_and_compiled_without(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "_CODE", "raise SystemExit('no memory')")
    model = models.build(GIVEN)
    assert Deblurrer(model, tile="none").compile(*SIZE) is None
    assert "failed (no memory)" in capsys.readouterr().err
    assert len(list((kept / "traces").iterdir())) == 1

    # With the traces there, none is started.
    compile_apart(model, *SIZE, RGB8, None)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("attribute", ["_keeps", "_kept"])
def test_no_process_starts_where_it_would_not_help(
    attribute: str, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "_CODE", "raise SystemExit('started')")
    monkeypatch.setattr(devices, attribute, None)
    compile_apart(models.build(GIVEN), *SIZE, RGB8, None)
    assert not capsys.readouterr().err


def test_it_ends_with_its_input(tmp_path: Path) -> None:
    order = compiler.order_for(models.build(PathsConfig()), 1280, 720, RGB8, None)
    process = subprocess.Popen(
        [sys.executable, "-c", compiler._CODE, order],
        stdin=subprocess.PIPE,
        env=os.environ | {"JAXDEBLUR_CACHE": str(tmp_path)},
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert not list(tmp_path.rglob("*.zip")), "it went on to the end"
