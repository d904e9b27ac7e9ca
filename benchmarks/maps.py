"""What a trained network blends and attends to, in numbers and pictures.

    python -m benchmarks.maps look --ckpt=runs/fsta_small --data=rendered:wide --out=maps
    python -m benchmarks.maps curve penalty.svg

``look`` runs a network over the first frames of a video. Of dynamic temporal blending it gives the
mean w_n of each frame, of every attention block the entropies of its maps as shares of those of
uniform maps (1: nothing is selected; 0: one place alone), and a picture of both. ``curve`` draws
figure 5 of the blending paper: w_n by the response A h~_{n-1} + B h_n (eq. 3).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from benchmarks.options import natural
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.models.explanation import AttentionMaps, Explanation, explainer
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import Parser
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.shapes import Video8
from jaxdeblur.weights.load import load_model

BETAS = (0.1, 0.3, 0.5)


class Seen(NamedTuple):
    """What a network blended and attended to over a clip."""

    blending: list[float]
    """The mean of w_n of each frame; empty without blending."""
    entropy: dict[str, list[float]]
    """For each attention block the entropies of A_s, A_t and A_p, shares of those of uniform maps:
    means over frames and maps."""


def explain(model: VideoRestorer, clip: Video8) -> Explanation:
    """The maps of a clip of bytes; :class:`UserError` if the model has none."""
    show = explainer(model)
    if show is None:
        raise UserError("--ckpt: this network has no maps to show")
    return show(jnp.asarray(clip, jnp.float32)[None] / 255)


def seen(explanation: Explanation) -> Seen:
    """The numbers."""
    weights = explanation.blending_weights
    return Seen(
        [] if weights is None else [float(w) for w in weights[0].mean(axis=(1, 2))],
        {maps.name: entropies(maps) for maps in explanation.attention},
    )


def entropies(maps: AttentionMaps) -> list[float]:
    """Of A_s over the pixels, A_t over the window and A_p over the combinations, 0 to 1."""

    def share(weights: jax.Array) -> float:
        if weights.shape[-1] == 1:
            return 1.0
        logarithm = jnp.log(jnp.maximum(weights, 1e-30))
        entropy = -(weights * logarithm).sum(axis=-1)
        return float(entropy.mean() / np.log(weights.shape[-1]))

    spatial = maps.spatial_maps
    flat = spatial.reshape(*spatial.shape[:-2], -1)
    return [share(flat), share(maps.temporal_maps), share(maps.pixel_mix)]


def picture(explanation: Explanation, clip: Video8, restored: Video8) -> UInt8[np.ndarray, "H W 3"]:
    """Blurred and restored frames in a row, w_n below them; or one frame with its spatial maps."""
    height, width = clip.shape[1:3]

    def grey(values: Any, most: float) -> UInt8[np.ndarray, "H W 3"]:
        levels = np.asarray(jnp.clip(255 * values / most, 0, 255)).astype(np.uint8)
        image = Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST)
        return np.repeat(np.asarray(image)[..., None], 3, axis=-1)

    rows = []
    if explanation.blending_weights is not None:
        rows = [list(clip), list(restored)]
        rows.append([grey(w, 1.0) for w in explanation.blending_weights[0]])
    middle = len(clip) // 2
    for maps in explanation.attention:
        spatial = maps.spatial_maps[0, middle]
        rows.append([clip[middle], *(grey(each, float(each.max())) for each in spatial)])
    longest = max(map(len, rows), default=0)
    blank = np.zeros_like(clip[0])
    filled = [np.concatenate([*row, *[blank] * (longest - len(row))], axis=1) for row in rows]
    return np.concatenate(filled, axis=0)


def draw(explanation: Explanation, clip: Video8, model: VideoRestorer, path: Path) -> None:
    """Writes :func:`picture` as PNG."""
    restored = restore_clip(model, clip)
    Image.fromarray(picture(explanation, clip, restored)).save(path, format="PNG")


def penalty(response: Float[np.ndarray, " n"], beta: float) -> Float[np.ndarray, " n"]:
    """Eq. 3: w_n of a response."""
    return np.minimum(1.0, np.abs(np.tanh(response)) + beta)


def curve(betas: Sequence[float] = BETAS) -> str:
    """Figure 5 as SVG: w_n by the response, a line for each beta."""
    width, height, left, top = 420, 240, 40, 12
    response = np.linspace(-3, 3, 241)

    def place(x: Any, w: Any) -> tuple[Any, Any]:
        return left + (x + 3) / 6 * width, top + (1 - w) * height

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" '
        f'height="{top + height + 44}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for value in (0, 0.5, 1):
        y = place(0, value)[1]
        lines.append(f'<path d="M{left} {y}h{width}" stroke="#ccc"/>')
        lines.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in range(-3, 4):
        x = place(value, 0)[0]
        lines.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{value}</text>')
    for beta, colour in zip(betas, ("#1b6", "#16b", "#b31"), strict=False):
        x, y = place(response, penalty(response, beta))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        start = place(0, beta)[1]
        lines.append(
            f'<text x="{left + width / 2 + 6}" y="{start + 14}" fill="{colour}">β = {beta:g}</text>'
        )
    middle = left + width / 2
    lines.append(
        f'<text x="{middle}" y="{top + height + 38}" text-anchor="middle">'
        "response of the convolution, A h̃ₙ₋₁ + B hₙ</text>"
    )
    lines.append(f'<text x="{left + 4}" y="{top + 14}">wₙ</text>')
    return "\n".join([*lines, "</svg>", ""])


def describe(found: Seen, name: str) -> list[str]:
    """Lines for people."""
    lines = []
    if found.blending:
        weights = " ".join(f"{w:.2f}" for w in found.blending)
        lines.append(f"{name}: mean w_n of each frame: {weights}")
    lines += [
        f"{name}: {block}: entropy against uniform: A_s {s:.3f}, A_t {t:.3f}, A_p {p:.3f}"
        for block, (s, t, p) in found.entropy.items()
    ]
    return lines


def main() -> None:
    """Reads the options; looks, or draws the curve."""
    parser = Parser(description=__doc__.split("\n", maxsplit=1)[0])
    parts = parser.add_subparsers(dest="part", required=True)
    look = parts.add_parser("look", help="at what a trained network blends and attends to")
    look.add_argument("--ckpt", required=True, help="a run, or weights")
    look.add_argument("--data", default="rendered:narrow", help="its first video is shown")
    look.add_argument("--frames", type=natural, default=8, help="of the video")
    look.add_argument("--out", type=Path, required=True, help="a PNG file")
    drawn = parts.add_parser("curve", help="figure 5 of the blending paper")
    drawn.add_argument("out", metavar="OUT.svg", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.part == "curve":
            arguments.out.write_text(curve(), encoding="utf-8")
            return
        show(arguments)
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot be written: {error.strerror}") from error


def show(arguments: argparse.Namespace) -> None:
    """Prints the numbers of a trained network and draws its maps."""
    model = load_model(arguments.ckpt).model
    video = open_dataset(arguments.data, "validation").videos[0]
    frames = range(min(len(video), arguments.frames))
    clip = np.stack([video.blurred(i) for i in frames])
    explanation = explain(model, clip)
    print(*describe(seen(explanation), video.name), sep="\n")
    draw(explanation, clip, model, arguments.out)


if __name__ == "__main__":
    run_command(main, "benchmarks.maps")
