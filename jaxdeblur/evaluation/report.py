"""The report: one self-contained HTML page with scores, before/after frames and explanations.

The page opens from disk without a server and loads nothing from elsewhere. Its content is embedded
JSON, drawn by ``report_page.js``; ``shot`` makes the pictures of a frame and ``write`` assembles
the page.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num
from PIL import Image as pillow

from jaxdeblur.evaluation.metrics import VideoScores
from jaxdeblur.files import replace_when_whole
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.path_maps import at_pixels
from jaxdeblur.shapes import Frame8

WEBP_QUALITY = 90
"""At 90 the loss is invisible at full size, and a 1280x720 frame takes about 150 kB."""

PICTURE_SIDE = 1280
"""The longest side of a picture; larger frames are reduced."""

MAP_SIDE = 160
"""The longest side of a map laid over a frame; maps are smooth, and the browser enlarges them."""

MIX_SIDE = 48
"""The same for the mix over M*N combinations, which has many maps for each frame."""

Shot = dict[str, Any]
"""The pictures of one frame as the page's script reads them; JSON types only (see ``shot``)."""


@dataclasses.dataclass(frozen=True)
class VideoReport:
    """One video in the report: its scores and the frames shown."""

    scores: VideoScores
    shots: Sequence[Shot]


def write(path: Path, metrics: dict[str, Any], videos: Sequence[VideoReport]) -> None:
    """Writes the page for the metrics of ``results.metrics_of``, completely or not at all."""
    page, style, script = (
        Path(__file__).with_name(f"report_page.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(metrics["title"]),
        "style": style,
        "script": script,
        # "</" would end the script element, and "<!--" can hide its end: neither may occur in it.
        "data": json.dumps(page_data(metrics, videos), allow_nan=False).replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], page)
    with replace_when_whole(path) as part:
        part.write_text(page, encoding="utf-8")


def page_data(metrics: dict[str, Any], videos: Sequence[VideoReport]) -> dict[str, Any]:
    """Returns the metrics with every frame's scores and the pictures, for the page's script."""
    shown = []
    for i, (means, video) in enumerate(zip(metrics["videos"], videos, strict=True), 1):
        more = {"id": f"video-{i}", "shots": list(video.shots)}
        shown.append({**means, **dataclasses.asdict(video.scores), **more})
    return {**metrics, "videos": shown}


def shot(
    index: int,
    blurred: Frame8,
    restored: Frame8,
    sharp: Frame8,
    explanation: Explanation | None = None,
) -> Shot:
    """Makes the pictures of one frame for the page.

    Args:
      index: index of the frame in its video, from 0.
      blurred: the input.
      restored: the output.
      sharp: the ground truth.
      explanation: the explanation of the video's first frames, including this one.

    Returns:
      ``index``; ``blurred``, ``restored`` and ``sharp`` as data URIs; ``scale``, how much smaller
      they are than the frame; ``weights`` and ``gate``, sprites or None; ``paths``, the data of an
      SVG path in pixels of the frame, or None; ``attention``, one entry per block with
      ``name``, ``offsets``, ``temporal`` (N lists of weights) and the sprites ``spatial`` (M maps,
      1 where the weight is that of an even spread) and ``mix`` (M*N maps).
    """
    scale = min(1.0, PICTURE_SIDE / max(blurred.shape))
    pictures = [_picture(frame, scale) for frame in (blurred, restored, sharp)]
    names = ("blurred", "restored", "sharp")
    found: Shot = {"index": index, **dict(zip(names, pictures, strict=True)), "scale": scale}
    explanation = explanation or Explanation()
    weights, gate, paths = explanation.blending_weights, explanation.gate, explanation.paths
    if gate is not None:
        gate = at_pixels(jnp.asarray(gate[:, index])[..., None], *blurred.shape[:2])[..., 0]
    for name, maps in (("weights", None if weights is None else weights[:, index]), ("gate", gate)):
        found[name] = None if maps is None else sprite(np.asarray(maps[:1]), MAP_SIDE, (0.0, 1.0))
    found["paths"] = None if paths is None else _path_data(np.asarray(paths[0, index]))
    found["attention"] = []
    for block in explanation.attention:
        mix = np.moveaxis(np.asarray(block.pixel_mix[0, index], np.float32), -1, 0)
        temporal = np.asarray(block.temporal_maps[0, index], np.float64)
        spatial = np.asarray(block.spatial_maps[0, index], np.float32)
        found["attention"].append(
            {
                "name": block.name,
                "offsets": list(block.offsets),
                "temporal": [[round(weight, 5) for weight in row] for row in temporal.tolist()],
                # In units of an even spread, which averaging over pixels does not change.
                "spatial": sprite(spatial * np.prod(spatial.shape[-2:]), MAP_SIDE),
                "mix": sprite(mix, MIX_SIDE),
            }
        )
    return found


def _path_data(paths: Float[np.ndarray, "N S 2"]) -> str:
    """Formats lines through points (y, x) as the data of one SVG path."""
    lines = (" ".join(f"{x:.1f} {y:.1f}" for y, x in path) for path in paths)
    return "".join(f"M{line}" for line in lines)


def sprite(
    maps: Num[np.ndarray, "count h w"],
    side: int,
    limits: tuple[float | int, float | int] | None = None,
) -> dict[str, Any]:
    """Stacks maps vertically in one grey PNG; a byte b means low + b / 255 * (high - low).

    Args:
      maps: maps of one size; reduced by averaging until the longest side is at most ``side``.
      side: the longest side of a map in the sprite.
      limits: the values of black and white; by default the smallest and the largest value.
    """
    maps = np.asarray(maps, np.float32)
    factor = math.ceil(max(maps.shape[1:]) / side)
    maps = np.stack([np.asarray(pillow.fromarray(each).reduce(factor)) for each in maps])
    low, high = map(float, limits or (maps.min(), maps.max()))
    grey = np.rint(np.clip((maps - low) / ((high - low) or 1.0), 0, 1) * 255).astype(np.uint8)
    count, height, width = grey.shape
    return {
        "src": _data_uri(
            pillow.fromarray(grey.reshape(count * height, width)), "PNG", optimize=True
        ),
        "width": width,
        "height": height,
        "count": count,
        "low": low,
        "high": high,
    }


def _picture(frame: Frame8, scale: float) -> str:
    image = pillow.fromarray(frame)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, pillow.Resampling.LANCZOS)
    return _data_uri(image, "WEBP", quality=WEBP_QUALITY, method=4)


def _data_uri(image: pillow.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
