"""What the papers' ideas add over blur paths: recurrence, blending and attention, on drawn clips.

    python -m jaxdeblur.training.path_clips CLIPS
    python -m benchmarks.over_paths CLIPS --seeds 0 1 2 --out=over_paths.json

Every variant trains on the same batches (a function of seed and step) for as many steps and has
about as many parameters as the network that ships. The first ``--validate`` clips of the folder do
not train; those of them that are blurred score. ``--out`` keeps each training as it ends, so that
the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx

from benchmarks.common import machine, natural, results_so_far, whole
from benchmarks.evidence import SHIPPED, spread, with_values
from jaxdeblur import devices, presets
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.videos import PairedVideo
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.files import write_json
from jaxdeblur.models.attention import FactorisedAttention
from jaxdeblur.models.parameters import count, split
from jaxdeblur.models.path_maps import CELL, MADE, restored_of
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import Strcnn, StrcnnConfig
from jaxdeblur.options import Parser
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.shapes import Batch, Video8
from jaxdeblur.training.step import TrainingConfig, compile_train_step, initial_train_state
from jaxdeblur.weights.load import load_restorer

CROP, FRAMES = 128, 4
_SHARP = 50  # dB; sharp clips train, but have nothing to gain.


class WithAttention(Strcnn):
    """The plain CNN; between encoder and decoder each frame attends to all frames of its clip.

    Args:
      config: of the CNN.
      rngs: what the kernels are drawn from.
    """

    def __init__(self, config: StrcnnConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.attention = FactorisedAttention(
            config.width, spatial=8, temporal=4, implementation="einsum", rngs=rngs
        )

    def _recur_inside(self, clip: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, time = clip.shape[:2]
        h = self._stem(rearrange(clip, "b t h w c -> (b t) h w c"))
        for block in self.encoder:
            h = block(h)
        frames = rearrange(h, "(b t) ... -> b t ...", b=batch)
        everywhere = np.tile(np.arange(time), (time, 1))
        memory = self.attention.remember(frames)
        h = rearrange(
            frames + self.attention.fuse_clip(frames, memory, everywhere), "b t ... -> (b t) ..."
        )
        for block in self.decoder:
            h = block(h)
        features = rearrange(h, "(b t) ... -> b t ...", b=batch)
        return features, jnp.ones_like(features)


class Variant(NamedTuple):
    """A network, and rates of its own for some parameters."""

    kind: type[Strcnn]
    fields: dict[str, Any]
    rates: tuple[str, ...] = ()


_PLAIN = {"blending": "none", "recurrent": False}
VARIANTS = {
    "CNN": Variant(Strcnn, {**_PLAIN, "width": 30}),
    "with F": Variant(Strcnn, {"blending": "none", "width": 30}),
    "with F and blending, which ships": Variant(Strcnn, {}),
    "CNN with attention": Variant(
        WithAttention, {**_PLAIN, "width": 30}, ("f_s=30", "f_t=30", "f_p=30")
    ),
}


class Clip(NamedTuple):
    """The maps of a clip, and its sharp frames."""

    maps: np.ndarray
    sharp: Video8


def read_clips(folder: Path) -> list[Clip]:
    """All clips of a folder of path_clips.

    Raises:
      UserError: it holds none, or one that is too small.
    """
    clips = []
    for video in open_dataset(f"paths:{folder}", "train").videos:
        assert isinstance(video, PairedVideo)
        if len(video) < FRAMES or min(video.height, video.width) < CROP:
            raise UserError(
                f"{folder}: clip {video.name} has {len(video)} frames of {video.width}x"
                f"{video.height}; {FRAMES} of {CROP}x{CROP} are needed"
            )
        everything = slice(None)
        clips.append(
            Clip(video.blurred_frames.read(everything), video.sharp_frames.read(everything))
        )
    return clips


def batch(clips: Sequence[Clip], size: int, seed: int, step: int) -> Batch:
    """Random crops, mirrored and turned at random; of a seed and step always the same."""
    rng = np.random.default_rng((seed, step))
    cuts: list[list[np.ndarray]] = []
    for _ in range(size):
        clip = clips[rng.integers(len(clips))]
        time, height, width = clip.sharp.shape[:3]
        t, y, x = (
            int(rng.integers(n - m + 1)) for n, m in ((time, FRAMES), (height, CROP), (width, CROP))
        )
        mirrored, turns = rng.random() < 0.5, int(rng.integers(4))
        cuts.append([])
        for frames in clip:
            cut = frames[t : t + FRAMES, y : y + CROP, x : x + CROP]
            cut = cut[:, :, ::-1] if mirrored else cut
            cuts[-1].append(np.rot90(cut, turns, (1, 2)))
    blurred, sharp = (np.stack(each) for each in zip(*cuts, strict=True))
    return {"blurred": blurred, "sharp": sharp}


class Result(NamedTuple):
    """One training."""

    parameters: int
    gain: float
    """PSNR over the gate's frames, dB, the mean over the clips that score."""
    worst: float


def network(variant: Variant, seed: int) -> Strcnn:
    """A variant with its first parameters."""
    config = dataclasses.replace(presets.find("strcnn_dtb_paths").network, **variant.fields)
    return variant.kind(config, rngs=nnx.Rngs(seed))


def train(
    variant: Variant,
    clips: Sequence[Clip],
    kept: Sequence[Clip],
    config: TrainingConfig,
    gate: Sequence[float],
) -> Result:
    """Trains one variant from one seed and scores it.

    Args:
      variant: the network.
      clips: that train.
      kept: that score.
      config: of the training.
      gate: the PSNR of the gate's frames, for each of ``kept``.
    """
    rebuild, parameters = split(network(variant, config.seed))
    mesh = devices.make_mesh(config.batch_size)
    config = dataclasses.replace(config, rates=variant.rates)
    step = compile_train_step(config, rebuild, mesh)
    state = jax.device_put(initial_train_state(config, parameters), devices.replicated(mesh))
    for i in range(config.steps):
        state, metrics = step(state, batch(clips, config.batch_size, config.seed, i))
        if i % 100 == 99:
            print(f"  step {i + 1}: loss {float(metrics.loss):.4f}", file=sys.stderr, flush=True)
    if bool(state.failed):
        raise UserError("the loss is not finite any more")
    gains = gains_over(gate, rebuild(state.average), kept)
    return Result(count(parameters), float(np.mean(gains)), min(gains))


def gains_over(gate: Sequence[float], model: VideoRestorer, clips: Sequence[Clip]) -> list[float]:
    """What a network gains on each clip over the gate's frames, whose PSNR is given, dB."""
    restore = jax.jit(model.restore_clip)
    made = (restore(_in_range(clip.maps)[None])[0] for clip in clips)
    return [score(frames, clip) - g for frames, clip, g in zip(made, clips, gate, strict=True)]


def score(restored: np.ndarray | jax.Array, clip: Clip) -> float:
    """PSNR of uint8 frames, the mean over them."""
    frames = np.round(255 * np.clip(np.asarray(restored), 0, 1)).astype(np.uint8)
    return float(np.mean([psnr(a, b) for a, b in zip(frames, clip.sharp, strict=True)]))


def physics(clips: Sequence[Clip]) -> dict[str, list[float]]:
    """PSNR of each clip without a network; the last row is what a perfect gate would give."""
    rows: dict[str, list[float]] = {}
    for clip in clips:
        maps = _in_range(clip.maps)
        blurred, base, sharp = (np.asarray(maps[..., k : k + 3]) for k in (0, 3, 6))
        gate = np.asarray(restored_of(maps, jnp.zeros((*maps.shape[:-1], MADE))))
        best = _best([blurred, base, sharp, gate], clip.sharp / np.float32(255))
        made = {"blurred": blurred, "base": base, "deconvolved": sharp, "gate": gate}
        for name, frames in {**made, f"the best in each {CELL} x {CELL} cell": best}.items():
            rows.setdefault(name, []).append(score(frames, clip))
    return rows


def _best(candidates: Sequence[np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Of each cell the candidate with the least error."""
    stacked = np.stack(candidates)
    errors = reduce((stacked - truth) ** 2, "n t (y a) (x b) c -> n t y x", "mean", a=CELL, b=CELL)
    chosen = np.repeat(np.repeat(errors.argmin(0), CELL, 1), CELL, 2)[..., None]
    return np.take_along_axis(stacked, np.broadcast_to(chosen, truth.shape)[None], 0)[0]


def _in_range(maps: np.ndarray) -> jax.Array:
    return jnp.asarray(maps, jnp.float32) / 255


def run(arguments: argparse.Namespace) -> str:
    """Trains what ``--out`` does not hold yet; the tables."""
    clips = read_clips(arguments.clips)
    kept, clips = clips[: arguments.validate], clips[arguments.validate :]
    kept = [clip for clip in kept if score(_in_range(clip.maps[..., :3]), clip) < _SHARP]
    if not clips or not kept:
        raise UserError(f"--validate={arguments.validate}: no clip of {arguments.clips} is left")
    out, steps = arguments.out, arguments.steps
    condition = {"clips": len(clips), "validate": len(kept), "steps": steps}
    held = results_so_far(out, condition)
    rows = physics(kept)
    lines = ["| frames | PSNR | gain over the gate |", "|---|---|---|"]
    for name, scores in rows.items():
        gain = np.mean(np.subtract(scores, rows["gate"]))
        lines.append(f"| {name} | {np.mean(scores):.2f} | {gain:+.2f} |")
    recipe = presets.find("strcnn_dtb_paths").training
    for seed in arguments.seeds:
        config = dataclasses.replace(recipe, steps=steps, seed=seed, loss="log_mse", warmup=50)
        for name, variant in VARIANTS.items():
            done = held["results"].setdefault(name, {})
            if str(seed) in done:
                continue
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            result = train(variant, clips, kept, config, rows["gate"])
            done[str(seed)] = result._asdict()
            print(result, file=sys.stderr, flush=True)
            if out:
                write_json(out, held)
    lines += ["", "| network | parameters | seeds | gain over the gate | worst clip |"]
    lines.append("|---|---|---|---|---|")
    for name in VARIANTS:
        of = [Result(**result) for result in held["results"][name].values()]
        gains, worst = ([getattr(r, field) for r in of] for field in ("gain", "worst"))
        cells = (name, f"{of[0].parameters:,}", len(of), spread(gains, "+"), f"{min(worst):+.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| the weights that ship | gain over the gate |", "|---|---|"]
    shipped = load_restorer("strcnn_dtb_paths").model
    assert isinstance(shipped, PathRestorer)
    for name, values in SHIPPED.items():
        gains = gains_over(rows["gate"], with_values(shipped.fusion, values), kept)
        lines.append(f"| {name} | {np.mean(gains):+.2f} |")
    about = f"{steps} steps of {recipe.batch_size} of {len(clips)} clips, scored on {len(kept)}"
    return "\n".join([f"{about}; {machine()}", "", *lines])


def main() -> None:
    """Reads the options, trains what is missing, prints the tables."""
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("clips", type=Path, metavar="CLIPS", help="a folder of path_clips")
    parser.add_argument("--seeds", type=whole, nargs="+", default=(0, 1, 2), help="of trainings")
    parser.add_argument("--steps", type=natural, default=300, help="of each training")
    parser.add_argument("--validate", type=natural, default=40, help="clips that score")
    parser.add_argument("--out", type=Path, help="a JSON file for the results; it is gone on with")
    arguments = parser.parse_args()
    devices.keep_freed_memory()
    devices.keep_compiled()
    print(run(arguments))


if __name__ == "__main__":
    run_command(main, "benchmarks.over_paths")
