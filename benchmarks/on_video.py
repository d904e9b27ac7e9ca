"""Tests whether the papers' ideas help on video: trains on a GPU, and scores without one.

    python -m benchmarks.on_video train attention --steps=4000 --photos=PHOTOS --out=trained
    python -m benchmarks.on_video score trained --scenes narrow wide --highspeed X4K --taus 7

``train``: the variants of an experiment train side by side for the same number of steps on the same
batches, which the device renders from seed and step; one seed after the other. The moving averages
are written to OUT, and variants already there are not trained again. ``attention`` is fsta_small
without and with eq. 1-6, on narrow and wide scenes; ``blending`` is strcnn_dtb_small as a CNN, with
recurrence, with blending, and with blending from a better start, on long clips of hand-held scenes,
some frames of which are nearly sharp.

``score``: gains and flicker as in benchmarks.quality, averaged over the seeds, and the gain of a
variant over the first one, seed by seed. w_n is given for the sharpest and the most blurred quarter
of each video's frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import quality
from benchmarks.common import machine, natural, positive, whole
from benchmarks.evidence import spread
from jaxdeblur import devices, models
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.on_device import render_on_device
from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import Batch
from jaxdeblur.training.step import best_parameters, compile_train_step, initial_train_state
from jaxdeblur.weights.load import LoadedModel, load_model
from jaxdeblur.weights.save import export_weights

REPORT_EVERY = 100  # Steps; a report waits for the device, which otherwise runs ahead.
ONE, CONDITION = ("experiment", "variant", "seed"), ("steps", "batch_size", "dtype")
"""What identifies a training, and what the trainings of one table share."""

Variants = Mapping[str, tuple[dict[str, Any], tuple[str, ...]]]
"""How each differs from the preset: in fields of the network, and in ``rates`` of the training."""


class Experiment(NamedTuple):
    """Variants of a preset; the others are compared with the first."""

    preset: str
    scenes: tuple[str, ...]
    frames: int
    crop: int
    variants: Variants


EXPERIMENTS = {
    "attention": Experiment(
        "fsta_small",
        ("narrow", "wide"),
        5,
        96,
        {
            "concat": ({"fusion": "concat"}, ()),
            "concat_fsta": ({"fusion": "concat_fsta"}, ("f_s=30", "f_t=30", "f_p=30")),
        },
    ),
    "blending": Experiment(
        "strcnn_dtb_small",
        ("handheld",),
        24,
        64,
        {
            "cnn": ({"blending": "none", "recurrent": False}, ()),
            "recurrence": ({"blending": "none"}, ()),
            "blending": ({}, ()),
            "blending_start": ({"beta0": 0.1, "distance": True}, ("beta_logit=30",)),
        },
    ),
}


class Trainings:
    """The trainings of an experiment, whose programs are compiled once for all seeds.

    Args:
      arguments: the options of ``train``.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.experiment = arguments, EXPERIMENTS[arguments.experiment]
        _, scenes, frames, crop, variants = self.experiment
        if unknown := set(arguments.only) - set(variants):
            raise UserError(f"--only={' '.join(sorted(unknown))}: use {', '.join(variants)}")
        if arguments.batch_size % len(scenes):
            raise UserError(f"--batch-size: must be a multiple of {len(scenes)}")
        self.variants = [v for v in variants if not arguments.only or v in arguments.only]
        preset, self.mesh = PRESETS[self.experiment.preset], devices.mesh_of(jax.devices()[:1])
        self.config = dataclasses.replace(
            preset.training,
            frames=frames,
            crop=crop,
            loss="log_mse",
            average=0.998,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
        )
        self.networks = {
            v: dataclasses.replace(preset.network, **variants[v][0], dtype=arguments.dtype)
            for v in self.variants
        }
        data = DataConfig(
            data=tuple(f"rendered:{kind}" for kind in scenes),
            photos=arguments.photos,
            curriculum=0.5,
            curriculum_start=5.0,
        )
        self.motion_limit = data.motion_limit(arguments.steps)
        context = models.build(self.networks[self.variants[0]]).context
        self.clips, self.data = data.clip_options(frames, crop, context), TrainingData(data, crop)

    def file(self, variant: str, seed: int) -> Path:
        """Returns the file of a training's weights."""
        return (
            Path(self.arguments.out) / f"{self.arguments.experiment}_{variant}_{seed}.safetensors"
        )

    def missing(self, seed: int) -> list[str]:
        """Returns the variants not yet trained for a seed."""
        return [variant for variant in self.variants if not self.file(variant, seed).exists()]

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yields the batches of a seed, with equally many clips of each kind of scenes."""
        sharding, sources = devices.clips_over(self.mesh), self.data.train
        parts = [
            render_on_device(
                None,
                [source],
                self.clips,
                sharding,
                batch_size=self.config.batch_size // len(sources),
                seed=len(sources) * seed + number,
                start_step=0,
                motion_limit=self.motion_limit,
            )
            for number, source in enumerate(sources)
        ]
        joined = jax.jit(
            lambda *of: jax.tree.map(lambda *clips: jnp.concatenate(clips), *of),
            out_shardings=sharding,
        )
        return itertools.starmap(joined, zip(*parts, strict=True))

    def start(self, variant: str, seed: int) -> tuple[Any, Any, Any]:
        """Returns a training's config, the function that rebuilds its network, and its state."""
        config = dataclasses.replace(self.config, rates=self.experiment.variants[variant][1])
        rebuild, parameters = split(models.build(self.networks[variant], seed))
        state = initial_train_state(config, parameters)
        return config, rebuild, jax.device_put(state, devices.replicated(self.mesh))

    def compile(self) -> None:
        """Compiles all steps and the renderer in parallel."""
        o, size = self.clips, self.config.batch_size
        batch = {
            name: jax.ShapeDtypeStruct((size, length, o.crop, o.crop, 3), jnp.uint8)
            for name, length in (("blurred", o.length), ("sharp", o.frames))
        }
        with ThreadPoolExecutor(1 + len(self.variants)) as pool:
            rendered = pool.submit(lambda: jax.block_until_ready(next(self.batches(0))))
            compiling = {}
            for variant in self.variants:
                config, rebuild, state = self.start(variant, 0)
                step: Any = compile_train_step(config, rebuild, self.mesh)
                compiling[variant] = pool.submit(step.lower(state, batch).compile)
            self.steps = {variant: program.result() for variant, program in compiling.items()}
            rendered.result()

    def train(self, seed: int, deadline: float) -> float:
        """Trains the missing variants of a seed; returns the seconds taken.

        Args:
          seed: seed of the parameters and the batches.
          deadline: latest end, in the time of ``time.monotonic``.

        Raises:
          UserError: the first steps show that the last one would end too late.
        """
        states = {variant: self.start(variant, seed)[2] for variant in self.missing(seed)}
        losses: dict[str, list[Any]] = {variant: [] for variant in states}
        last, began = self.config.steps, time.monotonic()
        for number, batch in enumerate(itertools.islice(self.batches(seed), last), 1):
            for variant, state in states.items():
                states[variant], metrics = self.steps[variant](state, batch)
                losses[variant].append(metrics.loss)
            if number % REPORT_EVERY and number < last:
                continue
            means = {variant: np.mean(jax.device_get(of)) for variant, of in losses.items()}
            losses = {variant: [] for variant in states}
            rate = number / (time.monotonic() - began)
            shown = ", ".join(f"{variant} {mean:.4f}" for variant, mean in means.items())
            line = f"seed {seed}, step {number}: {shown}; {rate:.2f} steps/s"
            print(line, file=sys.stderr, flush=True)
            if number == REPORT_EVERY and began + last / rate > deadline:
                raise UserError(f"--steps={last}: time for {rate * (deadline - began):.0f} only")
        for variant, state in states.items():
            if bool(state.failed):
                print(f"{variant}, seed {seed}: the loss is not finite", file=sys.stderr)
                continue
            network = dataclasses.replace(self.networks[variant], dtype="float32")
            model = self.start(variant, seed)[1](best_parameters(state))
            told = vars(self.arguments) | {"variant": variant, "seed": seed}
            about = {"data": "rendered", "training": {key: told[key] for key in ONE + CONDITION}}
            export_weights(
                LoadedModel(model, self.experiment.preset, network, last, "", about),
                self.file(variant, seed),
            )
        return time.monotonic() - began


def train(arguments: argparse.Namespace) -> None:
    """Trains the variants missing in OUT, as far as time allows."""
    deadline, longest = time.monotonic() + 60 * (arguments.minutes or np.inf), 0.0
    trainings = Trainings(arguments)
    if any(map(trainings.missing, arguments.seeds)):
        arguments.out.mkdir(parents=True, exist_ok=True)
        trainings.compile()
    for seed in filter(trainings.missing, arguments.seeds):
        if time.monotonic() + longest > deadline:
            break
        longest = max(longest, trainings.train(seed, deadline))
    left = [f"{v} with seed {s}" for s in arguments.seeds for v in trainings.missing(s)]
    print(f"{machine()}; remaining: {', '.join(left) or 'none'}")


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
    """Prints a table for each experiment, with a row for each test and variant."""
    found: dict[str, dict[str, dict[int, Path]]] = {}
    alike: dict[str, Any] = {}
    for file in sorted(arguments.folder.glob("*.safetensors")):
        about = load_model(file).metadata.get("training")
        if not isinstance(about, dict) or about.keys() != set(CONDITION) | set(ONE):
            raise UserError(f"{file}: not trained by this program")
        name, variant, seed = (about[key] for key in ONE)
        condition = ", ".join(f"{key} {about[key]}" for key in CONDITION)
        if alike.setdefault(name, condition) != condition:
            raise UserError(f"{file}: {condition}, but others of its experiment: {alike[name]}")
        found.setdefault(name, {}).setdefault(variant, {})[seed] = file
    if not found:
        raise UserError(f"{arguments.folder}: contains no weights")
    for name, by_variant in found.items():
        print(f"### {name}: {alike[name]}; scored on {machine()}\n")
        variants = [v for v in EXPERIMENTS[name].variants if v in by_variant]
        print(f"| test | variant | seeds | gain, dB | over {variants[0]} | worst | flicker | w_n |")
        print("|---" * 8 + "|", flush=True)
        for test in quality.tests(arguments):
            first: dict[int, float] = {}
            for variant in variants:
                gains = row(test, variant, by_variant[variant], first, arguments.folder / "scores")
                first = first or gains
        print()


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
    cells = [test.name, variant, str(len(gains)), spread([*gains.values()], "+")]
    cells += [spread(over, "+") if over else "", f"{worst:+.2f}", spread(flicker, "+")]
    cells += [", ".join(spread(of, "") for of in zip(*shares, strict=True))]
    print(f"| {' | '.join(cells)} |", flush=True)
    return gains


def main() -> None:
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    what = parser.add_subparsers(required=True, metavar="train | score")
    trained = what.add_parser("train", help="trains the variants of an experiment")
    trained.set_defaults(run=train)
    trained.add_argument("experiment", choices=EXPERIMENTS)
    trained.add_argument("--steps", type=natural, required=True, help="steps per training")
    trained.add_argument("--batch-size", type=natural, default=16, help="clips per step")
    trained.add_argument("--photos", help="a folder of more photographs")
    trained.add_argument("--seeds", type=whole, nargs="+", default=(0, 1, 2), help="random seeds")
    trained.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="only these")
    trained.add_argument("--minutes", type=positive, help="start no seed that would end later")
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
