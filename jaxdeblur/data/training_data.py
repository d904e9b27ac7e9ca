"""The training and validation data of a run, opened from its options."""

from __future__ import annotations

import functools
from typing import NamedTuple

from jaxdeblur.data.config import DataConfig, is_rendered
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.layouts import (
    HIGH_SPEED,
    PATHS,
    RENDERED,
    choose,
    list_videos,
    matching,
    resolve,
)
from jaxdeblur.data.textures import RenderedScenes, Split, open_scenes
from jaxdeblur.data.videos import Dataset, Video, sharp_files
from jaxdeblur.errors import UserError

# Kinds without fixed scenes, and the nearest kinds with fixed ones.
_SCORED_AS = {"clean": "small", "swift": "wide"}
_HELD_OUT_EVERY = 9  # GOPRO's 22 training videos give 3 for validation ...
_FEWEST_TO_HOLD_OUT = 4  # ... and fewer videos than this can spare none.


class Scored(NamedTuple):
    """A data set to score on."""

    spec: str
    split: Split
    only: tuple[str, ...]
    variant: str | None = None


class TrainingData:
    """The data of a run; everything is opened on first use, and only once.

    All members raise UserError for unusable data. The frames of rendered scenes hold a crop of
    ``crop`` x ``crop`` pixels.
    """

    def __init__(self, config: DataConfig, crop: int = 1) -> None:
        self.config = config
        self._crop = crop
        self._places = functools.cache(
            lambda spec, split: list_videos(resolve(spec), split, self._variant(spec)).places
        )

    @property
    def high_speed(self) -> list[str]:
        """The folders whose frames are averaged into blur."""
        return [spec for spec in self.config.folders if resolve(spec).layout == HIGH_SPEED]

    @functools.cached_property
    def train(self) -> list[tuple[Dataset | RenderedScenes, float]]:
        """The training data sets, without what is held out, and their shares of the clips."""
        shares = self.config.mix or (1.0,) * len(self.config.data)
        return list(zip(map(self._open, self.config.data), shares, strict=True))

    @functools.cached_property
    def validate(self) -> list[Video]:
        """The videos for validation during the run.

        Raises:
          UserError: one of them is also used for training, or the data set cannot be read.
        """
        scored = self.scored("validation")
        dataset = open_dataset(scored.spec, scored.split, variant=scored.variant, only=scored.only)
        # The splits of rendered scenes share no photograph.
        training = set().union(*(sharp_files(v) for d in self._videos.values() for v in d.videos))
        if both := [video.name for video in dataset.videos if training & sharp_files(video)]:
            raise UserError(
                f"--validate-on={self.config.validate_on}: also used for training: "
                f"{', '.join(both[:20])}; exclude them from training with --exclude, or validate "
                "on other videos with --validate-only"
            )
        return list(dataset.videos)

    def scored(self, split: Split) -> Scored:
        """Returns what the run is validated or tested on; validation prefers ``validate_on``.

        Rendered scenes are scored on the same kind. A folder is scored on its own videos of the
        split or those held out, or else on ``validate_on`` or the rendered scenes ``narrow``.
        """
        config, spec, named = self.config, self.config.data[0], self.config.validate_on
        asked = Scored(named, "validation", config.validate_only, self._variant(named))
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
        """The videos of the first data set used for validation instead of training."""
        config, spec = self.config, self.config.data[0]
        if config.validate_on or is_rendered(spec) or self._has_own("validation"):
            return ()
        if config.validate_only:
            names = self._names(spec)
            held_out = matching({spec: names}, "validate-only", config.validate_only)
            return tuple(name for name in names if name in held_out)
        names = self._chosen[spec]
        return tuple(names[::_HELD_OUT_EVERY]) if len(names) >= _FEWEST_TO_HOLD_OUT else ()

    def _names(self, spec: str) -> list[str]:
        return [place.name for place in self._places(spec, "train")]

    def _open(self, spec: str) -> Dataset | RenderedScenes:
        if is_rendered(spec):
            return open_scenes(self.config.scenes_of(spec), self._crop, self.config.photos)
        if self.config.degraded and resolve(spec).layout == PATHS:
            raise UserError(
                f"--degraded does not apply to --data={spec}: its paths were found in its frames; "
                "draw them with path_clips --degraded"
            )
        return self._videos[spec]

    @functools.cached_property
    def _videos(self) -> dict[str, Dataset]:
        """The training videos of each folder."""
        return {
            spec: open_dataset(
                spec,
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
        """The video names of each folder that ``only`` and ``exclude`` leave."""
        names = {spec: self._names(spec) for spec in self.config.folders}
        return choose(names, self.config.only, self.config.exclude)

    def _variant(self, spec: str) -> str | None:
        """Returns the variant if the data set may have several, or if none may."""
        if not spec or self.config.variant is None:
            return None
        every = [each for each in (*self.config.folders, self.config.validate_on) if each]
        alone = not any(resolve(each).has_variants for each in every)
        return self.config.variant if alone or resolve(spec).has_variants else None

    def _has_own(self, split: Split) -> bool:
        """Returns whether the first data set, a folder, has the split, without training videos."""
        spec = self.config.data[0]
        try:
            own = self._places(spec, split)
        except UserError:  # it has no such split
            return False
        # By folder, since REDS numbers the videos of each split from 000.
        training = {place.sharp for place in self._places(spec, "train")}
        return not any(place.sharp in training for place in own)
