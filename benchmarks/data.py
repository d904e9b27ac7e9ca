"""How fast clips are read or rendered, and what a training run waits for.

    python -m benchmarks.data              sources against a training step
    python -m benchmarks.data --render     the renderer alone, on one core

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

import jax
import numpy as np

from benchmarks.options import natural, whole
from jaxdeblur import devices, models, presets
from jaxdeblur.data.batches import ClipOptions, batches
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.frames import FrameFiles
from jaxdeblur.data.photographs import find_photographs
from jaxdeblur.data.render import HostRenderer, motion_of
from jaxdeblur.data.scenes import SCENES
from jaxdeblur.data.textures import RenderedScenes, cut_textures, open_scenes
from jaxdeblur.data.videos import Dataset
from jaxdeblur.errors import run_command
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Batch
from jaxdeblur.training.loop import global_batches
from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state
from jaxdeblur.video.image_file import write_png


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--render", action="store_true", help="the renderer alone, on one core")
    parser.add_argument("--clips", type=natural, default=10, help="of each kind, with --render")
    parser.add_argument("--model", default="strcnn_dtb_small", help="the preset that trains")
    parser.add_argument("--batches", type=natural, default=300, help="timed for each source")
    parser.add_argument("--steps", type=natural, default=60, help="training steps for each source")
    parser.add_argument("--workers", type=whole, default=1, help="threads that read ahead")
    arguments = parser.parse_args()
    if arguments.render:
        time_renderer(arguments.clips)
        return

    preset = presets.find(arguments.model)
    config, options = preset.training, preset.data
    devices.use_cores(config.batch_size, spare=True)
    context = models.build(preset.network).context
    clip = options.clip_options(config.frames, config.crop, context)
    step = compiled_step(preset, clip)

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
        f"{config.crop}x{config.crop}; {jax.devices()[0].platform}, "
        f"{os.cpu_count()} cores, jax {jax.__version__}; medians\n"
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
    print(f"\none PNG of 1280x720 decodes in {1e3 * png_seconds():.0f} ms")


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


def time_renderer(clips: int) -> None:
    """Seconds of one core for a clip; and how far it is from averages of moments on one path."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    frames, crop = 10, 160
    print(f"clips of {frames} frames of {crop}x{crop}, one core, jax {jax.__version__}\n")
    print("| scenes | a clip, s | PSNR to averages of moments, dB |")
    print("|---|---|---|")
    for kind in ("narrow", "wide", "handheld"):
        config = SCENES[kind].at_least(crop)
        textures = cut_textures(find_photographs("train"), 12, config.texture_size, 0)
        renderer = HostRenderer(textures, config, frames, crop)
        for seed in range(12):  # compiles, for every kind of scene
            renderer.clip(seed)
        began = time.perf_counter()
        for seed in range(clips):
            renderer.clip(100 + seed)
        seconds = (time.perf_counter() - began) / clips
        print(f"| {kind} | {seconds:.3f} | {difference(renderer):.1f} |")


_motion = jax.jit(motion_of, static_argnames=("config", "frames", "crop"))


def difference(renderer: HostRenderer, scenes: int = 3, moments: int = 65) -> float:
    """Mean PSNR of the renderer's blurred frames to averages of moments on the same paths.

    The middle frame of each scene; a moment is the sharp frame of the scene that much later, so all
    that differs is how an exposure is blurred.
    """
    scores = []
    for seed in range(scenes):
        _, scene, _ = renderer.draw(seed)
        zero = jax.numpy.zeros(())
        # Clean frames, averaged as they are stored, so that the bytes of moments can be added up.
        scene = scene._replace(
            noise=zero, compression=zero, highlights=zero, gamma=jax.numpy.ones(())
        )
        config = renderer.config
        motion = _motion(scene, config, renderer.frames, renderer.crop)
        key = jax.random.key(0)
        blurred, _ = renderer.render(key, scene, motion)
        middle, total = renderer.frames // 2, np.zeros(blurred.shape[1:])
        # Times of the clip's frames are whole numbers less a half where their number is even.
        at = middle - (renderer.frames - 1) / 2
        for share in (np.arange(moments) + 0.5) / moments - 0.5:
            time_of = at + share * float(scene.exposure)
            still = motion._replace(
                times=jax.numpy.full(1, time_of, jax.numpy.float32),
                background=motion.background[:1] * 0,
                objects=motion.objects[:1] * 0,
            )
            total += renderer.render(key, scene, still)[1][0]
        scores.append(psnr(blurred[middle], np.round(total / moments).astype(np.uint8)))
    return statistics.mean(scores)


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


def compiled_step(preset: presets.Preset, clip: ClipOptions) -> Callable[[Batch], None]:
    """A training step that goes on from the last one and returns when it is done."""
    config = preset.training
    mesh = devices.make_mesh(config.batch_size)
    rebuild, parameters = split(models.build(preset.network))
    state = initial_train_state(config, parameters)
    state = jax.device_put(state, devices.replicated(mesh))
    compiled = compile_train_step(config, rebuild, mesh)

    def step(batch: Batch) -> None:
        nonlocal state
        (on_devices,) = global_batches(iter([batch]), mesh)
        state, metrics = compiled(state, on_devices)
        jax.block_until_ready(metrics)

    lengths = {"blurred": clip.length, "sharp": clip.frames}
    size = (config.crop, config.crop, 3)
    step({name: np.zeros((config.batch_size, n, *size), np.uint8) for name, n in lengths.items()})
    return step


def training_seconds(
    source: Dataset | RenderedScenes,
    clip: ClipOptions,
    config: TrainingConfig,
    step: Callable[[Batch], None],
    arguments: argparse.Namespace,
) -> tuple[list[float], list[float]]:
    """For each step the seconds of waiting for its batch, and those in all."""
    waits, totals = [], []
    with batches(
        [(source, 1.0)], clip, batch_size=config.batch_size, seed=0, workers=arguments.workers
    ) as feed:
        for batch in itertools.islice(feed, 20):  # every kind of scene compiles
            step(batch)
        for wait, batch in timed(feed, arguments.steps):
            began = time.perf_counter()
            step(batch)
            waits.append(wait)
            totals.append(wait + time.perf_counter() - began)
    return waits, totals


def png_seconds() -> float:
    """What packing saves: the median time to decode one PNG of 1280x720."""
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder) / "frames", 5, 720, 1280)
        files = tuple(sorted((Path(folder) / "frames").iterdir()))
        frames, seconds = FrameFiles(files, 720, 1280), []
        for index in range(len(files)):
            began = time.perf_counter()
            frames.read(slice(index, index + 1))
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    run_command(main, "benchmarks.data")
