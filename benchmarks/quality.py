"""What weights gain by the size of the blur, what each size of a network adds, what gates take.

    python -m benchmarks.quality scores --ckpt strcnn_dtb_choice runs/another
    python -m benchmarks.quality scores --ckpt RUN --highspeed X4K --only TEST03 TEST12 --taus 7 11
    python -m benchmarks.quality scores --ckpt RUN --blur --scenes --sharp phone.mp4
    python -m benchmarks.quality levels --ckpt strcnn_dtb_choice --alone runs/narrow --blur 10 20
    python -m benchmarks.quality gates --ckpt strcnn_dtb_choice

``scores``: each line is an evaluation of its own (``evaluate.py``), kept with its report below
``--out``: a second start skips what is done. The scenes of the curve are rendered, 1280x720, from
photographs that never train. Protocol ``jaxdeblur``: the uint8 frames that a user gets.

``levels``: a level restores frames at its own size, and what the gates take of its residual,
enlarged, is added at full size. For each level: the gain of it and all coarser ones, at its own
size and at full size. ``--alone`` runs a network of one scale at each of ``--scales`` by itself. A
perfect level adds the true residual of its size. Scenes of the validation split; the first frames
of each, as floats clipped to [0, 1], since no file holds what a level gives.

``gates``: for each size the share of its residual that is taken, mean over cells, and the root mean
square of that residual before a share is taken, in grey levels of its size. A sharp video that is
changed has shares above 0; how they compare with those of a blurred one says whether it is taken
for one. The test scenes of docs/results.md, their first frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.options import natural, positive
from jaxdeblur import devices
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.models.layers import enlarge, reduce_size
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.restoration.stream import from_uint8
from jaxdeblur.shapes import Clip, ReducedClip
from jaxdeblur.weights.load import LoadedModel, load_model

_MEANS = (
    "psnr", "psnr_blurred", "ssim", "ssim_blurred", "temporal_error", "temporal_error_blurred",
)  # fmt: skip


class Test(NamedTuple):
    """One line of the table."""

    name: str
    config: EvaluationConfig
    sharp: bool = False
    """The frames go in as they are, and should come out so."""


_SCENES = [f"rendered:{pixels}px" for pixels in (2, 10, 20, 40)]

Gains: TypeAlias = Callable[[Clip, Clip], list[tuple[int, float, float]]]
"""Of (blurred, sharp): for each level its scale, the gain at its own size and at full size."""


def main() -> None:
    parser = Parser(description=__doc__)
    what = parser.add_subparsers(required=True, metavar="scores | levels | gates")
    scored = what.add_parser("scores", help="gains, and what comes out of sharp video")
    scored.set_defaults(measure=scores)
    scored.add_argument("--ckpt", nargs="+", required=True, help="runs, files or names of weights")
    scored.add_argument("--out", type=Path, default=Path("quality"), help="folder of the results")
    scored.add_argument(
        "--blur",
        type=float,
        nargs="*",
        default=(2, 5, 10, 20, 40),
        help="pixels; nothing after it leaves the rendered scenes out",
    )
    scored.add_argument(
        "--sharp-scenes",
        type=float,
        nargs="*",
        default=(),
        help="pixels a frame that rendered scenes move whose sharp frames go in",
    )
    scored.add_argument("--scenes", nargs="*", default=("narrow", "wide"), help="at 192x192")
    scored.add_argument("--highspeed", nargs="*", default=(), help="folders of high-speed frames")
    scored.add_argument("--only", nargs="*", default=(), help="of their videos")
    scored.add_argument(
        "--taus", type=natural, nargs="*", default=(7, 11, 15), help="frames averaged"
    )
    scored.add_argument("--sharp", nargs="*", default=(), help="folders or videos, as they are")
    scored.add_argument(
        "--sharp-every",
        type=natural,
        nargs="+",
        default=(1,),
        help="of those, one frame in so many: they move as much faster and are as sharp",
    )
    scored.add_argument("--max-frames", type=natural, default=8, help="of each video that is long")

    level = what.add_parser("levels", help="what each size of a network adds")
    level.set_defaults(measure=levels)
    level.add_argument("--ckpt", nargs="*", default=(), help="networks of several scales")
    level.add_argument("--alone", nargs="*", default=(), help="networks of one scale")
    level.add_argument(
        "--scales",
        type=int,
        choices=(1, 2, 4, 8, 16),
        nargs="+",
        default=(8, 4, 2, 1),
        help="where those are run",
    )
    level.add_argument("--blur", type=positive, nargs="+", default=(5, 10, 20, 40), help="pixels")
    level.add_argument("--frames", type=natural, default=5, help="of each scene")

    gate = what.add_parser("gates", help="what is taken of each size")
    gate.set_defaults(measure=gates)
    gate.add_argument("--ckpt", required=True, help="a network with gates")
    gate.add_argument("--data", nargs="+", default=_SCENES)
    gate.add_argument(
        "--sharp-input",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the sharp frames go in; with --no-sharp-input the blurred ones",
    )
    gate.add_argument("--frames", type=natural, default=5, help="of each video")
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    arguments.measure(arguments)


def scores(arguments: argparse.Namespace) -> None:
    """A table of evaluations for each of the weights."""
    print(f"{jax.devices()[0].device_kind}; jax {jax.__version__}\n")
    for checkpoint in arguments.ckpt:
        loaded = load_model(checkpoint)
        out = arguments.out / Path(checkpoint).name
        print(f"### {checkpoint} (step {loaded.step})\n")
        print("| data | blurred, dB | restored, dB | gain | worst | SSIM | flicker, grey levels |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for test in tests(arguments):
            print(row(test, score(loaded, test, out / test.name)), flush=True)
        print()


def tests(arguments: argparse.Namespace) -> Iterator[Test]:
    """What is asked for, small blur first."""
    for scenes in arguments.scenes:
        yield Test(f"rendered {scenes}", EvaluationConfig(f"rendered:{scenes}"))
    for light in ("stored", "linear"):
        for blur in arguments.blur:
            config = EvaluationConfig(f"rendered:{blur:g}px", light=light)
            yield Test(f"rendered {blur:g}px-{light}", config)
    for speed in arguments.sharp_scenes:
        config = EvaluationConfig(f"rendered:{speed:g}px", light="stored", sharp_input=True)
        yield Test(f"rendered {speed:g}px-sharp", config, sharp=True)
    only, most = tuple(arguments.only), arguments.max_frames
    for folder in arguments.highspeed:
        for tau in arguments.taus:
            config = EvaluationConfig(
                f"highspeed:{folder}", only=only, tau=tau, period=tau, max_frames=most
            )
            yield Test(f"{Path(folder).stem} tau {tau}", config)
    for source in arguments.sharp:
        for every in arguments.sharp_every:
            config = EvaluationConfig(
                f"highspeed:{source}", only=only, tau=1, period=every, max_frames=most
            )
            which = "as it is" if every == 1 else f"one frame in {every}"
            yield Test(f"{Path(source).stem} {which}", config, sharp=True)


def score(loaded: LoadedModel, test: Test, out: Path) -> dict[str, Any]:
    """What ``metrics.json`` says."""
    print(f"{test.name} ...", file=sys.stderr)
    dataset = open_dataset(
        test.config.data,
        "test",
        exposure=test.config.exposure,
        light=test.config.light,
        sharp_input=test.config.sharp_input,
        only=test.config.only,
    )
    try:
        config = dataclasses.replace(test.config, single=loaded.of_photographs)
        return evaluate(loaded, dataset, config, out)
    except UserError as error:
        raise UserError(f"{error} (of an earlier run: choose another --out)") from error


def row(test: Test, metrics: dict[str, Any]) -> str:
    """The means over the videos, and the least gain of any."""
    videos = metrics["videos"]
    mean = {name: sum(video[name] for video in videos) / len(videos) for name in _MEANS}
    flicker = f"{mean['temporal_error_blurred']:.2f} → {mean['temporal_error']:.2f}"
    ssim = f"{mean['ssim_blurred']:.3f} → {mean['ssim']:.3f}"
    if test.sharp:  # There is nothing to gain: how near to what went in?
        worst = min(video["psnr"] for video in videos)
        return f"| {test.name} | - | {mean['psnr']:.2f} | - | {worst:.2f} dB | {ssim} | {flicker} |"
    gain = mean["psnr"] - mean["psnr_blurred"]
    worst = min(video["psnr"] - video["psnr_blurred"] for video in videos)
    return (
        f"| {test.name} | {mean['psnr_blurred']:.2f} | {mean['psnr']:.2f} | {gain:+.2f} | "
        f"{worst:+.2f} | {ssim} | {flicker} |"
    )


def levels(arguments: argparse.Namespace) -> None:
    """A row of gains for each network and size of blur."""
    if not arguments.ckpt and not arguments.alone:
        raise UserError("--ckpt or --alone names the networks to look at")
    rows: dict[str, list[Gains]] = {}
    sizes = set(arguments.scales if arguments.alone else ())
    for checkpoint in arguments.ckpt:
        model = load_model(checkpoint).model
        if not isinstance(model, ScaleChoice):
            raise UserError(f"--ckpt={checkpoint}: it has one scale; --alone takes such networks")
        rows[checkpoint] = [functools.partial(gains, model.scales, compiled_levels(model))]
        sizes.update(model.scales)
    for checkpoint in arguments.alone:
        model = load_model(checkpoint).model
        if isinstance(model, ScaleChoice):
            raise UserError(f"--alone={checkpoint}: it has several scales; --ckpt takes such")
        restore = compiled(model)
        rows[f"{checkpoint}, each size alone"] = [
            functools.partial(gains, [scale], at_scale(scale, restore)) for scale in sizes
        ]

    print(f"{jax.devices()[0].device_kind}; jax {jax.__version__}\n")
    print("Gain in dB, at its own size / at full size with all coarser levels.\n")
    columns = sorted(sizes, reverse=True)
    print("| data | network |" + "".join(f" 1/{scale} |" for scale in columns))
    print("|---|---|" + "---|" * len(columns), flush=True)
    for blur in arguments.blur:
        clips = scenes(blur, arguments.frames, multiple=columns[0])
        for name, networks in rows.items():
            cells = {}
            for gains_of in networks:
                for scale, own_size, full_size in np.mean(
                    [gains_of(*clip) for clip in clips], axis=0
                ):
                    cells[round(scale)] = f"{own_size:+.2f} / {full_size:+.2f}"
            show(blur, name, columns, cells)
        perfect = {
            scale: f"- / {np.mean([perfect_gain(scale, *clip) for clip in clips]):+.2f}"
            for scale in columns
            if scale > 1
        }
        show(blur, "perfect, each size alone", columns, perfect)


def compiled(model: VideoRestorer) -> Callable[[ReducedClip], ReducedClip]:
    """``model.restore_clip``, compiled once for each size."""
    graph, parameters = nnx.split(model)
    run = jax.jit(lambda parameters, clip: nnx.merge(graph, parameters).restore_clip(clip))
    return lambda clip: run(parameters, clip)


def scenes(blur: float, frames: int, multiple: int) -> list[tuple[Clip, Clip]]:
    """(blurred, sharp) of each validation scene, cropped to a multiple of so many pixels."""
    clips = []
    for video in open_dataset(f"rendered:{blur:g}px", "validation").videos:
        height, width = (side // multiple * multiple for side in (video.height, video.width))
        first = range(min(frames, len(video)))
        blurred, sharp = (
            from_uint8(np.stack([read(i)[:height, :width] for i in first]))[None]
            for read in (video.blurred, video.sharp)
        )
        clips.append((blurred, sharp))
    return clips


def compiled_levels(model: VideoRestorer) -> Callable[[Clip], tuple[ReducedClip, ...]]:
    """``model.restore_levels``, compiled once for each size."""
    graph, parameters = nnx.split(model)
    run = jax.jit(lambda parameters, clip: nnx.merge(graph, parameters).restore_levels(clip))
    return lambda clip: run(parameters, clip)


def at_scale(
    scale: int, restore: Callable[[ReducedClip], ReducedClip]
) -> Callable[[Clip], tuple[ReducedClip, ...]]:
    """``restore`` at one size."""
    return lambda clip: (restore(reduce_size(clip, scale)),)


def gains(
    scales: Sequence[int],
    restore: Callable[[Clip], tuple[ReducedClip, ...]],
    blurred: Clip,
    sharp: Clip,
) -> list[tuple[int, float, float]]:
    """For each scale, of what ``restore`` gives there: its gain at its own size and at full."""
    rows = []
    for scale, restored in zip(scales, restore(blurred), strict=True):
        reduced, target = reduce_size(blurred, scale), reduce_size(sharp, scale)
        whole = blurred + enlarge(restored - reduced, scale)
        at_own_size = decibels(restored, target) - decibels(reduced, target)
        rows.append((scale, at_own_size, decibels(whole, sharp) - decibels(blurred, sharp)))
    return rows


def perfect_gain(scale: int, blurred: Clip, sharp: Clip) -> float:
    """What the true residual of a size, enlarged, gains at full size."""
    residual = reduce_size(sharp, scale) - reduce_size(blurred, scale)
    restored = blurred + enlarge(residual, scale)
    return decibels(restored, sharp) - decibels(blurred, sharp)


def decibels(image: Clip | ReducedClip, reference: Clip | ReducedClip) -> float:
    """PSNR of a clip."""
    return float(-10 * np.log10(jnp.mean((jnp.clip(image, 0, 1) - reference) ** 2)))


def show(blur: float, network: str, columns: Sequence[int], cells: dict[int, str]) -> None:
    """One row; a network lacks the sizes that it has no level for."""
    line = " | ".join(cells.get(scale, "") for scale in columns)
    print(f"| {blur:g} px | {network} | {line} |", flush=True)


@nnx.jit
def shares_and_residuals(model: ScaleChoice, clip: Clip) -> tuple[jnp.ndarray, jnp.ndarray]:
    """For each size, coarse to fine: the mean share, and the residual's mean square."""
    residuals, evidence = model.evidence(*model.reduce_and_restore(clip))
    shares = model.gates(evidence)
    squares = jnp.stack([jnp.mean(residual**2) for residual in residuals])
    return jnp.mean(shares, axis=tuple(range(shares.ndim - 1))), squares


def gates(arguments: argparse.Namespace) -> None:
    """A row of shares and residuals for each data set."""
    model = load_model(arguments.ckpt).model
    if not isinstance(model, ScaleChoice):
        raise UserError(f"--ckpt={arguments.ckpt}: has no gates: it has one scale")
    print("| data |" + "".join(f" share at 1/{scale} | residual |" for scale in model.scales))
    print("|---|" + "---|" * 2 * len(model.scales))
    for spec in arguments.data:
        found = []
        light = "stored" if spec.startswith("rendered:") else None
        for video in open_dataset(
            spec, "test", light=light, sharp_input=arguments.sharp_input
        ).videos:
            frames = [video.blurred(i) for i in range(min(arguments.frames, len(video)))]
            height, width = (side - side % model.multiple for side in frames[0].shape[:2])
            clip = from_uint8(jnp.asarray(np.stack(frames)[None, :, :height, :width]))
            found.append(shares_and_residuals(model, clip))
        shares, squares = (np.mean([np.asarray(part) for part in parts], axis=0)
                           for parts in zip(*found, strict=True))  # fmt: skip
        cells = zip(shares, 255 * np.sqrt(squares), strict=True)
        print(f"| {spec} |" + "".join(f" {s:.4f} | {r:.1f} |" for s, r in cells), flush=True)


if __name__ == "__main__":
    run_command(main, "benchmarks.quality")
