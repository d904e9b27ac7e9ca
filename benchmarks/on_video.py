"""Tests whether recurrence and blending help on video: trains on a GPU, and scores without one.

    python -m benchmarks.on_video train --steps=800 --batch-size=8 --photos=PHOTOS --out=trained
    python -m benchmarks.on_video score trained --scenes handheld wide narrow

``train``: strcnn_dtb_small as a CNN, with recurrence, with blending, and with blending from a
better start train side by side for the same number of steps on the same batches, which the device
renders from seed and step; one seed after the other. Clips are long, and of hand-held scenes, some
frames of which are nearly sharp. The moving averages are written to OUT, and variants already there
are not trained again.

``score``: gains and flicker as in benchmarks.quality, averaged over the seeds, and the gain of a
variant over the first one, seed by seed. w_n is given for the sharpest and the most blurred quarter
of each video's frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import quality
from benchmarks.common import begin, machine, spread
from jaxdeblur import devices, models
from jaxdeblur.console import run_command
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.on_device import render_on_device
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.options import Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import Batch
from jaxdeblur.training.step import TrainingConfig, best_parameters
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

REPORT_EVERY = 100  # Steps; a report waits for the device, which otherwise runs ahead.
CONDITION = ("steps", "batch_size", "dtype")
"""What the trainings of one table share."""

PRESET, FRAMES, CROP = "strcnn_dtb_small", 24, 64

VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cnn": ({"blending": "none", "recurrent": False}, ()),
    "recurrence": ({"blending": "none"}, ()),
    "blending": ({}, ()),
    "blending_start": ({"beta0": 0.1, "distance": True}, ("beta_logit=30",)),
}
"""How each differs from the preset: in fields of the network, and in ``rates`` of the training."""


def train(arguments: argparse.Namespace) -> None:
    """Trains the variants missing in OUT."""
    config = dataclasses.replace(
        PRESETS[PRESET].training,
        frames=FRAMES,
        crop=CROP,
        loss="log_mse",
        average=0.998,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        files = {name: arguments.out / f"{name}_{seed}.safetensors" for name in VARIANTS}
        files = {name: file for name, file in files.items() if not file.exists()}
        for name, weights in train_seed(config, seed, list(files), arguments).items():
            export_weights(weights, files[name])


def train_seed(
    config: TrainingConfig, seed: int, variants: list[str], arguments: argparse.Namespace
) -> dict[str, LoadedModel]:
    """Trains variants side by side on the batches of a seed; returns those that stayed finite."""
    mesh = devices.mesh_of(jax.devices()[:1])
    networks, rebuilds, steps, states = {}, {}, {}, {}
    for name in variants:
        fields, rates = VARIANTS[name]
        networks[name] = dataclasses.replace(PRESETS[PRESET].network, **fields)
        model = models.build(dataclasses.replace(networks[name], dtype=arguments.dtype), seed)
        own = dataclasses.replace(config, rates=rates)
        rebuilds[name], states[name], steps[name] = begin(model, own, mesh)
    losses: dict[str, list[Any]] = {name: [] for name in variants}
    feed = batches(config, seed, mesh, arguments.photos) if variants else iter(())
    for number, batch in enumerate(itertools.islice(feed, config.steps), 1):
        for name in variants:
            states[name], metrics = steps[name](states[name], batch)
            losses[name].append(metrics.loss)
        if number % REPORT_EVERY == 0 or number == config.steps:
            means = {name: np.mean(jax.device_get(losses[name][-REPORT_EVERY:])) for name in losses}
            shown = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            print(f"seed {seed}, step {number}: {shown}", file=sys.stderr, flush=True)
    about = {key: getattr(arguments, key) for key in CONDITION} | {"seed": seed}
    return {
        name: LoadedModel(
            rebuilds[name](best_parameters(state)),
            PRESET,
            networks[name],
            config.steps,
            "",
            {"data": "rendered", "training": about | {"variant": name}},
        )
        for name, state in states.items()
        if not bool(state.failed)
    }


def batches(
    config: TrainingConfig, seed: int, mesh: jax.sharding.Mesh, photos: str | None
) -> Iterator[Batch]:
    """Yields the batches of a seed."""
    data = DataConfig(
        data=("rendered:handheld",), photos=photos, curriculum=0.5, curriculum_start=5.0
    )
    context = models.build(PRESETS[PRESET].network).context
    return render_on_device(
        None,
        TrainingData(data, config.crop).train,
        data.clip_options(config.frames, config.crop, context),
        devices.clips_over(mesh),
        batch_size=config.batch_size,
        seed=seed,
        start_step=0,
        motion_limit=data.motion_limit(config.steps),
    )


# --- Scores ---


def weights(model: Any, test: quality.Test) -> tuple[float, float]:
    """Returns mean w_n on the sharpest and on the most blurred quarter of each video's frames.

    Sharpness is PSNR before restoration. The first frame is left out, since its w is always 1.
    """
    explain, found = jax.jit(model.explain_clip), []
    for video in quality.opened(test).videos:
        frames = range(min(len(video), test.config.max_frames or len(video)))
        blurred = [video.blurred(i) for i in frames]
        sharpness = [psnr(blurred[i], video.sharp(i)) for i in frames[1:]]
        maps = explain(np.stack(blurred)[None] / np.float32(255)).blending_weights[0, 1:]
        means, some = np.asarray(maps.mean(axis=(1, 2))), -(-len(sharpness) // 4)
        order = np.argsort(sharpness)
        found.append((means[order[-some:]].mean(), means[order[:some]].mean()))
    sharpest, most_blurred = np.mean(found, axis=0)
    return float(sharpest), float(most_blurred)


def score(arguments: argparse.Namespace) -> None:
    """Prints a table with a row for each test and variant."""
    files: dict[str, dict[int, Path]] = {name: {} for name in VARIANTS}
    conditions = set()
    for file in sorted(arguments.folder.glob("*.safetensors")):
        about = load_model(file).metadata["training"]
        files[about["variant"]][about["seed"]] = file
        conditions.add(", ".join(f"{key} {about[key]}" for key in CONDITION))
    if len(conditions) != 1:
        raise UserError(f"{arguments.folder}: needs weights of one condition, has {conditions}")
    print(f"{conditions.pop()}; scored on {machine()}\n")
    print("| test | variant | seeds | gain, dB | over the first | worst | flicker | w_n |")
    print("|---" * 8 + "|", flush=True)
    for test in quality.tests(arguments):
        first: dict[int, float] = {}
        for name, of_seeds in files.items():
            if of_seeds:
                gains = row(test, name, of_seeds, first, arguments.folder / "scores")
                first = first or gains


def row(
    test: quality.Test,
    variant: str,
    files: Mapping[int, Path],
    first: Mapping[int, float],
    out: Path,
) -> dict[int, float]:
    """Scores a variant and prints its row; returns the gain of each seed.

    Args:
      test: the test to restore.
      variant: the name of the variant.
      files: the weights of each seed.
      first: the gains of the variant to compare with.
      out: the folder that keeps the scores.
    """
    gains, worst, flicker, shares = {}, np.inf, [], []
    for seed, file in files.items():
        loaded = load_model(file)
        videos = quality.score(loaded, test, out / file.stem / test.name)["videos"]
        each = [video["psnr"] - video["psnr_blurred"] for video in videos]
        gains[seed], worst = float(np.mean(each)), min(worst, *each)
        flicker += [np.mean([v["temporal_error"] - v["temporal_error_blurred"] for v in videos])]
        if getattr(loaded.model, "blending", None) is not None:
            shares.append(weights(loaded.model, test))
    over = [gains[seed] - first[seed] for seed in gains if seed in first]
    cells = [test.name, variant, str(len(gains)), spread([*gains.values()], sign="+")]
    cells += [spread(over, sign="+") if over else "", f"{worst:+.2f}", spread(flicker, sign="+")]
    cells += [", ".join(spread(of) for of in zip(*shares, strict=True))]
    print(f"| {' | '.join(cells)} |", flush=True)
    return gains


def main() -> None:
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    what = parser.add_subparsers(required=True, metavar="train | score")
    trained = what.add_parser("train", help="trains the variants")
    trained.set_defaults(run=train)
    trained.add_argument("--steps", type=int, required=True, help="steps per training")
    trained.add_argument("--batch-size", type=int, default=16, help="clips per step")
    trained.add_argument("--photos", help="a folder of more photographs")
    trained.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="random seeds")
    trained.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    trained.add_argument("--out", type=Path, required=True, help="the folder for the weights")
    scored = what.add_parser("score", help="scores the weights in a folder")
    scored.set_defaults(run=score)
    scored.add_argument("folder", type=Path, help="the --out of train")
    quality.add_tests(scored)
    scored.set_defaults(blur=())
    arguments = parser.parse_args()
    devices.keep_freed_memory()
    devices.keep_compiled()
    arguments.run(arguments)


if __name__ == "__main__":
    run_command(main, "benchmarks.on_video")
