"""Opens data sets: rendered scenes and folders of every layout, checked whole when opened."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.frames import (
    DecodedFrames,
    FrameFiles,
    Frames,
    VideoFile,
    high_speed_sources,
    pack,
)
from jaxdeblur.data.layouts import (
    LAYOUTS,
    PAIRED,
    WITH_VARIANTS,
    Place,
    printable,
    recognised,
    split_folder,
)
from jaxdeblur.data.photographs import SPLITS
from jaxdeblur.data.test_scenes import SCENES, rendered_videos, show_rendering
from jaxdeblur.data.videos import Dataset, HighSpeedVideo, PairedVideo, Video, refuse
from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder
from jaxdeblur.video.formats import MAX_PIXELS, list_frames
from jaxdeblur.video.image_file import image_size

RENDERED = "rendered"
"""The data set that needs no files: scenes that the package renders."""

Light: TypeAlias = Literal["linear", "stored"]
"""What an exposure averages: light (gamma 2.2), or the values as they are stored."""

_AVERAGED = {"linear": "linear light", "stored": "stored values"}


def open_dataset(
    spec: str,
    split: str,
    *,
    variant: str | None = None,
    exposure: Exposure | None = None,
    light: Light | None = None,
    sharp_input: bool = False,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    scored: bool = True,
) -> Dataset:
    """Opens a data set and checks all of it: every frame's partner and size.

    Args:
      spec: ``rendered``, ``rendered:CONFIGURATION`` (of ``test_scenes.SCENES``), ``rendered:20px``
        (at 1280x720 with that blur), a folder whose layout is recognised, or ``LAYOUT:FOLDER``.
      split: train, validation or test. A folder that does not tell splits apart gives the same
        videos for each: tell them apart by ``only`` and ``exclude``.
      variant: which blurred frames, where there are several: blur or blur_gamma (gopro), blur or
        blur_comp (reds). Default: blur if it is there.
      exposure: how high-speed frames are averaged; default ``Exposure()``. No other layout has any.
      light: of high-speed frames and rendered scenes: what is averaged, in place of what
        ``exposure`` or the scenes' configuration say.
      sharp_input: the blurred frames are the sharp ones, which should come out as they go in.
      only: takes the videos that are named so, or begin so, alone.
      exclude: leaves out the videos that are named so or begin so.
      max_pixels: larger frames are refused before they are decoded.
      scored: whether every video has to hold a whole exposure; to train on, clips have their own.

    Raises:
      UserError: there is no such data set, split or variant, or frames are missing, unmatched,
        unreadable or of different sizes: all of them are named in the one message.
    """
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    layout, root = _layout_and_root(spec)
    if variant is not None and layout not in WITH_VARIANTS:
        raise UserError(f"{spec}: the layout {layout} has no variants, so not {variant!r} either")
    if exposure is not None and layout != "highspeed":
        raise UserError(f"{spec}: is blurred already; tau and period are for high-speed frames")
    if light is not None and layout not in (RENDERED, "highspeed"):
        raise UserError(f"{spec}: is blurred already; light is of rendered and high-speed frames")
    if sharp_input and layout == "highspeed":
        raise UserError(f"{spec}: high-speed frames go in as they are with tau 1")
    if layout == RENDERED:
        return _rendered(spec, split, light, sharp_input, only, exclude)
    if layout == "highspeed":
        exposure = exposure or Exposure()
        if light is not None:
            exposure = dataclasses.replace(exposure, linear=light == "linear")
        fast = _high_speed(root, split, exposure, only, exclude, max_pixels)
        if scored:
            taken = ", taken for high-speed frames" if is_taken_for_high_speed(spec) else ""
            refuse(
                f"{spec}{taken}: an exposure takes {exposure.tau} frames",
                [
                    f"{video.name} has {len(video.frames)}"
                    for video in fast.videos
                    if isinstance(video, HighSpeedVideo) and not len(video)
                ],
            )
        return fast
    found = PAIRED[layout](root, split, variant)
    chosen = set(_choose([place.name for place in found.places], only, exclude, spec))
    videos = _paired_videos(root, [p for p in found.places if p.name in chosen], max_pixels)
    return _as_asked(Dataset(found.name, found.variant, videos), sharp_input)


def video_names(spec: str, split: str, variant: str | None = None) -> list[str]:
    """The names in a folder that ``only`` and ``exclude`` choose from, no frame of which is looked
    at; arguments and errors as of :func:`open_dataset`."""
    layout, root = _layout_and_root(spec)
    if layout == "highspeed":
        return [printable(name) for name, _ in high_speed_sources(split_folder(root, split)[0])]
    return [place.name for place in PAIRED[layout](root, split, variant).places]


def fitting_names(names: Sequence[str], text: str) -> list[str]:
    """Which ``names`` the ``text`` of an option means: that very one, else all that begin so."""
    # A whole name wins, so that video1 can be told from video10.
    return [n for n in names if n == text] or [n for n in names if n.startswith(text)]


def has_variants(spec: str) -> bool:
    """Whether a data set may have several kinds of blurred frames; raises as ``open_dataset``."""
    return _layout_and_root(spec)[0] in WITH_VARIANTS


def is_taken_for_high_speed(spec: str) -> bool:
    """Whether frames count as high-speed ones without being called so; raises likewise."""
    return not spec.startswith("highspeed:") and _layout_and_root(spec)[0] == "highspeed"


def _layout_and_root(spec: str) -> tuple[str, Path]:
    """The layout that ``spec`` names or its folder has, and the folder."""
    layout, separator, path = spec.partition(":")
    if layout == RENDERED:
        return RENDERED, Path()
    if layout not in LAYOUTS or not separator:
        layout, path = "", spec
    root = Path(path)
    if not path:
        raise UserError(f"data set {spec!r}: names no folder")
    if layout in ("", "highspeed") and os.path.isfile(root):
        return "highspeed", root
    if not os.path.isdir(root):
        if separator and not layout and os.path.exists(spec.partition(":")[2]):
            known = ", ".join([RENDERED, *LAYOUTS])
            raise UserError(f"{spec}: no such layout; there are {known}")
        raise UserError(f"{spec}: no such folder")
    return layout or recognised(root), root


_BLUR = re.compile(r"(\d{1,3}(?:\.\d)?)px", re.ASCII)  # 20px: a speed
# What real footage has: 720p, and motion of tens of pixels. Few and short, for they are large.
_BLUR_SCENES, _BLUR_FRAMES, _BLUR_SIZE = 4, 8, (720, 1280)
_MOST_BLUR = 100


def _rendered(
    spec: str,
    split: str,
    light: Light | None,
    sharp_input: bool,
    only: Sequence[str],
    exclude: Sequence[str],
) -> Dataset:
    name = spec.partition(":")[2] or "narrow"
    linear = None if light is None else light == "linear"
    known = next(s for s in SPLITS if s == split)
    if blur := _BLUR.fullmatch(name):
        if not 0 < float(blur[1]) <= _MOST_BLUR:
            raise UserError(f"{spec}: the blur is above 0 and at most {_MOST_BLUR} pixels")
        found = rendered_videos(
            known,
            scenes=_BLUR_SCENES,
            size=_BLUR_SIZE,
            frames=_BLUR_FRAMES,
            blur_pixels=float(blur[1]),
            linear=linear,
            progress=show_rendering(),
        )
    elif name in SCENES:
        found = rendered_videos(
            known, config=SCENES[name], linear=linear, progress=show_rendering()
        )
    else:
        raise UserError(
            f"{spec}: rendered scenes are {', '.join(SCENES)}, or at 1280x720 with a blur as "
            f"20px, not {name!r}"
        )
    scenes = {scene.name: scene for scene in found}
    videos = [
        PairedVideo(
            chosen,
            DecodedFrames(scenes[chosen].blurred_frames),
            DecodedFrames(scenes[chosen].sharp_frames),
        )
        for chosen in _choose(list(scenes), only, exclude, spec)
    ]
    variant = name if light is None else f"{name}, {_AVERAGED[light]}"
    return _as_asked(Dataset(f"rendered/{split}", variant, videos), sharp_input)


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


def _paired_videos(root: Path, places: Sequence[Place], max_pixels: int) -> list[Video]:
    """Opens the videos, or raises one error that names all that is wrong with them."""
    if not places:
        raise UserError(f"{root}: holds no videos")
    problems: list[str] = []
    matched: list[tuple[str, list[Path], list[Path]]] = []
    for place in places:
        blurred = _by_stem(place.blurred, root, problems)
        sharp = _by_stem(place.sharp, root, problems)
        for one, other, kind in ((blurred, sharp, "sharp"), (sharp, blurred, "blurred")):
            alone = [file for stem, file in one.items() if stem not in other]
            problems += [f"{_below(root, file)} has no {kind} frame" for file in alone]
        stems = [stem for stem in blurred if stem in sharp]
        matched.append((place.name, [blurred[s] for s in stems], [sharp[s] for s in stems]))
    files = [file for _, *halves in matched for half in halves for file in half]
    sizes = _sizes(root, files, max_pixels, problems)
    videos: list[Video] = []
    for name, *halves in matched:
        files = [file for half in reversed(halves) for file in half]
        size = _common_size(root, files, sizes, problems)
        if size is not None:
            frames = [FrameFiles(tuple(half), *size, max_pixels) for half in halves]
            videos.append(PairedVideo(name, frames[0], frames[1]))
    refuse(f"{root}: {len(problems)} problem(s)", problems)
    return videos


def _high_speed(
    root: Path,
    split: str,
    exposure: Exposure,
    only: Sequence[str],
    exclude: Sequence[str],
    max_pixels: int,
) -> Dataset:
    folder, title = split_folder(root, split)
    found = high_speed_sources(folder)
    sources = {printable(name): source for name, source in found}
    chosen = {name: sources[name] for name in _choose(list(sources), only, exclude, str(root))}
    problems: list[str] = []
    files = [file for source in chosen.values() if isinstance(source, list) for file in source]
    sizes = _sizes(root, files, max_pixels, problems)
    frames: dict[str, Frames] = {}
    for name, source in chosen.items():
        if isinstance(source, list):
            if (size := _common_size(root, source, sizes, problems)) is not None:
                frames[name] = FrameFiles(tuple(source), *size, max_pixels)
            continue
        try:  # A video file's frames come in turn only: they are decoded first, once.
            frames[name] = pack([VideoFile.open(source, max_pixels)], cache_folder())[0]
        except UserError as error:
            problems.append(str(error))
    refuse(f"{root}: {len(problems)} problem(s)", problems)
    videos = [HighSpeedVideo(name, frames[name], exposure) for name in chosen]
    light = f", {_AVERAGED['linear']}" if exposure.linear else ""
    variant = f"tau {exposure.tau}, period {exposure.period}{light}"
    return Dataset(title, variant, videos)


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


def _sizes(
    root: Path, files: Iterable[Path], max_pixels: int, problems: list[str]
) -> dict[Path, tuple[int, int]]:
    """The (height, width) of the readable ones of ``files``, from their headers."""

    def size(file: Path) -> tuple[int, int] | UserError:
        try:
            return image_size(file, max_pixels)
        except UserError as error:
            return error

    sizes: dict[Path, tuple[int, int]] = {}
    files = list(files)
    with ThreadPoolExecutor(8) as readers:  # a disk answers several questions at a time
        for file, answer in zip(files, readers.map(size, files), strict=True):
            if isinstance(answer, UserError):
                problems.append(str(answer).removeprefix(f"{root}/"))
            else:
                sizes[file] = answer
    return sizes


def _common_size(
    root: Path,
    files: Sequence[Path],
    sizes: dict[Path, tuple[int, int]],
    problems: list[str],
) -> tuple[int, int] | None:
    """The size that the frames of a video share: the first one's; the others are named."""
    known = [(file, sizes[file]) for file in files if file in sizes]
    if not known:
        return None
    height, width = known[0][1]
    for file, size in known:
        if size != (height, width):
            problems.append(
                f"{_below(root, file)} is {size[1]}x{size[0]}, unlike the {width}x{height} of "
                f"{_below(root, known[0][0])}"
            )
    return height, width


def _choose(
    names: Sequence[str], only: Sequence[str], exclude: Sequence[str], spec: str
) -> list[str]:
    """The names that ``only`` and ``exclude`` leave, each of which must fit at least one name."""

    def fitting(wanted: Sequence[str], option: str) -> set[str]:
        chosen: set[str] = set()
        for text in wanted:
            if not (fits := fitting_names(names, text)):
                raise UserError(
                    f"--{option}={text}: no video of {spec} begins so; it has "
                    f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
                )
            chosen |= set(fits)
        return chosen

    kept = fitting(only, "only") if only else set(names)
    kept -= fitting(exclude, "exclude")
    if names and not kept:
        raise UserError(f"{spec}: --only and --exclude leave no video")
    return [name for name in names if name in kept]


def _below(root: Path, path: Path) -> str:
    return printable(str(path.relative_to(root)))
