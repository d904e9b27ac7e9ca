"""What the factorised attention looks at: its spatial maps, over the frame they belong to.

    python examples/attention_maps.py [RUN]

RUN is a run of an attention model, such as runs/fsta_small; without one, the network has random
weights, whose maps are almost even. Writes attention_maps.png, and ends with the share of each
frame of the window.
"""

import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxdeblur import models
from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.presets import find
from jaxdeblur.video.image_file import write_png
from jaxdeblur.weights.load import load_model

network = find("fsta_small").network
model = load_model(sys.argv[1]).model if sys.argv[1:] else models.build(network)
(scene,) = rendered_videos("test", "narrow", scenes=1)
frames = np.stack([scene.blurred(index)[:96, :128] for index in range(5)])
explanation = model.explain_clip(jnp.asarray(frames / 255, jnp.float32)[None])
block = explanation.attention[0]
middle = len(frames) // 2

shown = [frames[middle]]
for weights in np.asarray(block.spatial_maps[0, middle]):  # M maps, each sums to 1
    levels = (255 * weights / weights.max()).astype(np.uint8)
    size = frames.shape[2], frames.shape[1]
    heat = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))
    shown.append((frames[middle] * (0.25 + 0.75 * heat[..., None] / 255)).astype(np.uint8))
write_png("attention_maps.png", np.hstack(shown))
shares = np.asarray(block.temporal_maps[0, middle]).mean(0)
print(f"{block.name}: attention_maps.png; of the frames {block.offsets}: {shares.round(3)}")
