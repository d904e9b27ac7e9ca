"""Opens data sets: rendered scenes and folders of every layout, checked whole when opened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.fixed_scenes import fixed_kinds, rendered_videos
from jaxdeblur.data.frames import ArrayFile, FrameFiles, Frames, VideoFile, pack
from jaxdeblur.data.layouts import (
    HIGH_SPEED,
    RENDERED,
    SHARP_FILE,
    Place,
    Spec,
    choose,
    list_videos,
    printable,
    resolve,
)
from jaxdeblur.data.photographs import SPLITS, Split
from jaxdeblur.data.videos import Dataset, HighSpeedVideo, PairedVideo, Video, refuse
from jaxdeblur.errors import UserError
from jaxdeblur.models.path_maps import CHANNELS
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import image_size

Light: TypeAlias = Literal["linear", "stored"]
"""What an exposure averages: light (gamma 2.2), or the values as they are stored."""

_AVERAGED = {"linear": "linear light", "stored": "stored values"}


def open_dataset(
    spec: str | Spec,
    split: str,
    *,
    variant: str | None = None,
    exposure: Exposure | None = None,
    light: Light | None = None,
    sharp_input: bool = False,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    scored: bool = True,
) -> Dataset:
    """Opens a data set and checks all of it: every frame's partner and size.

    Args:
      spec: ``rendered``, ``rendered:KIND`` (of ``fixed_scenes.fixed_kinds``), a folder whose layout
        is recognised, or ``LAYOUT:FOLDER``.
      split: train, validation or test. A folder that does not tell splits apart gives the same
        videos for each: tell them apart by ``only`` and ``exclude``.
      variant: which blurred frames, where there are several: blur or blur_gamma (gopro), blur or
        blur_comp (reds). Default: blur if it is there.
      exposure: how high-speed frames are averaged; default ``Exposure()``. No other layout has any.
      light: of high-speed frames and rendered scenes: what is averaged, in place of what
        ``exposure`` or the scenes say.
      sharp_input: the blurred frames are the sharp ones, which should come out as they go in.
      only: takes the videos that are named so, or begin so, alone.
      exclude: leaves out the videos that are named so or begin so.
      scored: whether every video has to hold a whole exposure; to train on, clips have their own.

    Raises:
      UserError: there is no such data set, split or variant, or frames are missing, unmatched,
        unreadable or of different sizes: all of them are named in the one message.
    """
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    spec = resolve(spec) if isinstance(spec, str) else spec
    text, layout = spec.text, spec.layout
    spec.check_variant(variant)
    if exposure is not None and layout != HIGH_SPEED:
        raise UserError(f"{text}: is blurred already; tau and period are for high-speed frames")
    if light is not None and layout not in (RENDERED, HIGH_SPEED):
        raise UserError(f"{text}: is blurred already; light is of rendered and high-speed frames")
    if sharp_input and layout == HIGH_SPEED:
        raise UserError(f"{text}: high-speed frames go in as they are with tau 1")
    if layout == RENDERED:
        dataset = _rendered(text, next(s for s in SPLITS if s == split), light)
        kept = choose({text: [video.name for video in dataset.videos]}, only, exclude)[text]
        videos = [video for video in dataset.videos if video.name in kept]
        return _as_asked(dataclasses.replace(dataset, videos=videos), sharp_input)
    listing = list_videos(spec, split, variant)
    kept = choose({text: [place.name for place in listing.places]}, only, exclude)[text]
    places = [place for place in listing.places if place.name in kept]
    if layout != HIGH_SPEED:
        videos = _open_videos(spec.root, places, None)
        return _as_asked(Dataset(listing.title, listing.variant, videos), sharp_input)
    exposure = exposure or Exposure()
    if light is not None:
        exposure = dataclasses.replace(exposure, linear=light == "linear")
    videos = _open_videos(spec.root, places, exposure)
    if scored:
        taken = ", taken for high-speed frames" if spec.is_taken_for_high_speed else ""
        refuse(
            f"{text}{taken}: an exposure takes {exposure.tau} frames",
            [
                f"{video.name} has {len(video.frames)}"
                for video in videos
                if isinstance(video, HighSpeedVideo) and not len(video)
            ],
        )
    averaged = f", {_AVERAGED['linear']}" if exposure.linear else ""
    variant = f"tau {exposure.tau}, period {exposure.period}{averaged}"
    return Dataset(listing.title, variant, videos)


def _rendered(text: str, split: Split, light: Light | None) -> Dataset:
    kind = text.partition(":")[2] or "narrow"
    if kind not in fixed_kinds():
        raise UserError(f"{text}: rendered scenes are {', '.join(fixed_kinds())}, not {kind!r}")
    videos = rendered_videos(split, kind, linear=None if light is None else light == "linear")
    return Dataset(
        f"rendered/{split}", kind if light is None else f"{kind}, {_AVERAGED[light]}", videos
    )


def _as_asked(dataset: Dataset, sharp_input: bool) -> Dataset:
    """The data set, its sharp frames in place of the blurred ones if that is asked."""
    if not sharp_input:
        return dataset
    videos = [
        dataclasses.replace(video, blurred_frames=video.sharp_frames)
        for video in dataset.videos
        if isinstance(video, PairedVideo)
    ]
    variant = ", ".join(filter(None, [dataset.variant, "sharp frames go in"]))
    return Dataset(dataset.name, variant, videos)


def _open_videos(root: Path, places: Sequence[Place], exposure: Exposure | None) -> list[Video]:
    """Opens the videos, or raises one error that names all that is wrong with them."""
    if all(place.sharp.name == SHARP_FILE for place in places):
        return [_open_maps(place) for place in places]
    problems: list[str] = []
    opened: dict[str, list[Frames]] = {}
    with ThreadPoolExecutor(8) as readers:  # a disk answers several questions at a time
        for place in places:
            if os.path.isfile(place.sharp):  # Its frames come in turn only: they are decoded first.
                try:
                    opened[place.name] = [pack(VideoFile.open(place.sharp))]
                except UserError as error:
                    problems.append(str(error))
                continue
            halves = _halves(place, root, problems)
            files = [file for half in reversed(halves) for file in half]
            size = _common_size(root, files, readers.map(_size_of, files), problems)
            if size is not None:
                opened[place.name] = [FrameFiles(tuple(half), *size) for half in halves]
    refuse(f"{root}: {len(problems)} problem(s)", problems)
    if exposure is None:
        return [PairedVideo(name, frames[0], frames[1]) for name, frames in opened.items()]
    return [HighSpeedVideo(name, frames[0], exposure) for name, frames in opened.items()]


def _open_maps(place: Place) -> PairedVideo:
    assert place.blurred is not None
    maps, sharp = ArrayFile.open(place.blurred, CHANNELS), ArrayFile.open(place.sharp, 3)
    if (len(maps), maps.height, maps.width) != (len(sharp), sharp.height, sharp.width):
        raise UserError(f"{place.blurred}: not of the size of {place.sharp.name}")
    return PairedVideo(place.name, maps, sharp)


def _halves(place: Place, root: Path, problems: list[str]) -> list[list[Path]]:
    """The blurred and the sharp frames of a video, or its high-speed frames."""
    if place.blurred is None:
        return [list_frames(place.sharp)]
    blurred, sharp = (_by_stem(half, root, problems) for half in (place.blurred, place.sharp))
    for one, other, kind in ((blurred, sharp, "sharp"), (sharp, blurred, "blurred")):
        alone = [file for stem, file in one.items() if stem not in other]
        problems += [f"{_below(root, file)} has no {kind} frame" for file in alone]
    stems = [stem for stem in blurred if stem in sharp]
    return [[half[stem] for stem in stems] for half in (blurred, sharp)]


def _by_stem(folder: Path, root: Path, problems: list[str]) -> dict[str, Path]:
    """The frames of a folder by their names without suffix, in natural order."""
    if not os.path.isdir(folder):
        problems.append(f"{_below(root, folder)}: no such folder")
        return {}
    frames: dict[str, Path] = {}
    for file in list_frames(folder):
        if file.stem in frames:
            problems.append(f"{_below(root, file)} and {frames[file.stem].name} have one name")
        frames[file.stem] = file
    if not frames:
        problems.append(f"{_below(root, folder)}: holds no images")
    return frames


def _size_of(file: Path) -> tuple[int, int] | UserError:
    try:
        return image_size(file)
    except UserError as error:
        return error


def _common_size(
    root: Path,
    files: Sequence[Path],
    sizes: Iterable[tuple[int, int] | UserError],
    problems: list[str],
) -> tuple[int, int] | None:
    """The (height, width) of a video's first frame, which all share; others are named."""
    first = None
    for file, size in zip(files, sizes, strict=True):
        if isinstance(size, UserError):
            problems.append(str(size).removeprefix(f"{root}/"))
        elif first is None:
            first, common = file, size
        elif size != common:
            problems.append(
                f"{_below(root, file)} is {size[1]}x{size[0]}, unlike the "
                f"{common[1]}x{common[0]} of {_below(root, first)}"
            )
    return common if first else None


def _below(root: Path, path: Path) -> str:
    return printable(str(path.relative_to(root)))
