"""The layouts of data sets on disk: which folders hold the blurred and the sharp frames of a video.

| layout | folders |
|---|---|
| gopro | [SPLIT/]VIDEO/{blur,blur_gamma,sharp}/ |
| dvd | [quantitative_datasets/]VIDEO/{input,GT}/ or SPLIT/VIDEO/{input,GT}/ |
| bsd | [SPLIT/]VIDEO/{Blur,Sharp}/RGB/ |
| reds | [{train,val}/]{train,val}_{blur,blur_comp,sharp}/VIDEO/ |
| pairs | [SPLIT/]{blur,sharp}/ or [SPLIT/]{blur,sharp}/VIDEO/ |
| highspeed | [SPLIT/]VIDEO/ of high-speed frames, or video files; blurred by eq. 1 |

Symbolic links are followed, but no layout is deeper than these, so that a loop of links ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdeblur.data.frames import high_speed_sources
from jaxdeblur.errors import UserError
from jaxdeblur.video.formats import list_frames, natural_key

LAYOUTS = ("gopro", "dvd", "bsd", "reds", "pairs", "highspeed")
"""The names that may stand before a path, as in ``gopro:/data/GOPRO_Large``."""

WITH_VARIANTS = ("gopro", "reds")

_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}

DVD_TEST_VIDEOS = (
    "720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031",
    "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049",
)  # fmt: skip
"""The ten videos that its authors test on, of the 71 that lie together in one folder."""


class Place(NamedTuple):
    """Where the frames of a video lie."""

    name: str
    blurred: Path
    sharp: Path


class Found(NamedTuple):
    """What a layout says is there, before any frame is looked at."""

    name: str
    variant: str
    places: list[Place]


def _gopro(root: Path, split: str, variant: str | None) -> Found:
    folder, title = split_folder(root, split)
    videos = _subfolders(folder)
    there = [v for v in ("blur", "blur_gamma") if any(os.path.isdir(f / v) for f in videos)]
    variant = _pick_variant(folder, variant, there)
    places = [Place(_name(video), video / variant, video / "sharp") for video in videos]
    return Found(title, variant, places)


def _dvd(root: Path, split: str, variant: str | None) -> Found:
    below = root / "quantitative_datasets"
    folder, title = split_folder(below if os.path.isdir(below) else root, split)
    videos = _subfolders(folder)
    if folder in (root, below):  # no splits: its authors' test videos are told by their names
        if split == "validation":
            raise UserError(f"{root}: has the splits train, test, not validation")
        videos = [v for v in videos if (v.name in DVD_TEST_VIDEOS) == (split == "test")]
        title = f"{_title(root)}/{split}"
    places = [Place(_name(video), video / "input", video / "GT") for video in videos]
    return Found(title, "", places)


def _bsd(root: Path, split: str, variant: str | None) -> Found:
    folder, title = split_folder(root, split)
    places = [
        Place(_name(video), video / "Blur" / "RGB", video / "Sharp" / "RGB")
        for video in _subfolders(folder)
    ]
    return Found(title, "", places)


def _reds(root: Path, split: str, variant: str | None) -> Found:
    short = {"train": "train", "validation": "val", "test": "test"}[split]
    folder = next((f for f in (root / short, root) if os.path.isdir(f / f"{short}_sharp")), None)
    if folder is None:
        raise UserError(f"{root}: has no folder {short}_sharp for the split {split}")
    there = [v for v in ("blur", "blur_comp") if os.path.isdir(folder / f"{short}_{v}")]
    variant = _pick_variant(root, variant, there)
    blurred, sharp = folder / f"{short}_{variant}", folder / f"{short}_sharp"
    return Found(f"{_title(root)}/{split}", variant, _side_by_side(blurred, sharp))


def _pairs(root: Path, split: str, variant: str | None) -> Found:
    folder, title = split_folder(root, split)
    blurred, sharp = folder / "blur", folder / "sharp"
    for half in (blurred, sharp):
        if not os.path.isdir(half):
            raise UserError(f"{half}: no such folder; pairs lie in blur and sharp")
    if list_frames(blurred) or list_frames(sharp):
        return Found(title, "", [Place(_title(root), blurred, sharp)])
    return Found(title, "", _side_by_side(blurred, sharp))


PAIRED: dict[str, Callable[[Path, str, str | None], Found]] = {
    "gopro": _gopro,
    "dvd": _dvd,
    "bsd": _bsd,
    "reds": _reds,
    "pairs": _pairs,
}


def recognised(root: Path) -> str:
    """The layout of ``root``."""
    splits = [root / name for names in _SPLIT_FOLDERS.values() for name in names]
    splits = [folder for folder in splits if os.path.isdir(folder)]
    for folder in (root, *splits):
        if any(os.path.isdir(folder / name) for name in ("train_sharp", "val_sharp")):
            return "reds"
    if os.path.isdir(root / "quantitative_datasets"):
        return "dvd"
    for folder in splits or [root]:
        if os.path.isdir(folder / "blur") and os.path.isdir(folder / "sharp"):
            return "pairs"
        for video in _subfolders(folder):
            if os.path.isdir(video / "sharp"):
                return "gopro"
            if os.path.isdir(video / "Blur" / "RGB") or os.path.isdir(video / "Sharp" / "RGB"):
                return "bsd"
            if os.path.isdir(video / "input") and os.path.isdir(video / "GT"):
                return "dvd"
        try:
            high_speed_sources(folder)
        except UserError:
            continue
        return "highspeed"
    raise UserError(
        f"{root}: no data set is recognised there; layouts are {', '.join(LAYOUTS)} (docs/data.md)"
    )


def _pick_variant(root: Path, variant: str | None, there: Sequence[str]) -> str:
    if not there:
        raise UserError(f"{root}: has no blurred frames where they belong")
    if variant is not None and variant not in there:
        raise UserError(f"{root}: has the variants {', '.join(there)}, not {variant!r}")
    return variant or there[0]


def _side_by_side(blurred: Path, sharp: Path) -> list[Place]:
    """The videos of two folders that each have one folder a video."""
    names = {f.name for half in (blurred, sharp) for f in _subfolders(half)}
    return [
        Place(printable(name), blurred / name, sharp / name)
        for name in sorted(names, key=natural_key)
    ]


def split_folder(root: Path, split: str) -> tuple[Path, str]:
    """The folder of a split with its title, or ``root`` itself if that has no splits."""
    there = {
        name: root / folder
        for name, folders in _SPLIT_FOLDERS.items()
        for folder in folders
        if os.path.isdir(root / folder)
    }
    if not there:
        return root, _title(root)
    if split not in there:
        raise UserError(f"{root}: has the splits {', '.join(there)}, not {split}")
    return there[split], f"{_title(root)}/{split}"


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = [f for f in folder.iterdir() if not f.name.startswith(".") and os.path.isdir(f)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda f: natural_key(f.name))


def _title(root: Path) -> str:
    """What results call a data set: its folder's name."""
    return printable(root.absolute().name or root.absolute().anchor)


def _name(video: Path) -> str:
    return printable(video.name)


def printable(name: str) -> str:
    """``name`` with what cannot be printed (bytes that are no text) written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
