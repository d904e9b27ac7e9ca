"""What each level of a coarse-to-fine network adds, and what a level could add at most.

    python -m benchmarks.levels --ckpt strcnn_dtb_pyramid
    python -m benchmarks.levels --ckpt runs/pyramid --alone runs/narrow --blur 10 20

A level restores frames at its own size, and its residual, enlarged, is added at full size. For each
level: the gain at its own size, and that at full size of it and all coarser ones. ``--alone`` runs
a network of one scale at each size by itself. The row of a perfect level adds the true residual of
that size. Rendered scenes at 1280x720 from photographs that never train (the validation split);
the first frames of each, as floats clipped to [0, 1], since no file holds what a level gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdeblur import cluster
from jaxdeblur.checkpoints import load_model
from jaxdeblur.compilation import keep_compiled
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.coarse_to_fine import CoarseToFine
from jaxdeblur.models.layers import enlarge, reduce_size
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Clip, ReducedClip


class Level(NamedTuple):
    """One size, and what restores a clip of that size."""

    scale: int
    restore: Callable[[ReducedClip], ReducedClip]


class Gain(NamedTuple):
    """Of one level, dB."""

    own_size: float
    full_size: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", nargs="+", required=True, help="coarse-to-fine networks")
    parser.add_argument("--alone", nargs="*", default=[], help="networks of one scale")
    parser.add_argument("--blur", type=float, nargs="+", default=[5, 10, 20, 40], help="pixels")
    parser.add_argument("--frames", type=int, default=5, help="of each scene")
    arguments = parser.parse_args()

    keep_compiled()
    cluster.use_cores(1, cluster.ClusterConfig())
    chains: dict[str, list[Level]] = {}
    for checkpoint in arguments.ckpt:
        model = load_model(checkpoint).model
        if not isinstance(model, CoarseToFine):
            raise UserError(f"--ckpt={checkpoint}: it has one scale; --alone takes such networks")
        chains[checkpoint] = [
            Level(scale, compiled(level))
            for scale, level in zip(model.scales, model.levels, strict=True)
        ]
    sizes = sorted({level.scale for chain in chains.values() for level in chain}, reverse=True)
    for checkpoint in arguments.alone:
        model = load_model(checkpoint).model
        if isinstance(model, CoarseToFine):
            raise UserError(f"--alone={checkpoint}: it has several scales; --ckpt takes such")
        restore = compiled(model)
        for scale in sizes:
            chains[f"{checkpoint} alone at 1/{scale}"] = [Level(scale, restore)]

    print(f"{jax.devices()[0].device_kind}; jax {jax.__version__}\n")
    print("Gain in dB, at its own size / at full size with all coarser levels.\n")
    print("| data | network |" + "".join(f" 1/{scale} |" for scale in sizes))
    print("|---|---|" + "---|" * len(sizes), flush=True)
    for blur in arguments.blur:
        clips = scenes(blur, arguments.frames)
        for name, chain in chains.items():
            gains = [gains_of(chain, *clip) for clip in clips]
            show(f"{blur:g} px", name, sizes, [level.scale for level in chain], gains)
        for scale in sizes[:-1]:
            perfect = [perfect_gain(scale, *clip) for clip in clips]
            show(f"{blur:g} px", "a perfect level", sizes, [scale], [[gain] for gain in perfect])


def compiled(model: VideoRestorer) -> Callable[[ReducedClip], ReducedClip]:
    """``model.restore_clip``, compiled once for each size."""
    graph, parameters = nnx.split(model)
    run = jax.jit(lambda parameters, clip: nnx.merge(graph, parameters).restore_clip(clip))
    return lambda clip: run(parameters, clip)


def scenes(blur: float, frames: int) -> list[tuple[Clip, Clip]]:
    """(blurred, sharp) of each validation scene, cropped to a multiple of 16 pixels."""
    clips = []
    for video in open_dataset(f"rendered:{blur:g}px", "validation").videos:
        area = slice(video.height // 16 * 16), slice(video.width // 16 * 16)
        count = min(frames, len(video))
        clips.append(
            tuple(
                jnp.stack([jnp.asarray(read(i)[area], jnp.float32) / 255 for i in range(count)])[
                    None
                ]
                for read in (video.blurred, video.sharp)
            )
        )
    return clips  # type: ignore[return-value]


def gains_of(chain: Sequence[Level], blurred: Clip, sharp: Clip) -> list[Gain]:
    """Level by level, each starting from what the coarser ones restored."""
    current, gains = blurred, []
    for scale, restore in chain:
        reduced, target = reduce_size(current, scale), reduce_size(sharp, scale)
        restored = restore(reduced)
        current = current + enlarge(restored - reduced, scale)
        gains.append(
            Gain(
                decibels(restored, target) - decibels(reduced, target),
                decibels(current, sharp) - decibels(blurred, sharp),
            )
        )
    return gains


def perfect_gain(scale: int, blurred: Clip, sharp: Clip) -> Gain:
    """What the true residual of a size, enlarged, gains at full size."""
    residual = reduce_size(sharp, scale) - reduce_size(blurred, scale)
    restored = blurred + enlarge(residual, scale)
    return Gain(float("inf"), decibels(restored, sharp) - decibels(blurred, sharp))


def decibels(image: Clip | ReducedClip, reference: Clip | ReducedClip) -> float:
    """PSNR of a clip."""
    return float(-10 * np.log10(jnp.mean((jnp.clip(image, 0, 1) - reference) ** 2)))


def show(
    data: str,
    network: str,
    sizes: Sequence[int],
    scales: Sequence[int],
    gains: Sequence[Sequence[Gain]],
) -> None:
    """One row: the mean over the scenes of each level, in the column of its size."""
    cells = dict.fromkeys(sizes, "")
    for scale, levels in zip(scales, zip(*gains, strict=True), strict=True):
        own = np.mean([gain.own_size for gain in levels])
        full = np.mean([gain.full_size for gain in levels])
        cells[scale] = f"{own:+.2f} / {full:+.2f}" if np.isfinite(own) else f"- / {full:+.2f}"
    print(f"| {data} | {network} | {' | '.join(cells.values())} |", flush=True)


if __name__ == "__main__":
    run_command(main, "benchmarks.levels")
