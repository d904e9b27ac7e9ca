"""The layouts of data sets on disk: which folders hold the blurred and the sharp frames of a video.

Symbolic links are followed, but no pattern has more than one ``*``, so that a loop of links ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdeblur.errors import UserError
from jaxdeblur.video.formats import CONTAINERS, list_frames, natural_key

RENDERED = "rendered"
"""The data set that needs no files: scenes that the package renders."""
HIGH_SPEED = "highspeed"
"""The layout of frames that are averaged into blur."""
MAPS_FILE, SHARP_FILE = "maps.npy", "sharp.npy"
"""Of clips with maps of blur paths (training/path_clips.py): uint8 ``T H W 14``, ``T H W 3``."""


class Patterns(NamedTuple):
    """Where frames lie below the folder of a split; ``*`` is the name of the video."""

    sharp: str
    blurred: Mapping[str, str]
    """By variant, the default first; the one kind of a layout without variants is called ""."""


PAIRED = {  # in the order in which they are looked for
    "reds": Patterns(
        "{split}_sharp/*", {"blur": "{split}_blur/*", "blur_comp": "{split}_blur_comp/*"}
    ),
    "pairs": Patterns("sharp/*", {"": "blur/*"}),  # or the frames of one video, without its folder
    "gopro": Patterns("*/sharp", {"blur": "*/blur", "blur_gamma": "*/blur_gamma"}),
    "bsd": Patterns("*/Sharp/RGB", {"": "*/Blur/RGB"}),
    "dvd": Patterns("*/GT", {"": "*/input"}),
    "paths": Patterns(f"*/{SHARP_FILE}", {"": f"*/{MAPS_FILE}"}),
}

LAYOUTS = (*PAIRED, HIGH_SPEED)
"""The names that may stand before a path, as in ``gopro:/data/GOPRO_Large``."""

SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}

_DVD_FOLDER = "quantitative_datasets"

DVD_TEST_VIDEOS = (
    "720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031",
    "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049",
)  # fmt: skip
"""The ten videos that its authors test on, of the 71 that lie together in one folder."""


class Spec(NamedTuple):
    """A data set as an option names it, and what that means."""

    text: str
    layout: str
    """``rendered`` or one of ``LAYOUTS``."""
    root: Path
    """The folder or video file; of no meaning for rendered scenes."""

    @property
    def has_variants(self) -> bool:
        """Whether there may be several kinds of blurred frames."""
        return self.layout in PAIRED and "" not in PAIRED[self.layout].blurred

    @property
    def is_taken_for_high_speed(self) -> bool:
        """Whether frames count as high-speed ones without being called so."""
        return self.layout == HIGH_SPEED and not self.text.startswith(f"{HIGH_SPEED}:")

    def check_variant(self, variant: str | None) -> None:
        """Refuses a variant of a layout that has none.

        Raises:
          UserError: see above.
        """
        if variant is not None and not self.has_variants:
            raise UserError(
                f"{self.text}: the layout {self.layout} has no variants, so not {variant!r} either"
            )


class Place(NamedTuple):
    """Where the frames of a video lie."""

    name: str
    blurred: Path | None
    """None for high-speed frames."""
    sharp: Path
    """A folder, or a video file of high-speed frames."""


class Listing(NamedTuple):
    """The videos of a split, before any frame is looked at."""

    title: str
    """What results call the data set: its folder's name, and the split if it has several."""
    variant: str
    places: list[Place]


def resolve(text: str) -> Spec:
    """The layout that ``text`` names or its folder has.

    Raises:
      UserError: there is no such folder or layout, or no data set is recognised there.
    """
    layout, separator, path = text.partition(":")
    if layout == RENDERED:
        return Spec(text, RENDERED, Path())
    if layout not in LAYOUTS or not separator:
        layout, path = "", text
    root = Path(path)
    if not path:
        raise UserError(f"data set {text!r}: names no folder")
    if layout in ("", HIGH_SPEED) and os.path.isfile(root):
        return Spec(text, HIGH_SPEED, root)
    if not os.path.isdir(root):
        if separator and not layout and os.path.exists(text.partition(":")[2]):
            known = ", ".join([RENDERED, *LAYOUTS])
            raise UserError(f"{text}: no such layout; there are {known}")
        raise UserError(f"{text}: no such folder")
    return Spec(text, layout or _recognised(root), root)


def list_videos(spec: Spec, split: str, variant: str | None = None) -> Listing:
    """The videos of a split of a folder, in natural order.

    A folder that has no splits gives all videos for each. ``variant`` says which blurred frames; by
    default it is the first of the layout's that is there.

    Raises:
      UserError: there is no such split or variant, or there are no videos.
    """
    spec.check_variant(variant)
    root = spec.root
    if spec.layout == "dvd" and os.path.isdir(root / _DVD_FOLDER):
        root /= _DVD_FOLDER
    folder, title = _split_folder(root, split, _title(spec.root))
    if spec.layout == HIGH_SPEED:
        return Listing(title, "", high_speed_videos(folder))
    sharp, blurred = _patterns(PAIRED[spec.layout], split)
    there = [name for name, pattern in blurred.items() if _has(folder, pattern)]
    if not there:
        raise UserError(f"{folder}: has no folder {' or '.join(blurred.values())}")
    if variant is not None and variant not in there:
        raise UserError(f"{spec.root}: has the variants {', '.join(there)}, not {variant!r}")
    variant = variant or there[0]
    halves = blurred[variant], sharp
    if spec.layout == "pairs" and any(list_frames(folder / half[:-2]) for half in halves):
        return Listing(title, "", [Place(title, folder / "blur", folder / "sharp")])
    names = {name for half in halves for name in _videos(folder, half)}
    if spec.layout == "dvd" and folder == root:
        if split == "validation":
            raise UserError(f"{spec.root}: has the splits train, test, not validation")
        names = {name for name in names if (name in DVD_TEST_VIDEOS) == (split == "test")}
    if spec.layout in ("dvd", "reds") and folder == root:
        title = f"{title}/{split}"
    if not names:
        raise UserError(f"{folder}: holds no videos")
    places = [
        Place(printable(name), *(folder / half.replace("*", name) for half in halves))
        for name in sorted(names, key=natural_key)
    ]
    return Listing(title, variant, places)


def high_speed_videos(root: Path) -> list[Place]:
    """The high-speed videos of a video file, a folder of frames, or a folder of such.

    Raises:
      UserError: there are none.
    """
    if os.path.isfile(root) or list_frames(root):
        return [Place(_title(root), None, root)]
    found = [
        Place(printable(entry.name), None, entry)
        for entry in sorted(root.iterdir(), key=lambda entry: natural_key(entry.name))
        if not entry.name.startswith(".")
        and (list_frames(entry) if os.path.isdir(entry) else entry.suffix.lower() in CONTAINERS)
    ]
    if not found:
        raise UserError(f"{root}: holds no frames, no folders of frames and no videos")
    return found


def choose(
    names: Mapping[str, Sequence[str]], only: Sequence[str], exclude: Sequence[str]
) -> dict[str, list[str]]:
    """Of the ``names`` of each data set's videos those that ``only`` and ``exclude`` leave.

    Both hold whole names or beginnings; a name that is one of the videos means no others.

    Raises:
      UserError: a text fits no video of any data set, or one of them has no video left.
    """

    def fitting(texts: Sequence[str], option: str) -> set[str]:
        everything = list(dict.fromkeys(name for of_one in names.values() for name in of_one))
        found: set[str] = set()
        for text in texts:
            if not (fits := fitting_names(everything, text)):
                raise UserError(
                    f"--{option}={text}: no video of {', '.join(names)} begins so; there are "
                    f"{', '.join(everything[:20])}{', ...' if len(everything) > 20 else ''}"
                )
            found |= set(fits)
        return found

    wanted, unwanted = fitting(only, "only"), fitting(exclude, "exclude")
    kept = {
        spec: [n for n in of_one if (not only or n in wanted) and n not in unwanted]
        for spec, of_one in names.items()
    }
    for spec, left in kept.items():
        if not left:
            raise UserError(f"{spec}: --only and --exclude leave no video")
    return kept


def fitting_names(names: Sequence[str], text: str) -> list[str]:
    """Which ``names`` the ``text`` of an option means: that very one, else all that begin so."""
    # A whole name wins, so that video1 can be told from video10.
    return [n for n in names if n == text] or [n for n in names if n.startswith(text)]


def printable(name: str) -> str:
    """``name`` with what cannot be printed (bytes that are no text) written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _recognised(root: Path) -> str:
    """The layout of ``root``: the first of which it has blurred and sharp frames."""
    if os.path.isdir(root / _DVD_FOLDER):
        return "dvd"
    folders = _split_folders(root) or dict.fromkeys(SPLIT_FOLDERS, root)
    for name, layout in PAIRED.items():
        for split, folder in folders.items():
            sharp, blurred = _patterns(layout, split)
            if _has(folder, sharp) and any(_has(folder, p) for p in blurred.values()):
                return name
    for folder in folders.values():
        try:
            high_speed_videos(folder)
        except UserError:
            continue
        return HIGH_SPEED
    raise UserError(
        f"{root}: no data set is recognised there; layouts are {', '.join(LAYOUTS)} (docs/data.md)"
    )


def _patterns(layout: Patterns, split: str) -> tuple[str, dict[str, str]]:
    """Those of the sharp and of the blurred frames, for one split."""
    short = SPLIT_FOLDERS[split][-1]
    blurred = {name: pattern.format(split=short) for name, pattern in layout.blurred.items()}
    return layout.sharp.format(split=short), blurred


def _has(folder: Path, pattern: str) -> bool:
    """Whether a folder fits, or would hold the videos where the pattern ends with them."""
    if pattern.endswith("/*"):
        return os.path.isdir(folder / pattern[:-2])
    return bool(_videos(folder, pattern))


def _videos(folder: Path, pattern: str) -> list[str]:
    """What ``*`` stands for."""
    above, _, below = pattern.partition("*")
    is_there = os.path.isfile if below.endswith(".npy") else os.path.isdir
    try:
        return [
            entry.name
            for entry in (folder / above).iterdir()
            if not entry.name.startswith(".") and is_there(entry / below.strip("/"))
        ]
    except OSError as error:
        raise UserError(f"{folder / above}: cannot be read: {error.strerror}") from error


def _split_folder(root: Path, split: str, title: str) -> tuple[Path, str]:
    """The folder of a split with its title, or ``root`` itself if that has no splits."""
    there = _split_folders(root)
    if not there:
        return root, title
    if split not in there:
        raise UserError(f"{root}: has the splits {', '.join(there)}, not {split}")
    return there[split], f"{title}/{split}"


def _split_folders(root: Path) -> dict[str, Path]:
    return {
        split: root / folder
        for split, folders in SPLIT_FOLDERS.items()
        for folder in folders
        if os.path.isdir(root / folder)
    }


def _title(root: Path) -> str:
    return printable(root.absolute().name or root.absolute().anchor)
