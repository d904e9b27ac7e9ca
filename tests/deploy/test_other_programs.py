"""The scripts of examples/deploy, where their programs are installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
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


@pytest.mark.stress
@pytest.mark.skipif(
    shutil.which("vspipe") is None or importlib.util.find_spec("jax2onnx") is None,
    reason="VapourSynth with vs-ort, or the converter to ONNX, is not installed (docs/deploy.md)",
)
def test_vapoursynth_restores_by_windows(tmp_path: Path) -> None:
    config = StrcnnConfig(m=2, width=2, blocks=1, head_width=0, residual=True)
    weights, model, video = (tmp_path / n for n in ("w.safetensors", "window.onnx", "in.mp4"))
    export_weights(LoadedModel(build(config), "small", config, 0, "small", {}), weights)
    command = [sys.executable, "-m", "jaxdeblur", "export", weights, model, "--form=window"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    with av.open(str(video), "w") as out:
        stream = out.add_stream("libx264", rate=5, width=48, height=32, pix_fmt="yuv420p")
        for shade in range(40, 200, 16):
            frame = np.full((32, 48, 3), shade, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode(None))
    script = ["vspipe", "examples/deploy/window.vpy", "-", "-c", "y4m"]
    script += ["-a", f"source={video}", "-a", f"model={model}"]
    written = subprocess.run(script, cwd=ROOT, capture_output=True, check=True).stdout
    assert written.startswith(b"YUV4MPEG2")
    assert written.count(b"FRAME\n") == 10


def test_the_script_of_vapoursynth_is_python() -> None:
    """Without VapourSynth this is all that can be tested."""
    ast.parse((ROOT / "examples/deploy/window.vpy").read_text(encoding="utf-8"))
