"""How fast clips are read or rendered, and what a training run waits for: ``benchmarks.data``.

Frames/s of the pipeline are measured alone and in the training thread (no reading ahead). The wait
is the share of a training loop spent in asking for the next batch while no step is in flight: more
than a run loses, which asks for it while the device still works.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import machine, natural, random_clips, training, whole
from jaxdeblur import devices, models, presets
from jaxdeblur.data.batches import ClipOptions, batches
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.scenes import SCENES
from jaxdeblur.data.textures import RenderedScenes, open_scenes
from jaxdeblur.data.videos import Dataset
from jaxdeblur.errors import run_command
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Batch
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.video.image_file import write_png


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="strcnn_dtb_small", help="the preset that trains")
    parser.add_argument("--batches", type=natural, default=300, help="timed for each source")
    parser.add_argument("--steps", type=natural, default=60, help="training steps for each source")
    parser.add_argument("--workers", type=whole, default=1, help="threads that read ahead")
    arguments = parser.parse_args()
    preset = presets.find(arguments.model)
    config, options = preset.training, preset.data
    devices.use_cores(config.batch_size, spare=True)
    context = models.build(preset.network).context
    clip = options.clip_options(config.frames, config.crop, context)
    step = training(preset.network, config)
    jax.block_until_ready(step(random_clips(config, context)))  # compiles

    with tempfile.TemporaryDirectory(prefix="jaxdeblur-benchmark-") as folder:
        os.environ["JAXDEBLUR_CACHE"] = folder  # so that all is rendered and decoded here
        rows = []
        for name, make in sources(Path(folder)).items():
            began = time.perf_counter()
            source = make()
            read = reading_seconds(source, clip, config, arguments.batches)
            prepared = time.perf_counter() - began - sum(read)
            wait, total = training_seconds(source, clip, config, step, arguments)
            rows.append((name, prepared, read, wait, total))

    frames = config.batch_size * config.frames
    print(
        f"{arguments.model}: batches of {config.batch_size} clips of {config.frames} frames of "
        f"{config.crop}x{config.crop}; {machine()}; medians\n"
    )
    print("| source | made ready, s | ms a batch | frames/s read | frames/s trained | waits |")
    print("|---|---|---|---|---|---|")
    for name, prepared, read, wait, total in rows:
        batch = statistics.median(read)
        training_step = statistics.median(b - a for a, b in zip(wait, total, strict=True))
        print(
            f"| {name} | {prepared:.1f} | {1e3 * batch:.2f} | {frames / batch:,.0f} | "
            f"{frames / training_step:,.0f} | {100 * sum(wait) / sum(total):.2f} % |"
        )


def sources(folder: Path) -> dict[str, Callable[[], Dataset | RenderedScenes]]:
    """What people train on, made up here: rendered scenes, PNG pairs, high-speed frames."""
    for half in ("blur", "sharp"):
        write_frames(folder / "pairs" / half, 30, 720, 1280)
    for video in range(4):
        write_frames(folder / "highspeed" / f"video{video}", 33, 270, 512)
    return {
        "scenes rendered anew, narrow": lambda: open_scenes(SCENES["narrow"], 96),
        "30 PNG pairs, 1280x720": lambda: open_dataset(f"pairs:{folder / 'pairs'}", "train"),
        "4x33 high-speed PNGs, 512x270": lambda: open_dataset(
            f"highspeed:{folder / 'highspeed'}", "train", exposure=Exposure()
        ),
    }


def write_frames(folder: Path, count: int, height: int, width: int) -> None:
    """Frames of a smooth picture that moves, with some noise: PNGs of a natural size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    folder.mkdir(parents=True)
    for index in range(count):
        waves = [np.sin((x + (3 + c) * index) / 9 + c) * np.cos(y / 7 - c) for c in range(3)]
        frame = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 2, (height, width, 3))
        write_png(folder / f"{index:06d}.png", np.clip(frame, 0, 255).astype(np.uint8))


def reading_seconds(
    source: Dataset | RenderedScenes, clip: ClipOptions, config: TrainingConfig, count: int
) -> list[float]:
    """The seconds that each batch takes when it is made in the thread that asks for it."""
    with batches([(source, 1.0)], clip, batch_size=config.batch_size, seed=0, workers=0) as feed:
        for _ in itertools.islice(feed, 20):  # every kind of scene compiles
            pass
        return [seconds for seconds, _ in timed(feed, count)]


def timed(feed: Iterator[Batch], count: int) -> Iterator[tuple[float, Batch]]:
    for _ in range(count):
        began = time.perf_counter()
        batch = next(feed)
        yield time.perf_counter() - began, batch


def training_seconds(
    source: Dataset | RenderedScenes,
    clip: ClipOptions,
    config: TrainingConfig,
    step: Callable[[Batch], Any],
    arguments: argparse.Namespace,
) -> tuple[list[float], list[float]]:
    """For each step the seconds of waiting for its batch, and those in all."""
    waits, totals = [], []
    with batches(
        [(source, 1.0)], clip, batch_size=config.batch_size, seed=0, workers=arguments.workers
    ) as feed:
        for batch in itertools.islice(feed, 20):  # every kind of scene compiles
            jax.block_until_ready(step(batch))
        for wait, batch in timed(feed, arguments.steps):
            began = time.perf_counter()
            jax.block_until_ready(step(batch))
            waits.append(wait)
            totals.append(wait + time.perf_counter() - began)
    return waits, totals


if __name__ == "__main__":
    run_command(main, "benchmarks.data")
