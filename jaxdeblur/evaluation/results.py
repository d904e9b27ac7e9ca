"""The results of an evaluation: its folder, from which it resumes, the scores and metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from jaxdeblur import VERSION, devices
from jaxdeblur.data.videos import Dataset, identity
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation import report
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.metrics import VideoScores, protocol, seconds_per_frame, totals
from jaxdeblur.files import safe_name, write_json
from jaxdeblur.models.parameters import split
from jaxdeblur.models.registry import network_to_json
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import from_json
from jaxdeblur.weights.load import About


def default_folder(checkpoint: str, dataset: Dataset, config: EvaluationConfig) -> Path:
    """Returns the folder without ``--out``: in the run folder, or else in ``evaluations``."""
    parts = [dataset.name, dataset.variant]
    if config.protocol != EvaluationConfig.protocol:
        parts.append(config.protocol)
    name = safe_name("-".join(part for part in parts if part))
    run = Path(checkpoint)
    if run.is_dir():
        return run / f"evaluation-{name}"
    return Path("evaluations") / f"{safe_name(run.stem)}-{name}"


def table(metrics: dict[str, Any]) -> str:
    """Formats the scores as text: a line for each video, and the means."""
    rows = [(video["name"], video) for video in metrics["videos"]]
    means = [("mean over videos", metrics["video_mean"]), ("mean over frames", metrics["pooled"])]
    if metrics["protocol"]["mean"] == "frames":
        means.reverse()
    width = max(len(name) for name, _ in rows + means)
    head = f"{'video':{width}}  scored    PSNR: blurred  restored   gain   SSIM: blurred  restored"
    lines = [f"{head}  flicker  s/frame"]
    for name, row in rows + means:
        gain = row["psnr"] - row["psnr_blurred"]
        lines.append(
            f"{name:{width}}  {row.get('scored_frames', metrics['scored_frames']):6d}    "
            f"{row['psnr_blurred']:13.2f}  {row['psnr']:8.2f}  {gain:+5.2f}   "
            f"{row['ssim_blurred']:13.4f}  {row['ssim']:8.4f}"
        )
        if "seconds_per_frame" in row:
            seconds = row["seconds_per_frame"]
            shown = "-" if seconds is None else f"{seconds:.3f}"
            lines[-1] += f"  {row['temporal_error']:7.2f}  {shown:>7}"
    lines.insert(-2, "-" * len(lines[0]))
    return "\n".join(lines)


def settings_of(
    model: VideoRestorer, about: About, dataset: Dataset, config: EvaluationConfig
) -> dict[str, Any]:
    """Returns what a video's result depends on, which determines whether it can be reused."""
    weights = hashlib.sha256(json.dumps(network_to_json(about.network)).encode())
    for name, array in sorted(split(model)[1].items()):
        weights.update(name.encode() + np.asarray(array).tobytes())
    files = json.dumps(list(map(identity, dataset.videos)))
    return {
        "version": VERSION,
        "weights": weights.hexdigest(),
        "dataset": dataset.name,
        "dataset_variant": dataset.variant,
        "videos": [f"{v.name} {v.width}x{v.height} {len(v)}" for v in dataset.videos],
        "files": hashlib.sha256(files.encode()).hexdigest(),
        **json.loads(json.dumps(dataclasses.asdict(config))),
        "protocol": dataclasses.asdict(protocol(config.protocol)),
    }


def check_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Checks that results can go into ``out``: it is unused, or contains this evaluation.

    Raises:
      UserError: it contains something else, which ``overwrite`` does not replace.
    """
    if not out.exists() or not any(out.iterdir()):
        return
    before = _read_json(out / "evaluation.json")
    if not isinstance(before, dict) or "weights" not in before:
        raise UserError(f"--out={out}: the folder contains something other than an evaluation")
    different = [name for name in settings if before.get(name) != settings[name]]
    if different and not overwrite:
        raise UserError(
            f"--out={out}: contains an evaluation with different {', '.join(different)}; choose "
            "another folder with --out, or replace it with --overwrite"
        )


def prepare_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Creates the folder; removes an earlier evaluation in it if ``overwrite``."""
    if overwrite:
        for name in ("videos", "frames"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("metrics.json", "report.html", "preview.webp"):
            (out / name).unlink(missing_ok=True)
    for name in ("videos", "frames") if settings["frames"] else ("videos",):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", settings)


def _read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if it is missing or can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_video(path: Path, settings: dict[str, Any]) -> report.VideoReport | None:
    """Returns the result of a finished video, or None."""
    value = _read_json(path)
    if not isinstance(value, dict) or value.get("settings") != settings:
        return None
    try:
        return report.VideoReport(
            from_json(VideoScores, value["scores"], str(path)), value["shots"]
        )
    except (KeyError, UserError):
        return None


def gather(files: Sequence[Path], settings: dict[str, Any]) -> list[report.VideoReport]:
    """Returns all videos in order; waits for those of other processes.

    Raises:
      UserError: a file was removed or changed meanwhile.
    """
    videos = []
    for path in files:
        while (video := read_video(path, settings)) is None:
            if jax.process_count() == 1:
                raise UserError(f"{path}: was removed or changed during the evaluation")
            time.sleep(1)
        videos.append(video)
    return videos


def metrics_of(
    about: About, dataset: Dataset, config: EvaluationConfig, videos: Sequence[VideoScores]
) -> dict[str, Any]:
    """Returns the content of ``metrics.json``.

    Args:
      about: the network that restored the frames.
      dataset: the data set of the frames.
      config: the options.
      videos: the scores of each video, in the order of ``dataset``.
    """
    rules = protocol(config.protocol)
    keep = ("name", "frames", "temporal_error", "temporal_error_blurred", "seconds_per_frame")
    overall = totals(videos, rules.mean)
    name = f"{dataset.name} ({dataset.variant})" if dataset.variant else dataset.name
    return {
        "title": f"{about.preset or about.source} on {name}",
        **overall,
        "gain": overall["psnr"] - overall["psnr_blurred"],
        "frames": sum(video.frames for video in videos),
        "scored_frames": sum(len(video.frame_psnr) for video in videos),
        "seconds_per_frame": seconds_per_frame(videos),
        "video_mean": totals(videos, "videos"),
        "pooled": totals(videos, "frames"),
        "videos": [
            {
                **{name: getattr(video, name) for name in keep},
                **video.found,
                "scored_frames": len(video.frame_psnr),
                **video.means(),
            }
            for video in videos
        ],
        "protocol": dataclasses.asdict(rules),
        "dataset": {"name": dataset.name, "variant": dataset.variant, "data": config.data},
        "checkpoint": {
            "source": about.source,
            "preset": about.preset,
            "step": about.step,
            "network": network_to_json(about.network),
        },
        "device": devices.described(),
        "versions": {
            "jaxdeblur": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
