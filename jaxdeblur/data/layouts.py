"""The layouts of data sets on disk: which folders hold a video's blurred and sharp frames.

Symbolic links are followed; no pattern has more than one ``*``, so a loop of links ends.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdeblur.errors import UserError
from jaxdeblur.video.formats import CONTAINERS, list_frames, natural_key

RENDERED = "rendered"
"""The data set without files: scenes that the package renders."""
HIGH_SPEED = "highspeed"
"""The layout of high-speed frames, which are averaged into blur."""
PATHS = "paths"
"""The layout of clips with maps of blur paths (training/path_clips.py)."""
MAPS_FILE, SHARP_FILE = "maps.npy", "sharp.npy"
"""Its files: uint8 ``T H W 14`` and ``T H W 3``."""


class Patterns(NamedTuple):
    """Where frames lie below a split's folder; ``*`` is the video's name."""

    sharp: str
    blurred: Mapping[str, str]
    """By variant, the default first; a layout without variants has the single key ""."""


SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


def paired(split: str) -> dict[str, Patterns]:
    """Returns the layouts of blurred and sharp frames, in the order in which they are tried."""
    short = SPLIT_FOLDERS[split][-1]
    return {
        "reds": Patterns(
            f"{short}_sharp/*", {"blur": f"{short}_blur/*", "blur_comp": f"{short}_blur_comp/*"}
        ),
        "pairs": Patterns("sharp/*", {"": "blur/*"}),  # or one video's frames without its folder
        "gopro": Patterns("*/sharp", {"blur": "*/blur", "blur_gamma": "*/blur_gamma"}),
        "bsd": Patterns("*/Sharp/RGB", {"": "*/Blur/RGB"}),
        "dvd": Patterns("*/GT", {"": "*/input"}),
        PATHS: Patterns(f"*/{SHARP_FILE}", {"": f"*/{MAPS_FILE}"}),
    }


LAYOUTS = (*paired("train"), HIGH_SPEED)
"""The names that may precede a path, as in ``gopro:/data/GOPRO_Large``."""

_DVD_FOLDER = "quantitative_datasets"

DVD_TEST_VIDEOS = {
    "720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031",
    "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049",
}  # fmt: skip
"""The authors' ten test videos, out of the 71 in one folder."""


class Spec(NamedTuple):
    """The layout and location of a data set."""

    layout: str
    """``rendered`` or one of ``LAYOUTS``."""
    root: Path
    """The folder or video file; meaningless for rendered scenes."""

    @property
    def has_variants(self) -> bool:
        """Whether there may be several kinds of blurred frames."""
        return self.layout in ("reds", "gopro")

    def check_variant(self, variant: str | None) -> None:
        """Checks that a ``variant`` is given only if the layout may have several.

        Raises:
          UserError: the layout has no variants.
        """
        if variant is not None and not self.has_variants:
            raise UserError(f"--variant={variant}: the layout {self.layout} has no variants")


class Place(NamedTuple):
    """The location of a video's frames."""

    name: str
    blurred: Path | None
    """None for high-speed frames."""
    sharp: Path
    """A folder, or a video file of high-speed frames."""


class Listing(NamedTuple):
    """The videos of a split, listed without opening any frame."""

    title: str
    """The data set's name in results: its folder's name, and the split if it has several."""
    variant: str
    places: list[Place]


def resolve(text: str) -> Spec:
    """Returns the data set that ``text`` names; its layout is given or recognised.

    Raises:
      UserError: the folder or layout does not exist, or no data set is recognised there.
    """
    layout, separator, path = text.partition(":")
    if layout == RENDERED:
        return Spec(RENDERED, Path())
    if layout not in LAYOUTS or not separator:
        layout, path = "", text
    root = Path(path)
    if layout in ("", HIGH_SPEED) and os.path.isfile(root):
        return Spec(HIGH_SPEED, root)
    if not path or not os.path.isdir(root):
        known = f"; the layouts are {', '.join([RENDERED, *LAYOUTS])}" if separator else ""
        raise UserError(f"{text}: no such folder{known}")
    return Spec(layout or _recognised(root), root)


def list_videos(spec: Spec, split: str, variant: str | None = None) -> Listing:
    """Lists the videos of a folder's split, in natural order.

    A folder without splits yields all its videos for each. ``variant`` selects the blurred frames;
    the default is the layout's first variant that exists.

    Raises:
      UserError: the split or variant does not exist, or there are no videos.
    """
    spec.check_variant(variant)
    root = spec.root
    if spec.layout == "dvd" and os.path.isdir(root / _DVD_FOLDER):
        root /= _DVD_FOLDER
    splits = _split_folders(root)
    if splits and split not in splits:
        raise UserError(f"{root}: has no {split} split, only {', '.join(splits)}")
    folder, title = splits.get(split, root), _title(spec.root)
    if splits or spec.layout in ("dvd", "reds"):
        title = f"{title}/{split}"
    if spec.layout == HIGH_SPEED:
        if not (places := high_speed_videos(folder)):
            raise UserError(f"{folder}: contains no frames, folders of frames or videos")
        return Listing(title, "", places)
    sharp, blurred = paired(split)[spec.layout]
    there = [name for name, pattern in blurred.items() if _has(folder, pattern)]
    if not there:
        raise UserError(f"{folder}: contains no folder {' or '.join(blurred.values())}")
    if variant is not None and variant not in there:
        raise UserError(f"{spec.root}: has no variant {variant!r}, only {', '.join(there)}")
    variant = variant or there[0]
    halves = blurred[variant], sharp
    if spec.layout == "pairs" and any(list_frames(folder / half[:-2]) for half in halves):
        return Listing(title, "", [Place(title, folder / "blur", folder / "sharp")])
    names = {name for half in halves for name in _videos(folder, half)}
    if spec.layout == "dvd" and not splits:
        chosen = {"train": names - DVD_TEST_VIDEOS, "test": names & DVD_TEST_VIDEOS}
        names = chosen.get(split, set())
    if not names:
        raise UserError(f"{folder}: contains no videos of the {split} split")
    places = [
        Place(name, *(folder / half.replace("*", name) for half in halves))
        for name in sorted(names, key=natural_key)
    ]
    return Listing(title, variant, places)


def high_speed_videos(root: Path) -> list[Place]:
    """Lists the high-speed videos of a video file, a folder of frames, or a folder of these."""
    if os.path.isfile(root) or list_frames(root):
        return [Place(_title(root), None, root)]
    return [
        Place(entry.name, None, entry)
        for entry in sorted(root.iterdir(), key=lambda entry: natural_key(entry.name))
        if not entry.name.startswith(".")
        and (list_frames(entry) if os.path.isdir(entry) else entry.suffix.lower() in CONTAINERS)
    ]


def choose(
    names: Mapping[str, Sequence[str]], only: Sequence[str], exclude: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the video ``names`` of each data set that ``only`` and ``exclude`` leave.

    Raises:
      UserError: a text matches no video of any data set, or a data set has no video left.
    """
    wanted, unwanted = matching(names, "only", only), matching(names, "exclude", exclude)
    kept = {
        spec: [n for n in of_one if (not only or n in wanted) and n not in unwanted]
        for spec, of_one in names.items()
    }
    for spec, left in kept.items():
        if not left:
            raise UserError(f"{spec}: --only and --exclude leave no videos")
    return kept


def matching(names: Mapping[str, Sequence[str]], option: str, texts: Sequence[str]) -> set[str]:
    """Returns the ``names`` that the texts of an option select, in any of the data sets.

    A text is a prefix, or a whole name, which then selects no others: video1, but not video10.

    Raises:
      UserError: a text matches no video.
    """
    everything = list(dict.fromkeys(itertools.chain(*names.values())))
    found: set[str] = set()
    for text in texts:
        fits = [text] if text in everything else [n for n in everything if n.startswith(text)]
        if not fits:
            raise UserError(
                f"--{option}={text}: matches no video of {', '.join(names)}; the videos are "
                f"{', '.join(everything[:20])}{', ...' if len(everything) > 20 else ''}"
            )
        found |= set(fits)
    return found


def _recognised(root: Path) -> str:
    """Returns the first layout of which ``root`` has blurred and sharp, or high-speed, frames."""
    if os.path.isdir(root / _DVD_FOLDER):
        return "dvd"
    folders = _split_folders(root) or dict.fromkeys(SPLIT_FOLDERS, root)
    for name in LAYOUTS[:-1]:
        for split, folder in folders.items():
            sharp, blurred = paired(split)[name]
            if _has(folder, sharp) and any(_has(folder, p) for p in blurred.values()):
                return name
    if any(map(high_speed_videos, folders.values())):
        return HIGH_SPEED
    raise UserError(
        f"{root}: no data set recognised; the layouts are {', '.join(LAYOUTS)} (docs/data.md)"
    )


def _has(folder: Path, pattern: str) -> bool:
    """Returns whether a folder matches; a pattern that ends with ``*`` only needs the parent."""
    if pattern.endswith("/*"):
        return os.path.isdir(folder / pattern[:-2])
    return bool(_videos(folder, pattern))


def _videos(folder: Path, pattern: str) -> list[str]:
    """Returns the names that ``*`` matches."""
    above, _, below = pattern.partition("*")
    is_there = os.path.isfile if below.endswith(".npy") else os.path.isdir
    return [
        entry.name
        for entry in (folder / above).iterdir()
        if not entry.name.startswith(".") and is_there(entry / below.strip("/"))
    ]


def _split_folders(root: Path) -> dict[str, Path]:
    return {
        split: root / folder
        for split, folders in SPLIT_FOLDERS.items()
        for folder in folders
        if os.path.isdir(root / folder)
    }


def _title(root: Path) -> str:
    return Path(os.path.abspath(root)).name  # without ".."
