"""Fits the gate of blur paths (jaxdeblur/paths/gate.py) to real high-speed frames.

    python -m benchmarks.gate --data FOLDER --scenes TEST01 TEST03 --only baseline h264-18 sharp
    python -m benchmarks.gate --data FOLDER --paired gopro:GOPRO
    python -m benchmarks.gate --data FOLDER --paired gopro:GOPRO --rendered 2px 5px 10px 20px

Restores the videos of ``benchmarks.real_video`` by base and filter, and fits the four numbers that
maximise the mean PSNR of what the gate mixes from these. A loss against the base counts LOSS times,
and a video of ``--paired`` PAIRED times: the high-speed scenes have hardly any long blur.
Prints them, and the gain over the base in dB: of the gate as it is, as fitted to all videos, as
fitted to those of other scenes, and the most that a share for each cell could gain.

``--rendered`` does so for the three numbers of large frames: on two validation scenes of each kind,
on high-speed scenes enlarged to 1280 columns, and on whole frames of ``--paired``. Choose scenes
whose tiles agree on the shutter (T(4.5) in gate.py), since only these use the numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from benchmarks.real_video import chosen_videos, opened
from benchmarks.real_video_conditions import PAIRED as PAIRS
from benchmarks.real_video_conditions import Made
from jaxdeblur import devices
from jaxdeblur.console import ProgressLine, run_command
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.fixed_scenes import rendered_videos
from jaxdeblur.images import LUMA, reduce_size
from jaxdeblur.models.parts import FRAME, REPEATED, learnt, looking, run_parts, start_parts
from jaxdeblur.models.path_maps import CELL, at_pixels
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.paths.estimate import filtered
from jaxdeblur.paths.gate import FITTED, FITTED_LARGE, evidence
from jaxdeblur.paths.restorer import BASE, CORRECTION, LOOKAHEAD
from jaxdeblur.shapes import Video8

LOSS, PAIRED = 2.0, 5.0
_FLOOR = 0.3 / 255**2  # Of the error, which rounding leaves in any frame.
_STEPS, _RATE = 1500, 0.03
_FIRST, _FRAMES = 2, 4  # Of the whole frames of a video, which take long.
_COLUMNS, _CUBIC = 1280, Image.Resampling.BICUBIC


def main() -> None:
    """Reads the options, restores, fits and prints the table.

    Raises:
      UserError: data or a condition does not exist.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of high-speed frames")
    parser.add_argument("--paired", help="data set of blurred videos with their sharp frames")
    parser.add_argument("--scenes", nargs="+", default=(), help="only these scenes, by prefix")
    parser.add_argument("--only", nargs="+", default=(), help="only these conditions, by prefix")
    parser.add_argument("--rendered", nargs="+", default=(), help="kinds of large frames, as 5px")
    arguments = parser.parse_args()
    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    given = arguments.scenes, arguments.only
    if arguments.rendered:
        fast = chosen_videos(arguments.data, None, *given)
        chosen = list(_large_videos(arguments.rendered, arguments.paired, fast))
    else:
        chosen = list(chosen_videos(arguments.data, arguments.paired, *given))
    shipped = np.array(FITTED_LARGE if arguments.rendered else FITTED)
    cells_of, cells = collector(), {}
    line = ProgressLine("restoring", len(chosen), unit="videos")
    for number, (condition, scene, make) in enumerate(chosen):
        cells[condition, scene] = cells_of(make())
        line.update(number + 1)
    line.close()
    least = min(map(len, cells.values()))
    every = jnp.asarray(np.stack([each[:least] for each in cells.values()]))
    scenes = np.array([scene for _, scene in cells])
    counts = np.array([PAIRED if condition in PAIRS else 1.0 for condition, _ in cells])
    count = len(shipped)
    final = fitted(every, counts, count)
    others = np.zeros(len(cells))
    for scene in dict.fromkeys(scenes):
        rest = scenes != scene
        left_out = gains(fitted(every[rest], counts[rest], count), every[~rest])
        others[scenes == scene] = left_out
    most = jnp.clip(every[..., 4] / jnp.maximum(every[..., 3], 1e-12), 0, 1)
    columns = gains(jnp.array(shipped), every), gains(final, every), others, mixed(most, every)
    print(f"{'':36s}  as it is  fitted  others    most")
    for name, row in zip(cells, np.stack(columns, -1), strict=True):
        print(f"{' '.join(name):36s}  " + "  ".join(f"{gain:+6.2f}" for gain in row))
    print(f"{'mean':36s}  " + "  ".join(f"{np.mean(column):+6.3f}" for column in columns))
    print("fitted:", ", ".join(f"{number:.3f}" for number in final))


def _large_videos(
    kinds: Sequence[str], paired: str | None, fast: Iterator[tuple[str, str, Any]]
) -> Iterator[tuple[str, str, Any]]:
    """Yields (kind, scene, what makes the video) of large frames.

    Raises:
      UserError: there is no such kind or data set.
    """
    videos: list[tuple[str, Any]] = [
        (kind, video) for kind in kinds for video in rendered_videos("validation", kind, scenes=2)
    ]
    if paired is not None:
        videos += [("own-pixels", video) for video in open_dataset(paired, "test").videos]
    for kind, video in videos:
        times = range(_FIRST, min(_FIRST + _FRAMES, len(video)))

        def make(video: Any = video, times: range = times) -> Made:
            blurred, sharp = (
                np.stack([of(t) for t in times]) for of in (video.blurred, video.sharp)
            )
            return Made(blurred, sharp)

        yield kind, video.name, make
    for condition, scene, make_small in fast:
        yield condition, scene, functools.partial(_enlarged, make_small)


def _enlarged(make: Callable[[], Made]) -> Made:
    def enlarged(video: Video8) -> Video8:
        size = _COLUMNS, round(video.shape[1] * _COLUMNS / video.shape[2])
        return np.stack([np.asarray(Image.fromarray(f).resize(size, _CUBIC)) for f in video])

    made = make()
    return Made(enlarged(made.blurred), enlarged(made.sharp))


def collector() -> Callable[[Made], np.ndarray]:
    """Returns what makes the cells of a video: the three logarithms of the gate, and three sums.

    With d what the filter changes of the base and e what the truth would, these are the means over
    a cell of d^2, d e and e^2.
    """
    model = opened("default").model
    parts = model.parts()
    front = parts[: [part.name for part in parts].index("filter")]
    steps = {part.name: jax.jit(part.step) for part in parts}

    def run(part: Any, *given: Any) -> Any:
        return steps[part.name](*given)

    @jax.jit
    def compared(
        frames: Any, fit: Any, base: Any, last: Any, correction: Any, true: Any, blurred: Any
    ) -> tuple[jax.Array, jax.Array]:
        made = filtered(frames, fit, base, last, correction)
        change, wanted = made.sharp - base, true - base
        known = evidence(
            (made.sharp - blurred) @ LUMA,
            made.unexplained[..., 0],
            base - blurred,
            made.cells[..., 1],
        )
        squares = jnp.stack([change**2, change * wanted, wanted**2]).mean(-1)
        sums = reduce_size(jnp.moveaxis(squares, 0, -1), CELL)
        share = at_pixels(made.cells[..., :1], *base.shape[:2])
        return base + share * change, jnp.concatenate([known, sums], -1)

    def cells_of(made: Made) -> np.ndarray:
        clip, sharp = (
            model.pad(jnp.asarray(video[None] / 255.0, jnp.float32))
            for video in (made.blurred, made.sharp)
        )
        batch, length, height, width, _ = clip.shape
        states = start_parts(parts, batch, height, width)
        looks, last, found = looking(parts), jnp.zeros((height, width, 3)), []
        seen = start_parts(looks, batch, height, width)
        for t in range(length + LOOKAHEAD):
            seen, _ = run_parts(looks, run, seen, _given(clip, t))
        states |= learnt(looks, seen)
        for t in range(length + LOOKAHEAD):
            states, told = run_parts(front, run, states, _given(clip, t))
            if t >= LOOKAHEAD:
                window = told["fitted"]
                given = (window.frames, window.fit, told[BASE])
                frames, fit, base, correction, blurred = jax.tree.map(
                    lambda leaf: leaf[0], (*given, told[CORRECTION], window.blurred)
                )
                true = sharp[0, t - LOOKAHEAD]
                last, cells = compared(frames, fit, base, last, correction, true, blurred)
                rows, columns = (side // CELL for side in made.blurred.shape[1:3])
                found.append(np.asarray(cells)[:rows, :columns].reshape(-1, cells.shape[-1]))
        return np.concatenate(found)

    return cells_of


def _given(clip: jax.Array, t: int) -> dict[str, Any]:
    return {FRAME: clip[:, min(t, clip.shape[1] - 1)], REPEATED: jnp.bool_(t >= clip.shape[1])}


def mixed(share: jax.Array, cells: jax.Array) -> jax.Array:
    """Returns the gain over the base in dB of each video, ``V N``, for the shares of its cells."""
    squared, product, error = cells[..., 3], cells[..., 4], cells[..., 5]
    saved = (2 * share * product - share**2 * squared).mean(1)
    return -10 * jnp.log10(1 - saved / (error.mean(1) + _FLOOR))


def gains(numbers: jax.Array, cells: jax.Array) -> jax.Array:
    """Returns the same for the shares of a gate: of four numbers, or three for large frames."""
    known = cells[..., : len(numbers) - 1]
    return mixed(jax.nn.sigmoid(numbers[0] + known @ numbers[1:]), cells)


@functools.partial(jax.jit, static_argnames="count")
def fitted(cells: jax.Array, counts: np.ndarray, count: int = len(FITTED)) -> jax.Array:
    """Returns the ``count`` numbers that maximise the mean gain, weighted by ``counts``."""

    def loss(numbers: jax.Array) -> jax.Array:
        gain = gains(numbers, cells)
        return -(jnp.where(gain < 0, LOSS * gain, gain) @ counts) / counts.sum()

    adam = optax.adam(_RATE)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        numbers, state = carry
        update, state = adam.update(jax.grad(loss)(numbers), state)
        return (optax.apply_updates(numbers, update), state), None

    numbers = jnp.zeros(count)
    found: jax.Array = jax.lax.scan(step, (numbers, adam.init(numbers)), None, _STEPS)[0][0]
    return found


if __name__ == "__main__":
    run_command(main, "benchmarks.gate")
