"""What the gates of a network that chooses between sizes take, of blurred and of sharp video.

    python -m benchmarks.gates --ckpt strcnn_dtb_choice
    python -m benchmarks.gates --ckpt RUN --data rendered:20px --sharp-input

For each size: the share of its residual that is taken, mean over cells, and the root mean square of
that residual before a share is taken, in grey levels of its size. A sharp video that is changed has
shares above 0; how they compare with those of a blurred one says whether it is taken for one.
The test scenes of docs/models.md, their first frames.
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.options import natural
from jaxdeblur import devices
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.options import ClusterConfig, Parser
from jaxdeblur.restoration.stream import from_uint8
from jaxdeblur.shapes import Clip
from jaxdeblur.weights.load import load_model

_SCENES = [f"rendered:{pixels}px" for pixels in (2, 10, 20, 40)]


@nnx.jit
def shares_and_residuals(model: ScaleChoice, clip: Clip) -> tuple[jnp.ndarray, jnp.ndarray]:
    """For each size, coarse to fine: the mean share, and the residual's mean square."""
    residuals, evidence = model.evidence(*model.reduce_and_restore(clip))
    shares = model.gates(evidence)
    squares = jnp.stack([jnp.mean(residual**2) for residual in residuals])
    return jnp.mean(shares, axis=tuple(range(shares.ndim - 1))), squares


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="a network with gates")
    parser.add_argument("--data", nargs="+", default=_SCENES)
    parser.add_argument(
        "--sharp-input",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the sharp frames go in; with --no-sharp-input the blurred ones",
    )
    parser.add_argument("--frames", type=natural, default=5, help="of each video")
    arguments = parser.parse_args()

    devices.keep_freed_memory()
    devices.keep_compiled()
    devices.use_cores(1, ClusterConfig())
    model = load_model(arguments.ckpt).model
    if not isinstance(model, ScaleChoice):
        raise UserError(f"--ckpt={arguments.ckpt}: has no gates (--choose-scale)")
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
    run_command(main, "benchmarks.gates")
