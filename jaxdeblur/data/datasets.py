"""Data sets as people have them on disk, checked when opened; every layout becomes a Dataset.

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

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxdeblur.data.packing import (
    DecodedFrames,
    FrameFiles,
    Frames,
    PackedFrames,
    VideoFile,
    high_speed_sources,
    pack,
    stamps,
)
from jaxdeblur.data.photographs import SPLITS
from jaxdeblur.data.scenes import (
    SCENES,
    ScenePool,
    cache_folder,
    rendered_videos,
    show_rendering,
)
from jaxdeblur.data.synthesis import Exposure, average
from jaxdeblur.errors import UserError
from jaxdeblur.images import MAX_PIXELS, image_size, list_frames, natural_key
from jaxdeblur.shapes import Frame8

RENDERED = "rendered"
"""The data set that needs no files: scenes that the package renders."""

LAYOUTS = ("gopro", "dvd", "bsd", "reds", "pairs", "highspeed")
"""The names that may stand before a path, as in ``gopro:/data/GOPRO_Large``."""

_WITH_VARIANTS = ("gopro", "reds")

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


@runtime_checkable
class Video(Protocol):
    """A blurred video with its sharp frames; ``len`` is the number of frames."""

    @property
    def name(self) -> str:
        """What results call it; a folder's or file's name, never a path."""
        ...

    @property
    def height(self) -> int:
        """Rows of pixels."""
        ...

    @property
    def width(self) -> int:
        """Columns of pixels."""
        ...

    def __len__(self) -> int: ...

    def blurred(self, index: int) -> Frame8:
        """The blurred frame at ``index``; a UserError names it if it cannot be read."""
        ...

    def sharp(self, index: int) -> Frame8:
        """The sharp frame at ``index``; a UserError names it if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class PairedVideo:
    """A video whose blurred and sharp frames both exist."""

    name: str
    blurred_frames: Frames
    sharp_frames: Frames
    motion: float | None = None
    """The largest speed in it, pixels a frame, where it is known (rendered scenes)."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.sharp_frames.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.sharp_frames.width

    def __len__(self) -> int:
        return len(self.sharp_frames)

    def blurred(self, index: int) -> Frame8:
        """The blurred frame at ``index``."""
        return self.blurred_frames.read(slice(index, index + 1))[0]

    def sharp(self, index: int) -> Frame8:
        """The sharp frame at ``index``."""
        return self.sharp_frames.read(slice(index, index + 1))[0]


@dataclasses.dataclass(frozen=True)
class HighSpeedVideo:
    """A video whose blurred frames are averages of high-speed frames (eq. 1)."""

    name: str
    frames: Frames
    exposure: Exposure

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.frames.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.frames.width

    def __len__(self) -> int:
        return self.exposure.count(len(self.frames))

    def blurred(self, index: int) -> Frame8:
        """The average of the exposure at ``index``."""
        start = index * self.exposure.period
        frames = self.frames.read(slice(start, start + self.exposure.tau))
        return average(frames, self.exposure.linear)

    def sharp(self, index: int) -> Frame8:
        """The middle frame of the exposure at ``index``."""
        middle = index * self.exposure.period + self.exposure.middle
        return self.frames.read(slice(middle, middle + 1))[0]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Videos under one name; ``name`` and ``variant`` say what was trained or scored on."""

    name: str
    variant: str
    """What else tells results apart: ``blur_gamma``, ``tau 11, period 12``; may be empty."""
    videos: Sequence[Video]


def open_dataset(
    spec: str,
    split: str,
    *,
    variant: str | None = None,
    exposure: Exposure | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    scored: bool = True,
) -> Dataset:
    """Opens a data set and checks all of it: every frame's partner and size.

    Args:
      spec: ``rendered``, ``rendered:CONFIGURATION`` (of ``scenes.SCENES``), ``rendered:20px`` (at
        1280x720 with that blur; ``-linear`` or ``-stored`` after it says in which light it is
        averaged, ``-sharp`` gives the sharp frames as they are), a folder whose layout is
        recognised, or ``LAYOUT:FOLDER``.
      split: train, validation or test. A folder that does not tell splits apart gives the same
        videos for each: tell them apart by ``only`` and ``exclude``.
      variant: which blurred frames, where there are several: blur or blur_gamma (gopro), blur or
        blur_comp (reds). Default: blur if it is there.
      exposure: how high-speed frames are averaged; default ``Exposure()``. No other layout has any.
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
    if variant is not None and layout not in _WITH_VARIANTS:
        raise UserError(f"{spec}: the layout {layout} has no variants, so not {variant!r} either")
    if exposure is not None and layout != "highspeed":
        raise UserError(f"{spec}: is blurred already; tau and period are for high-speed frames")
    if layout == RENDERED:
        return _rendered(spec, split, only, exclude)
    if layout == "highspeed":
        exposure = exposure or Exposure()
        fast = _high_speed(root, split, exposure, only, exclude, max_pixels)
        if scored:
            refuse(
                f"{root}: an exposure takes {exposure.tau} frames",
                [
                    f"{video.name} has {len(video.frames)}"
                    for video in fast.videos
                    if isinstance(video, HighSpeedVideo) and not len(video)
                ],
            )
        return fast
    found = _PAIRED[layout](root, split, variant)
    chosen = set(_choose([place.name for place in found.places], only, exclude, spec))
    return Dataset(
        found.name,
        found.variant,
        _paired_videos(root, [p for p in found.places if p.name in chosen], max_pixels),
    )


def video_names(spec: str, split: str, variant: str | None = None) -> list[str]:
    """The names in a folder that ``only`` and ``exclude`` choose from, no frame of which is looked
    at; arguments and errors as of :func:`open_dataset`."""
    layout, root = _layout_and_root(spec)
    if layout == "highspeed":
        return [_printable(name) for name, _ in high_speed_sources(_split_folder(root, split)[0])]
    return [place.name for place in _PAIRED[layout](root, split, variant).places]


def fitting_names(names: Sequence[str], text: str) -> list[str]:
    """Which ``names`` the ``text`` of an option means: that very one, else all that begin so."""
    # A whole name wins, so that video1 can be told from video10.
    return [n for n in names if n == text] or [n for n in names if n.startswith(text)]


def has_variants(spec: str) -> bool:
    """Whether a data set may have several kinds of blurred frames; raises as ``open_dataset``."""
    return _layout_and_root(spec)[0] in _WITH_VARIANTS


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
    return layout or _recognised(root), root


def pool_dataset(pool: ScenePool) -> Dataset:
    """A pool of rendered scenes as a data set of one video a scene."""
    videos = [
        PairedVideo(f"scene_{i:04d}", DecodedFrames(blurred), DecodedFrames(sharp), float(motion))
        for i, (blurred, sharp, motion) in enumerate(
            zip(pool.blurred, pool.sharp, pool.motion, strict=True)
        )
    ]
    return Dataset("rendered", "", videos)


def pack_dataset(
    dataset: Dataset, cache: Path, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """The same data set with all frames that lie in image files decoded into ``cache``, once.

    See :func:`~jaxdeblur.data.packing.pack`; ``progress`` is called with (videos decoded, in all),
    a pair's blurred and sharp frames counting as two videos.
    """
    sources = [
        frames
        for video in dataset.videos
        for frames in video_frames(video)
        if isinstance(frames, FrameFiles)
    ]
    packs: dict[Frames, Frames] = dict(zip(sources, pack(sources, cache, progress), strict=True))

    def packed(video: Video) -> Video:
        if isinstance(video, HighSpeedVideo):
            return dataclasses.replace(video, frames=packs.get(video.frames, video.frames))
        if isinstance(video, PairedVideo):
            blurred, sharp = (packs.get(half, half) for half in video_frames(video))
            return dataclasses.replace(video, blurred_frames=blurred, sharp_frames=sharp)
        return video

    return dataclasses.replace(dataset, videos=[packed(video) for video in dataset.videos])


def video_frames(video: Video) -> tuple[Frames, ...]:
    """What a video reads its frames from."""
    if isinstance(video, HighSpeedVideo):
        return (video.frames,)
    if isinstance(video, PairedVideo):
        return (video.blurred_frames, video.sharp_frames)
    return ()


def sharp_files(video: Video) -> set[str]:
    """The files that hold a video's sharp frames, by which it is known under any name."""
    return {
        os.path.realpath(file) for frames in video_frames(video)[-1:] for file in _files(frames)
    }


def identity(video: Video) -> list[Any]:
    """By which it is known whether a video's frames have changed; as JSON can hold it.

    Raises:
      UserError: a file is no longer there.
    """
    return [
        # A pack is named by a hash of what was packed, and made anew wherever there is none.
        frames.file.name if isinstance(frames, PackedFrames) else stamps(_files(frames))
        for frames in video_frames(video)
    ]


def _files(frames: Frames) -> tuple[Path, ...]:
    if isinstance(frames, FrameFiles | VideoFile):
        return frames.files
    if isinstance(frames, PackedFrames):  # named by a hash of what was packed
        return (frames.file,)
    return ()


def refuse(what: str, problems: Sequence[str], shown: int = 20) -> None:
    """Raises one UserError that names all problems (the first ``shown``, and how many more)."""
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UserError(f"{what}: " + "; ".join([*problems[:shown], *more]))


class _Place(NamedTuple):
    """Where the frames of a video lie."""

    name: str
    blurred: Path
    sharp: Path


class _Found(NamedTuple):
    """What a layout says is there, before any frame is looked at."""

    name: str
    variant: str
    places: list[_Place]


# "20px-linear": a speed, and the light in which the moments are averaged; or no blur at all.
_BLUR = re.compile(r"(\d{1,3}(?:\.\d)?)px(?:-(linear|stored|sharp))?", re.ASCII)
# What real footage has: 720p, and motion of tens of pixels. Few and short, for they are large.
_BLUR_SCENES, _BLUR_FRAMES, _BLUR_SIZE = 4, 8, (720, 1280)
_MOST_BLUR = 100


def _rendered(spec: str, split: str, only: Sequence[str], exclude: Sequence[str]) -> Dataset:
    name = spec.partition(":")[2] or "narrow"
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
            linear={"linear": True, "stored": False, "sharp": False}.get(blur[2]),
            progress=show_rendering,
        )
    elif name in SCENES:
        found = rendered_videos(known, config=SCENES[name], progress=show_rendering)
    else:
        raise UserError(
            f"{spec}: rendered scenes are {', '.join(SCENES)}, or at 1280x720 with a blur as "
            f"20px, 20px-linear, 20px-stored or 20px-sharp, not {name!r}"
        )
    scenes = {scene.name: scene for scene in found}
    videos = []
    for chosen in _choose(list(scenes), only, exclude, spec):
        sharp = DecodedFrames(scenes[chosen].sharp_frames)
        as_sharp = blur is not None and blur[2] == "sharp"
        taken = sharp if as_sharp else DecodedFrames(scenes[chosen].blurred_frames)
        videos.append(PairedVideo(chosen, taken, sharp))
    return Dataset(f"rendered/{split}", name, videos)


def _gopro(root: Path, split: str, variant: str | None) -> _Found:
    folder, title = _split_folder(root, split)
    videos = _subfolders(folder)
    there = [v for v in ("blur", "blur_gamma") if any(os.path.isdir(f / v) for f in videos)]
    variant = _pick_variant(folder, variant, there)
    places = [_Place(_name(video), video / variant, video / "sharp") for video in videos]
    return _Found(title, variant, places)


def _dvd(root: Path, split: str, variant: str | None) -> _Found:
    below = root / "quantitative_datasets"
    folder, title = _split_folder(below if os.path.isdir(below) else root, split)
    videos = _subfolders(folder)
    if folder in (root, below):  # no splits: its authors' test videos are told by their names
        if split == "validation":
            raise UserError(f"{root}: has the splits train, test, not validation")
        videos = [v for v in videos if (v.name in DVD_TEST_VIDEOS) == (split == "test")]
        title = f"{_title(root)}/{split}"
    places = [_Place(_name(video), video / "input", video / "GT") for video in videos]
    return _Found(title, "", places)


def _bsd(root: Path, split: str, variant: str | None) -> _Found:
    folder, title = _split_folder(root, split)
    places = [
        _Place(_name(video), video / "Blur" / "RGB", video / "Sharp" / "RGB")
        for video in _subfolders(folder)
    ]
    return _Found(title, "", places)


def _reds(root: Path, split: str, variant: str | None) -> _Found:
    short = {"train": "train", "validation": "val", "test": "test"}[split]
    folder = next((f for f in (root / short, root) if os.path.isdir(f / f"{short}_sharp")), None)
    if folder is None:
        raise UserError(f"{root}: has no folder {short}_sharp for the split {split}")
    there = [v for v in ("blur", "blur_comp") if os.path.isdir(folder / f"{short}_{v}")]
    variant = _pick_variant(root, variant, there)
    blurred, sharp = folder / f"{short}_{variant}", folder / f"{short}_sharp"
    return _Found(f"{_title(root)}/{split}", variant, _side_by_side(blurred, sharp))


def _pairs(root: Path, split: str, variant: str | None) -> _Found:
    folder, title = _split_folder(root, split)
    blurred, sharp = folder / "blur", folder / "sharp"
    for half in (blurred, sharp):
        if not os.path.isdir(half):
            raise UserError(f"{half}: no such folder; pairs lie in blur and sharp")
    if list_frames(blurred) or list_frames(sharp):
        return _Found(title, "", [_Place(_title(root), blurred, sharp)])
    return _Found(title, "", _side_by_side(blurred, sharp))


_PAIRED: dict[str, Callable[[Path, str, str | None], _Found]] = {
    "gopro": _gopro,
    "dvd": _dvd,
    "bsd": _bsd,
    "reds": _reds,
    "pairs": _pairs,
}


def _recognised(root: Path) -> str:
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


def _paired_videos(root: Path, places: Sequence[_Place], max_pixels: int) -> list[Video]:
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
    folder, title = _split_folder(root, split)
    found = high_speed_sources(folder)
    sources = {_printable(name): source for name, source in found}
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
    light = ", linear light" if exposure.linear else ""
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


def _pick_variant(root: Path, variant: str | None, there: Sequence[str]) -> str:
    if not there:
        raise UserError(f"{root}: has no blurred frames where they belong")
    if variant is not None and variant not in there:
        raise UserError(f"{root}: has the variants {', '.join(there)}, not {variant!r}")
    return variant or there[0]


def _side_by_side(blurred: Path, sharp: Path) -> list[_Place]:
    """The videos of two folders that each have one folder a video."""
    names = {f.name for half in (blurred, sharp) for f in _subfolders(half)}
    return [
        _Place(_printable(name), blurred / name, sharp / name)
        for name in sorted(names, key=natural_key)
    ]


def _split_folder(root: Path, split: str) -> tuple[Path, str]:
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
    return _printable(root.absolute().name or root.absolute().anchor)


def _name(video: Path) -> str:
    return _printable(video.name)


def _printable(name: str) -> str:
    """``name`` with what cannot be printed (bytes that are no text) written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _below(root: Path, path: Path) -> str:
    return _printable(str(path.relative_to(root)))
