"""Table 1 on equal terms: all eight systems, the same data, the same trainer, the same protocol.

    python -m benchmarks.table1 --minutes=10 --steps=300
    python -m benchmarks.table1 --data=GOPRO_Large --size=full --steps=300000
    python -m benchmarks.table1 --seeds 0 --steps=2 --crop=32 --max-frames=2 --max-videos=1
    python -m benchmarks.table1 --speed --size=full --speed-size=160x96

Each system is trained with its own recipe at small width (19 to 31 GMAC per 720p frame), on clips
of the same size with the same seeds: once for equal steps (``--steps``), once for equal time
(``--minutes`` of steps per training; clips are made in parallel), or both. Then each is scored on
the test videos. Finished trainings and scores are kept: the same command resumes where it was
stopped. Before training, a step of each system is timed. ``--speed`` times a frame of each system
and trains none.

The folder ``--out`` receives ``table1.md`` and ``table1.json``. GMAC are multiply-adds of
convolutions and matrix products, counted in the program of one step of the stream; memory is the
compiler's figure for this step.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import machine, random_clips, side_by_side, spread, training
from jaxdeblur import devices, models
from jaxdeblur.console import run_command, tell
from jaxdeblur.data.config import DataConfig
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.videos import Dataset
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.files import write_json
from jaxdeblur.models.parameters import count, split
from jaxdeblur.options import FrameSize, Parser
from jaxdeblur.presets import PRESETS
from jaxdeblur.training.run import train
from jaxdeblur.training.run_folder import Run
from jaxdeblur.training.step import TrainingConfig
from jaxdeblur.weights.load import load_model

_SCORES = (("psnr", 2), ("gain", 2), ("ssim", 4), ("temporal_error", 2))

SYSTEMS = {
    "SRN": ("srn_small", "srn"),
    "DBN": ("dbn_small", "dbn"),
    "RDN": ("rdn_small", "rdn"),
    "STRCNN+DTB": ("strcnn_dtb_small", "strcnn_dtb"),
    "IFI-RNN": ("ifi_rnn_small", "ifi_rnn"),
    "EDVR": ("edvr_small", "edvr_m"),
    "STFAN": ("stfan_small", "stfan"),
    "attention": ("fsta_small", "fsta_concat"),
}
"""The rows of the attention paper's Table 1: the small preset and the published one."""


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument(
        "--size", choices=["small", "full"], default="small", help="of the networks"
    )
    parser.add_argument("--data", default="rendered:narrow", help="trains and scores")
    parser.add_argument("--steps", type=int, help="steps per training, for equal steps")
    parser.add_argument("--minutes", type=float, help="per training, for equal wall-clock time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--crop", type=int, default=96, help="side of a clip in pixels")
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--batch-size", type=int, default=2, help="clips per step")
    parser.add_argument("--max-frames", type=int, help="score only this many frames per video")
    parser.add_argument("--max-videos", type=int, help="score only this many videos")
    parser.add_argument("--protocol", default="jaxdeblur", help="protocol of the scores")
    parser.add_argument("--speed", action="store_true", help="only time a frame, without training")
    parser.add_argument(
        "--speed-size",
        type=lambda text: FrameSize(text)[::-1],
        default=(180, 320),
        help="size of the timed frames, WIDTHxHEIGHT",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/table1"), help="the folder")
    options = parser.parse_args()
    if not options.steps and not options.minutes and not options.speed:
        raise UserError("give --steps, --minutes or both, or --speed")
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(options.batch_size)

    config = EvaluationConfig(
        data=options.data, max_frames=options.max_frames, protocol=options.protocol
    )
    rows: dict[str, dict[str, Any]] = {}
    for system in options.only:
        name = SYSTEMS[system][options.size == "full"]
        rows[system] = {"preset": name, **properties(name, *options.speed_size)}
        if options.speed:
            continue
        # With as many steps as the first training, whose program is then already compiled.
        config_of_one = training_of(name, options.steps or 1, 0, options)
        rows[system]["seconds_a_step"] = seconds_a_step(name, config_of_one)
        tell(f"{system}: {rows[system]['seconds_a_step']:.3f} s per training step")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.speed:
        text = speed_table(rows, options)
        (options.out / "speed.md").write_text(text, encoding="utf-8")
        print(text)
        return
    dataset = open_dataset(options.data, "test")
    dataset = dataclasses.replace(dataset, videos=dataset.videos[: options.max_videos])
    for seed, (system, row) in itertools.product(options.seeds, rows.items()):
        for budget, steps in budgets(options, row["seconds_a_step"]):
            # The first training sets the steps, so that other seeds and starts use the same.
            folder = options.out / f"{row['preset']}-{budget}-{seed}"
            for begun in sorted(options.out.glob(f"{row['preset']}-{budget}-*/config.json")):
                steps = json.loads(begun.read_text(encoding="utf-8"))["training"]["steps"]
            metrics = train_and_score(row["preset"], steps, seed, folder, dataset, config, options)
            row.setdefault(budget, []).append({"steps": steps, "seed": seed, **metrics})
            tell(f"{system}, {budget}, seed {seed}: {metrics['gain']:+.2f} dB")
    text = f"{score_table(rows, options)}\n{speed_table(rows, options)}"
    (options.out / "table1.md").write_text(text, encoding="utf-8")
    write_json(options.out / "table1.json", {"machine": machine(), "rows": rows})
    print(text)


def training_of(name: str, steps: int, seed: int, options: Any) -> TrainingConfig:
    """Returns a preset's recipe with the clips and steps that all systems share."""
    return dataclasses.replace(
        PRESETS[name].training,
        steps=steps,
        seed=seed,
        frames=options.frames,
        crop=options.crop,
        batch_size=options.batch_size,
        warmup=min(PRESETS[name].training.warmup, max(steps // 10, 1)),
        validate_every=0,
        save_every=max(steps // 4, 1),
    )


def budgets(options: Any, seconds: float) -> Iterator[tuple[str, int]]:
    """Yields what is equal for all, and the number of steps."""
    if options.steps:
        yield "equal-steps", options.steps
    if options.minutes:
        yield "equal-time", max(1, int(60 * options.minutes / seconds))


def train_and_score(
    name: str,
    steps: int,
    seed: int,
    folder: Path,
    dataset: Dataset,
    config: EvaluationConfig,
    options: Any,
) -> dict[str, Any]:
    """Trains and scores once; both resume where they were stopped."""
    run = Run(
        name,
        PRESETS[name].network,
        training_of(name, steps, seed, options),
        DataConfig(data=(options.data,)),
    )
    train(run, folder, resume=folder.exists())
    loaded = load_model(str(folder))
    out = folder / "evaluation"
    metrics = evaluate(loaded.model, loaded.about, dataset, config, out)
    flicker = statistics.fmean(video["temporal_error"] for video in metrics["videos"])
    return {name: metrics[name] for name in ("psnr", "ssim", "gain")} | {"temporal_error": flicker}


def seconds_a_step(name: str, config: TrainingConfig) -> float:
    """Returns the median time of three compiled training steps as in ``train.py``."""
    network = PRESETS[name].network
    batch = random_clips(config, models.build(network).context)
    step = partial(training(network, config), batch)
    return side_by_side({name: step}, 3)[name]


def properties(name: str, width: int, height: int) -> dict[str, Any]:
    """Measures parameters, GMAC per 720p frame and look-ahead; time and memory at a given size."""
    model = models.build(PRESETS[name].network)
    rebuild, parameters = split(model)
    state = model.initial_state(1, height, width)
    frame = jnp.asarray(np.random.default_rng(0).random((1, height, width, 3)), jnp.float32)
    step = jax.jit(lambda p, state, frame: rebuild(p).step(state, frame))
    compiled = step.lower(parameters, state, frame).compile()
    memory: Any = compiled.memory_analysis()

    def one() -> Any:
        nonlocal state
        state, restored = compiled(parameters, state, frame)
        return restored

    seconds = side_by_side({name: one}, 3, untimed=model.lookahead + 1)[name]
    parts = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return {
        "parameters": count(parameters),
        "gmac": multiply_adds(name, 720, 1280) / 1e9,
        "lookahead": model.lookahead,
        "ms": 1e3 * seconds,
        "mebibytes": (sum(parts) - memory.alias_size_in_bytes) / 2**20,
    }


def multiply_adds(name: str, height: int, width: int) -> int:
    """Counts multiply-adds of convolutions and matrix products in one step of the stream."""
    rebuild, parameters = split(models.build(PRESETS[name].network))
    state = jax.eval_shape(lambda p: rebuild(p).initial_state(1, height, width), parameters)
    frame = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    program = jax.make_jaxpr(lambda p, s, f: rebuild(p).step(s, f))(parameters, state, frame)
    return _multiply_adds(program.jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
        made = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "conv_general_dilated":
            kernel, dimensions = shapes[1], equation.params["dimension_numbers"]
            total += made * math.prod(kernel) // kernel[dimensions.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += made * math.prod(shapes[0][axis] for axis in contracted)
        parts = [_multiply_adds(part) for part in _inner(equation.params.values())]
        # The costlier branch of a conditional; every iteration of a loop.
        times = equation.params["length"] if name == "scan" else 1
        total += max(parts, default=0) if name == "cond" else times * sum(parts)
    return total


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        for part in value if isinstance(value, list | tuple) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def score_table(rows: dict[str, dict[str, Any]], options: Any) -> str:
    """Formats Markdown: a row per system and budget, mean and deviation over the seeds."""
    lines = [
        "| system | trained for | PSNR, dB | gain over blurred, dB | SSIM | temporal error |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for system, row in rows.items():
        for budget in ("equal-steps", "equal-time"):
            if budget not in row:
                continue
            runs = row[budget]
            cells = [spread([run[key] for run in runs], digits) for key, digits in _SCORES]
            trained = f"{budget}: {runs[0]['steps']} steps of {row['seconds_a_step']:.3f} s"
            lines.append(f"| {system} (`{row['preset']}`) | {trained} | {' | '.join(cells)} |")
    seeds = " ".join(map(str, options.seeds))
    return "\n".join(
        [
            *lines,
            "",
            f"Data {options.data}, protocol {options.protocol}, seeds {seeds} (mean ± deviation); "
            f"{options.batch_size} clips of {options.frames} x {options.crop} x {options.crop} a "
            "step.",
            "",
        ]
    )


def speed_table(rows: dict[str, dict[str, Any]], options: Any) -> str:
    """Formats Markdown: the properties and the speed of each system."""
    width, height = options.speed_size
    lines = [
        f"| system | parameters | look-ahead | GMAC at 720p | ms a frame of {width}x{height} | "
        "MiB there |",
        "|---|" + "---:|" * 5,
    ]
    for system, row in rows.items():
        lines.append(
            f"| {system} (`{row['preset']}`) | {row['parameters']:,} | {row['lookahead']} | "
            f"{row['gmac']:.1f} | {row['ms']:.1f} | {row['mebibytes']:.0f} |"
        )
    return "\n".join([*lines, "", f"{machine()}.", ""])


if __name__ == "__main__":
    run_command(main, "benchmarks.table1")
