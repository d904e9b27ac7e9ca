"""The two hypotheses of a shutter: did the camera average stored values, or linear light?

    python examples/two_shutters.py

Renders one scene both ways, and asks the likelihood of its blur paths which it was. Writes
two_shutters.png, the evidence by duty cycle, and ends with the lead of linear light over stored
values, in nats: much larger where light was linear.
"""

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.paths.motion import moves_of, still_of
from jaxdeblur.paths.shutter import DUTIES, Shutter, watch


def evidence(linear: bool) -> np.ndarray:
    """Returns L of both lights (stored, linear) and each duty cycle, summed over moving tiles."""
    (scene,) = rendered_videos("test", "shutter", scenes=1, linear=linear)
    frames = jnp.stack([scene.blurred(index) for index in range(5)]) / 255
    here = jnp.ones(5)
    moves, still = moves_of(frames), still_of(frames, here)
    known = watch(frames, moves, here, still, Shutter.unknown(), jnp.bool_(True))
    leads.append(float(known.apart[0].max()))
    return np.asarray(known.costs)


leads: list[float] = []
image = Image.new("RGB", (40 * len(DUTIES) + 20, 260), "white")
draw = ImageDraw.Draw(image)
for row, linear in enumerate((False, True)):
    for light, values in enumerate(evidence(linear)):
        heights = 90 * np.exp(-(values - values.min()))
        for column, height in enumerate(heights):
            left, bottom = 15 + 40 * column + 16 * light, 115 + 125 * row
            draw.rectangle((left, bottom - height, left + 12, bottom), ["gray", "orange"][light])
            if not light:
                draw.text((left, bottom + 2), f"{DUTIES[column]:.2f}", "black")
image.save("two_shutters.png")
print(f"linear light leads by {leads[0]:+.1f} where values were averaged as stored,")
print(f"and by {leads[1]:+.1f} where light was; two_shutters.png shows the duty cycles")
