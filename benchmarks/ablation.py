"""What each part of the networks contributes: variants trained with equal steps on equal data.

    python -m benchmarks.ablation --quick
    python -m benchmarks.ablation --study=placement --steps=3000 --seeds 0 1 2

All variants of a study see the same batches (a function of seed and step alone; but for those that
change the data themselves) and are scored on the same rendered validation videos, on the uint8
frames that a user gets. The gain is in dB over the blurred input; with several seeds, mean and
standard deviation.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.options import natural, whole
from jaxdeblur import devices, models
from jaxdeblur.data import sources
from jaxdeblur.data.batches import batches
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.files import write_json
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import count, split
from jaxdeblur.options import Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.shapes import Parameters
from jaxdeblur.training.loop import Stopped, global_batches, run_steps
from jaxdeblur.training.step import (
    Metrics,
    TrainingConfig,
    TrainState,
    best_parameters,
    compile_train_step,
    initial_train_state,
)

Place = Literal["encoder", "middle", "decoder"]
STRCNN_SMALL = PRESETS["strcnn_dtb_small"].network
QUICK_STEPS = 600


class Variant(NamedTuple):
    """What is trained: a network, and what differs from the training of ``fsta_small``."""

    network: Any
    training: Mapping[str, Any] = MappingProxyType({})
    data: Mapping[str, Any] = MappingProxyType({})


class Study(NamedTuple):
    """Variants, and the data sets on which they are scored."""

    variants: dict[str, Variant]
    scored_on: tuple[str, ...] = ("rendered:narrow",)


def _fsta(**fields: Any) -> Variant:
    return Variant(dataclasses.replace(FSTA_SMALL, **fields))


def _strcnn(**fields: Any) -> Variant:
    return Variant(dataclasses.replace(STRCNN_SMALL, **fields))


def _training(**fields: Any) -> Variant:
    return Variant(STRCNN_SMALL, fields)


def _shaken(network: Any, **training: Any) -> Variant:
    """On motion as hands make it, in fast and slow phases, with the loss that it needs."""
    return Variant(network, {"loss": "log_mse", **training}, {"scenes": "handheld"})


def _blended(**fields: Any) -> Variant:
    """STRCNN on clips long enough for what a recurrence carries to pay."""
    return _shaken(dataclasses.replace(STRCNN_SMALL, **fields), frames=12)


def _attending(**fields: Any) -> Variant:
    """The attention network on crops that hold several blurs of tens of pixels."""
    return _shaken(dataclasses.replace(FSTA_SMALL, **fields), crop=192)


def _large_blur(training: dict[str, Any] | None = None, **fields: Any) -> Variant:
    """On all that hand-held footage has, with the loss that it needs."""
    return Variant(
        dataclasses.replace(STRCNN_SMALL, **fields),
        {"loss": "log_mse", **(training or {})},
        {"scenes": "handheld"},
    )


STUDIES = {
    "quick": Study(
        {
            "fsta_small, fusion none": _fsta(fusion="none"),
            "fsta_small, fusion concat": _fsta(fusion="concat"),
            "fsta_small, fusion fsta": _fsta(),
            "STRCNN": _strcnn(blending="none"),
            "STRCNN+DTB": _strcnn(),
        }
    ),
    # At a quarter of the size alone, where the full affinity can be trained too.
    "fusion": Study(
        {
            name: _fsta(fusion=name, attention_levels=(1,))
            for name in ("none", "concat", "conv3d", "nonlocal", "fsta")
        }
    ),
    "placement": Study(
        {name: _strcnn(blending=name) for name in ("none", "encoder", "middle", "decoder")}
    ),
    # What the recurrence and its blending add to a window of 2 m + 1 frames, on longer clips.
    "recurrence": Study(
        {
            f"m = {m}, {'no blending' if blending == 'none' else 'blending'}": Variant(
                dataclasses.replace(STRCNN_SMALL, m=m, blending=blending), {"frames": 10}
            )
            for m in (0, 1, 2)
            for blending in ("none", "middle")
        }
    ),
    # Where carrying features over time can pay: sharp and blurred frames alternate.
    "blending": Study(
        {
            "plain CNN": _blended(blending="none", recurrent=False),
            "recurrence": _blended(blending="none"),
            "F_n the final activation": _blended(blending="none", feedback="final"),
            **{f"blending, {name}": _blended(blending=name) for name in get_args(Place)},
            **{f"blending, middle, m = {m}": _blended(m=m) for m in (0, 1, 3)},
        },
        ("rendered:narrow", "rendered:wide", "rendered:handheld"),
    ),
    # Where what the whole frame tells can pay: one motion for all of it, larger than its texture.
    "attention": Study(
        {
            **{f"fusion {name}": _attending(fusion=name) for name in ("none", "fsta", "concat")},
            "fusion nonlocal at 1/4": _attending(fusion="nonlocal", attention_levels=(1,)),
            "fusion fsta at 1/4": _attending(attention_levels=(1,)),
            **{
                f"(M, N) = ({m}, {n})": _attending(spatial_maps=m, temporal_maps=n)
                for m, n in ((1, 1), (32, 8))
            },
            **{f"T = {window}": _attending(window=window) for window in (1, 9)},
            "gated": _attending(gated=True),
            "3 key frames of 5": _attending(key_frames=3),
        },
        ("rendered:narrow", "rendered:wide", "rendered:handheld"),
    ),
    "maps": Study(
        {
            f"(M, N) = ({m}, {n})": _fsta(spatial_maps=m, temporal_maps=n)
            for m, n in ((1, 1), (4, 2), (8, 1), (8, 4), (16, 8), (32, 8))
        }
    ),
    "cvpr2021": Study(
        {
            "arXiv": _fsta(),
            "gated": _fsta(gated=True),
            "3 key frames of 5": _fsta(key_frames=3),
            "gated, 3 key frames": _fsta(gated=True, key_frames=3),
        }
    ),
    "window": Study({f"T = {window}": _fsta(window=window) for window in (1, 3, 5, 9)}),
    "recipe": Study(
        {
            "Muon 1e-3, Charbonnier, residual": _training(),
            "Adam 1e-3": _training(optimizer="adam"),
            "Adam 3e-3": _training(optimizer="adam", learning_rate=3e-3),
            "Muon 5e-4": _training(learning_rate=5e-4),
            "Muon 2e-3": _training(learning_rate=2e-3),
            "mean squared error": _training(loss="mse"),
            "log of it, clip by clip": _training(loss="log_mse"),
            "clips of 3 frames": _training(frames=3),
            "clips of 8 frames": _training(frames=8),
            "no global residual": _strcnn(residual=False),
        }
    ),
    "motion": Study(
        {
            name: Variant(STRCNN_SMALL, {"loss": "log_mse"}, {"scenes": name})
            for name in ("narrow", "small", "wide", "handheld")
        },
        ("rendered:narrow", "rendered:wide"),
    ),
    # What enlarges the gain on large blur.
    "size": Study(
        {
            "width 24, 2+2 blocks": _large_blur(),
            "width 36": _large_blur(width=36),
            "4+4 blocks": _large_blur(blocks=4),
            "scales 2-1": _large_blur(scales=(2, 1)),
            "scales 4-2-1": _large_blur(scales=(4, 2, 1)),
            "clips of 8 frames": _large_blur({"frames": 8}),
            "attention": Variant(FSTA_SMALL, {"loss": "log_mse"}, {"scenes": "handheld"}),
        },
        ("rendered:narrow", "rendered:wide"),
    ),
}


class Result(NamedTuple):
    """One variant trained from one seed."""

    parameters: int
    gains: dict[str, list[float]]
    """dB, for each data set and video of the validation."""
    ms_a_step: float


class Nowhere:
    """Keeps no checkpoints and shows no progress: the loop's saver and watcher."""

    def save(self, state: TrainState) -> None:
        """Nothing is kept."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Nothing is shown."""

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """There is no validation during the run."""


class Videos(NamedTuple):
    """The validation: blurred and sharp clips of each data set."""

    clips: dict[str, list[tuple[np.ndarray, np.ndarray]]]

    @classmethod
    def of(cls, specs: Sequence[str], data: sources.DataConfig) -> Videos:
        """The first frames of each validation video."""
        clips: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for spec in specs:
            for video in sources.validation_videos(dataclasses.replace(data, validate_on=spec)):
                frames = range(min(len(video), data.validate_frames))
                blurred = np.stack([video.blurred(i) for i in frames])
                sharp = np.stack([video.sharp(i) for i in frames])
                clips.setdefault(spec, []).append((blurred, sharp))
        return cls(clips)

    def gains(
        self, rebuild: Callable[[Parameters], models.VideoRestorer], parameters: Parameters
    ) -> dict[str, list[float]]:
        """PSNR gained over the blurred frames, mean over the frames of each video."""
        local = {name: jnp.asarray(array.addressable_data(0)) for name, array in parameters.items()}
        model = rebuild(local)

        def gain(blurred: np.ndarray, sharp: np.ndarray) -> float:
            restored = restore_clip(model, blurred)
            pairs = zip(blurred, restored, sharp, strict=True)
            return float(np.mean([psnr(r, s) - psnr(b, s) for b, r, s in pairs]))

        return {spec: [gain(*clip) for clip in clips] for spec, clips in self.clips.items()}


def train_variant(
    network: Any, config: TrainingConfig, data: sources.DataConfig, videos: Videos
) -> Result:
    """Trains one variant and scores it."""
    mesh = devices.make_mesh(config.batch_size)
    model = models.build(network, config.seed)
    rebuild, parameters = split(model)
    number = count(parameters)
    state = jax.device_put(initial_train_state(config, parameters), devices.replicated(mesh))
    step = compile_train_step(config, rebuild, mesh)
    with batches(
        sources.training_sources(data, crop=config.crop),
        data.clip_options(config.frames, config.crop, model.context),
        batch_size=config.batch_size,
        seed=config.seed,
    ) as local:
        feed = global_batches(local, mesh)
        nowhere = Nowhere()
        first = dataclasses.replace(config, steps=1, validate_every=0)
        state = run_steps(state, feed, step, first, saver=nowhere, watcher=nowhere)
        start = time.perf_counter()  # after the compilation
        state = run_steps(state, feed, step, config, saver=nowhere, watcher=nowhere)
        jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    gains = videos.gains(rebuild, best_parameters(state))
    return Result(number, gains, 1e3 * seconds / max(config.steps - 1, 1))


def run_study(
    study: Study,
    config: TrainingConfig,
    data: sources.DataConfig,
    seeds: Sequence[int],
) -> dict[str, list[Result]]:
    """Trains every variant from every seed; prints a line for each."""
    videos = Videos.of(study.scored_on, data)
    results: dict[str, list[Result]] = {}
    for seed in seeds:
        for name, variant in study.variants.items():
            result = train_variant(
                variant.network,
                dataclasses.replace(config, seed=seed, **variant.training),
                dataclasses.replace(data, **variant.data),
                videos,
            )
            results.setdefault(name, []).append(result)
            scores = "; ".join(
                f"{spec} {np.mean(gains):+.2f} dB, worst video {min(gains):+.2f}"
                for spec, gains in result.gains.items()
            )
            print(
                f"{name}, seed {seed}: {scores}; {result.ms_a_step:.0f} ms a step",
                file=sys.stderr,
                flush=True,
            )
    return results


def table(results: dict[str, list[Result]], scored_on: Sequence[str]) -> str:
    """The study as a table: mean gain over the videos, and its spread over the seeds."""
    heads = [f"{spec} | worst video" for spec in scored_on]
    lines = [
        f"| variant | parameters | ms a step | {' | '.join(heads)} |",
        "|---" * (3 + 2 * len(scored_on)) + "|",
    ]
    for name, of_seeds in results.items():
        milliseconds = np.median([result.ms_a_step for result in of_seeds])
        cells = [name, f"{of_seeds[0].parameters:,}", f"{milliseconds:.0f}"]
        for spec in scored_on:
            means = [np.mean(result.gains[spec]) for result in of_seeds]
            worst = np.mean([min(result.gains[spec]) for result in of_seeds])
            spread = f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""
            cells += [f"{np.mean(means):+.2f}{spread}", f"{worst:+.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Reads the options, trains, prints the table."""
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--study", choices=sorted(STUDIES), default="quick")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed")
    parser.add_argument("--steps", type=natural, default=3000, help="of training")
    parser.add_argument(
        "--seeds", type=whole, nargs="+", default=(0, 1, 2), help="one training each"
    )
    parser.add_argument("--crop", type=natural, help="height and width of the clips, pixels")
    parser.add_argument("--only", nargs="+", help="variants whose names contain one of these")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds = QUICK_STEPS, arguments.seeds[:1]
    study = STUDIES[arguments.study]
    variants = {
        name: variant
        for name, variant in study.variants.items()
        if not arguments.only or any(part in name for part in arguments.only)
    }
    if not variants:
        raise UserError(f"--only: the study has {', '.join(study.variants)}")
    study = study._replace(variants=variants)

    preset = PRESETS["fsta_small"]
    config = dataclasses.replace(
        preset.training,
        steps=arguments.steps,
        crop=arguments.crop or preset.training.crop,
        validate_every=0,
    )
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(config.batch_size, spare=True)
    seeds = list(arguments.seeds)
    try:
        results = run_study(study, config, preset.data, seeds)
    except Stopped as stop:
        raise UserError(str(stop)) from stop
    print(
        f"{arguments.study}: gain in dB after {config.steps} steps of {config.batch_size} clips of "
        f"{config.frames} x {config.crop} x {config.crop}, {config.optimizer}, scenes "
        f"{preset.data.scenes!r}, where a variant says nothing else; seeds {seeds}; "
        f"{os.cpu_count()} cores, jax {jax.__version__}\n"
    )
    print(table(results, study.scored_on))
    if arguments.out:
        write_json(
            arguments.out,
            {name: [result._asdict() for result in of_seeds] for name, of_seeds in results.items()},
        )


if __name__ == "__main__":
    run_command(main, "benchmarks.ablation")
