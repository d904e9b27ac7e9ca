"""Rendered scenes as a source of training clips: a new scene for every clip, of held textures."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.data.photographs import find_photographs
from jaxdeblur.data.scenes import SceneConfig
from jaxdeblur.data.textures import kept_textures
from jaxdeblur.errors import ProgressLine, UserError

LARGEST_SCENE = 2048
"""Pixels to a side of rendered scenes, so that a mistyped crop does not ask for a terabyte."""

_LEAST_TEXTURES = 96  # Few photographs give few textures that differ.
_TEXTURE_SEED = 0  # One set of textures for all runs: they are kept. Scenes have the run's seed.


@dataclasses.dataclass(frozen=True)
class RenderedScenes:
    """What scenes are rendered, and the textures that they show."""

    config: SceneConfig
    textures: UInt8[np.ndarray, "n S S 3"]


def open_scenes(
    config: SceneConfig,
    crop: int,
    photos: str | os.PathLike[str] | None = None,
    cache_dir: Path | None = None,
) -> RenderedScenes:
    """The scenes of a configuration whose frames hold a crop, with textures of the train split.

    Args:
      config: what is rendered.
      crop: side of the clips' frames.
      photos: a folder of photographs to add to the packages'.
      cache_dir: where textures are kept, see :func:`kept_textures`.

    Raises:
      UserError: the crop is too large, the photographs cannot be read, or the cache not written.
    """
    if crop > LARGEST_SCENE:
        raise UserError(
            f"--crop={crop}: rendered scenes have at most {LARGEST_SCENE} pixels to a side"
        )
    config = config.at_least(crop)
    found = find_photographs("train", photos)
    textures = kept_textures(
        found,
        max(_LEAST_TEXTURES, len(found)),
        config.texture_size,
        _TEXTURE_SEED,
        cache_dir=cache_dir,
        progress=ProgressLine("cutting textures", unit="textures", stays=True).update,
    )
    return RenderedScenes(config, textures)
