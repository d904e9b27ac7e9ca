"""Restores a video of your own, with its sound, and shows before and after in a small animation.

    python examples/own_video.py in.mp4

Writes sharp.mp4 and before_after.webp.
"""

import sys

from jaxdeblur import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import deblur

(video,) = sys.argv[1:]
config = DeblurConfig(compare="before_after.webp", overwrite=True)
(job,) = plan([video, "sharp.mp4"], config)
timing = deblur(Deblurrer(), job, config)
print(f"before_after.webp shows both; {timing}")
