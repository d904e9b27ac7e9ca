"""Tests the claims of the papers' ideas on tasks with known bounds (benchmarks/tasks.py).

    python -m benchmarks.evidence tint --seeds 0 1 2 --out=tint.json

Every variant of an experiment trains on the same batches (a function of seed and step) for the same
number of steps. All are scored on the same clips, by errors pooled over the pixels that an idea
should improve. ``--out`` saves each training when it ends, so that the same command resumes where
it was stopped. ``--picture`` draws what the last variant blends or attends to. ``shipped`` trains
nothing: it removes blending and recurrence from the weights that ship.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import tasks
from benchmarks.common import begin, machine, spread
from jaxdeblur import devices, models
from jaxdeblur.console import run_command
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.files import replace_when_whole, write_json
from jaxdeblur.models.explanation import AttentionMaps, explainer
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parameters import count, split
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.options import Parser
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import load_model

TEST_SEED = 2**20  # of no training


class Variant(NamedTuple):
    """A network, its changes to the training, and its start."""

    network: Any
    rates: tuple[str, ...] = ()
    told: bool = False
    """The control: two channels of the input contain what the task hides."""
    without: tuple[str, ...] = ()
    """Parameters that start at zero and are not trained."""


class Experiment(NamedTuple):
    """Variants of a task."""

    bound: str
    """The theoretical bounds of the networks."""
    task: tasks.Task
    variants: dict[str, Variant]
    training: TrainingConfig
    scored: tuple[tasks.Task, int] | None = None
    """Another task to score on, and the number of its clips."""


# --- The networks: small enough to train in minutes on one core ---

_TINY = FstaConfig(
    window=3,
    widths=(16,),
    growths=(8,),
    dense_layers=1,
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    attention_levels=(0,),
    spatial_maps=4,
    temporal_maps=2,
    implementation="einsum",
)
_RATES = ("f_s=30", "f_t=30", "f_p=30")
_TRAINING = TrainingConfig(
    steps=600,
    batch_size=8,
    frames=1,
    crop=48,
    optimizer="muon",
    learning_rate=2e-3,
    beta2=0.99,
    loss="mse",
    warmup=20,
    recompute=False,
)


def _window(fusion: str = "fsta", rates: Sequence[str] = (), **fields: Any) -> Variant:
    return Variant(dataclasses.replace(_TINY, fusion=fusion, **fields), tuple(rates))


def _tint(effect: str, frames: int, marked: str, variants: dict[str, Variant]) -> Experiment:
    bounds = {"add": "+3.01", "gain": "0.00", "shift": "+6.02"}
    task = functools.partial(
        tasks.tint, effect=effect, frames=frames, marked=marked, reach=10 + frames // 2 * 2
    )
    return Experiment(
        f"a network that does not see the mark gains at most {bounds[effect]} dB",
        task,
        variants,
        _TRAINING,
    )


_NEAR = {
    "none": _window("none"),
    "none, told": _window("none")._replace(told=True),
    "concat": _window("concat"),
    "nonlocal, T = 1": _window("nonlocal", window=1),
    "nonlocal, T = 1, rates x30": _window("nonlocal", ("query=30", "key=30"), window=1),
    "fsta": _window(),
    "fsta, rates x30": _window(rates=_RATES),
    "fsta, rates x30, f_s = 0": _window(rates=_RATES)._replace(without=("f_s",)),
    "concat + fsta, rates x30": _window("concat_fsta", _RATES),
}


def _in_window(frames: int) -> dict[str, Variant]:
    return {
        "concat": _window("concat", window=frames),
        "conv3d": _window("conv3d", window=frames),
        "fsta, rates x30": _window(rates=_RATES, window=frames),
        "fsta, rates x30, f_t = 0": _window(rates=_RATES, window=frames)._replace(without=("f_t",)),
        "fsta, rates x30, 1 key frame": _window(rates=_RATES, window=frames, key_frames=1),
    }


_COMPARED = {name: _NEAR[name] for name in ("none", "none, told", "concat", "fsta, rates x30")}

_STRCNN = StrcnnConfig(width=16, blocks=1, head_width=0, residual=True, leak=0.1)
_RECURRENT = dataclasses.replace(_TRAINING, batch_size=4, steps=500, learning_rate=4e-3)
_BETA = ("beta_logit=30",)


def _recurrent(rates: Sequence[str] = (), **fields: Any) -> Variant:
    return Variant(dataclasses.replace(_STRCNN, **fields), tuple(rates))


def _carrying(m: int, **fields: Any) -> dict[str, Variant]:
    named = functools.partial(_recurrent, m=m, **fields)
    return {
        f"CNN, m = {m}": named(blending="none", recurrent=False),
        f"STRCNN, m = {m}": named(blending="none"),
        f"DTB, m = {m}": named(),
        f"DTB, beta x30, m = {m}": named(_BETA),
        f"DTB, beta0 = 0.1, m = {m}": named(beta0=0.1),
        f"DTB, B = -A, m = {m}": named(distance=True),
        f"DTB, all three, m = {m}": named(_BETA, beta0=0.1, distance=True),
        f"scalar w, beta x30, m = {m}": named(_BETA)._replace(without=("compare",)),
    }


_LONG = functools.partial(tasks.still_noise, frames=200)
_SPRITE = functools.partial(tasks.still_noise, size=24, sprite=8)

EXPERIMENTS = {
    "oracle": Experiment(
        "what knowing the motion is worth",
        tasks.one_motion,
        {
            "none": _window("none", widths=(24,), growths=(12,), dense_layers=2),
            "none, told": _window("none", widths=(24,), growths=(12,), dense_layers=2)._replace(
                told=True
            ),
        },
        dataclasses.replace(
            _TRAINING, batch_size=4, loss="log_mse", learning_rate=1e-3, steps=3000
        ),
    ),
    "tint": _tint("add", 3, "all", _NEAR),
    "tint_frames5": _tint("add", 5, "one", _in_window(5)),
    "tint_frames9": _tint("add", 9, "one", _in_window(9)),
    "tint_gain": _tint("gain", 3, "all", _COMPARED),
    "tint_shift": _tint("shift", 3, "all", _COMPARED),
    "still_noise": Experiment(
        "PSNR: input 20 dB; fixed w 20 + 10 log10((2 - w) / w) dB; best linear mean of 1 frame "
        "22.3, of 5 27.6, of 16 32.2, of 150 41.8 dB",
        tasks.still_noise,
        _carrying(0) | _carrying(2),
        _RECURRENT,
        (_LONG, 8),
    ),
    "lucky": Experiment(
        "the CNN sees one frame (m = 0); the past holds a sharp one",
        tasks.lucky,
        _carrying(0, blocks=2),
        dataclasses.replace(_RECURRENT, steps=400, loss="log_mse"),
    ),
    "sprite": Experiment(
        "a fixed w smears what moves; eq. 3 need not",
        _SPRITE,
        _carrying(0),
        dataclasses.replace(_RECURRENT, steps=350),
        (functools.partial(_SPRITE, frames=64), 24),
    ),
    "one_motion": Experiment(
        "the row that is told the motion shows what knowing it is worth",
        functools.partial(tasks.one_motion, frames=3),
        _COMPARED,
        dataclasses.replace(_TRAINING, loss="log_mse", steps=3000),
    ),
}


class Result(NamedTuple):
    """The result of one training."""

    parameters: int
    error: dict[str, list[float]]
    """For each region, the mean squared error of the input and of the output."""
    beta: float | None
    entropy: dict[str, list[float]]
    """Entropies of A_s, A_t and A_p, as shares of those of uniform maps."""
    seconds: float
    weights: dict[str, float]
    """The mean w_n of each region, for a network that blends."""


def train(
    experiment: Experiment, variant: Variant, steps: int, seed: int, picture: Path | None = None
) -> Result:
    """Trains one variant from one seed and scores it; draws ``picture`` if given."""
    config = dataclasses.replace(
        experiment.training,
        steps=steps,
        seed=seed,
        rates=(*variant.rates, *(f"{name}=0" for name in variant.without)),
    )
    model = with_values(models.build(variant.network, seed), dict.fromkeys(variant.without, 0.0))
    rebuild, state, step = begin(model, config, devices.make_mesh(config.batch_size))
    start = time.perf_counter()
    for i in range(steps):
        clips = tasks.batch(experiment.task, seed, i, config.batch_size, told=variant.told)
        state, metrics = step(state, clips)
        if i % 100 == 99:
            print(f"  step {i + 1}: loss {float(metrics.loss):.6f}", file=sys.stderr, flush=True)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    if bool(state.failed):
        raise UserError("the loss is no longer finite")
    trained = {n: jnp.asarray(a.addressable_data(0)) for n, a in state.parameters.items()}
    model = rebuild(trained)
    if picture:
        draw(picture, experiment.task, model, told=variant.told)
    return score(experiment, variant, model, seconds)


def score(experiment: Experiment, variant: Variant, model: Any, seconds: float) -> Result:
    """Scores a trained network, with errors pooled over clips that are not trained on."""
    task, clips = experiment.scored or (experiment.task, 96)
    restore = jax.jit(model.restore_clip)
    explain = explainer(model)
    explain = jax.jit(explain) if explain else None
    blends = getattr(model, "blending", None) is not None
    sums: dict[str, np.ndarray] = {}
    weights: dict[str, float] = {}
    for i in range(clips):
        clip = task(np.random.default_rng((TEST_SEED, i)), "test")
        shown = tasks.in_colour(clip.shown, clip, variant.told)[None] / 255
        restored = np.asarray(restore(shown))[0, ..., 0]
        for name, region in clip.regions.items():
            errors = [np.square(x - clip.target)[region].sum() for x in (clip.shown, restored)]
            sums[name] = sums.get(name, 0) + np.array([*errors, region.sum()])
        if explain and blends:
            of_pixels = np.repeat(np.repeat(explain(shown).blending_weights[0], 2, 1), 2, 2)
            for name, region in clip.regions.items():
                weights[name] = weights.get(name, 0.0) + float(of_pixels[region].sum())
    attention = explain(shown).attention if explain else ()
    return Result(
        count(split(model)[1]),
        {name: [shown / n, restored / n] for name, (shown, restored, n) in sums.items() if n},
        float(model.blending.beta) if blends else None,
        {maps.name: entropies(maps) for maps in attention},
        seconds,
        {name: total / sums[name][2] for name, total in weights.items() if sums[name][2]},
    )


def draw(file: Path, task: tasks.Task, model: Any, *, told: bool = False) -> None:
    """Draws the input, the output and w_n from 0 to 1 for each frame of a test clip.

    For a network that attends, the columns are the middle frames of eight clips, and below the
    output are its maps A_s, each scaled to its own maximum.
    """
    explain, restore = jax.jit(model.explain_clip), jax.jit(model.restore_clip)
    columns = []
    blends = getattr(model, "blending", None) is not None
    for i in range(1 if blends else 8):
        clip = task(np.random.default_rng((TEST_SEED, i)), "test")
        shown = tasks.in_colour(clip.shown, clip, told)[None] / 255
        restored, found = np.asarray(restore(shown))[0, ..., 0], explain(shown)
        for t in range(len(shown[0])) if blends else [len(shown[0]) // 2]:
            if found.blending_weights is not None:
                maps = [found.blending_weights[0, t]]
            else:
                maps = [m / m.max() for m in found.attention[0].spatial_maps[0, t]]
            large = [np.kron(m, np.ones(np.array(clip.shown[t].shape) // m.shape)) for m in maps]
            parts = [np.pad(x, 1, constant_values=1) for x in (clip.shown[t], restored[t], *large)]
            columns.append(np.concatenate(parts))
    grey = np.uint8(np.rint(255 * np.clip(np.concatenate(columns, 1), 0, 1)))
    with replace_when_whole(file) as part:
        Image.fromarray(np.kron(grey, np.ones((3, 3), np.uint8))).save(part, "PNG", optimize=True)


def entropies(maps: AttentionMaps) -> list[float]:
    """Returns entropies: of A_s over pixels, A_t over the window and A_p over combinations.

    They are shares of those of uniform maps: 1 selects nothing, 0 a single place.
    """

    def share(weights: jax.Array) -> float:
        if weights.shape[-1] == 1:
            return 1.0
        entropy = -(weights * jnp.log(jnp.maximum(weights, 1e-30))).sum(axis=-1)
        return float(entropy.mean() / np.log(weights.shape[-1]))

    spatial = maps.spatial_maps
    flat = spatial.reshape(*spatial.shape[:-2], -1)
    return [share(flat), share(maps.temporal_maps), share(maps.pixel_mix)]


# --- The weights that ship, without blending and without recurrence ---

SHIPPED = {"as it ships": {}, "beta = 1": {"beta_logit": 50.0}}
SHIPPED["beta = 1, F = 0"] = {**SHIPPED["beta = 1"], "feedback": 0.0}


def with_values(model: Any, values: Mapping[str, float]) -> Any:
    """Returns the model with parameters set to a constant if ``values`` has part of their name."""
    rebuild, parameters = split(model)
    for part, value in values.items():
        for name in parameters:
            if part in name.split("/"):
                parameters[name] = jnp.full_like(parameters[name], value)
    return rebuild(parameters)


def shipped(weights: Sequence[str]) -> str:
    """Returns a table of gains of shipped weights: mean over the videos, worst one in brackets."""
    data = ("rendered:narrow", "rendered:wide")
    lines = [f"| weights | | {' | '.join(data)} |", "|---" * (2 + len(data)) + "|"]
    for name in weights:
        model = load_model(name).model
        for what, values in SHIPPED.items():
            cells = []
            for spec in data:
                gains = [
                    video_gain(with_values(model, values), video)
                    for video in open_dataset(spec, "test").videos
                ]
                cells.append(f"{np.mean(gains):+.2f} ({min(gains):+.2f})")
            lines.append(f"| {name} | {what} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def video_gain(model: Any, video: Any) -> float:
    """Returns the PSNR gain over a video's blurred frames, the mean over its first twelve."""
    chosen = range(min(len(video), 12))
    blurred = np.stack([video.blurred(i) for i in chosen])
    sharp = [video.sharp(i) for i in chosen]
    restored = restore_pixels(model, blurred)
    triples = zip(restored, blurred, sharp, strict=True)
    return float(np.mean([psnr(r, s) - psnr(b, s) for r, b, s in triples]))


# --- Tables ---


def table(results: Mapping[str, Mapping[str, Result]]) -> str:
    """Formats PSNR of the output and gain by region: mean and deviation over the seeds."""
    regions = list(next(iter(next(iter(results.values())).values())).error)
    head = [f"{region}: PSNR | gain" for region in regions]
    lines = [f"| variant | parameters | seeds | {' | '.join(head)} | beta, w | A_s, A_t, A_p | s |"]
    lines.append("|---" * (6 + 2 * len(regions)) + "|")
    for name, by_seed in results.items():
        of = list(by_seed.values())
        cells = [name, f"{of[0].parameters:,}", str(len(of))]
        for region in regions:
            shown, restored = np.transpose([result.error[region] for result in of])
            cells += [spread(-10 * np.log10(restored))]
            cells += [
                spread(10 * np.log10(shown / restored), sign="+") if (shown > 1e-9).all() else ""
            ]
        betas = [result.beta for result in of if result.beta is not None]
        shares = [f"{np.mean([r.weights[k] for r in of]):.2f}" for k in of[0].weights]
        cells.append(", ".join([spread(betas), *shares]) if betas else "")
        entropies = [e for result in of for e in result.entropy.values()]
        cells.append(", ".join(f"{e:.2f}" for e in np.mean(entropies, axis=0)) if entropies else "")
        cells.append(f"{np.median([result.seconds for result in of]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> str:
    """Trains what ``--out`` does not contain yet; returns the table of all results."""
    name, only, out = arguments.experiment, arguments.only, arguments.out
    experiment = EXPERIMENTS[name]
    steps = arguments.steps or experiment.training.steps
    condition = {"experiment": name, "steps": steps}
    held: dict[str, Any] = {"condition": condition, "results": {}}
    if out and out.exists():
        held = json.loads(out.read_text(encoding="utf-8"))
    if held["condition"] != condition:
        raise UserError(f"--out={out}: contains results for other settings: {held['condition']}")
    results = held["results"]
    chosen = [v for v in experiment.variants if not only or v in only]
    if not chosen:
        raise UserError(f"--only: choose from {'; '.join(experiment.variants)}")
    if arguments.picture:
        results.get(chosen[-1], {}).pop(str(arguments.seeds[-1]), None)  # Its weights are needed.
    for seed in arguments.seeds:
        for variant in chosen:
            if str(seed) in results.setdefault(variant, {}):
                continue
            print(f"{name}: {variant}, seed {seed}", file=sys.stderr, flush=True)
            last = (variant, seed) == (chosen[-1], arguments.seeds[-1])
            picture = arguments.picture if last else None
            result = train(experiment, experiment.variants[variant], steps, seed, picture)
            results[variant][str(seed)] = result._asdict()
            print(result, file=sys.stderr, flush=True)
            if out:
                write_json(out, held)
    found = {v: {s: Result(**r) for s, r in results[v].items()} for v in chosen}
    clips = experiment.training.batch_size
    about = f"{name}, {steps} steps of {clips} clips; {machine()}: {experiment.bound}"
    return f"{about}\n\n{table(found)}"


def main() -> None:
    """Reads the options, runs an experiment, prints its table."""
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "shipped"])
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="random seeds")
    parser.add_argument("--steps", type=int, help="steps per training")
    parser.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="only these")
    parser.add_argument("--out", type=Path, help="JSON file of results; resumed")
    parser.add_argument("--picture", type=Path, help="a PNG of what the last variant selects")
    parser.add_argument("--weights", nargs="+", default=("strcnn_dtb_choice",), help="for shipped")
    arguments = parser.parse_args()
    devices.keep_freed_memory()
    devices.keep_compiled()
    if arguments.experiment == "shipped":
        print(shipped(arguments.weights))
    else:
        print(run(arguments))


if __name__ == "__main__":
    run_command(main, "benchmarks.evidence")
