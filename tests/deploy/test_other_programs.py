"""The scripts of examples/deploy, as far as their programs are at hand."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from jaxdeblur.models.registry import build
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.weights.load import LoadedModel
from jaxdeblur.weights.save import export_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.stress
@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="FFmpeg is not installed"
)
def test_ffmpeg_pipes_through_deblur(tmp_path: Path) -> None:
    config = StrcnnConfig(m=1, width=2, blocks=1, head_width=0, residual=True)
    weights, video, out = (tmp_path / n for n in ("w.safetensors", "in.mp4", "out.mp4"))
    export_weights(LoadedModel(build(config), "small", config, 0, "small", {}), weights)
    pattern = ["-f", "lavfi", "-i", "testsrc=size=48x32:rate=25:duration=0.4"]
    sound = ["-f", "lavfi", "-i", "sine=duration=0.4"]
    make = ["ffmpeg", "-v", "error", *pattern, *sound, "-pix_fmt", "yuv420p", str(video)]
    subprocess.run(make, check=True)
    environment = {**os.environ, "PYTHON": sys.executable, "DEBLUR_OPTIONS": f"--ckpt={weights}"}
    script = ["sh", "examples/deploy/ffmpeg_pipe.sh", str(video), str(out)]
    subprocess.run(script, cwd=ROOT, env=environment, check=True)
    with av.open(str(out)) as written:
        assert len(written.streams.audio) == 1
        assert len(list(written.decode(video=0))) == 10


def test_the_script_of_vapoursynth_is_python() -> None:
    """Without VapourSynth and vs-ort it cannot be run; that far it is tried."""
    ast.parse((ROOT / "examples/deploy/window.vpy").read_text(encoding="utf-8"))
