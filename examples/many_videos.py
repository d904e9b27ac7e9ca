"""Restores many videos in one process, so that networks are loaded and compiled once.

    python examples/many_videos.py restored/ shots/a.mov shots/b.mov

What is done already is skipped. Ends with the frames restored in a second. On a cluster, one video
is one index (docs/cluster/).
"""

import sys
import time
from pathlib import Path

from jaxdeblur import Deblurrer
from jaxdeblur.errors import UserError
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import deblur

out, *videos = sys.argv[1:]
config = DeblurConfig(out_dir=out, skip_done=True, quiet=True)
deblurrer = Deblurrer("strcnn_dtb_choice")
frames, began = 0, time.monotonic()
for job in plan(videos, config):
    if job.is_done:
        print(f"{job.output}: done already")
        continue
    try:
        frames += deblur(deblurrer, job, config).frames
    except UserError as error:  # a damaged video does not stop the others
        print(error)
print(
    f"{frames / (time.monotonic() - began):.2f} frames/s; {len(list(Path(out).iterdir()))} videos"
)
