"""Opens data sets: rendered scenes and folders of every layout, fully checked when opened."""

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
"""What an exposure averages: light (gamma 2.2) or stored values."""

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
    """Opens a data set and checks every frame's partner and size.

    Args:
      spec: ``rendered``, ``rendered:KIND`` (see ``fixed_scenes.fixed_kinds``), a folder whose
        layout is recognised, or ``LAYOUT:FOLDER``.
      split: train, validation or test. A folder without splits yields the same videos for each;
        ``only`` and ``exclude`` can separate them.
      variant: which blurred frames to use if there are several: blur or blur_gamma (gopro), blur or
        blur_comp (reds). Default: blur if it exists.
      exposure: how high-speed frames are averaged; default ``Exposure()``. Only for that layout.
      light: what is averaged in high-speed frames and rendered scenes; overrides ``exposure`` or
        the scenes.
      sharp_input: uses the sharp frames as input, which should be returned unchanged.
      only: keeps only videos with one of these names or prefixes.
      exclude: leaves out videos with one of these names or prefixes.
      scored: whether every video must hold a whole ``exposure``; training clips draw their own.

    Raises:
      UserError: the data set, split or variant does not exist, or a frame is missing, unmatched,
        unreadable or of another size.
    """
    spec = resolve(spec) if isinstance(spec, str) else spec
    text, layout = spec.text, spec.layout
    spec.check_variant(variant)
    if exposure is not None and layout != HIGH_SPEED:
        raise UserError(f"{text}: already blurred; tau and period apply to high-speed frames only")
    if light is not None and layout not in (RENDERED, HIGH_SPEED):
        raise UserError(
            f"{text}: already blurred; light applies to rendered and high-speed frames only"
        )
    if sharp_input and layout == HIGH_SPEED:
        raise UserError(f"{text}: sharp input does not apply to high-speed frames; use tau 1")
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
    with ThreadPoolExecutor(8) as readers:  # a disk serves several requests at a time
        videos = list(readers.map(functools.partial(_open, exposure=exposure), places))
    if layout != HIGH_SPEED:
        return _as_asked(Dataset(listing.title, listing.variant, videos), sharp_input)
    if scored:
        taken = ", treated as high-speed frames" if spec.is_taken_for_high_speed else ""
        refuse(
            f"{text}{taken}: an exposure needs {exposure.tau} frames",
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
    """Replaces the blurred frames by the sharp ones if ``sharp_input`` is set."""
    if not sharp_input:
        return dataset
    videos = [
        dataclasses.replace(video, blurred_frames=video.sharp_frames)
        for video in dataset.videos
        if isinstance(video, PairedVideo)
    ]
    variant = ", ".join(filter(None, [dataset.variant, "sharp frames as input"]))
    return Dataset(dataset.name, variant, videos)


def _open(place: Place, exposure: Exposure) -> Video:
    if place.blurred is None:
        if os.path.isfile(place.sharp):  # Read only in order, so it is decoded first.
            return HighSpeedVideo(place.name, pack_video(place.sharp), exposure)
        files = list_frames(place.sharp)
        return HighSpeedVideo(place.name, FrameFiles(tuple(files), *_common_size(files)), exposure)
    if place.blurred.name == MAPS_FILE:
        return _open_maps(place.name, place.blurred, place.sharp)
    blurred, sharp = (_by_stem(half) for half in (place.blurred, place.sharp))
    for one, other, kind in ((blurred, sharp, "sharp"), (sharp, blurred, "blurred")):
        for stem, file in one.items():
            if stem not in other:
                raise UserError(f"{file}: has no matching {kind} frame")
    size = _common_size([*sharp.values(), *blurred.values()])
    halves = (FrameFiles(tuple(half[stem] for stem in blurred), *size) for half in (blurred, sharp))
    return PairedVideo(place.name, *halves)


def _open_maps(name: str, blurred: Path, sharp: Path) -> PairedVideo:
    maps, frames = ArrayFile.open(blurred, CHANNELS), ArrayFile.open(sharp, 3)
    if (len(maps), maps.height, maps.width) != (len(frames), frames.height, frames.width):
        raise UserError(f"{blurred}: differs in length or size from {sharp.name}")
    return PairedVideo(name, maps, frames)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Returns a folder's frames by their names without suffix, in natural order."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    frames: dict[str, Path] = {}
    for file in list_frames(folder):
        if file.stem in frames:
            raise UserError(f"{file} and {frames[file.stem].name} differ only in their suffix")
        frames[file.stem] = file
    if not frames:
        raise UserError(f"{folder}: contains no images")
    return frames


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """Returns the (height, width) that all images share."""
    common = image_size(files[0])
    for file in files[1:]:
        if (size := image_size(file)) != common:
            raise UserError(
                f"{file}: {size[1]}x{size[0]} pixels, but {files[0]} has {common[1]}x{common[0]}"
            )
    return common
