"""What each part of the networks contributes: variants trained with equal steps on equal data.

    python -m benchmarks.ablation --quick
    python -m benchmarks.ablation --study=attention --steps=600 --seeds 0 1 2 --out=attention.json

All variants of a study see the same batches (a function of seed and step alone; but for those that
change the data themselves) and are scored on the same rendered validation videos, on the uint8
frames that a user gets. The gain is in dB over the blurred input; with several seeds, mean and
standard deviation, of the difference from the first variant too, seed by seed. ``--out`` keeps each
training as soon as it is scored: the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import maps
from benchmarks.options import natural, whole
from benchmarks.study_scenes import StudyScenes, Validation
from jaxdeblur import devices, models
from jaxdeblur.data.batches import batches
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.scenes import SceneConfig
from jaxdeblur.data.training_data import open_data
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.files import write_json
from jaxdeblur.models.explanation import explainer
from jaxdeblur.models.fsta_config import FSTA_SMALL, FstaConfig
from jaxdeblur.models.parameters import count, split
from jaxdeblur.options import Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.shapes import Batch
from jaxdeblur.training.loop import Stopped, global_batches, run_steps
from jaxdeblur.training.step import (
    Metrics,
    TrainingConfig,
    TrainState,
    best_parameters,
    compile_train_step,
    initial_train_state,
)

STRCNN_SMALL = PRESETS["strcnn_dtb_small"].network
# The studies compare with the paper's own fusion; the preset lays neighbours side by side too.
PAPER_SMALL = dataclasses.replace(FSTA_SMALL, fusion="fsta")
QUICK_STEPS = 600

# At a place that hardly changes, the hand trembles in bursts: what a sharp frame showed is still
# there, a few pixels aside, when the next ones are blurred.
SHAKEN = StudyScenes(
    "shaken",
    SceneConfig(
        size=(96, 96),
        motion=(0.0, 0.6),
        tremble=1.2,
        swell=0.8,
        objects=0,
        rotation=0.0,
        zoom=0.0,
        depth=0.0,
    ),
    frames=32,
    crop=96,
    kinds=(2, 6),
)
# The camera's motion alone, the same all over the frame, and half of the walls are plain.
ONE_MOTION = StudyScenes(
    "one motion",
    SceneConfig(motion=(10.0, 30.0), tremble=0.0, objects=0, rotation=0.0, zoom=0.0, depth=0.0),
    empty=0.5,
    kinds=(15, 25),
)
# The same at a quarter of the size, where minutes on a CPU tell.
ONE_MOTION_QUARTER = dataclasses.replace(
    ONE_MOTION,
    config=dataclasses.replace(ONE_MOTION.config, size=(96, 96), motion=(2.5, 7.5)),
    frames=17,  # The longest window sees its 16 frames.
    crop=96,
    kinds=(4, 6),
)


class Variant(NamedTuple):
    """What is trained: a network, and what differs from the training of ``fsta_small``."""

    network: Any
    training: Mapping[str, Any] = MappingProxyType({})
    data: Mapping[str, Any] = MappingProxyType({})


class Study(NamedTuple):
    """Variants, and the data sets on which they are scored."""

    variants: dict[str, Variant]
    scored_on: tuple[str, ...] = ("rendered:narrow",)
    scenes: StudyScenes | None = None
    """Of its own, to train on and to be scored on; without, what the data options say."""


def _fsta(**fields: Any) -> Variant:
    return Variant(dataclasses.replace(PAPER_SMALL, **fields))


def _strcnn(**fields: Any) -> Variant:
    return Variant(dataclasses.replace(STRCNN_SMALL, **fields))


def _training(**fields: Any) -> Variant:
    return Variant(STRCNN_SMALL, fields)


def _blended(**fields: Any) -> Variant:
    """STRCNN on clips long enough for what a recurrence carries to pay."""
    network = dataclasses.replace(STRCNN_SMALL, width=16, **fields)
    training = {"loss": "log_mse", "batch_size": 1, "frames": 24, "crop": 64, "warmup": 20}
    return Variant(network, training)


def _attending(**fields: Any) -> Variant:
    """The attention network on crops that hold several blurs of tens of pixels."""
    network = dataclasses.replace(PAPER_SMALL, **fields)
    return Variant(network, {"loss": "log_mse", "frames": 1, "crop": 192})


def _attending_nearby(**fields: Any) -> Variant:
    """One that reads 14 pixels to each side, where the whole frame can tell it something."""
    one_level: dict[str, Any] = {
        "window": 3,
        "widths": (24,),
        "growths": (12,),
        "dense_layers": 2,
        "encoder_blocks": (1,),
        "decoder_blocks": (1,),
        "attention_levels": (0,),
    }
    network = dataclasses.replace(PAPER_SMALL, **(one_level | fields))
    training = {"loss": "log_mse", "batch_size": 4, "frames": 1, "crop": 96, "warmup": 20}
    return Variant(network, training)


WAYS_OF_FUSING = {
    "none": "none",
    "fsta": "fsta",
    "concat": "concat",
    "concat + fsta": "concat_fsta",
}


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
            "blending, middle": _blended(),
            "plain CNN, m = 1": _blended(m=1, blending="none", recurrent=False),
            "recurrence, m = 1": _blended(m=1, blending="none"),
            "blending, middle, m = 1": _blended(m=1),
            "F_n the final activation": _blended(blending="none", feedback="final"),
            **{f"blending, {name}": _blended(blending=name) for name in ("encoder", "decoder")},
            **{f"blending, middle, m = {m}": _blended(m=m) for m in (0, 3)},
        },
        (),
        SHAKEN,
    ),
    # Where what the whole frame tells can pay: one motion for all of it, larger than its texture.
    "attention": Study(
        {
            **{name: _attending(fusion=fusion) for name, fusion in WAYS_OF_FUSING.items()},
            "nonlocal at 1/4": _attending(fusion="nonlocal", attention_levels=(1,)),
            "fsta at 1/4": _attending(attention_levels=(1,)),
            **{
                f"(M, N) = ({m}, {n})": _attending(spatial_maps=m, temporal_maps=n)
                for m, n in ((1, 1), (32, 8))
            },
            **{f"T = {window}": _attending(window=window) for window in (1, 3, 9)},
            "T = 16, causal": _attending(window=16, causal=True),
            "gated": _attending(gated=True),
            "3 key frames of 5": _attending(key_frames=3),
        },
        ("rendered:narrow",),
        ONE_MOTION,
    ),
    "attention-quarter": Study(
        {
            **{name: _attending_nearby(fusion=fusion) for name, fusion in WAYS_OF_FUSING.items()},
            "fsta, logit gain 8": _attending_nearby(logit_gain=8.0),
            "concat + fsta, logit gain 8": _attending_nearby(fusion="concat_fsta", logit_gain=8.0),
            "gated": _attending_nearby(gated=True),
            "nonlocal": _attending_nearby(fusion="nonlocal"),
            **{
                f"(M, N) = ({m}, {n})": _attending_nearby(spatial_maps=m, temporal_maps=n)
                for m, n in ((1, 1), (32, 8))
            },
            **{f"T = {window}": _attending_nearby(window=window) for window in (1, 5, 9)},
            "T = 16, causal": _attending_nearby(window=16, causal=True),
            "T = 5, 3 key frames": _attending_nearby(window=5, key_frames=3),
        },
        (),
        ONE_MOTION_QUARTER,
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
            "clips of 8 frames": _large_blur({"frames": 8}),
            "attention": Variant(PAPER_SMALL, {"loss": "log_mse"}, {"scenes": "handheld"}),
        },
        ("rendered:narrow", "rendered:wide"),
    ),
}


class Result(NamedTuple):
    """One variant trained from one seed."""

    parameters: int
    gains: dict[str, list[float]]
    """dB, for each data set, kind of blur and video of the validation."""
    ms_a_step: float
    blending: list[float]
    """The mean w_n of each frame of the first video of the validation, if it blends."""
    extents: list[float]
    """How far that video moves during each exposure, pixels, where it is known."""
    entropy: dict[str, list[float]]
    """Of the attention's maps: ``maps.Seen``."""


class Nowhere:
    """Keeps no checkpoints and shows no progress: the loop's saver and watcher."""

    def save(self, state: TrainState) -> None:
        """Nothing is kept."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Nothing is shown."""

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """There is no validation during the run."""


class Feeds:
    """The batches of a seed, made once for all variants that train on the same clips."""

    MOST_BYTES = 2**31

    def __init__(self) -> None:
        self._kept: dict[Any, list[Batch]] = {}

    def open(self, key: Any, steps: int, make: Callable[[int], Any]) -> Iterator[Batch]:
        """The batches of ``make(first step)``, which are made before the first is taken.

        Those that exceed ``MOST_BYTES`` in all are made when their step comes, for each variant.
        """
        kept = self._kept.setdefault(key, [])
        with make(len(kept)) as made:
            while len(kept) < steps and self._bytes() < self.MOST_BYTES:
                kept.append(next(made))
        return self._all(kept, make)

    @staticmethod
    def _all(kept: list[Batch], make: Callable[[int], Any]) -> Iterator[Batch]:
        yield from kept
        with make(len(kept)) as made:
            yield from made

    def _bytes(self) -> int:
        batches_of = self._kept.values()
        return sum(sum(a.nbytes for a in b.values()) * len(k) for k in batches_of for b in k[:1])


def train_variant(
    network: Any,
    config: TrainingConfig,
    data: DataConfig,
    own: StudyScenes | None,
    feeds: Feeds,
    validation: Validation,
    picture: Path | None = None,
) -> Result:
    """Trains one variant and scores it; ``picture`` is drawn of what it blends or attends to."""
    mesh = devices.make_mesh(config.batch_size)
    model = models.build(network, config.seed)
    rebuild, parameters = split(model)
    number = count(parameters)
    state = jax.device_put(initial_train_state(config, parameters), devices.replicated(mesh))
    step = compile_train_step(config, rebuild, mesh)

    def make(first: int) -> Any:
        crop = config.crop
        scenes = [(own.training(crop), 1.0)] if own else open_data(data, crop).train
        return batches(
            scenes,
            data.clip_options(config.frames, crop, model.context),
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=first,
        )

    key = (data, own, config.frames, config.crop, model.context, config.batch_size, config.seed)
    feed = global_batches(feeds.open(key, config.steps, make), mesh)
    nowhere = Nowhere()
    first = dataclasses.replace(config, steps=1, validate_every=0)
    state = run_steps(state, feed, step, first, saver=nowhere, watcher=nowhere)
    start = time.perf_counter()  # after the compilation
    state = run_steps(state, feed, step, config, saver=nowhere, watcher=nowhere)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    best = best_parameters(state)
    trained = rebuild(
        {name: jnp.asarray(array.addressable_data(0)) for name, array in best.items()}
    )
    video = next(iter(validation.videos.values()))[0]
    found = maps.Seen([], {})
    if explainer(trained) is not None:
        explanation = maps.explain(trained, video.blurred)
        found = maps.seen(explanation)
        if picture and (found.blending or found.entropy):
            maps.draw(explanation, video.blurred, trained, picture)
    return Result(
        number,
        validation.gains(trained),
        1e3 * seconds / max(config.steps - 1, 1),
        found.blending,
        [] if video.extent is None else [float(x) for x in video.extent],
        found.entropy,
    )


class Kept:
    """The results of a study in a file, if it has one, each written as soon as it is known."""

    def __init__(self, path: Path | None, condition: dict[str, Any]) -> None:
        self.path, self.condition = path, condition
        self.results: dict[str, dict[str, Result]] = {}
        if path is None or not path.exists():
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            before = held["condition"]
            for name, of_seeds in held["results"].items():
                self.results[name] = {seed: Result(**one) for seed, one in of_seeds.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"--out={path}: is no file of results of this program") from error
        if before != condition:
            different = [name for name in condition if before.get(name) != condition[name]]
            raise UserError(
                f"--out={path}: has results of another {', '.join(different)}; name another file"
            )

    def of(self, name: str, seed: int) -> Result | None:
        """What is known already."""
        return self.results.get(name, {}).get(str(seed))

    def add(self, name: str, seed: int, result: Result) -> None:
        """Keeps a result."""
        self.results.setdefault(name, {})[str(seed)] = result
        if self.path:
            rows = {
                name: {seed: one._asdict() for seed, one in of_seeds.items()}
                for name, of_seeds in self.results.items()
            }
            write_json(self.path, {"condition": self.condition, "results": rows})


def run_study(
    study: Study,
    config: TrainingConfig,
    data: DataConfig,
    seeds: Sequence[int],
    kept: Kept,
    pictures: Path | None = None,
) -> dict[str, list[Result]]:
    """Trains every variant from every seed, but for those that are known; prints a line for each.

    The pictures are of the first seed.
    """
    validation: Validation | None = None
    for seed in seeds:
        feeds = Feeds()
        for name, variant in study.variants.items():
            if kept.of(name, seed):
                continue
            validation = validation or Validation.of(study.scored_on, study.scenes, data)
            drawn = (
                pictures / f"{name.replace('/', '-')}.png"
                if pictures and seed == seeds[0]
                else None
            )
            result = train_variant(
                variant.network,
                dataclasses.replace(config, seed=seed, **variant.training),
                dataclasses.replace(data, **variant.data),
                study.scenes,
                feeds,
                validation,
                drawn,
            )
            kept.add(name, seed, result)
            scores = "; ".join(
                f"{spec} {np.mean(gains):+.2f} dB, worst video {min(gains):+.2f}"
                for spec, gains in result.gains.items()
            )
            said = [f"{name}, seed {seed}: {scores}; {result.ms_a_step:.0f} ms a step"]
            said += maps.describe(maps.Seen(result.blending, result.entropy), name)
            print(*said, sep="\n", file=sys.stderr, flush=True)
    return {
        name: [result for seed in seeds if (result := kept.of(name, seed))]
        for name in study.variants
    }


def table(results: dict[str, list[Result]]) -> str:
    """The study as a table: mean gains over the videos, their spread over the seeds, and how they
    differ from those of the first variant, seed by seed."""
    first = next(iter(results.values()))
    columns = list(first[0].gains)
    own = columns[0]
    lines = [
        f"| variant | parameters | ms a step | {' | '.join(columns)} | worst video, {own} "
        f"| against the first, {own} |",
        "|---" * (5 + len(columns)) + "|",
    ]
    for name, of_seeds in results.items():
        milliseconds = np.median([result.ms_a_step for result in of_seeds])
        cells = [name, f"{of_seeds[0].parameters:,}", f"{milliseconds:.0f}"]
        means = {c: [float(np.mean(result.gains[c])) for result in of_seeds] for c in columns}
        cells += [_mean_and_spread(means[column]) for column in columns]
        cells.append(f"{np.mean([min(result.gains[own]) for result in of_seeds]):+.2f}")
        pairs = zip(means[own], first, strict=True)
        differences = [mean - float(np.mean(one.gains[own])) for mean, one in pairs]
        cells.append("" if of_seeds is first else _mean_and_spread(differences))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{spread}"


def rehearsed(study: Study) -> Study:
    """The study with tiny networks, clips and videos: it shows that it runs, and nothing else."""

    def tiny(variant: Variant) -> Variant:
        network = variant.network
        if isinstance(network, FstaConfig):
            levels = len(network.widths)
            least = {"widths": (4,) * levels, "growths": (2,) * levels, "dense_layers": 1}
            least |= {"spatial_maps": 2, "temporal_maps": 2}
        else:
            least = {"width": 4, "blocks": 1}
        training = {**variant.training, "frames": 2, "crop": 32, "batch_size": 1}
        return Variant(dataclasses.replace(network, **least), training, variant.data)

    variants = {name: tiny(variant) for name, variant in study.variants.items()}
    scenes = study.scenes
    if scenes:
        config = dataclasses.replace(scenes.config, size=(32, 32), motion=(0.0, 1.0))
        scenes = dataclasses.replace(scenes, config=config, videos=1, frames=3, crop=32)
    return Study(variants, () if scenes else ("rendered:tiny",), scenes)


def _means(text: str, name: str, study: Study) -> bool:
    """Whether a word of ``--only`` means a variant: it is its name, or, if none's, a part of it."""
    return text == name if text in study.variants else text in name


def main() -> None:
    """Reads the options, trains, prints the table."""
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--study", choices=sorted(STUDIES), default="quick")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed")
    parser.add_argument("--rehearse", action="store_true", help="2 steps of tiny networks")
    parser.add_argument("--steps", type=natural, default=3000, help="of training")
    parser.add_argument(
        "--seeds", type=whole, nargs="+", default=(0, 1, 2), help="one training each"
    )
    parser.add_argument("--crop", type=natural, help="height and width of the clips, pixels")
    parser.add_argument("--only", nargs="+", help="variants of these names, or of parts of them")
    parser.add_argument("--out", type=Path, help="a JSON file for the results; it is gone on with")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of w_n and the maps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds = QUICK_STEPS, arguments.seeds[:1]
    if arguments.rehearse:
        arguments.steps, arguments.seeds = 2, arguments.seeds[:1]
    study = STUDIES[arguments.study]
    variants = {
        name: variant
        for name, variant in study.variants.items()
        if not arguments.only or any(_means(part, name, study) for part in arguments.only)
    }
    if not variants:
        raise UserError(f"--only: the study has {', '.join(study.variants)}")
    study = study._replace(variants=variants)
    if arguments.rehearse:
        study = rehearsed(study)

    preset = PRESETS["fsta_small"]
    config = dataclasses.replace(
        preset.training,
        steps=arguments.steps,
        crop=arguments.crop or preset.training.crop,
        validate_every=0,
    )
    condition = {"study": arguments.study, "steps": config.steps, "crop": config.crop}
    kept = Kept(arguments.out, {**condition, "rehearsal": arguments.rehearse})
    if arguments.pictures:
        try:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--pictures={arguments.pictures}: {error.strerror}") from error
    devices.keep_freed_memory()
    devices.keep_compiled()
    of_variants = study.variants.values()
    sizes = [variant.training.get("batch_size", config.batch_size) for variant in of_variants]
    devices.use_cores(math.gcd(*sizes), spare=True)
    seeds = list(arguments.seeds)
    try:
        results = run_study(study, config, preset.data, seeds, kept, arguments.pictures)
    except Stopped as stop:
        raise UserError(str(stop)) from stop
    print(
        f"{arguments.study}: gain in dB after {config.steps} steps of {config.batch_size} clips of "
        f"{config.frames} x {config.crop} x {config.crop}, {config.optimizer}, scenes "
        f"{preset.data.scenes!r}, where a variant says nothing else; seeds {seeds}; "
        f"{os.cpu_count()} cores, jax {jax.__version__}\n"
    )
    print(table(results))


if __name__ == "__main__":
    run_command(main, "benchmarks.ablation")
