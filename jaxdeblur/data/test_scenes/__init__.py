"""The rendered scenes that results are reported on: fixed, so that scores compare over the years.

They are drawn and rendered as they were when the first scores were taken, moment by moment, by code
that is kept for them alone: what trains is drawn by :mod:`jaxdeblur.data.scenes`, and rendered by
:mod:`jaxdeblur.data.render`. Nothing here may change a pixel.
"""

from jaxdeblur.data.test_scenes.pools import RenderedVideo, rendered_videos, show_rendering
from jaxdeblur.data.test_scenes.scenes import SCENES

__all__ = ["SCENES", "RenderedVideo", "rendered_videos", "show_rendering"]
