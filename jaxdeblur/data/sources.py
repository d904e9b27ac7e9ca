"""What a run trains on and is validated on: the data options, and the sources they open."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax

from jaxdeblur.data.batches import MotionLimit
from jaxdeblur.data.clips import ClipOptions
from jaxdeblur.data.datasets import RENDERED, fitting_names, has_variants, open_dataset, video_names
from jaxdeblur.data.scenes import SCENES, SceneConfig
from jaxdeblur.data.textures import RenderedScenes, open_scenes
from jaxdeblur.data.videos import Dataset, Video, sharp_files
from jaxdeblur.errors import UserError
from jaxdeblur.options import from_json
from jaxdeblur.video.formats import MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    Attributes:
      data: data sets to train on: rendered, or rendered:SCENES in place of what --scenes says, a
        folder (its layout is recognised), or LAYOUT:FOLDER with LAYOUT one of gopro, dvd, bsd,
        reds, pairs, highspeed.
      mix: their shares of the clips, one number each; none gives them equal shares.
      variant: of the blurred frames where a data set has several, as blur or blur_gamma of GOPRO.
      only: trains on the videos whose names begin so; all without.
      exclude: leaves the videos whose names begin so out of training.
      scenes: the rendered scenes: narrow (small motion, for short trainings), small (small motion,
        all else varied), clean (small motion, either light, little else), swift (the same with
        motion of 1.5 to 36 pixels a frame), wide (1 to 28, all else varied), or handheld (up to
        40, as hands do it: fast and slow phases, frames that are nearly sharp, any shutter).
      render: where scenes are rendered, anew for every clip. host: by the threads that read.
        device: the device that trains makes its batches itself, and cuts high-speed frames out of
        its own memory, which must hold them all. It takes rendered and highspeed:FOLDER alone,
        draws no clip again (least_blur and keep_still do nothing), and skips no unreadable frame.
        auto: a device that is no CPU if it takes all of the data, else the host.
      photos: a folder of photographs for the scenes, besides those that come with packages.
      taus: high-speed frames: how many are averaged to a blurred one, drawn for each clip.
      duty: high-speed frames: the range of the share of the period that the shutter is open.
      linear: high-speed frames: the share of clips averaged in linear light.
      least_blur: a clip of a data set is drawn again where blurred and sharp differ by less, grey
        levels of 255.
      keep_still: the share of clips that may be sharp all the same.
      sharp_input: the share of clips whose sharp frames go in and are to come out as they are: they
        move as fast as the blurred ones.
      single: the share of clips of one frame, repeated, as a photograph is restored.
      ends: the share of clips that begin or end as a video does: for what the network sees beyond
        them, the first or last frame is repeated, as in use. Others have the frames themselves.
      curriculum: the motion of rendered scenes is limited at first; the limit grows over this share
        of the steps. 0 for none.
      curriculum_start: the first limit, pixels a frame.
      workers: threads that read ahead.
      max_pixels: larger frames are refused before they are decoded.
      max_bad_samples: unreadable clips that are skipped, each with a warning, before the run stops.
      validate_on: the data set of the validation during the run; empty: what trains, of which the
        first data set's own validation videos, or every ninth that trains, is held out.
      validate_only: of it, the videos whose names begin so; all without.
      validate_frames: how many frames of each video.
    """

    data: tuple[str, ...] = (RENDERED,)
    mix: tuple[float, ...] = ()
    variant: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scenes: Literal["narrow", "small", "clean", "swift", "wide", "handheld"] = "narrow"
    render: Literal["auto", "host", "device"] = "auto"
    photos: str | None = None
    taus: tuple[int, ...] = (5, 7, 9, 11)
    duty: tuple[float, float] = (0.6, 1.0)
    linear: float = 0.0
    least_blur: float = 2.0
    keep_still: float = 0.1
    sharp_input: float = 0.0
    single: float = 0.0
    ends: float = 0.1
    curriculum: float = 0.0
    curriculum_start: float = 6.0
    workers: int = 1
    max_pixels: int = MAX_PIXELS
    max_bad_samples: int = 0
    validate_on: str = ""
    validate_only: tuple[str, ...] = ()
    validate_frames: int = 8

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("--data names at least one data set")
        if self.mix and len(self.mix) != len(self.data):
            raise UserError(f"--mix has {len(self.mix)} shares for {len(self.data)} data sets")
        if self.mix and not (all(share >= 0 for share in self.mix) and sum(self.mix) > 0):
            raise UserError(f"--mix is shares, 0 or more and not all 0, not {self.mix}")
        for name in ("workers", "validate_frames", "max_pixels"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is 1 or more, not {getattr(self, name)}")
        if self.workers > 256:
            raise UserError(f"--workers is 256 or less, not {self.workers}")
        for name in ("linear", "keep_still", "sharp_input", "single", "ends", "curriculum"):
            if not 0 <= getattr(self, name) <= 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is a share, 0 to 1, not {getattr(self, name)}")
        if not 0 < self.curriculum_start < float("inf"):
            raise UserError(f"--curriculum-start is above 0, not {self.curriculum_start}")
        if self.max_bad_samples < 0:
            raise UserError(f"--max-bad-samples is 0 or more, not {self.max_bad_samples}")
        if all(map(_is_rendered, self.data)) and (self.only or self.exclude):
            raise UserError(
                "--only and --exclude choose among the videos of a folder, and "
                f"--data={' '.join(self.data)} is rendered"
            )
        if self.photos and not any(map(_is_rendered, self.data)):
            raise UserError(
                f"--photos are for rendered scenes, and --data={' '.join(self.data)} has none"
            )
        if self.render == "device" and (refused := self._from_files):
            raise UserError(
                f"--data={refused[0]}: --render=device makes its batches of {RENDERED} and "
                "highspeed:FOLDER only; --render=host reads all data sets"
            )

    @property
    def on_device(self) -> bool:
        """Whether the device that trains makes the batches."""
        if self.render == "auto":
            return not self._from_files and jax.default_backend() != "cpu"
        return self.render == "device"

    @property
    def _from_files(self) -> list[str]:
        """The data sets of which a device cannot make batches."""
        return [s for s in self.data if s != RENDERED and not s.startswith("highspeed:")]

    def scenes_of(self, spec: str) -> SceneConfig:
        """The configuration of the scenes that an entry of ``data`` renders."""
        return SCENES[spec.partition(":")[2] or self.scenes]

    def clip_options(
        self, frames: int, crop: int, context: tuple[int, int] = (0, 0)
    ) -> ClipOptions:
        """What a clip of the pipeline is; ``context`` is of the network (``VideoRestorer``)."""
        if self.single == 1:
            # A photograph is restored alone: the network repeats it where it wants neighbours.
            context = (0, 0)
        return ClipOptions(
            frames=frames,
            before=context[0],
            after=context[1],
            ends=self.ends,
            single=self.single,
            crop=crop,
            least_blur=self.least_blur,
            keep_still=self.keep_still,
            taus=self.taus,
            duty=self.duty,
            linear=self.linear,
            sharp_input=self.sharp_input,
        )

    def motion_limit(self, steps: int) -> MotionLimit | None:
        """The curriculum over a run of ``steps``: the fastest motion at each, pixels a frame."""
        if not self.curriculum:
            return None
        start = self.curriculum_start
        ranges = [self.scenes_of(spec).motion for spec in self.data if _is_rendered(spec)]
        most = max((fastest for _, fastest in ranges), default=start)
        full = self.curriculum * steps

        def limit(step: int) -> float:
            return float("inf") if step >= full else start + (most - start) * step / full

        return limit


# Kinds of which there are no fixed scenes, and the fixed ones that are nearest.
_SCORED_AS = {"clean": "small", "swift": "wide"}
_RETIRED_SCENES = {"medium": "small", "footage": "handheld", "shutter": "handheld"}


def read_data_config(values: Any, where: str) -> DataConfig:
    """The data options of a run as JSON holds them, also of a run of an earlier version.

    What was rendered once and kept in a pool is rendered anew for every clip now, and some kinds of
    scenes have become one: a run that goes on trains on the kind that is nearest to its own.

    Raises:
      UserError: see :func:`~jaxdeblur.options.from_json`.
    """
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name != "pool"}
        if values.get("render") == "pool":
            values["render"] = "host"
        if isinstance(values.get("scenes"), str):
            values["scenes"] = _RETIRED_SCENES.get(values["scenes"], values["scenes"])
        if isinstance(values.get("data"), list | tuple):
            values["data"] = [_renamed(spec) for spec in values["data"]]
    return from_json(DataConfig, values, where)


def _renamed(spec: Any) -> Any:
    kind = spec.removeprefix(f"{RENDERED}:") if isinstance(spec, str) else spec
    return f"{RENDERED}:{_RETIRED_SCENES[kind]}" if kind in _RETIRED_SCENES else spec


def training_sources(
    config: DataConfig, *, crop: int = 1
) -> list[tuple[Dataset | RenderedScenes, float]]:
    """Opens the data sets of a run with their shares; ``crop`` is the side of the clips' frames."""
    mix = config.mix or (1.0,) * len(config.data)
    return [
        (
            open_scenes(config.scenes_of(spec), crop, config.photos)
            if _is_rendered(spec)
            else open_training(config, spec),
            share,
        )
        for spec, share in zip(config.data, mix, strict=True)
    ]


def _is_rendered(spec: str) -> bool:
    kind = spec.partition(":")[2]
    if spec.partition(":")[0] == RENDERED and kind and kind not in SCENES:
        raise UserError(f"--data={spec}: scenes to train on are {', '.join(SCENES)}, not {kind!r}")
    return spec.partition(":")[0] == RENDERED


def open_training(config: DataConfig, spec: str) -> Dataset:
    """The videos of one of the config's folders that train: without those held out to validate."""
    folders = [each for each in config.data if not _is_rendered(each)]
    only, exclude = config.only, config.exclude
    held = held_out(config) if spec == config.data[0] else ()
    if len(folders) > 1 and (only or exclude):
        names = {each: video_names(each, "train", variant_of(config, each)) for each in folders}
        only = _meant_for(spec, names, only, "only")
        exclude = _meant_for(spec, names, exclude, "exclude")
        if config.only and not only:
            raise UserError(f"--only names no video of {spec}: leave it out of --data")
    return open_dataset(
        spec,
        "train",
        variant=variant_of(config, spec),
        only=only,
        exclude=(*exclude, *held),
        max_pixels=config.max_pixels,
        scored=False,
    )


def _meant_for(
    spec: str, names: dict[str, list[str]], texts: tuple[str, ...], option: str
) -> tuple[str, ...]:
    """Which ``texts`` of an option mean videos of ``spec``; each means some of some data set."""
    meant = []
    for text in texts:
        found = {each: fitting_names(names[each], text) for each in names}
        if not any(found.values()):
            raise UserError(f"--{option}={text}: no video of {', '.join(names)} begins so")
        whole = any(text in videos for videos in names.values())
        if text in names[spec] or (found[spec] and not whole):
            meant.append(text)
    return tuple(meant)


def variant_of(config: DataConfig, spec: str) -> str | None:
    """The variant, where the data set has several or no other one has."""
    named = (*config.data, config.validate_on) if config.validate_on else config.data
    anywhere = any(map(has_variants, named))
    return config.variant if has_variants(spec) or not anywhere else None


def _names_scenes(spec: str) -> bool:
    return spec.partition(":")[0] == RENDERED


_HELD_OUT_EVERY = 9  # GOPRO's 22 videos that train give 3 to validate on ...
_FEWEST_TO_HOLD_OUT = 4  # ... and fewer than these have none to spare.


def _own_split(config: DataConfig, split: str) -> bool:
    """Whether the first data set, a folder, has videos for a split that do not train."""
    spec, variant = config.data[0], variant_of(config, config.data[0])
    try:
        names = video_names(spec, split, variant)
    except UserError:  # it has no such split
        return False
    return not set(names) & set(video_names(spec, "train", variant))


def held_out(config: DataConfig) -> tuple[str, ...]:
    """The videos of the first data set that validate in place of training."""
    spec = config.data[0]
    if config.validate_on or _names_scenes(spec) or _own_split(config, "validation"):
        return ()
    names = video_names(spec, "train", variant_of(config, spec))
    if config.validate_only:
        return tuple(
            n for n in names if any(n in fitting_names(names, t) for t in config.validate_only)
        )
    for text in config.exclude:
        names = [name for name in names if name not in fitting_names(names, text)]
    if config.only:
        names = [n for n in names if any(n in fitting_names(names, t) for t in config.only)]
    return tuple(names[::_HELD_OUT_EVERY]) if len(names) >= _FEWEST_TO_HOLD_OUT else ()


class Scored(NamedTuple):
    """A data set to score on."""

    spec: str
    split: Literal["train", "validation", "test"]
    only: tuple[str, ...]


def kind_scored(config: DataConfig, split: Literal["validation", "test"]) -> Scored:
    """What a run is validated or tested on: videos of the kind that trains, which do not train.

    Rendered scenes of the kind that trains; of a folder its own videos for that, or those held out.
    A folder without any to spare is followed by the rendered scenes of small motion.
    """
    spec = config.data[0]
    if split == "validation" and config.validate_on:
        return Scored(config.validate_on, split, config.validate_only)
    if _names_scenes(spec):
        kind = spec.partition(":")[2] or config.scenes
        return Scored(f"{RENDERED}:{_SCORED_AS.get(kind, kind)}", split, ())
    if _own_split(config, split):
        return Scored(spec, split, config.validate_only if split == "validation" else ())
    if held := held_out(config):
        return Scored(spec, "train", held)
    if split == "test" and config.validate_on:
        return Scored(config.validate_on, "validation", config.validate_only)
    return Scored(f"{RENDERED}:narrow", split, ())


def validation_videos(config: DataConfig) -> list[Video]:
    """The videos of the validation during the run: never those that train.

    Raises:
      UserError: a video cannot be read, or its frames are among those that train.
    """
    scored = kind_scored(config, "validation")
    videos = open_dataset(
        scored.spec,
        scored.split,
        variant=variant_of(config, scored.spec),
        only=scored.only,
        max_pixels=config.max_pixels,
    ).videos
    training = {
        file
        for spec in config.data
        if not _is_rendered(spec)  # whose splits share no photograph
        for video in open_training(config, spec).videos
        for file in sharp_files(video)
    }
    if both := [video.name for video in videos if training & sharp_files(video)]:
        raise UserError(
            f"--validate-on={config.validate_on}: {', '.join(both[:20])} would train too; leave "
            "them out of training with --exclude, or validate on others with --validate-only"
        )
    return list(videos)
