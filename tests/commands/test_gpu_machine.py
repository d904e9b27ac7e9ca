"""What runs on GPU machines, which have neither PyAV nor Grain nor tensorboardX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = """
import importlib.abc, runpy, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("av", "grain", "tensorboardX"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def without_them(code: str) -> str:
    """Runs code where those packages cannot be imported; returns its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def command(name: str, *arguments: str) -> str:
    return f"sys.argv = {[name, *arguments]!r}\nrunpy.run_path({name!r}, run_name='__main__')\n"


@pytest.mark.stress
def test_training_on_rendered_scenes_and_scoring_a_folder_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in ("blur", "sharp"):
        (tmp_path / "data" / "test" / side / "one").mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8))
            image.save(tmp_path / "data" / "test" / side / "one" / f"{i}.png")
    run, scored = str(tmp_path / "run"), str(tmp_path / "scored")
    said = without_them(
        command(
            "train.py", "--model=strcnn_dtb_small", "--width=4", "--blocks=1", "--m=1",
            "--crop=32", "--frames=2", "--batch-size=1", "--steps=1", "--warmup=1",
            "--data=rendered", "--render=device", "--validate-every=0", f"--out={run}",
        )
        + command("evaluate.py", f"--ckpt={run}", f"--data={tmp_path / 'data'}", f"--out={scored}")
    )  # fmt: skip
    assert "tensorboard: not written (pip install tensorboardX)" in said
    assert (tmp_path / "scored" / "metrics.json").is_file()


def test_every_benchmark_starts() -> None:
    names = sorted(path.stem for path in (ROOT / "benchmarks").iterdir() if path.stem[0] != "_")
    assert "gpu_day" in names
    without_them("".join(f"import benchmarks.{name}\n" for name in names))


def test_a_video_says_what_to_install(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"\0" * 100)
    code = f"""
from jaxdeblur.errors import UserError
from jaxdeblur.video.reader import VideoReader
try:
    VideoReader({str(video)!r}).__enter__()
except UserError as error:
    print(error, file=sys.stderr)
"""
    assert "pip install 'av>=18,<20'" in without_them(code)
