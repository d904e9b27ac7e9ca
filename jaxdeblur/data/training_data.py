"""What a run trains on and is validated on: what its options name, opened."""

from __future__ import annotations

import functools
from typing import NamedTuple

from jaxdeblur.data.config import DataConfig, is_rendered
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.layouts import RENDERED, choose, fitting_names, list_videos, resolve
from jaxdeblur.data.photographs import Split
from jaxdeblur.data.textures import RenderedScenes, open_scenes
from jaxdeblur.data.videos import Dataset, Video, sharp_files
from jaxdeblur.errors import UserError

# Kinds of which there are no fixed scenes, and the fixed ones that are nearest.
_SCORED_AS = {"clean": "small", "swift": "wide"}
_HELD_OUT_EVERY = 9  # GOPRO's 22 videos that train give 3 to validate on ...
_FEWEST_TO_HOLD_OUT = 4  # ... and fewer than these have none to spare.


class Scored(NamedTuple):
    """A data set to score on."""

    spec: str
    split: Split
    only: tuple[str, ...]
    variant: str | None = None


class TrainingData:
    """The data of a run; nothing is looked at before it is asked for, and then once.

    All of it raises UserError for what cannot be used. Rendered scenes are to hold frames of
    ``crop`` x ``crop`` pixels.
    """

    def __init__(self, config: DataConfig, crop: int = 1) -> None:
        self.config = config
        self._crop = crop
        self._resolve = functools.cache(resolve)
        self._names = functools.cache(
            lambda spec, split: [
                place.name
                for place in list_videos(self._resolve(spec), split, self._variant(spec)).places
            ]
        )

    @functools.cached_property
    def folders(self) -> list[str]:
        """The data sets that are no rendered scenes."""
        return [spec for spec in self.config.data if not is_rendered(spec)]

    @functools.cached_property
    def train(self) -> list[tuple[Dataset | RenderedScenes, float]]:
        """The data sets that train, without what is held out, and their shares of the clips."""
        shares = self.config.mix or (1.0,) * len(self.config.data)
        return list(zip(map(self._open, self.config.data), shares, strict=True))

    @functools.cached_property
    def validate(self) -> list[Video]:
        """The videos of the validation during the run.

        Raises:
          UserError: one of them would train too, or the data set cannot be read.
        """
        scored = self.scored("validation")
        dataset = open_dataset(
            self._resolve(scored.spec),
            scored.split,
            variant=scored.variant,
            only=scored.only,
        )
        training = {  # the splits of rendered scenes share no photograph
            file
            for spec in self.folders
            for video in self._videos[spec].videos
            for file in sharp_files(video)
        }
        if both := [video.name for video in dataset.videos if training & sharp_files(video)]:
            raise UserError(
                f"--validate-on={self.config.validate_on}: {', '.join(both[:20])} would train too; "
                "leave them out of training with --exclude, or validate on others with "
                "--validate-only"
            )
        return list(dataset.videos)

    def scored(self, split: Split) -> Scored:
        """What the run is validated or tested on: videos of the kind that trains.

        Rendered scenes of that kind; of a folder its own videos for that, or those held out. A
        folder without any to spare is followed by the rendered scenes of small motion.
        """
        config, spec = self.config, self.config.data[0]
        named, variant = config.validate_on, self._variant(config.validate_on)
        asked = Scored(named, "validation", config.validate_only, variant)
        if split == "validation" and named:
            return asked
        if is_rendered(spec):
            kind = spec.partition(":")[2] or config.scenes
            return Scored(f"{RENDERED}:{_SCORED_AS.get(kind, kind)}", split, ())
        if self._has_own(split):
            only = config.validate_only if split == "validation" else ()
            return Scored(spec, split, only, self._variant(spec))
        if self.held_out:
            return Scored(spec, "train", self.held_out, self._variant(spec))
        if named:
            return asked
        return Scored(f"{RENDERED}:narrow", split, ())

    @functools.cached_property
    def held_out(self) -> tuple[str, ...]:
        """The videos of the first data set that validate in place of training."""
        config, spec = self.config, self.config.data[0]
        if config.validate_on or is_rendered(spec) or self._has_own("validation"):
            return ()
        if config.validate_only:
            names = self._names(spec, "train")
            fitting = {n for text in config.validate_only for n in fitting_names(names, text)}
            return tuple(name for name in names if name in fitting)
        names = self._chosen[spec]
        return tuple(names[::_HELD_OUT_EVERY]) if len(names) >= _FEWEST_TO_HOLD_OUT else ()

    def _open(self, spec: str) -> Dataset | RenderedScenes:
        if is_rendered(spec):
            return open_scenes(self.config.scenes_of(spec), self._crop, self.config.photos)
        return self._videos[spec]

    @functools.cached_property
    def _videos(self) -> dict[str, Dataset]:
        """The videos of each folder that train."""
        return {
            spec: open_dataset(
                self._resolve(spec),
                "train",
                variant=self._variant(spec),
                only=names,
                exclude=self.held_out if spec == self.config.data[0] else (),
                scored=False,
            )
            for spec, names in self._chosen.items()
        }

    @functools.cached_property
    def _chosen(self) -> dict[str, list[str]]:
        """The names that ``only`` and ``exclude`` leave of each folder's."""
        names = {spec: self._names(spec, "train") for spec in self.folders}
        return choose(names, self.config.only, self.config.exclude)

    def _variant(self, spec: str) -> str | None:
        """The variant, where the data set has several or no other one has."""
        if not spec or self.config.variant is None:
            return None
        named = [self._resolve(each) for each in (*self.folders, self.config.validate_on) if each]
        alone = not any(each.has_variants for each in named)
        return self.config.variant if alone or self._resolve(spec).has_variants else None

    def _has_own(self, split: Split) -> bool:
        """Whether the first data set, a folder, has videos for a split that do not train."""
        spec = self.config.data[0]
        try:
            names = self._names(spec, split)
        except UserError:  # it has no such split
            return False
        return not set(names) & set(self._names(spec, "train"))
