"""Restores many videos with Ray: ``python docs/cluster/ray_videos.py OUT VIDEO ...``."""

import subprocess
import sys

import ray


@ray.remote(num_gpus=1, max_retries=3, retry_exceptions=True)
def restore(video: str, out: str) -> str:
    """Restores a video on the shared disk: file names travel between machines, never frames."""
    command = ["jaxdeblur", "deblur", video, f"--out-dir={out}", "--skip-done", "--quiet"]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 2):
        raise RuntimeError(f"{video}: exit code {code}")  # a bad machine: Ray tries again
    return f"{video}: {'a bad video' if code else 'done'}"


if __name__ == "__main__":
    out, *videos = sys.argv[1:]
    print(*ray.get([restore.remote(video, out) for video in videos]), sep="\n")
