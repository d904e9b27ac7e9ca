"""What each level of a network of several scales adds, and what a level could add at most.

    python -m benchmarks.levels --ckpt strcnn_dtb_choice
    python -m benchmarks.levels --ckpt runs/pyramid --alone runs/narrow --blur 10 20

A level restores frames at its own size, and its residual, enlarged, is added at full size. For each
level: the gain at its own size, and that at full size of it and all coarser ones; of a network that
chooses between scales, with what the gates take. ``--alone`` runs a network of one scale at each of
``--scales`` by itself. A perfect level adds the true residual of its size.
Rendered scenes at 1280x720 from photographs that never train (the validation split); the first
frames of each, as floats clipped to [0, 1], since no file holds what a level gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.options import natural, positive
from jaxdeblur import devices
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.coarse_to_fine import CoarseToFine
from jaxdeblur.models.layers import enlarge, reduce_size
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.restoration.stream import from_uint8
from jaxdeblur.shapes import Clip, ReducedClip
from jaxdeblur.weights.load import load_model

Gains: TypeAlias = Callable[[Clip, Clip], list[tuple[int, float, float]]]
"""Of (blurred, sharp): for each level its scale, the gain at its own size and at full size."""


class Level(NamedTuple):
    """One size, and what restores a clip of that size."""

    scale: int
    restore: Callable[[ReducedClip], ReducedClip]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="*", default=(), help="networks of several scales")
    parser.add_argument("--alone", nargs="*", default=(), help="networks of one scale")
    parser.add_argument(
        "--scales",
        type=int,
        choices=(1, 2, 4, 8, 16),
        nargs="+",
        default=(8, 4, 2, 1),
        help="where those are run",
    )
    parser.add_argument("--blur", type=positive, nargs="+", default=(5, 10, 20, 40), help="pixels")
    parser.add_argument("--frames", type=natural, default=5, help="of each scene")
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    if not arguments.ckpt and not arguments.alone:
        raise UserError("--ckpt or --alone names the networks to look at")
    rows: dict[str, list[Gains]] = {}
    sizes = set(arguments.scales if arguments.alone else ())
    for checkpoint in arguments.ckpt:
        model = load_model(checkpoint).model
        if isinstance(model, CoarseToFine):
            levels = zip(model.scales, model.levels, strict=True)
            chain = [Level(scale, compiled(level)) for scale, level in levels]
            rows[checkpoint] = [functools.partial(gains_of_chain, chain)]
        elif isinstance(model, ScaleChoice):
            chosen = compiled_levels(model)
            rows[checkpoint] = [functools.partial(gains_of_choice, model.scales, chosen)]
        else:
            raise UserError(f"--ckpt={checkpoint}: it has one scale; --alone takes such networks")
        sizes.update(model.scales)
    for checkpoint in arguments.alone:
        model = load_model(checkpoint).model
        if isinstance(model, CoarseToFine | ScaleChoice):
            raise UserError(f"--alone={checkpoint}: it has several scales; --ckpt takes such")
        restore = compiled(model)
        rows[f"{checkpoint}, each size alone"] = [
            functools.partial(gains_of_chain, [Level(scale, restore)]) for scale in sizes
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
                gains = np.mean([gains_of(*clip) for clip in clips], axis=0)
                for scale, own_size, full_size in gains:
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


def gains_of_choice(
    scales: Sequence[int],
    restore: Callable[[Clip], tuple[ReducedClip, ...]],
    blurred: Clip,
    sharp: Clip,
) -> list[tuple[int, float, float]]:
    """Of each level, with what the gates take of it and of the coarser ones."""
    gains = []
    for scale, restored in zip(scales, restore(blurred), strict=True):
        reduced, target = reduce_size(blurred, scale), reduce_size(sharp, scale)
        whole = blurred + enlarge(restored - reduced, scale)
        at_own_size = decibels(restored, target) - decibels(reduced, target)
        gains.append((scale, at_own_size, decibels(whole, sharp) - decibels(blurred, sharp)))
    return gains


def gains_of_chain(
    chain: Sequence[Level], blurred: Clip, sharp: Clip
) -> list[tuple[int, float, float]]:
    """Of each level, after the coarser ones: its scale, the gain at its own size and at full."""
    current, gains = blurred, []
    for scale, restore in chain:
        reduced, target = reduce_size(current, scale), reduce_size(sharp, scale)
        restored = restore(reduced)
        current = current + enlarge(restored - reduced, scale)
        gains.append(
            (
                scale,
                decibels(restored, target) - decibels(reduced, target),
                decibels(current, sharp) - decibels(blurred, sharp),
            )
        )
    return gains


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


if __name__ == "__main__":
    run_command(main, "benchmarks.levels")
