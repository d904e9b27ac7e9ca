"""Opens data sets: rendered scenes and folders of every layout, fully checked when opened."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.data.layouts import (
    HIGH_SPEED,
    MAPS_FILE,
    RENDERED,
    SHARP_FILE,
    Place,
    choose,
    list_videos,
    resolve,
)
from jaxdeblur.data.textures import Split
from jaxdeblur.data.videos import (
    ArrayFile,
    Dataset,
    FrameFiles,
    HighSpeedVideo,
    PairedVideo,
    Video,
    pack_video,
    refuse,
)
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import MAP_CHANNELS
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import image_size

Light: TypeAlias = Literal["linear", "stored"]
"""What an exposure averages: light (gamma 2.2) or stored values."""

_AVERAGED = {"linear": "linear light", "stored": "stored values"}


def open_dataset(
    spec: str,
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
    named = resolve(spec)
    layout, is_fast = named.layout, named.layout == HIGH_SPEED
    named.check_variant(variant)
    if exposure is not None and not is_fast:
        raise UserError(f"{spec}: already blurred; tau and period apply to high-speed frames only")
    if light is not None and layout not in (RENDERED, HIGH_SPEED):
        raise UserError(
            f"{spec}: already blurred; light applies to rendered and high-speed frames only"
        )
    if sharp_input and is_fast:
        raise UserError(f"{spec}: sharp input does not apply to high-speed frames; use tau 1")
    exposure = exposure or Exposure()
    if light is not None:
        exposure = dataclasses.replace(exposure, linear=light == "linear")

    found: Sequence[Any]
    if layout == RENDERED:
        title, variant = f"rendered/{split}", spec.partition(":")[2] or "narrow"
        linear = None if light is None else exposure.linear
        found = rendered_videos(split, variant, linear=linear)
    else:
        title, variant, found = list_videos(named, split, variant)
    kept = choose({spec: [video.name for video in found]}, only, exclude)[spec]
    found = [video for video in found if video.name in kept]
    if layout != RENDERED:
        with ThreadPoolExecutor(8) as readers:  # a disk serves several requests at a time
            found = list(readers.map(functools.partial(_open, exposure=exposure), found))
    if is_fast:
        variant = f"tau {exposure.tau}, period {exposure.period}"
        light = "linear" if exposure.linear else None
        if scored:
            refuse(
                f"{spec}, high-speed frames: an exposure needs {exposure.tau} frames",
                [f"{video.name} has {len(video.frames)}" for video in found if not len(video)],
            )
    about = [variant, _AVERAGED[light] if light else ""]
    if sharp_input:
        about.append("sharp frames as input")
        found = [dataclasses.replace(v, blurred_frames=v.sharp_frames) for v in found]
    return Dataset(title, ", ".join(filter(None, about)), found)


def _open(place: Place, exposure: Exposure) -> Video:
    if place.blurred is None:
        if os.path.isfile(place.sharp):  # Read only in order, so it is decoded first.
            return HighSpeedVideo(place.name, pack_video(place.sharp), exposure)
        files = list_frames(place.sharp)
        return HighSpeedVideo(place.name, FrameFiles(tuple(files), *_common_size(files)), exposure)
    if place.blurred.name == MAPS_FILE:
        maps, frames = ArrayFile.open(place.blurred, MAP_CHANNELS), ArrayFile.open(place.sharp, 3)
        if (len(maps), maps.height, maps.width) != (len(frames), frames.height, frames.width):
            raise UserError(f"{place.blurred}: differs in length or size from {SHARP_FILE}")
        return PairedVideo(place.name, maps, frames)
    blurred, sharp = _by_stem(place.blurred), _by_stem(place.sharp)
    for stem in sorted(blurred.keys() ^ sharp.keys()):
        kind = "sharp" if stem in blurred else "blurred"
        raise UserError(f"{(blurred | sharp)[stem]}: has no matching {kind} frame")
    size = _common_size([*sharp.values(), *blurred.values()])
    halves = (FrameFiles(tuple(half[stem] for stem in blurred), *size) for half in (blurred, sharp))
    return PairedVideo(place.name, *halves)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Returns a folder's frames by their names without suffix, in natural order."""
    if not (frames := list_frames(folder)):
        raise UserError(f"{folder}: contains no images")
    return {file.stem: file for file in frames}


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """Returns the (height, width) that all images share."""
    common = image_size(files[0])
    for file in files[1:]:
        if (size := image_size(file)) != common:
            raise UserError(
                f"{file}: {size[1]}x{size[0]} pixels, but {files[0]} has {common[1]}x{common[0]}"
            )
    return common
