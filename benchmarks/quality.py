"""Measures the gain of weights by size of blur, and the share that gates take at each scale.

    python -m benchmarks.quality scores --ckpt strcnn_dtb_choice runs/another
    python -m benchmarks.quality scores --ckpt RUN --highspeed X4K --only TEST03 TEST12 --taus 7 11
    python -m benchmarks.quality scores --ckpt RUN --blur --scenes --sharp phone.mp4
    python -m benchmarks.quality gates --ckpt strcnn_dtb_choice

``scores``: each row is a separate evaluation (``evaluate.py``), kept with its report in ``--out``:
a second start skips finished ones. The scenes of the curve are rendered at 1280x720 from
photographs that are never trained on. Protocol ``jaxdeblur``: the uint8 frames that a user gets.

``gates``: for each scale, the share of its residual that is taken, averaged over cells, and the
root mean square of that residual before the share is taken, in grey levels at its scale. A sharp
video that is changed has shares above 0; comparing them with those of a blurred one shows whether
it is mistaken for one. By default on the first frames of the test scenes of docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import machine, natural
from jaxdeblur import devices
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.videos import Dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.restoration.stream import to_floats
from jaxdeblur.shapes import Clip
from jaxdeblur.weights.load import LoadedModel, load_model, load_restorer

_MEANS = (
    "psnr", "psnr_blurred", "ssim", "ssim_blurred", "temporal_error", "temporal_error_blurred",
)  # fmt: skip


class Test(NamedTuple):
    """One row of the table."""

    name: str
    config: EvaluationConfig
    sharp: bool = False
    """Whether the input frames are sharp and should come out unchanged."""


_BLURS = (2, 5, 10, 20, 40)  # Pixels of blur in the fixed scenes at 1280x720.
_SCENES = [f"rendered:{pixels}px" for pixels in (2, 10, 20, 40)]


def main() -> None:
    parser = Parser(description=__doc__)
    what = parser.add_subparsers(required=True, metavar="scores | gates")
    scored = what.add_parser("scores", help="gains, and how well sharp video is preserved")
    scored.set_defaults(measure=scores)
    scored.add_argument("--ckpt", nargs="+", required=True, help="runs, files or names of weights")
    scored.add_argument("--out", type=Path, default=Path("quality"), help="folder for the results")
    add_tests(scored)

    gate = what.add_parser("gates", help="the share of each scale")
    gate.set_defaults(measure=gates)
    gate.add_argument("--ckpt", required=True, help="a network with gates")
    gate.add_argument("--data", nargs="+", default=_SCENES)
    gate.add_argument(
        "--sharp-input",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="restore the sharp frames; with --no-sharp-input, the blurred ones",
    )
    gate.add_argument("--frames", type=natural, default=5, help="frames per video")
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    arguments.measure(arguments)


def add_tests(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select what weights are scored on (``tests``)."""
    parser.add_argument(
        "--blur",
        type=int,
        nargs="*",
        choices=_BLURS,
        default=_BLURS,
        help="pixels of blur in rendered scenes; without a value, they are left out",
    )
    parser.add_argument(
        "--sharp-scenes",
        type=int,
        nargs="*",
        choices=_BLURS,
        default=(),
        help="pixels per frame that scenes move whose sharp frames are restored",
    )
    parser.add_argument("--scenes", nargs="*", default=("narrow", "wide"), help="at 192x192")
    parser.add_argument("--highspeed", nargs="*", default=(), help="folders of high-speed frames")
    parser.add_argument("--only", nargs="*", default=(), help="only these videos")
    parser.add_argument(
        "--taus", type=natural, nargs="*", default=(7, 11, 15), help="frames averaged"
    )
    parser.add_argument("--sharp", nargs="*", default=(), help="sharp folders or videos")
    parser.add_argument(
        "--sharp-every",
        type=natural,
        nargs="+",
        default=(1,),
        help="take every Nth frame of those: the motion is N times as fast, as sharp",
    )
    parser.add_argument("--max-frames", type=natural, default=8, help="frames per long video")


def scores(arguments: argparse.Namespace) -> None:
    """Prints a table of evaluations for each of the weights."""
    print(f"{machine()}\n")
    for checkpoint in arguments.ckpt:
        loaded = load_restorer(checkpoint)
        out = arguments.out / Path(checkpoint).name
        print(f"### {checkpoint} (step {loaded.step})\n")
        print("| data | blurred, dB | restored, dB | gain | worst | SSIM | flicker, grey levels |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for test in tests(arguments):
            print(row(test, score(loaded, test, out / test.name)), flush=True)
        print()


def tests(arguments: argparse.Namespace) -> Iterator[Test]:
    """Yields the selected tests, small blur first."""
    for scenes in arguments.scenes:
        yield Test(f"rendered {scenes}", EvaluationConfig(f"rendered:{scenes}"))
    for light in ("stored", "linear"):
        for blur in arguments.blur:
            config = EvaluationConfig(f"rendered:{blur}px", light=light)
            yield Test(f"rendered {blur}px-{light}", config)
    for speed in arguments.sharp_scenes:
        config = EvaluationConfig(f"rendered:{speed}px", light="stored", sharp_input=True)
        yield Test(f"rendered {speed}px-sharp", config, sharp=True)
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


def opened(test: Test) -> Dataset:
    """Returns the videos of a test."""
    return open_dataset(
        test.config.data,
        "test",
        exposure=test.config.exposure,
        light=test.config.light,
        sharp_input=test.config.sharp_input,
        only=test.config.only,
    )


def score(loaded: LoadedModel, test: Test, out: Path) -> dict[str, Any]:
    """Evaluates weights on a test; returns the content of ``metrics.json``."""
    print(f"{test.name} ...", file=sys.stderr)
    dataset = opened(test)
    try:
        config = dataclasses.replace(test.config, single=loaded.of_photographs)
        return evaluate(loaded, dataset, config, out)
    except UserError as error:
        raise UserError(f"{error} (from an earlier run: choose another --out)") from error


def row(test: Test, metrics: dict[str, Any]) -> str:
    """Formats the means over the videos, and the smallest gain of any."""
    videos = metrics["videos"]
    mean = {name: sum(video[name] for video in videos) / len(videos) for name in _MEANS}
    flicker = f"{mean['temporal_error_blurred']:.2f} → {mean['temporal_error']:.2f}"
    ssim = f"{mean['ssim_blurred']:.3f} → {mean['ssim']:.3f}"
    if test.sharp:  # Nothing to gain: how close is the output to the input?
        worst = min(video["psnr"] for video in videos)
        return f"| {test.name} | - | {mean['psnr']:.2f} | - | {worst:.2f} dB | {ssim} | {flicker} |"
    gain = mean["psnr"] - mean["psnr_blurred"]
    worst = min(video["psnr"] - video["psnr_blurred"] for video in videos)
    return (
        f"| {test.name} | {mean['psnr_blurred']:.2f} | {mean['psnr']:.2f} | {gain:+.2f} | "
        f"{worst:+.2f} | {ssim} | {flicker} |"
    )


@nnx.jit
def shares_and_residuals(model: ScaleChoice, clip: Clip) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Returns, for each scale from coarse to fine, the mean share and residual's mean square."""
    residuals, evidence = model.evidence(*model.reduce_and_restore(clip))
    shares = model.gates(evidence)
    squares = jnp.stack([jnp.mean(residual**2) for residual in residuals])
    return jnp.mean(shares, axis=tuple(range(shares.ndim - 1))), squares


def gates(arguments: argparse.Namespace) -> None:
    """Prints a row of shares and residuals for each data set."""
    model = load_model(arguments.ckpt).model
    if not isinstance(model, ScaleChoice):
        raise UserError(f"--ckpt={arguments.ckpt}: has no gates; it has only one scale")
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
            clip = to_floats(jnp.asarray(np.stack(frames)[None, :, :height, :width]))
            found.append(shares_and_residuals(model, clip))
        shares, squares = (np.mean([np.asarray(part) for part in parts], axis=0)
                           for parts in zip(*found, strict=True))  # fmt: skip
        cells = zip(shares, 255 * np.sqrt(squares), strict=True)
        print(f"| {spec} |" + "".join(f" {s:.4f} | {r:.1f} |" for s, r in cells), flush=True)


if __name__ == "__main__":
    run_command(main, "benchmarks.quality")
