"""Restores frames as they arrive, and measures how late they come out.

    python examples/live.py

Ends with the frames in a second and the delay. A camera: python deblur.py camera:0 out.mp4.
"""

import time

import numpy as np

from jaxdeblur import Deblurrer
from jaxdeblur.data.fixed_scenes import rendered_videos

(scene,) = rendered_videos("test", "narrow", scenes=1)
frames = [scene.blurred(index % len(scene)) for index in range(40)]  # stands for a camera

deblurrer = Deblurrer("strcnn_dtb_live")  # small enough to keep up
deblurrer.warm_up(*frames[0].shape[:2])  # otherwise the first frame waits for the compiler
stream = deblurrer.open_stream(*frames[0].shape[:2])

arrived, delays, began = [], [], time.monotonic()
for frame in frames:
    arrived.append(time.monotonic())
    restored = stream.push(frame)  # None for the first frames: the network looks ahead
    if restored is not None:
        np.asarray(restored[0])  # waits for the device; show it here
        delays.append(time.monotonic() - arrived[len(delays)])
for restored in stream.flush():
    np.asarray(restored[0])
seconds = time.monotonic() - began
late = deblurrer.model.lookahead
print(
    f"{len(frames) / seconds:.1f} frames/s, {1000 * np.median(delays):.0f} ms late, {late} frames"
)
