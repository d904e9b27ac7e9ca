"""What weights gain, by the size of the blur, and what they do to video that is sharp already.

    python -m benchmarks.quality --ckpt strcnn_dtb_pyramid runs/another
    python -m benchmarks.quality --ckpt RUN --highspeed X4K --only TEST03 TEST12 --taus 7 11
    python -m benchmarks.quality --ckpt RUN --blur --scenes --sharp phone.mp4

Each line is an evaluation of its own (``evaluate.py``), kept with its report below ``--out``: a
second start skips what is done. The scenes of the curve are rendered, 1280x720, from photographs
that never train. Protocol ``jaxdeblur``: the uint8 frames that a user gets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.options import natural
from jaxdeblur import devices
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.evaluate import evaluate
from jaxdeblur.options import ClusterConfig, Parser
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


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, help="runs, files or names of weights")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder of the results")
    parser.add_argument(
        "--blur",
        type=float,
        nargs="*",
        default=(2, 5, 10, 20, 40),
        help="pixels; nothing after it leaves the rendered scenes out",
    )
    parser.add_argument(
        "--sharp-scenes",
        type=float,
        nargs="*",
        default=(),
        help="pixels a frame that rendered scenes move whose sharp frames go in",
    )
    parser.add_argument("--scenes", nargs="*", default=("narrow", "wide"), help="at 192x192")
    parser.add_argument("--highspeed", nargs="*", default=(), help="folders of high-speed frames")
    parser.add_argument("--only", nargs="*", default=(), help="of their videos")
    parser.add_argument(
        "--taus", type=natural, nargs="*", default=(7, 11, 15), help="frames averaged"
    )
    parser.add_argument("--sharp", nargs="*", default=(), help="folders or videos, as they are")
    parser.add_argument(
        "--sharp-every",
        type=natural,
        nargs="+",
        default=(1,),
        help="of those, one frame in so many: they move as much faster and are as sharp",
    )
    parser.add_argument("--max-frames", type=natural, default=8, help="of each video that is long")
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
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
        return evaluate(loaded, dataset, test.config, out)
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


if __name__ == "__main__":
    run_command(main, "benchmarks.quality")
