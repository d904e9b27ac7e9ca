"""``make demo``: restores a clip with the weights that ship, then trains a small network from
scratch on scenes that it renders itself, scores it on scenes it never saw, and shows the result.

Takes under ten minutes on two cores. The number of steps is fixed, so the result does not depend
on the machine's speed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.video.image_file import write_png
from jaxdeblur.weights import shipped

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("runs/demo")
FRESH = ("--overwrite",)  # a demo may be run twice
STEPS = 1400
LEAST_MEAN_GAIN, LEAST_GAIN = 1.0, 0.5  # dB; a run that falls short has a fault somewhere


def main() -> None:
    """Runs the commands one after another, as a user would, and prints them."""
    began = time.monotonic()
    if shipped.names():
        restore_with_shipped_weights()
    run("train.py", "--model=strcnn_dtb_small", f"--steps={STEPS}", f"--out={FOLDER}", *FRESH)
    evaluation = FOLDER / "evaluation"
    run("evaluate.py", f"--ckpt={FOLDER}", f"--out={evaluation}", "--explain", *FRESH)

    metrics = json.loads((evaluation / "metrics.json").read_text())
    gains = [video["psnr"] - video["psnr_blurred"] for video in metrics["videos"]]
    mean, least = sum(gains) / len(gains), min(gains)
    minutes = (time.monotonic() - began) / 60
    print(f"\nAfter {STEPS} steps ({minutes:.1f} minutes in all) the network gains {mean:+.2f} dB")
    print(f"on {len(gains)} scenes that it never saw, and {least:+.2f} dB on the worst of them.")
    print(f"Look at it: open {evaluation / 'report.html'} in a browser.")
    if mean < LEAST_MEAN_GAIN or least < LEAST_GAIN:
        sys.exit(f"that is less than +{LEAST_MEAN_GAIN} and +{LEAST_GAIN} dB: something is wrong")


def restore_with_shipped_weights() -> None:
    """Seconds: a rendered clip becomes sharp with the weights that come with the package."""
    (video,) = rendered_videos("test", scenes=1)
    clip = FOLDER.parent / "demo-clip"
    shutil.rmtree(clip, ignore_errors=True)  # of an earlier demo
    blurred, restored = clip / "blurred", clip / "restored"
    blurred.mkdir(parents=True)
    restored.mkdir()
    for i in range(len(video)):
        write_png(blurred / f"{i:04d}.png", video.blurred(i))
    run("deblur.py", str(blurred), str(restored))


def run(command: str, *arguments: str) -> None:
    """Prints a command and runs it; a failure ends the demo with its exit code."""
    print(f"\n$ python {command} {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / command), *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
