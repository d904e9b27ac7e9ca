"""Draws the clips that train a network over blur paths, with the path maps of each frame.

``jaxdeblur path-clips FOLDER`` fills a folder for ``--data=paths:FOLDER``.

Fitting the paths takes longer than a training step, so it is done once. Rendered scenes and
averaged high-speed frames (eq. 1 of the paper, ICCV 2017) are restored as in use: by default with
the tiles of frames below 384 pixels, since clips are small. They reveal little of the shutter, so
the duty cycle and the light are given, with errors. Drawing that was stopped resumes in the same
folder.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from jaxdeblur.console import ProgressLine
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.degradation import DegradationConfig, degrade, draw_degradation
from jaxdeblur.data.exposure import average
from jaxdeblur.data.layouts import MAPS_FILE, SHARP_FILE
from jaxdeblur.data.render import HostRenderer
from jaxdeblur.data.scenes import SCENES
from jaxdeblur.data.textures import open_scenes
from jaxdeblur.data.videos import HighSpeedVideo
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_folder_when_whole, write_json
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    Part,
    States,
    directly,
    run_parts,
    start_parts,
)
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import Count, Range, Share, check_ranges
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import BASE, FITTED, LOOKAHEAD, MAPPED, SHUTTER, PathRestorer
from jaxdeblur.shapes import Video8
from jaxdeblur.weights.load import load_model

_FRAMES, _SCORED = 7, 5  # Frames of a clip, drawn and kept: most of those kept have all neighbours.
_LEAST_FRAMES = 4  # Frames that training takes of a clip; a short video allows no more.
_SHARES = {"handheld": 7, "wide": 3, "swift": 2, "narrow": 2, "small": 2, "": 4}  # "": high-speed
_TAUS = (3, 5, 7, 9, 11, 13)
_LEAST_DUTY = 0.6
_LINEAR = 0.3  # The share of linear light among high-speed clips.
_DUTY_ERROR, _DUTY_RIGHT, _LIGHT_WRONG = 0.06, 0.3, 0.07
_SHARP = 0.06
_LARGE = 0.6  # The share of clips whose base is that of large frames.
_DEGRADATION = DegradationConfig(stabilised=0.0)  # What stabilisers took is not given to the fit.
_LEAST_BLUR, _STILL, _DRAWS = 1.0, 0.15, 8  # Grey levels; the share kept below; number of tries.


@dataclasses.dataclass(frozen=True)
class PathClipsConfig:
    """Which clips are drawn.

    Attributes:
      clips: number of clips.
      crop: side of rendered clips, pixels; others have up to 256, as their frames allow.
      base: the base network, by the name of shipped weights.
      photos: a folder of photographs for the scenes, besides those of the packages.
      highspeed: a folder of high-speed videos; without it, only scenes are drawn.
      exclude: leaves out its videos with these names or prefixes.
      degraded: share of clips that undergo what cameras, phones and codecs do to frames.
      seed: seed of everything that is drawn.
    """

    clips: Count = 1000
    crop: Annotated[int, Range(192, 1024)] = 320
    base: str = "strcnn_dtb_choice"
    photos: str = ""
    highspeed: str = ""
    exclude: tuple[str, ...] = ()
    degraded: Share = 0.5
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class _Drawn(NamedTuple):
    """A clip before its paths are found."""

    blurred: Video8
    sharp: Video8
    duty: float
    linear: bool


class PathClipSource:
    """Draws clips, each from its own seed."""

    def __init__(self, config: PathClipsConfig) -> None:
        self.config = config
        self._renderers: dict[str, HostRenderer] = {}
        self.videos: list[HighSpeedVideo] = []
        if config.highspeed:
            spec = f"highspeed:{config.highspeed}"
            videos = open_dataset(spec, "train", exclude=config.exclude, scored=False).videos
            least = _LEAST_FRAMES * min(_TAUS)
            self.videos = [
                video
                for video in videos
                if isinstance(video, HighSpeedVideo) and len(video.frames) >= least
            ]
        shares = {kind: n for kind, n in _SHARES.items() if kind or self.videos}
        self._kinds = [kind for kind, n in shares.items() for _ in range(n)]

    def draw(self, number: int) -> tuple[_Drawn, np.random.Generator]:
        """Draws the clip of a number; also returns its random generator, for further draws."""
        rng = np.random.default_rng((self.config.seed, number))
        kind = self._kinds[rng.integers(len(self._kinds))]
        for _ in range(_DRAWS):
            drawn = self._rendered(kind, rng) if kind else self.averaged(rng)
            blur = np.abs(drawn.blurred.astype(np.int16) - drawn.sharp).mean()
            if blur > _LEAST_BLUR or rng.random() < _STILL:
                break
        as_it_is, sharp = rng.random() < _SHARP, drawn.sharp
        blurred = sharp if as_it_is else drawn.blurred
        if rng.random() < self.config.degraded:
            happens = draw_degradation(rng, len(sharp), _DEGRADATION)
            blurred, sharp = degrade(blurred, sharp, happens, rng)
            if as_it_is:  # Sharp video comes back as its file has it.
                sharp = blurred
        return drawn._replace(blurred=blurred, sharp=sharp), rng

    def _rendered(self, kind: str, rng: np.random.Generator) -> _Drawn:
        if kind not in self._renderers:
            scenes = open_scenes(SCENES[kind], self.config.crop, self.config.photos or None)
            self._renderers[kind] = HostRenderer(scenes, _FRAMES, self.config.crop)
        renderer = self._renderers[kind]
        key, scene, motion = renderer.draw(int(rng.integers(2**32)))
        blurred, sharp = renderer.render(key, scene, motion)
        return _Drawn(blurred, sharp, float(scene.exposure), bool(scene.gamma > 1))

    def averaged(self, rng: np.random.Generator) -> _Drawn:
        """Draws a clip whose exposures are averages of high-speed frames."""
        video = self.videos[rng.integers(len(self.videos))]
        tau = int(rng.choice([n for n in _TAUS if _LEAST_FRAMES * n <= len(video.frames)]))
        longest = (len(video.frames) - tau) // (_LEAST_FRAMES - 1)
        period = min(longest, int(np.ceil(tau / rng.uniform(_LEAST_DUTY, 1))))
        count = min(_FRAMES, (len(video.frames) - tau) // period + 1)
        length = tau + (count - 1) * period
        start = int(rng.integers(len(video.frames) - length + 1))
        side = min(256, video.height, video.width) // 16 * 16
        top = int(rng.integers(video.height - side + 1))
        left = int(rng.integers(video.width - side + 1))
        area = slice(top, top + side), slice(left, left + side)
        frames = video.frames.read(slice(start, start + length), *area)
        linear = bool(rng.random() < _LINEAR)
        way = -1 if rng.random() < 0.5 else 1
        blurred, sharp = (
            np.stack([of(frames[n * period :][:tau]) for n in range(count)])[::way]
            for of in (lambda each: average(each, linear), lambda each: each[tau // 2])
        )
        return _Drawn(blurred, sharp, tau / period, linear)


def draw_clips(folder: Path, config: PathClipsConfig) -> None:
    """Draws the clips that are not in the folder yet.

    Raises:
      UserError: a folder cannot be read, or has clips of other settings.
    """
    keep_settings(folder, config)
    maps_of = MapsOfClips(load_model(config.base).model)
    source = PathClipSource(config)
    line = ProgressLine("drawing", config.clips, unit="clips", eager=True, stays=True)
    for number in range(config.clips):
        place = folder / f"{number:06d}"
        if not place.exists():
            clip, rng = source.draw(number)
            error = rng.normal(0, _DUTY_ERROR) if rng.random() > _DUTY_RIGHT else 0.0
            duty = float(np.clip(clip.duty + error, 0.25, 1.0))
            linear = clip.linear != (rng.random() < _LIGHT_WRONG)
            spare = max(0, len(clip.blurred) - _SCORED)
            first = int(rng.integers(spare + 1)) if rng.random() < 0.3 else spare // 2
            large = bool(rng.random() < _LARGE)
            maps = maps_of(clip.blurred, first, duty, linear, large)
            with replace_folder_when_whole(place) as part:
                np.save(part / SHARP_FILE, clip.sharp[first : first + _SCORED])
                np.save(part / MAPS_FILE, maps)
        line.update(number + 1)
    line.close()


class MapsOfClips:
    """Passes clips through the parts of blur paths, as in use, up to the maps of each frame."""

    def __init__(self, base: VideoRestorer) -> None:
        # Clips are not stabilised, so that nothing is to be found of that.
        self._restorer = PathRestorer(PathsConfig(stabilised="no"), base)
        parts = {part.name: part for part in self._restorer.parts()}
        self._before = [parts["motion"], parts["base"]]
        self._all = [parts[name] for name in ("motion", "base", "fit", "light", "filter")]
        self._base = base
        self._compiled = jax.jit(self._step, static_argnames=("kept", "large"))

    def __call__(
        self, blurred: Video8, first: int, duty: float, linear: bool, large: bool
    ) -> np.ndarray:
        """Returns the maps of the frames kept, ``T H W 14`` in uint8.

        Args:
          blurred: the clip.
          first: the first frame kept; of the one before it, only the base is known.
          duty, linear: what is given of the shutter.
          large: whether the base is that of large frames.
        """
        length, height, width, _ = blurred.shape
        states = start_parts(self._all, 1, height, width)
        if large:
            states["base"] = self._base.without_finest(self._base.initial_state(1, height, width))
        given = {SHUTTER: (np.float32(duty), np.bool_(linear))}
        maps: list[np.ndarray] = []
        for n in range(-LOOKAHEAD, min(length, first + _SCORED)):  # the frame that comes out
            last = n + LOOKAHEAD
            frame = blurred[min(last, length - 1)][None].astype(np.float32) / 255
            told = given | {FRAME: frame, REPEATED: last >= length}
            states, made = self._compiled(states, told, kept=n >= first, large=large)
            if n >= first:
                maps.append(np.asarray(made[MAPPED].maps[0]))
            elif n == first - 1:
                states["filter"] = made[BASE]
        return np.round(255 * np.stack(maps)).astype(np.uint8)

    def _step(
        self, states: States, given: dict[str, Any], *, kept: bool, large: bool
    ) -> tuple[States, dict[str, Any]]:
        def run(part: Part, state: Any, *taken: Any) -> tuple[Any, Any]:
            if part.gives == FITTED:  # The shutter is given, not found.
                window, (duty, linear) = taken
                return self._restorer.fit(state, window, None, None, duty, linear)
            if part.gives == BASE and large:  # Large frames are not seen mirrored.
                return self._base.step(state, *taken)
            return directly(part, state, *taken)

        parts = self._all if kept else self._before
        states, made = run_parts(parts, run, states, given)
        return states, {name: made[name] for name in (BASE, MAPPED) if name in made}


def keep_settings(folder: Path, config: PathClipsConfig) -> None:
    """Writes the settings to a new folder, or checks that its clips were drawn with the same.

    Raises:
      UserError: the folder holds something else.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    del settings["clips"]  # More may be drawn.
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    # Settings without clips are replaced: a mistake at the first start must not remain.
    if all(entry == file for entry in folder.iterdir()):
        write_json(file, settings)
    if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != settings:
        raise UserError(
            f"{folder}: holds something else, or clips drawn with other settings than {settings}; "
            "keep the settings, remove the folder, or choose another"
        )
