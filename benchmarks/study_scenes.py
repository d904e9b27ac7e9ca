"""The scenes of the studies of ``benchmarks.ablation``, and the videos that score them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxdeblur import models
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.photographs import find_photographs
from jaxdeblur.data.render import HostRenderer, Motion
from jaxdeblur.data.scenes import SceneConfig
from jaxdeblur.data.textures import RenderedScenes, kept_textures, open_scenes
from jaxdeblur.data.training_data import open_data
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.shapes import Video8

_PRINTS = 7  # Across a wall's side; of as many rows.


@dataclasses.dataclass(frozen=True)
class StudyScenes:
    """Scenes of a study's own, to train on and, with other photographs, to be scored on."""

    name: str
    config: SceneConfig
    empty: float = 0.0
    """Share of the textures' area that is plain: prints on a wall."""
    videos: int = 8
    """That are scored, of so many ``frames`` and ``crop`` x ``crop`` pixels."""
    frames: int = 5
    crop: int = 192
    kinds: tuple[float, ...] = ()
    """Bounds between kinds of blur, pixels; each kind of frame has a gain of its own."""

    def training(self, crop: int) -> RenderedScenes:
        """Scenes of the photographs that train."""
        scenes = open_scenes(self.config, crop)
        return dataclasses.replace(scenes, textures=with_plain_parts(scenes.textures, self.empty))

    def validation(self) -> list[Video]:
        """Videos of the photographs that do not."""
        photographs = [*find_photographs("validation"), *find_photographs("test")]
        config = self.config.at_least(self.crop)
        textures = kept_textures(photographs, 8 * len(photographs), config.texture_size, seed=1)
        renderer = HostRenderer(
            with_plain_parts(textures, self.empty), config, self.frames, self.crop
        )
        videos = []
        for seed in range(self.videos):
            key, scene, motion = renderer.draw(seed)
            videos.append(Video(*renderer.render(key, scene, motion), extent_of(motion)))
        return videos


class Video(NamedTuple):
    """A video of the validation."""

    blurred: Video8
    sharp: Video8
    extent: Float[np.ndarray, " T"] | None = None
    """How far the background moves during each exposure, pixels, where it is known."""


def extent_of(motion: Motion) -> Float[np.ndarray, " T"]:
    """The diagonal of the box that holds the background's way during each exposure."""
    ways = np.asarray(motion.background.mean(axis=1))
    return np.hypot(*np.moveaxis(ways.max(axis=1) - ways.min(axis=1), -1, 0))


def with_plain_parts(
    textures: UInt8[np.ndarray, "n S S 3"], share: float
) -> UInt8[np.ndarray, "n S S 3"]:
    """Each photograph in squares, of which a ``share`` has the mean colour of the whole."""
    if not share:
        return textures
    rng = np.random.default_rng(0)
    side = textures.shape[1]
    made = np.array(textures)
    bounds = np.linspace(0, side, _PRINTS + 1).astype(int)
    for texture in made:
        plain = texture.mean(axis=(0, 1)).astype(np.uint8)
        for top, bottom in itertools.pairwise(bounds):
            for left, right in itertools.pairwise(bounds):
                if rng.random() < share:
                    texture[top:bottom, left:right] = plain
    return made


def fixed_videos(spec: str, data: DataConfig) -> list[Video]:
    """The first frames of the fixed validation videos."""
    found = open_data(dataclasses.replace(data, validate_on=spec)).validate
    videos = []
    for video in found:
        frames = range(min(len(video), data.validate_frames))
        blurred = np.stack([video.blurred(i) for i in frames])
        videos.append(Video(blurred, np.stack([video.sharp(i) for i in frames])))
    return videos


class Validation(NamedTuple):
    """What scores the variants of a study: videos by data set."""

    videos: dict[str, list[Video]]
    kinds: tuple[float, ...] = ()

    @classmethod
    def of(cls, specs: Sequence[str], own: StudyScenes | None, data: DataConfig) -> Validation:
        """The study's own scenes and the fixed ones."""
        mine = {own.name: own.validation()} if own else {}
        fixed = {spec: fixed_videos(spec, data) for spec in specs}
        return cls(mine | fixed, own.kinds if own else ())

    def gains(self, model: models.VideoRestorer) -> dict[str, list[float]]:
        """PSNR gained over the blurred frames by data set and kind of blur: each video's mean."""
        gains: dict[str, list[float]] = {}
        for spec, videos in self.videos.items():
            for video in videos:
                restored = restore_clip(model, video.blurred)
                frames = zip(video.blurred, restored, video.sharp, strict=True)
                gained = np.array([psnr(r, s) - psnr(b, s) for b, r, s in frames])
                gains.setdefault(spec, []).append(float(gained.mean()))
                if video.extent is None:
                    continue
                for name, chosen in self._by_kind(video.extent):
                    if chosen.any():
                        of_kind = gains.setdefault(f"{spec}, {name}", [])
                        of_kind.append(float(gained[chosen].mean()))
        return gains

    def _by_kind(self, extent: Float[np.ndarray, " T"]) -> list[tuple[str, np.ndarray]]:
        """The frames of each kind of blur."""
        bounds = self.kinds
        if not bounds:
            return []
        kinds = [(f"below {bounds[0]:g} px", extent < bounds[0])]
        for low, high in itertools.pairwise(bounds):
            kinds.append((f"{low:g} to {high:g} px", (low <= extent) & (extent < high)))
        return [*kinds, (f"from {bounds[-1]:g} px on", extent >= bounds[-1])]
