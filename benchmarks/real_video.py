"""Scores restoring under the conditions of real cameras, phones and editors.

    python -m benchmarks.real_video --data FOLDER --scenes TEST03 TEST12 TEST14
    python -m benchmarks.real_video --data FOLDER --only stabilised h264 --configs default runs/new
    python -m benchmarks.real_video --data FOLDER --paired gopro:GOPRO --only own-pixels

``FOLDER`` holds high-speed frames (layout ``highspeed``): 7 of every 8 are averaged. All
configurations restore the same uint8 frames in one process, which compiles once for each frame
size. Prints a table of PSNR gains in dB over the blurred input, and writes all figures to
``--out``. ``sharp`` conditions are restored sharp video, scored as PSNR against their own input.
``--align`` also moves each tile of a restored frame by the shift that fits the truth best. What
that gains is lost to restoring another instant; ``wobble`` is how far whole frames are off.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.common import machine
from benchmarks.real_video_conditions import (
    CONDITIONS,
    PAIRED,
    PAIRED_FIRST,
    PAIRED_FRAMES,
    WINDOW,
    Made,
    Scene,
    random_of,
    shift_of,
)
from jaxdeblur import devices
from jaxdeblur.console import ProgressLine, run_command
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.videos import ALL, HighSpeedVideo, video_frames
from jaxdeblur.errors import UserError
from jaxdeblur.files import write_json
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.shapes import Video8
from jaxdeblur.weights import shipped

_TILE, _RIM = 160, 4  # Side of tiles that are moved, and their edge that is not scored, pixels.
_BEST = 100.0  # dB of identical frames.
_CONFIGS = {"default": "video", "fast": "fast video"}

Score = dict[str, Any]


def main() -> None:
    """Reads the options, restores and prints the table.

    Raises:
      UserError: data, a condition or weights do not exist.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of high-speed frames")
    parser.add_argument("--paired", help="data set of blurred videos with their sharp frames")
    parser.add_argument("--scenes", nargs="+", default=(), help="only these scenes, by prefix")
    parser.add_argument("--only", nargs="+", default=(), help="only these conditions, by prefix")
    parser.add_argument(
        "--configs",
        nargs="+",
        default=tuple(_CONFIGS),
        metavar="CONFIG",
        help="default, fast, or what --ckpt takes; the first is compared with the second",
    )
    parser.add_argument("--align", action="store_true", help="measure shifts against the truth")
    parser.add_argument("--out", type=Path, default=Path("real_video.json"), help="JSON file")
    parser.add_argument("--list", action="store_true", help="list the conditions and exit")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join([*CONDITIONS, *PAIRED]))
        return
    videos = list(chosen_videos(arguments.data, arguments.paired, arguments.scenes, arguments.only))
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.add_threads()
    devices.use_cores(1, ClusterConfig())
    deblurrers = {name: opened(name) for name in arguments.configs}
    held: dict[str, Any] = {
        "machine": machine(),
        "configs": {name: each.source for name, each in deblurrers.items()},
        "conditions": {},
    }
    print(f"{held['machine']}\n")
    line = ProgressLine("restoring", len(videos), unit="videos")
    for number, (condition, scene, make) in enumerate(videos):
        made = make()
        scores = {
            name: scored(each, made, align=arguments.align) for name, each in deblurrers.items()
        }
        held["conditions"].setdefault(condition, {})[scene] = scores
        write_json(arguments.out, held)
        line.update(number + 1)
    line.close()
    print(table(held["conditions"], arguments.configs))
    if arguments.align:
        print(f"\n{table_of_shifts(held['conditions'], arguments.configs)}")
    print(f"\n{found_in(held['conditions'])}")


def opened(config: str) -> Deblurrer:
    """Returns what restores: the default, ``--fast``, or weights.

    Raises:
      UserError: there are no such weights.
    """
    use = _CONFIGS.get(config)
    return Deblurrer(config if use is None else shipped.default_name(use))


def chosen_videos(
    data: Path | None, paired: str | None, scenes: Sequence[str], only: Sequence[str]
) -> Iterator[tuple[str, str, Any]]:
    """Yields (condition, scene, what makes the video), by condition.

    Raises:
      UserError: no data is named, or nothing is chosen.
    """
    if data is None and paired is None:
        raise UserError("give --data, --paired or both")
    known = [*(CONDITIONS if data else ()), *(PAIRED if paired else ())]
    for prefix in only:
        if not any(name.startswith(prefix) for name in known):
            raise UserError(f"--only={prefix}: no such condition; choose from {', '.join(known)}")
    chosen = [name for name in known if not only or name.startswith(tuple(only))]
    if data is not None and (fast := [name for name in chosen if name in CONDITIONS]):
        found = open_dataset(f"highspeed:{data}", "test", only=scenes, scored=False).videos
        read = [functools.partial(_read, video) for video in found]
        for name in fast:
            for video, frames, other in zip(found, read, [*read[1:], *read[:1]], strict=True):
                yield name, video.name, functools.partial(_make, name, video.name, frames, other)
    if paired is not None and (slow := [name for name in chosen if name in PAIRED]):
        for name in slow:
            for video in open_dataset(paired, "test").videos:
                yield name, video.name, functools.partial(_make_paired, name, video)


@functools.lru_cache(maxsize=4)
def _decoded(video: HighSpeedVideo) -> Video8:
    return video.frames.read(ALL)


def _read(video: HighSpeedVideo) -> Video8:
    return _decoded(video)


def _make(name: str, scene: str, frames: Any, other: Any) -> Made:
    return CONDITIONS[name](Scene(scene, frames(), other), random_of(name, scene))


def _make_paired(name: str, video: Any) -> Made:
    """Cuts the central window from some frames, without resizing."""
    sharp = video_frames(video)[-1]
    height, width = min(WINDOW[0], sharp.height), min(WINDOW[1], sharp.width)
    top, left = (sharp.height - height) // 2, (sharp.width - width) // 2
    first = max(0, min(PAIRED_FIRST, len(video) - PAIRED_FRAMES))
    times = range(first, min(first + PAIRED_FRAMES, len(video)))
    cut = (slice(top, top + height), slice(left, left + width))
    blurred = np.stack([video.blurred(t)[cut] for t in times])
    return PAIRED[name](blurred, np.stack([video.sharp(t)[cut] for t in times]))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the PSNR of bytes, dB, at most 100."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return _BEST if error == 0 else min(_BEST, float(10 * np.log10(255**2 / error)))


def scored(deblurrer: Deblurrer, made: Made, *, align: bool = False) -> Score:
    """Restores a video and scores each frame, region and part.

    Returns a dictionary of ``blurred``, the PSNR of each input frame, ``restored``, the same of the
    output, ``regions`` and ``parts``, whose gains in dB are means over frames, ``found``, what the
    stream has found out about the video, and, if told to ``align``, ``aligned``: what that gains in
    dB, and ``wobble``, pixels.
    """
    stream = deblurrer.open_stream(*made.blurred.shape[1:3])
    restored = np.stack([np.asarray(planes[0]) for planes in stream.restore(made.blurred)])
    frames = list(zip(made.blurred, restored, made.sharp, strict=True))
    before = [psnr(blurred, sharp) for blurred, _, sharp in frames]
    after = [psnr(output, sharp) for _, output, sharp in frames]
    regions = {}
    for name, region in made.regions.items():
        gains = [
            psnr(output[area], sharp[area]) - psnr(blurred[area], sharp[area])
            for (blurred, output, sharp), area in zip(frames, region, strict=True)
            if area.any()
        ]
        regions[name] = float(np.mean(gains)) if gains else 0.0
    parts = {
        name: float(np.mean([after[t] - before[t] for t in chosen]))
        for name, chosen in made.parts.items()
    }
    score = {
        "sharp input": made.is_sharp,
        "blurred": before,
        "restored": after,
        "regions": regions,
        "parts": parts,
        "found": stream.found,
    }
    return score | (aligned(restored, made.sharp) if align else {})


def aligned(restored: Video8, sharp: Video8) -> dict[str, float]:
    """Moves tiles of restored frames by the shift, whole and fractional, that fits the truth.

    Returns ``aligned``, the mean gain of that in dB, and ``wobble``, the root mean square in pixels
    of each frame's median shift.
    """
    height, width = sharp.shape[1:3]
    side = min(_TILE, height, width)
    corners = itertools.product(range(0, height - side + 1, side), range(0, width - side + 1, side))
    tiles = [np.s_[y : y + side, x : x + side] for y, x in corners]
    gains, shifts = [], []
    for output, truth in zip(restored.astype(np.float32), sharp.astype(np.float32), strict=True):
        errors, moves = [], []
        for tile in tiles:
            move = shift_of(output[tile][..., 1], truth[tile][..., 1])
            moved = ndimage.shift(output[tile], (*move, 0), order=3, mode="nearest")
            inner = np.s_[_RIM:-_RIM, _RIM:-_RIM]  # What a shift brings in from outside is unknown.
            pair = [
                np.mean((each[inner] - truth[tile][inner]) ** 2) for each in (output[tile], moved)
            ]
            errors.append((pair[0], min(pair)))
            moves.append(move if pair[1] < pair[0] else np.zeros(2))
        before, after = np.mean(errors, axis=0)
        gains.append(10 * np.log10(max(before, 1e-9) / max(after, 1e-9)))
        shifts.append(np.median(moves, axis=0))
    wobble = np.sqrt(np.mean(np.sum(np.square(shifts), axis=1)))
    return {"aligned": float(np.mean(gains)), "wobble": float(wobble)}


def _figures(score: Score) -> list[float]:
    """Returns each frame's gain; of sharp video, its PSNR against the input."""
    if score["sharp input"]:
        return score["restored"]
    return [
        after - before for before, after in zip(score["blurred"], score["restored"], strict=True)
    ]


def table(conditions: dict[str, dict[str, dict[str, Score]]], configs: Sequence[str]) -> str:
    """Formats the gains as Markdown: one row for each condition, region and part of frames."""
    two = configs[:2] if len(configs) > 1 else ()
    head = ["condition", "blurred, dB"]
    for name in configs:
        head += [name, "scenes", "worst frame"]
    head += [f"{two[0]} - {two[1]}", "worst scene"] if two else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for condition, scenes in conditions.items():
        first = next(iter(scenes.values()))[configs[0]]
        blurred = np.mean([np.mean(s[configs[0]]["blurred"]) for s in scenes.values()])
        sign = "" if first["sharp input"] else "+"
        cells = [condition, "-" if first["sharp input"] else f"{blurred:.2f}"]
        means = {}
        for name in configs:
            each = {scene: _figures(s[name]) for scene, s in scenes.items()}
            means[name] = np.array([np.mean(gains) for gains in each.values()])
            by_scene = " / ".join(f"{mean:{sign}.2f}" for mean in means[name])
            worst = min(min(gains) for gains in each.values())
            cells += [f"{means[name].mean():{sign}.2f}", by_scene, f"{worst:{sign}.2f}"]
        if two:
            apart = means[two[0]] - means[two[1]]
            cells += [f"{apart.mean():+.2f}", f"{apart.min():+.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
        for kind in ("regions", "parts"):
            for part in first[kind]:
                lines.append(_row_of_part(f"{condition}: {part}", kind, part, scenes, configs))
    return "\n".join(lines)


def _row_of_part(
    title: str, kind: str, part: str, scenes: dict[str, dict[str, Score]], configs: Sequence[str]
) -> str:
    cells = [title, ""]
    means = []
    for name in configs:
        gains = np.array([score[name][kind][part] for score in scenes.values()])
        means.append(gains)
        cells += [f"{gains.mean():+.2f}", " / ".join(f"{gain:+.2f}" for gain in gains), ""]
    if len(configs) > 1:
        apart = means[0] - means[1]
        cells += [f"{apart.mean():+.2f}", f"{apart.min():+.2f}"]
    return f"| {' | '.join(cells)} |"


def table_of_shifts(
    conditions: dict[str, dict[str, dict[str, Score]]], configs: Sequence[str]
) -> str:
    """Formats what aligning gains, dB, and the wobble, pixels: means over the scenes."""
    head = ["condition", *(f"{name}: {what}" for name in configs for what in ("aligned", "wobble"))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for condition, scenes in conditions.items():
        cells = [condition]
        for name in configs:
            for what in ("aligned", "wobble"):
                cells.append(f"{np.mean([score[name][what] for score in scenes.values()]):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def found_in(conditions: dict[str, dict[str, dict[str, Score]]]) -> str:
    """Formats what streams found out, one line for each video and configuration that tells."""
    lines = [
        f"{condition}, {scene}, {name}: "
        + ", ".join(f"{key} {_short(value)}" for key, value in score["found"].items())
        for condition, scenes in conditions.items()
        for scene, scores in scenes.items()
        for name, score in scores.items()
        if score["found"]
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main, "benchmarks.real_video")
