"""A study: whether a video can teach the network that restores it, without any sharp frame.

    python -m benchmarks.adapt gopro:GOPRO12 --frames=6
    python -m benchmarks.adapt highspeed:X4K --only TEST03 TEST12 TEST14 --frames=4 --teacher=truth

Of each video, for itself: the motion of tiles is measured by phase correlation between neighbouring
frames; the sharpest fifth of its patches is blurred a second time, along the motion of the patch
times 0.5 to 1.5; the weights are trained further on these pairs (twice blurred to blurred), and the
video is scored before and after. A tenth of the patches is held out: a user has no sharp frames, so
whether they improve is all that could decide if the result is kept. ``--teacher=half`` takes the
patches from frames of half the size, which are twice as sharp, and blurs them by as many pixels.
``--teacher=truth`` has the video's own sharp frames for targets: what no teacher can beat in the
same steps.

A video's pairs, run and scores are kept below ``--out``; a second start goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from benchmarks.options import natural
from jaxdeblur import devices
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.videos import Dataset, Video
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.files import replace_folder_when_whole, safe_name, write_json
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.training.run import train
from jaxdeblur.training.run_folder import Run
from jaxdeblur.weights.load import load_model

_TILE = 128
"""Pixels: of so many by so many the motion is measured."""

_LENGTH = 4
"""Frames of a clip that teaches, and as many of the context around it as there are."""

Grey = Float[np.ndarray, "H W"]


class Patch(NamedTuple):
    """A place in a video, ``size`` x ``size`` pixels of ``_LENGTH`` frames."""

    first: int
    y: int
    x: int
    sharpness: float
    motion: tuple[tuple[float, float], ...]
    """Down and right, pixels from one frame to the next."""


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("data", help="as of evaluate.py --data")
    parser.add_argument("--ckpt", default="strcnn_dtb_choice")
    parser.add_argument("--preset", default="strcnn_dtb_choice", help="whose network that is")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--tau", type=natural, help="of high-speed frames; the period is the same")
    parser.add_argument("--teacher", choices=["own", "half", "truth"], default="own")
    parser.add_argument("--steps", type=natural, default=120)
    parser.add_argument("--crop", type=natural, default=176)
    parser.add_argument("--patches", type=natural, default=40, help="that teach and are held out")
    parser.add_argument("--frames", type=natural, default=6, help="of each video that are scored")
    parser.add_argument("--out", type=Path, default=Path("adapt"))
    options = parser.parse_args()
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(2, ClusterConfig())

    exposure = Exposure(options.tau, options.tau) if options.tau else None
    dataset = open_dataset(options.data, "test", exposure=exposure, only=options.only)
    config = EvaluationConfig(data=options.data, max_frames=options.frames)
    rows = []
    for video in dataset.videos:
        name = f"{safe_name(video.name)}{f'-tau{options.tau}' if options.tau else ''}"
        folder = options.out / f"{name}-{options.teacher}"
        alone = dataclasses.replace(dataset, videos=[video])
        rows.append(adapt(video, alone, folder, config, options))
    print("| video | motion | held out, before | after | video, before | after | seconds |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def adapt(
    video: Video, dataset: Dataset, folder: Path, config: EvaluationConfig, options: Parser
) -> list[str]:
    """Trains on one video and scores; gives a row of the table."""
    began = time.monotonic()
    if not (folder / "pairs").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        moved = write_pairs(video, folder / "pairs", options)
        write_json(folder / "motion.json", moved)
    preset = PRESETS[options.preset]
    training = dataclasses.replace(
        preset.training,
        steps=options.steps,
        batch_size=2,
        frames=_LENGTH,
        crop=options.crop,
        learning_rate=preset.training.learning_rate / 3,
        warmup=10,
        average=0.97,
        validate_every=0,
        save_every=options.steps,
    )
    pairs = f"pairs:{folder / 'pairs'}"
    run = Run(
        options.preset,
        preset.network,
        training,
        DataConfig(data=(pairs,), least_blur=0.0, photos=None),
        start_from=options.ckpt,
    )
    seconds = folder / "seconds.json"
    if not seconds.is_file():
        train(run, folder / "run", resume=(folder / "run").exists())
        write_json(seconds, time.monotonic() - began)
    held_out = open_dataset(pairs, "test")
    gains = []
    for data, what in ((held_out, "held-out"), (dataset, "video")):
        for ckpt, when in ((options.ckpt, "before"), (str(folder / "run"), "after")):
            scores = evaluate(load_model(ckpt), data, config, folder / f"{what}-{when}")
            gains.append(f"{scores['gain']:+.2f}")
    return [
        f"{video.name}, {options.teacher}",
        f"{json.loads((folder / 'motion.json').read_text()):.1f} px",
        *gains,
        f"{json.loads(seconds.read_text()):.0f}",
    ]


def write_pairs(video: Video, target: Path, options: Parser) -> float:
    """Writes the clips that teach (train) and those held out (test); gives the median motion."""
    size = options.crop + 32
    needed = size * (2 if options.teacher == "half" else 1)
    if min(video.height, video.width) < needed or len(video) < _LENGTH:
        raise UserError(f"{video.name}: needs {_LENGTH} frames of {needed}x{needed} pixels")
    frames = [video.blurred(index) for index in range(min(len(video), 24))]
    shutters = 0.5, 1.5
    if options.teacher == "half":
        frames = [np.asarray(Image.fromarray(frame).reduce(2)) for frame in frames]
        shutters = 1.0, 3.0
    grey = [frame.astype(np.float32).mean(-1) / 255 for frame in frames]
    found = list(patches(grey, size))
    found.sort(key=lambda patch: -patch.sharpness)
    if len(found) < 10:  # of which one is held out
        raise UserError(f"{video.name}: {len(found)} patches with texture are too few: --crop")
    kept = found[: max(len(found) // 5, 10)]
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(kept))[: options.patches]
    lengths = [np.hypot(*step) for patch in found for step in patch.motion]
    with replace_folder_when_whole(target) as part:
        for place, index in enumerate(chosen):
            patch = kept[index]
            split = "test" if place % 10 == 9 else "train"
            shutter = rng.uniform(*shutters)
            for offset, step in enumerate(patch.motion):
                time_ = patch.first + offset
                rows = slice(patch.y, patch.y + size)
                columns = slice(patch.x, patch.x + size)
                sharp, blurred = frames[time_][rows, columns], frames[time_][rows, columns]
                if options.teacher == "truth":
                    sharp = video.sharp(time_)[rows, columns]
                else:
                    blurred = blur_again(sharp, shutter * step[0], shutter * step[1])
                for half, pixels in (("blur", blurred), ("sharp", sharp)):
                    path = part / split / half / f"{place:03d}" / f"{offset:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
    return float(np.median(lengths))


def patches(frames: list[Grey], size: int) -> Iterator[Patch]:
    """Places on a grid, at half of their size, with the motion there."""
    height, width = frames[0].shape
    for first in range(0, len(frames) - _LENGTH + 1, 2):
        times = range(first, first + _LENGTH)
        places = (range(0, n - size + 1, size // 2) for n in (height, width))
        for y, x in itertools.product(*places):
            here = [frames[index][y : y + size, x : x + size] for index in times]
            down, right = np.gradient(here[0])
            # Of an edge's two sides: what contrast there is does not matter, how wide it is does.
            spread = float(here[0].std())
            if spread < 0.04:  # sky and walls teach nothing
                continue
            sharpness = float(np.sqrt((down**2 + right**2).mean())) / spread
            moved = [shift(a, b) for a, b in itertools.pairwise(here)]
            yield Patch(first, y, x, sharpness, (*moved, moved[-1]))


def shift(before: Grey, after: Grey) -> tuple[float, float]:
    """How the middle of one frame moved to the next, whole pixels, by phase correlation."""
    middle = (before.shape[0] - _TILE) // 2
    window = np.outer(np.hanning(_TILE), np.hanning(_TILE))

    def spectrum(frame: Grey) -> np.ndarray:
        tile = frame[middle : middle + _TILE, middle : middle + _TILE]
        return np.fft.rfft2((tile - tile.mean()) * window)

    product = np.conj(spectrum(before)) * spectrum(after)
    peak = np.fft.irfft2(product / np.maximum(np.abs(product), 1e-9), (_TILE, _TILE)).argmax()
    down, right = ((n + _TILE // 2) % _TILE - _TILE // 2 for n in divmod(int(peak), _TILE))
    return float(down), float(right)


def blur_again(sharp: np.ndarray, down: float, right: float) -> np.ndarray:
    """A frame [H, W, 3] uint8 blurred along a straight line of constant speed, centred on it."""
    border = 32
    padded = np.pad(
        sharp.astype(np.float32), ((border, border), (border, border), (0, 0)), "symmetric"
    )
    rows, columns = (np.fft.fftfreq(n) for n in padded.shape[:2])
    transfer = np.sinc(rows[:, None] * down + columns * right)[..., None]
    blurred = np.fft.ifft2(np.fft.fft2(padded, axes=(0, 1)) * transfer, axes=(0, 1)).real
    inside = blurred[border:-border, border:-border]
    return np.clip(np.rint(inside), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run_command(main, "benchmarks.adapt")
