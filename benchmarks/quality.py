"""Measures the gain of weights by size of blur, and how well they preserve sharp video.

    python -m benchmarks.quality --ckpt strcnn_dtb_choice runs/another
    python -m benchmarks.quality --ckpt RUN --highspeed X4K --only TEST03 TEST12 --taus 7 11
    python -m benchmarks.quality --ckpt RUN --blur --scenes --sharp phone.mp4

Each row is a separate evaluation (``evaluate.py``), kept with its report in ``--out``: a second
start skips finished ones. The scenes of the curve are rendered at 1280x720 from photographs that
are never trained on. Protocol ``jaxdeblur``: the uint8 frames that a user gets.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import machine
from jaxdeblur import devices
from jaxdeblur.console import run_command
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.videos import Dataset
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.weights.load import LoadedModel, load_model

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


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, help="runs, files or names of weights")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder for the results")
    add_tests(parser)
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    print(f"{machine()}\n")
    for checkpoint in arguments.ckpt:
        loaded = load_model(checkpoint)
        out = arguments.out / Path(checkpoint).name
        print(f"### {checkpoint} (step {loaded.step})\n")
        print("| data | blurred, dB | restored, dB | gain | worst | SSIM | flicker, grey levels |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for test in tests(arguments):
            print(row(test, score(loaded, test, out / test.name)), flush=True)
        print()


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
    parser.add_argument("--taus", type=int, nargs="*", default=(7, 11, 15), help="frames averaged")
    parser.add_argument("--sharp", nargs="*", default=(), help="sharp folders or videos")
    parser.add_argument(
        "--sharp-every",
        type=int,
        nargs="+",
        default=(1,),
        help="take every Nth frame of those: the motion is N times as fast, as sharp",
    )
    parser.add_argument("--max-frames", type=int, default=8, help="frames per long video")


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
    config = dataclasses.replace(test.config, single=loaded.of_photographs)
    return evaluate(loaded.model, loaded.about, opened(test), config, out)


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


if __name__ == "__main__":
    run_command(main, "benchmarks.quality")
