"""What each part of the networks contributes: variants trained with equal steps on equal data.

    python -m benchmarks.ablation --quick
    python -m benchmarks.ablation --study=placement --steps=3000 --seeds 0 1 2

All variants of a study see the same batches (a function of seed and step alone) and are scored on
the same rendered validation videos, on the uint8 frames that a user gets. The gain is in dB over
the blurred input; with several seeds, mean and standard deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur import cluster, models, training
from jaxdeblur.compilation import keep_compiled
from jaxdeblur.data import sources
from jaxdeblur.data.pipeline import batches
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.files import write_json
from jaxdeblur.metrics import psnr
from jaxdeblur.models.fsta import FSTA_SMALL
from jaxdeblur.models.parameters import Parameters, count, split
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration import restore_clip

STRCNN_SMALL = PRESETS["strcnn_dtb_small"].network
QUICK_STEPS = 600


def _fsta(**fields: Any) -> Any:
    return dataclasses.replace(FSTA_SMALL, **fields)


def _strcnn(**fields: Any) -> Any:
    return dataclasses.replace(STRCNN_SMALL, **fields)


STUDIES: dict[str, dict[str, Any]] = {
    "quick": {
        "fsta_small, fusion none": _fsta(fusion="none"),
        "fsta_small, fusion concat": _fsta(fusion="concat"),
        "fsta_small, fusion fsta": _fsta(),
        "STRCNN": _strcnn(blending="none"),
        "STRCNN+DTB": _strcnn(),
    },
    # At a quarter of the size alone, where the full affinity can be trained too.
    "fusion": {
        name: _fsta(fusion=name, attention_levels=(1,))
        for name in ("none", "concat", "conv3d", "nonlocal", "fsta")
    },
    "placement": {
        name: _strcnn(blending=name) for name in ("none", "encoder", "middle", "decoder")
    },
    "maps": {
        f"(M, N) = ({m}, {n})": _fsta(spatial_maps=m, temporal_maps=n)
        for m, n in ((1, 1), (4, 2), (8, 1), (8, 4), (16, 8), (32, 8))
    },
    "cvpr2021": {
        "arXiv": _fsta(),
        "gated": _fsta(gated=True),
        "3 key frames of 5": _fsta(key_frames=3),
        "gated, 3 key frames": _fsta(gated=True, key_frames=3),
    },
    "window": {f"T = {window}": _fsta(window=window) for window in (1, 3, 5, 9)},
}


class Result(NamedTuple):
    """One variant trained from one seed."""

    parameters: int
    gains: list[float]
    """dB, for each validation video."""
    ms_a_step: float


class Nowhere:
    """Keeps no checkpoints and shows no progress: the loop's saver and watcher."""

    def save(self, state: training.TrainState) -> None:
        """Nothing is kept."""

    def step(self, step: int, metrics: training.Metrics) -> None:
        """Nothing is shown."""

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """There is no validation during the run."""


class Videos(NamedTuple):
    """The validation: blurred and sharp clips."""

    clips: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, data: sources.DataConfig) -> Videos:
        """The first frames of each validation video."""
        clips = []
        for video in sources.validation_videos(data):
            frames = range(min(len(video), data.validate_frames))
            clips.append(
                (
                    np.stack([video.blurred(i) for i in frames]),
                    np.stack([video.sharp(i) for i in frames]),
                )
            )
        return cls(clips)

    def gains(
        self, rebuild: Callable[[Parameters], models.VideoRestorer], parameters: Parameters
    ) -> list[float]:
        """PSNR gained over the blurred frames, mean over the frames of each video."""
        local = {name: jnp.asarray(array.addressable_data(0)) for name, array in parameters.items()}
        model = rebuild(local)
        gains = []
        for blurred, sharp in self.clips:
            restored = restore_clip(model, blurred)
            pairs = zip(blurred, restored, sharp, strict=True)
            gains.append(float(np.mean([psnr(r, s) - psnr(b, s) for b, r, s in pairs])))
        return gains


def train_variant(
    network: Any, config: training.TrainingConfig, data: sources.DataConfig, videos: Videos
) -> Result:
    """Trains one variant and scores it."""
    mesh = cluster.make_mesh(config.batch_size)
    rebuild, parameters = split(models.build(network, config.seed))
    number = count(parameters)
    state = jax.device_put(
        training.initial_train_state(config, parameters), cluster.replicated(mesh)
    )
    step = training.compile_train_step(config, rebuild, mesh)
    with batches(
        sources.training_sources(data, config.seed),
        data.clip_options(config.frames, config.crop),
        batch_size=config.batch_size,
        seed=config.seed,
    ) as local:
        feed = training.global_batches(local, mesh)
        nowhere = Nowhere()
        first = dataclasses.replace(config, steps=1, validate_every=0)
        state = training.run_steps(state, feed, step, first, saver=nowhere, watcher=nowhere)
        start = time.perf_counter()  # after the compilation
        state = training.run_steps(state, feed, step, config, saver=nowhere, watcher=nowhere)
        jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    gains = videos.gains(rebuild, training.best_parameters(state))
    return Result(number, gains, 1e3 * seconds / max(config.steps - 1, 1))


def run_study(
    variants: dict[str, Any],
    config: training.TrainingConfig,
    data: sources.DataConfig,
    seeds: Sequence[int],
) -> dict[str, list[Result]]:
    """Trains every variant from every seed; prints a line for each."""
    videos = Videos.of(data)
    results: dict[str, list[Result]] = {}
    for seed in seeds:
        for name, network in variants.items():
            result = train_variant(network, dataclasses.replace(config, seed=seed), data, videos)
            results.setdefault(name, []).append(result)
            print(
                f"{name}, seed {seed}: {np.mean(result.gains):+.2f} dB, "
                f"worst video {min(result.gains):+.2f}, {result.ms_a_step:.0f} ms a step",
                file=sys.stderr,
                flush=True,
            )
    return results


def table(results: dict[str, list[Result]]) -> str:
    """The study as a table: mean gain over the videos, and its spread over the seeds."""
    lines = [
        "| variant | parameters | ms a step | gain, dB | worst video |",
        "|---|---|---|---|---|",
    ]
    for name, of_seeds in results.items():
        means = [np.mean(result.gains) for result in of_seeds]
        worst = np.mean([min(result.gains) for result in of_seeds])
        spread = f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""
        milliseconds = np.median([result.ms_a_step for result in of_seeds])
        lines.append(
            f"| {name} | {of_seeds[0].parameters:,} | {milliseconds:.0f} "
            f"| {np.mean(means):+.2f}{spread} | {worst:+.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the options, trains, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--study", choices=sorted(STUDIES), default="quick")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="variants whose names contain one of these")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds = QUICK_STEPS, arguments.seeds[:1]
    variants = {
        name: network
        for name, network in STUDIES[arguments.study].items()
        if not arguments.only or any(part in name for part in arguments.only)
    }
    if not variants:
        raise UserError(f"--only: the study has {', '.join(STUDIES[arguments.study])}")

    preset = PRESETS["fsta_small"]
    config = dataclasses.replace(preset.training, steps=arguments.steps, validate_every=0)
    keep_compiled()
    cluster.use_cores(config.batch_size)
    try:
        results = run_study(variants, config, preset.data, arguments.seeds)
    except training.Stopped as stop:
        raise UserError(str(stop)) from stop
    print(
        f"{arguments.study}: {config.steps} steps of {config.batch_size} clips of "
        f"{config.frames} x {config.crop} x {config.crop}, {config.optimizer}, scenes "
        f"{preset.data.scenes!r}, seeds {arguments.seeds}; {os.cpu_count()} cores, "
        f"jax {jax.__version__}\n"
    )
    print(table(results))
    if arguments.out:
        write_json(
            arguments.out,
            {name: [result._asdict() for result in of_seeds] for name, of_seeds in results.items()},
        )


if __name__ == "__main__":
    run_command(main, "benchmarks.ablation")
