"""``make demo``: restores a clip with the shipped weights, then trains a small network from scratch
on rendered scenes, scores it on scenes not used in training, and prints the gain.

It takes less than ten minutes on two cores. The number of steps is fixed, so the result does not
depend on the machine's speed.
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
FRESH = ("--overwrite",)  # the demo may run again
STEPS = 1000
LEAST_MEAN_GAIN, LEAST_GAIN = 0.9, 0.45  # dB; a run that gains less points to a bug


def main() -> None:
    """Prints and runs the commands that a user would run."""
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
    print(f"\nAfter {STEPS} steps, the network gains {mean:+.2f} dB on {len(gains)} unseen scenes,")
    print(f"and {least:+.2f} dB on the worst of them. The demo took {minutes:.1f} minutes.")
    print(f"To see the results, open {evaluation / 'report.html'} in a browser.")
    if mean < LEAST_MEAN_GAIN or least < LEAST_GAIN:
        sys.exit(f"expected at least +{LEAST_MEAN_GAIN} and +{LEAST_GAIN} dB: something is wrong")


def restore_with_shipped_weights() -> None:
    """Restores a rendered clip with the shipped weights, in seconds."""
    (video,) = rendered_videos("test", scenes=1)
    clip = FOLDER.parent / "demo-clip"
    shutil.rmtree(clip, ignore_errors=True)  # left by an earlier demo
    blurred, restored = clip / "blurred", clip / "restored"
    blurred.mkdir(parents=True)
    restored.mkdir()
    for i in range(len(video)):
        write_png(blurred / f"{i:04d}.png", video.blurred(i))
    run("deblur.py", str(blurred), str(restored))


def run(command: str, *arguments: str) -> None:
    """Prints and runs a command; if it fails, the demo exits with its code."""
    print(f"\n$ python {command} {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / command), *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
