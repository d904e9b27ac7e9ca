"""Runs the networks of a PathRestorer; on small frames, on their mirror images too.

The mean of a network's results for a frame and for its mirror images, mirrored back, keeps less of
the network's errors. Source: Lim et al., "Enhanced deep residual networks for single image
super-resolution", CVPR Workshops 2017; here without rotations. The networks then take four times as
long, so larger frames go without.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdeblur.models.restorer import State, StepOf, VideoRestorer
from jaxdeblur.shapes import Frame, SeenFrame

_MOST = 160_000  # Pixels: such frames then take as long as those of 1280x720.
_MIRRORED = ((), (-2,), (-3,), (-3, -2))  # The axes of ``... H W C`` that are reversed.


def initial_state(batch: int, height: int, width: int, net: VideoRestorer) -> State:
    """Returns the state of ``net`` before the first frame.

    Args:
      batch: videos.
      height, width: of their frames, in pixels.
      net: the network.
    """
    images = len(_MIRRORED) if _is_mirrored(height, width) else 1
    return net.initial_state(images * batch, height, width)


def step(
    step_of: StepOf,
    net: VideoRestorer,
    state: State,
    frame: SeenFrame,
    repeated: bool | Bool[Array, ""],
) -> tuple[State, Frame]:
    """Runs a step of the network, of the same look-ahead.

    Args:
      step_of: runs one step, on the whole frame or in tiles.
      net: the network.
      state: from ``initial_state`` or the step before.
      frame: B H W 3 or the maps of blur paths, in [0, 1], padded.
      repeated: whether the video has ended and its last frame is passed again.
    """
    if not _is_mirrored(*frame.shape[1:3]):
        return step_of(net, state, frame, repeated)
    state, restored = step_of(net, state, _mirrored(frame), repeated)
    return state, _mean_of_mirrored(restored)


def _is_mirrored(height: int, width: int) -> bool:
    return height * width <= _MOST


def _mirrored(frames: Float[Array, "B *rest H W C"]) -> Float[Array, "B4 *rest H W C"]:
    return jnp.concatenate([jnp.flip(frames, axes) for axes in _MIRRORED])


def _mean_of_mirrored(frames: Float[Array, "B4 *rest H W C"]) -> Float[Array, "B *rest H W C"]:
    parts = jnp.split(frames, len(_MIRRORED))
    return jnp.stack([*map(jnp.flip, parts, _MIRRORED)]).mean(0)
