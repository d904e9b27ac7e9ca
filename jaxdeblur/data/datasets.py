"""Opens data sets: rendered scenes and folders of every layout, checked whole when opened."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.data.frames import ArrayFile, FrameFiles, pack_video
from jaxdeblur.data.layouts import (
    HIGH_SPEED,
    MAPS_FILE,
    RENDERED,
    Place,
    Spec,
    choose,
    list_videos,
    resolve,
)
from jaxdeblur.data.photographs import Split
from jaxdeblur.data.videos import (
    Dataset,
    HighSpeedVideo,
    PairedVideo,
    Video,
    refuse,
    video_frames,
)
from jaxdeblur.errors import UserError
from jaxdeblur.models.path_maps import CHANNELS
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import image_size

Light: TypeAlias = Literal["linear", "stored"]
"""What an exposure averages: light (gamma 2.2), or the values as they are stored."""

_AVERAGED = {"linear": "linear light", "stored": "stored values"}


def open_dataset(
    spec: str | Spec,
    split: Split,
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
      UserError: there is no such data set, split or variant, or a frame is missing, unmatched,
        unreadable or of another size.
    """
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
        dataset = _rendered(text, split, light)
        kept = choose({text: [video.name for video in dataset.videos]}, only, exclude)[text]
        videos = [video for video in dataset.videos if video.name in kept]
        return _as_asked(dataclasses.replace(dataset, videos=videos), sharp_input)
    exposure = exposure or Exposure()
    if light is not None:
        exposure = dataclasses.replace(exposure, linear=light == "linear")
    listing = list_videos(spec, split, variant)
    kept = choose({text: [place.name for place in listing.places]}, only, exclude)[text]
    places = [place for place in listing.places if place.name in kept]
    with ThreadPoolExecutor(8) as readers:  # a disk answers several questions at a time
        videos = list(readers.map(functools.partial(_open, exposure=exposure), places))
    if layout != HIGH_SPEED:
        return _as_asked(Dataset(listing.title, listing.variant, videos), sharp_input)
    if scored:
        taken = ", taken for high-speed frames" if spec.is_taken_for_high_speed else ""
        refuse(
            f"{text}{taken}: an exposure takes {exposure.tau} frames",
            [f"{v.name} has {len(video_frames(v)[-1])}" for v in videos if not len(v)],
        )
    averaged = f", {_AVERAGED['linear']}" if exposure.linear else ""
    variant = f"tau {exposure.tau}, period {exposure.period}{averaged}"
    return Dataset(listing.title, variant, videos)


def _rendered(text: str, split: Split, light: Light | None) -> Dataset:
    kind = text.partition(":")[2] or "narrow"
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


def _open(place: Place, exposure: Exposure) -> Video:
    """Opens one video."""
    if place.blurred is None:
        if os.path.isfile(place.sharp):  # Its frames come in turn only: they are decoded first.
            return HighSpeedVideo(place.name, pack_video(place.sharp), exposure)
        files = list_frames(place.sharp)
        return HighSpeedVideo(place.name, FrameFiles(tuple(files), *_common_size(files)), exposure)
    if place.blurred.name == MAPS_FILE:
        return _open_maps(place.name, place.blurred, place.sharp)
    blurred, sharp = (_by_stem(half) for half in (place.blurred, place.sharp))
    for one, other, kind in ((blurred, sharp, "sharp"), (sharp, blurred, "blurred")):
        for stem, file in one.items():
            if stem not in other:
                raise UserError(f"{file} has no {kind} frame")
    size = _common_size([*sharp.values(), *blurred.values()])
    halves = (FrameFiles(tuple(half[stem] for stem in blurred), *size) for half in (blurred, sharp))
    return PairedVideo(place.name, *halves)


def _open_maps(name: str, blurred: Path, sharp: Path) -> PairedVideo:
    maps, frames = ArrayFile.open(blurred, CHANNELS), ArrayFile.open(sharp, 3)
    if (len(maps), maps.height, maps.width) != (len(frames), frames.height, frames.width):
        raise UserError(f"{blurred}: not of the size of {sharp.name}")
    return PairedVideo(name, maps, frames)


def _by_stem(folder: Path) -> dict[str, Path]:
    """The frames of a folder by their names without suffix, in natural order."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    frames: dict[str, Path] = {}
    for file in list_frames(folder):
        if file.stem in frames:
            raise UserError(f"{file} and {frames[file.stem].name} have one name")
        frames[file.stem] = file
    if not frames:
        raise UserError(f"{folder}: holds no images")
    return frames


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """The (height, width) that all images share."""
    common = image_size(files[0])
    for file in files[1:]:
        if (size := image_size(file)) != common:
            raise UserError(
                f"{file} is {size[1]}x{size[0]}, unlike the {common[1]}x{common[0]} of {files[0]}"
            )
    return common
