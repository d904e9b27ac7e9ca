"""The options of deblur.py, and the inputs and outputs that they name.

This module looks at names and folders only; it imports neither JAX nor FFmpeg.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import stat
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from jaxdeblur.errors import UserError
from jaxdeblur.files import is_address, local
from jaxdeblur.options import Count, FrameSize, Range, Share, Time, check_ranges
from jaxdeblur.restoration.part_names import Portion
from jaxdeblur.video.formats import (
    ANIMATED_SUFFIXES,
    CAMERA,
    CONTAINERS,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    RAW_SUFFIXES,
    UNREADABLE_SUFFIXES,
    is_image,
    left_out,
    list_frames,
    natural_key,
)
from jaxdeblur.weights.shipped import Use

_BEGINNING = Time(0.0)


@dataclasses.dataclass(frozen=True)
class DeblurConfig:
    """The options of deblur.py.

    Attributes:
      out_dir: the folder for the results of all inputs, in place of OUTPUT.
      ckpt: a run folder, a .safetensors file, or the name of shipped weights.
      dtype: precision of the computation; by default the network's own.
      strength: 1 gives the restored frames, 0 the input, values between them a mixture.
      start: where in the video to begin, in seconds or as [H:]MM:SS.
      end: where in the video to end, likewise.
      duration: how much of the video to restore, instead of an end.
      codec: FFmpeg's name for the video encoder; by default the input's codec, else libx264.
      crf: quality of the video, smaller is better; by default the loss is barely visible.
      fps: frame rate of images, piped frames or a raw stream, by default 25; of a camera, the rate
        to request.
      size: WIDTHxHEIGHT of the raw rgb24 frames from a pipe; of a camera, the size to request.
      single: restore each image of a folder, or each frame of a video, by itself, as a photograph:
        for stabilised video whose motion is not found.
      fast: restore by a network alone, without blur paths: less gain, in less time.
      compare: also write a video, or a small GIF or WebP, that shows input and result side by side.
      duty: for blur paths, the share of the time between frames in which the shutter was open, up
        to 1; estimated from the video by default.
      light: for blur paths, what the camera averaged; estimated from the video by default.
      stabilised: for blur paths, whether the video was stabilised; found from it by default.
      tile: auto, none or HEIGHTxWIDTH: restore large frames in tiles; auto goes by free memory.
      max_pixels: frames with more pixels are refused.
      part: NUMBER/PARTS: restore this share of one video, beside OUTPUT; /PARTS takes the number
        from the SLURM array or the Indexed Job of Kubernetes that the process belongs to.
      join: put the parts of a video together, without encoding again, and remove them.
      skip_done: skip inputs whose output exists and is newer.
      overwrite: replace files that exist; in a folder, those of the same names.
      quiet: print errors only.
    """

    out_dir: str | None = None
    ckpt: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    strength: Share = 1.0
    start: Annotated[Time, Range(0, below=10**9)] = _BEGINNING
    end: Annotated[Time, Range(above=0, below=10**9)] | None = None
    duration: Annotated[Time, Range(above=0, below=10**9)] | None = None
    codec: str | None = None
    crf: Annotated[int, Range(0, 63)] | None = None
    fps: Annotated[float, Range(0.01, 10_000)] | None = None
    size: FrameSize | None = None
    single: bool = False
    fast: bool = False
    compare: str | None = None
    duty: Annotated[float, Range(most=1, above=0)] | None = None
    light: Literal["stored", "linear"] | None = None
    stabilised: Literal["yes", "no"] | None = None
    tile: str = "auto"
    max_pixels: Count = MAX_PIXELS
    part: Portion | None = None
    join: bool = False
    skip_done: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.end is not None and self.duration is not None:
            raise UserError("--end and --duration cannot be combined; give one of them")
        if self.end is not None and not self.start < self.end:
            raise UserError(f"--end must be after --start={self.start:g}, not {self.end:g}")
        if self.fast and (self.ckpt is not None or self.duty or self.light or self.stabilised):
            raise UserError(
                "--fast uses the shipped weights without blur paths; it cannot be combined with "
                "--ckpt, --duty, --light or --stabilised"
            )
        if self.part is not None and self.join:
            raise UserError("--part and --join cannot be combined; join when all parts are there")
        if self.size is not None and self.size[0] * self.size[1] > self.max_pixels:
            raise UserError(f"--size exceeds --max-pixels={self.max_pixels}")

    @property
    def length(self) -> float | None:
        """Seconds of the video to restore, from ``duration`` or ``end``; None for the rest."""
        return self.duration if self.end is None else self.end - self.start

    @property
    def rate(self) -> Fraction:
        """``fps`` as a fraction: 29.97 is 30000/1001."""
        fps = 25.0 if self.fps is None else self.fps
        whole = round(fps)
        if whole and abs(fps - whole * 1000 / 1001) < 0.005 and fps != whole:
            return Fraction(whole * 1000, 1001)
        return Fraction(fps).limit_denominator(1001)


@dataclasses.dataclass(frozen=True)
class Job:
    """One input and where its result goes.

    Attributes:
      kind: what the input is.
      paths: the video, or the images in their order; empty for a pipe or a camera.
      output: a file, a folder, or None for a pipe.
      name: the input's name in messages.
      into_folder: whether the output is a folder, even if its name seems to have a suffix.
      left_out: which images and videos beside the paths are not read, in words.
      single: whether each frame of a video or a pipe is restored by itself.
    """

    kind: Literal["video", "images", "pipe", "camera"]
    paths: tuple[Path, ...]
    output: Path | None
    name: str
    into_folder: bool = False
    left_out: str = ""
    single: bool = False

    @property
    def suffix(self) -> str:
        """The output file's suffix in lower case; empty for a folder or a pipe."""
        if self.output is None or self.into_folder or os.path.isdir(self.output):
            return ""
        return self.output.suffix.lower()

    @property
    def use(self) -> Use:
        """The kind of weights that the job needs."""
        if self.kind == "camera":
            return "camera"
        return "photograph" if self.single or self.is_photograph else "video"

    @property
    def is_photograph(self) -> bool:
        """Whether the input is one image."""
        return self.kind == "images" and len(self.paths) == 1

    @property
    def is_raw(self) -> bool:
        """Whether the input is a raw stream of video, by its name."""
        return self.kind == "video" and self.paths[0].suffix.lower() in RAW_SUFFIXES

    @property
    def is_done(self) -> bool:
        """Whether the output exists and is newer than the input."""
        if self.output is None or not os.path.exists(self.output):
            return False
        if os.path.isdir(self.output) and not os.listdir(self.output):
            return False
        newest = max((path.stat().st_mtime for path in self.paths), default=float("inf"))
        return self.output.stat().st_mtime > newest


def plan(paths: list[str], config: DeblurConfig) -> list[Job]:
    """Plans the jobs: which input is restored into which output.

    ``paths`` are inputs (videos, folders of frames, images, globs, ``camera:0``, or ``-``), then
    the file or folder of the result, or ``-``; without it if ``config.out_dir`` is given. Existing
    outputs are refused without ``overwrite``, unless ``skip_done`` is given and the job is done:
    also the second of two videos to which ``*.mp4`` expands.

    Raises:
      UserError: something is missing or ambiguous, a file would be replaced, or an option does not
        suit the inputs.
    """
    folder = None if config.out_dir is None else Path(config.out_dir)
    if folder is None and len(paths) < 2:
        raise UserError(f"give an OUTPUT for {paths[0]}, or --out-dir=FOLDER")
    jobs = [job for text in (paths if folder else paths[:-1]) for job in _find(text)]
    if config.single:
        jobs = [alone for job in jobs for alone in _each_alone(job)]
    if folder is not None:
        jobs = _into_folder(jobs, folder)
    elif len(jobs) > 1:
        raise UserError(f"{len(jobs)} inputs need --out-dir=FOLDER for their results")
    elif (output := paths[-1]) != "-":
        is_folder = output.endswith(os.sep)
        jobs = [dataclasses.replace(jobs[0], output=Path(output), into_folder=is_folder)]
    for job in jobs:
        if job.output is not None and not (config.skip_done and job.is_done):
            _check_output(job, job.output, folder, config.overwrite)
            if not config.overwrite:
                _refuse_existing(job.output, str(job.output))
    if config.compare is not None:
        if len(jobs) > 1:
            raise UserError("--compare takes a single input")
        _check_compare(jobs[0], config.compare, config.overwrite)
    if config.part is not None or config.join:
        _check_parts(jobs, config)
    kinds = {job.kind for job in jobs}
    allowed = {"video"} if config.start else {"video", "camera"}
    if (config.start or config.length is not None) and kinds - allowed:
        raise UserError("--start applies to video files, --end and --duration also to cameras")
    states_rate = [job.kind == "video" and not job.is_raw for job in jobs]
    if config.fps is not None and all(states_rate):
        raise UserError(
            "--fps applies to images, pipes, cameras and raw streams; other videos keep their own"
        )
    if config.size is not None and not kinds & {"pipe", "camera"}:
        raise UserError("--size applies to pipes and cameras only; files state their own size")
    return jobs


def _find(text: str) -> list[Job]:
    """Returns the inputs that one command-line argument names."""
    if text == "-":
        return [Job("pipe", (), None, "-")]
    if text.startswith(CAMERA):
        return [Job("camera", (), None, text)]
    # os.path, unlike Path, returns False for names that the system refuses (too long, looping).
    if os.path.isdir(text):
        frames = list_frames(Path(text))
        names = os.listdir(text)
        folders = [n for n in names if n[0] != "." and os.path.isdir(os.path.join(text, n))]
        unread = left_out(names, len(folders))
        if not frames:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            but = f", but {unread}, not read from a folder" if unread else ""
            raise UserError(f"{text}: contains no images ({kinds}){but}")
        return [Job("images", tuple(frames), None, text, left_out=unread)]
    if os.path.exists(text):
        _refuse_special(text)
        files = [Path(text)]
    elif glob.has_magic(text):
        found = sorted(filter(os.path.isfile, glob.glob(text)), key=natural_key)
        files = [Path(name) for name in found]
        if not files:
            raise UserError(f"{text}: no file matches this pattern")
    elif is_address(text):
        raise UserError(f"{text}: is an address; download the file, and give its path")
    else:
        raise UserError(f"{text}: no such file or folder")
    images = [path for path in files if is_image(path)]
    if not images:
        for path in files:
            if (suffix := path.suffix.lower()) in UNREADABLE_SUFFIXES:
                kind = suffix[1:].upper()
                raise UserError(f"{path}: {kind} is not supported; convert it to PNG or JPEG first")
        return [Job("video", (path,), None, str(path)) for path in files]
    others = [path for path in files if not is_image(path)]
    if any(path.suffix.lower() not in UNREADABLE_SUFFIXES for path in others):
        raise UserError(f"{text}: matches both images and videos; give them separately")
    if len({path.name for path in images}) < len(images):
        raise UserError(
            f"{text}: several folders contain images of the same name; give the folders"
        )
    return [Job("images", tuple(images), None, text, left_out=left_out(map(str, others)))]


def _refuse_special(text: str) -> None:
    """Raises UserError for a pipe or a device, with what to give in its place."""
    mode = os.stat(text).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.path.abspath(text) == "/dev/stdin":
        raise UserError(f"{text}: is a pipe; give - as INPUT, and redirect raw frames to it (< )")
    if stat.S_ISCHR(mode) and os.path.basename(text).startswith("video"):
        raise UserError(f"{text}: is a camera; give {CAMERA}{text} as INPUT")
    if not stat.S_ISREG(mode):
        raise UserError(f"{text}: is a device; give a file, {CAMERA}0, or - for raw frames")


def _into_folder(jobs: list[Job], folder: Path) -> list[Job]:
    """Returns the jobs with outputs in a folder, which get the inputs' names."""
    if not os.path.isdir(folder) and not os.path.isdir(folder.absolute().parent):
        local(folder, "--out-dir")
        raise UserError(f"--out-dir={folder}: its parent folder does not exist")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--out-dir={folder}: is a file, not a folder")
    named = []
    for job in jobs:
        if not job.paths:
            raise UserError(f"{job.name}: a {job.kind} has no file name for --out-dir; give OUTPUT")
        first, is_folder = job.paths[0], False
        name = first.name
        if job.kind == "video" and first.suffix.lower() not in CONTAINERS:
            name = f"{first.stem}.mkv"
        elif len(job.paths) > 1 or not os.path.isfile(job.name):
            name, is_folder = Path(os.path.abspath(first)).parent.name, True  # without a ".."
        named.append(dataclasses.replace(job, output=folder / name, into_folder=is_folder))
    names = collections.Counter(job.output for job in named)
    if twice := [str(path) for path, count in names.items() if count > 1]:
        raise UserError(f"--out-dir={folder}: several inputs would be written to {twice[0]}")
    return named


def _check_output(job: Job, output: Path, out_dir: Path | None, overwrite: bool) -> None:
    # --out-dir is created when the first result is written; any other folder may be misspelt.
    if output.parent != out_dir and not os.path.isdir(output.absolute().parent):
        local(output, "OUTPUT")
        raise UserError(f"{output}: the folder {output.parent} does not exist")
    inputs = {os.path.realpath(path) for path in job.paths}
    # Frames get their inputs' names, which a folder that is filled would replace.
    folders = {os.path.dirname(path) for path in inputs} if job.kind == "images" else set()
    if os.path.realpath(output) in inputs | folders:
        raise UserError(f"{output}: is also the input; choose another name")
    suffix = job.suffix
    is_folder = os.path.isdir(output)
    if not suffix:
        if is_folder and os.listdir(output) and not overwrite:
            raise UserError(
                f"{output}: the folder is not empty; name a new one (--overwrite replaces the "
                "frames of the same names)"
            )
        if os.path.exists(output) and not is_folder:
            raise UserError(
                f"{output}: is a file, but frames are written to a folder; choose another name"
            )
    elif suffix not in CONTAINERS and suffix not in IMAGE_SUFFIXES:
        raise UserError(
            f"{output}: unsupported output format; use a video ({', '.join(CONTAINERS)}), an "
            f"image ({', '.join(sorted(IMAGE_SUFFIXES))}), or a folder (its name ends in "
            f"{os.sep} or has no dot)"
        )
    elif is_image(output) and not job.is_photograph:
        raise UserError(f"{output}: an image cannot hold a video; give a folder or a video file")


def _each_alone(job: Job) -> list[Job]:
    """Returns the job of each image, or that of a video whose frames are restored by themselves."""
    if job.kind == "camera":
        raise UserError(f"{job.name}: --single takes images and videos, not a camera")
    if job.kind != "images":
        return [dataclasses.replace(job, single=True)]
    return [
        Job("images", (path,), None, str(path), left_out=job.left_out * (path == job.paths[0]))
        for path in job.paths
    ]


def _check_parts(jobs: list[Job], config: DeblurConfig) -> None:
    option = "--join" if config.join else "--part"
    if len(jobs) > 1 or jobs[0].kind != "video":
        raise UserError(f"{option} takes a single video")
    if jobs[0].suffix not in CONTAINERS or jobs[0].suffix == ".avi":
        kinds = ", ".join(suffix for suffix in CONTAINERS if suffix != ".avi")
        raise UserError(
            f"{option}: OUTPUT must be a video whose format stores times ({kinds}), not "
            f"{jobs[0].output or '-'}"
        )
    if config.start or config.length is not None or config.compare is not None:
        raise UserError(f"{option} cannot be combined with --start, --end, --duration or --compare")


def _refuse_existing(path: Path, name: str) -> None:
    if os.path.isfile(path):
        raise UserError(f"{name}: already exists (--overwrite replaces it)")


def _check_compare(job: Job, compare: str, overwrite: bool) -> None:
    path = Path(compare)
    if path.suffix.lower() not in CONTAINERS.keys() | ANIMATED_SUFFIXES:
        kinds = ", ".join([*CONTAINERS, *sorted(ANIMATED_SUFFIXES)])
        raise UserError(f"--compare={compare}: must be a video or an animation ({kinds})")
    if not os.path.isdir(path.absolute().parent):
        local(path, "--compare")
        raise UserError(f"--compare={compare}: the folder {path.parent} does not exist")
    if job.output is not None and not job.suffix:
        folder, file = (Path(os.path.realpath(each)) for each in (job.output, path))
        if file.is_relative_to(folder):
            raise UserError(
                f"--compare={compare}: is inside the output folder; choose another place"
            )
    taken = {os.path.realpath(other) for other in (*job.paths, job.output) if other is not None}
    if os.path.isdir(path) or os.path.realpath(path) in taken:
        raise UserError(f"--compare={compare}: is also the input or output; choose another name")
    if not overwrite:
        _refuse_existing(path, f"--compare={compare}")
