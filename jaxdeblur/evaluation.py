"""Evaluation: restores a data set, scores it by a protocol, and writes metrics, frames and report.

The work is shared over processes by video, and each finished video is a file of its own: a second
start of the same evaluation goes on where the first one stopped.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import flax
import jax
import numpy as np

from jaxdeblur import cluster, report
from jaxdeblur.checkpoints import LoadedModel, network_to_json
from jaxdeblur.data.datasets import Dataset, Video, identity
from jaxdeblur.data.synthesis import Exposure
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_folder_when_whole, write_json
from jaxdeblur.images import MAX_PIXELS, write_png
from jaxdeblur.metrics import (
    Flicker,
    Protocol,
    VideoScores,
    protocol,
    seconds_per_frame,
    totals,
)
from jaxdeblur.models.explanation import Explanation, explainer
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.options import from_json
from jaxdeblur.restoration import Pixels, from_uint8, stream
from jaxdeblur.shapes import Frame8
from jaxdeblur.version import VERSION

EXPLAINED_PIXELS = 2**23
"""Of the frames that are explained together: 9 frames of 1280x720, whose features fit into a few
gigabytes. At least 3 frames are taken, and at most ``EXPLAINED_FRAMES``."""

EXPLAINED_FRAMES = 16
"""What explains more frames than this only makes the page larger."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is restored, and how it is scored and shown.

    Attributes:
      data: rendered, a folder (its layout is recognised), or LAYOUT:FOLDER.
      split: the part of the data set: test, or validation where no test set is published (REDS).
      variant: which blurred frames, where a data set has several: blur or blur_gamma.
      only: the videos whose names begin so; all without.
      exclude: leaves out the videos whose names begin so.
      tau: high-speed frames: how many are averaged to a blurred one.
      period: high-speed frames: from the start of one exposure to the next.
      max_frames: restores the first frames of each video alone.
      max_pixels: larger frames are refused before they are decoded.
      protocol: how it is scored; docs/protocols.md.
      frames: writes the restored frames as PNG.
      explain: shows what the network blended or attended to, in the first frames of each video.
      report_megabytes: about how large the report may become.
    """

    data: str = "rendered"
    split: Literal["train", "validation", "test"] = "test"
    variant: str | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tau: int = 11
    period: int = 12
    max_frames: int | None = None
    max_pixels: int = MAX_PIXELS
    protocol: str = "jaxdeblur"
    frames: bool = False
    explain: bool = False
    report_megabytes: float = 32.0

    @property
    def exposure(self) -> Exposure | None:
        """Of high-speed frames; None, which other data sets take, where it is the usual one."""
        exposure = Exposure(self.tau, self.period)
        return exposure if exposure != Exposure() else None

    def __post_init__(self) -> None:
        protocol(self.protocol)
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"--max-frames is 1 or more, not {self.max_frames}")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels is 1 or more, not {self.max_pixels}")
        if not 0 < self.report_megabytes <= 1e5:
            raise UserError(
                f"--report-megabytes is above 0 and at most 100000, not {self.report_megabytes}"
            )


def evaluate(
    loaded: LoadedModel,
    dataset: Dataset,
    config: EvaluationConfig,
    out: Path,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on a data set into the folder ``out``.

    Every process of ``jax.distributed`` calls it and restores its share; they need one file system.
    Process 0 writes ``metrics.json`` and ``report.html``. The folder holds ``evaluation.json``
    (what is evaluated), ``videos/`` (a file for each video, by which a second start goes on) and,
    if wanted, ``frames/``.

    Returns:
      What ``metrics.json`` says.

    Raises:
      UserError: ``out`` holds something else, the model has nothing to explain, or a video can't be
        read or has no frame that the protocol scores.
    """
    if config.explain and not _explains(loaded.model):
        raise UserError(
            f"--explain: {loaded.preset} neither blends nor attends, and has no explain_clip"
        )
    lengths = [min(len(video), config.max_frames or len(video)) for video in dataset.videos]
    if not lengths:
        raise UserError(f"{config.data}: no video to evaluate")
    rules = protocol(config.protocol)
    pairs = zip(dataset.videos, lengths, strict=True)
    if short := [video.name for video, length in pairs if not rules.scored(length)]:
        raise UserError(f"protocol {rules.name} scores no frame of {', '.join(short)}: too short")
    for video in dataset.videos:
        rules.check_size(video.height, video.width, video.name)

    settings = _settings(loaded, dataset, config)
    _check_folder(out, settings, overwrite)
    cluster.wait_for_all("the folder is checked")
    if jax.process_index() == 0:
        _prepare_folder(out, settings, overwrite)
    cluster.wait_for_all("the folder is prepared")

    files = [out / "videos" / f"{_slug(i, v)}.json" for i, v in enumerate(dataset.videos)]
    mine = range(jax.process_index(), len(files), jax.process_count())
    work = [i for i in mine if _read_video(files[i], settings) is None]
    progress = _Progress(len(work), sum(lengths[i] for i in work), len(mine) - len(work))
    max_bytes = int(config.report_megabytes * 1e6 / len(files))
    for i in work:
        video = dataset.videos[i]
        progress.begin(video.name, lengths[i])
        folder = out / "frames" / _slug(i, video) if config.frames else None
        result = _evaluate_video(
            loaded.model, video, lengths[i], rules, config.explain, max_bytes, folder, progress
        )
        write_json(files[i], {"settings": settings, **dataclasses.asdict(result)})
        progress.end(result.scores)
    videos = list(_gather(files, settings))

    metrics = _metrics(loaded, dataset, config, [video.scores for video in videos])
    if jax.process_index() == 0:
        report.write(out / "report.html", _report(loaded, dataset, rules, metrics, videos))
        write_json(out / "metrics.json", metrics)
    return metrics


def default_folder(checkpoint: str, dataset: Dataset, config: EvaluationConfig) -> Path:
    """Where an evaluation goes without ``--out``: into the run folder, or below ``evaluations``."""
    parts = [dataset.name, dataset.variant]
    if config.protocol != EvaluationConfig.protocol:
        parts.append(config.protocol)
    name = _safe("-".join(part for part in parts if part))
    run = Path(checkpoint)
    if run.is_dir():
        return run / f"evaluation-{name}"
    return Path("evaluations") / f"{_safe(run.stem)}-{name}"


def table(metrics: dict[str, Any]) -> str:
    """The scores as text: a line for each video, and the means."""
    rows = [(video["name"], video) for video in metrics["videos"]]
    means = [("mean over videos", metrics["video_mean"]), ("mean over frames", metrics["pooled"])]
    if metrics["protocol"]["mean"] == "frames":
        means.reverse()
    width = max(len(name) for name, _ in rows + means)
    head = f"{'video':{width}}  frames    PSNR: blurred  restored   gain   SSIM: blurred  restored"
    lines = [f"{head}  flicker  s/frame"]
    for name, row in rows + means:
        gain = row["psnr"] - row["psnr_blurred"]
        line = (
            f"{name:{width}}  {row.get('frames', metrics['frames']):6d}    "
            f"{row['psnr_blurred']:13.2f}  {row['psnr']:8.2f}  {gain:+5.2f}   "
            f"{row['ssim_blurred']:13.4f}  {row['ssim']:8.4f}"
        )
        if "seconds_per_frame" in row:
            line += f"  {row['temporal_error']:7.2f}  {row['seconds_per_frame']:7.3f}"
        lines.append(line)
    lines.insert(-2, "-" * len(lines[0]))
    return "\n".join(lines)


def _evaluate_video(
    model: VideoRestorer,
    video: Video,
    frames: int,
    rules: Protocol,
    explain: bool,
    max_bytes: int,
    folder: Path | None,
    progress: _Progress,
) -> report.VideoReport:
    """Restores, scores and pictures one video, frame by frame."""
    explanation, shown = None, frames
    if explain:
        wanted = EXPLAINED_PIXELS // (video.height * video.width)
        shown = min(frames, EXPLAINED_FRAMES, max(3, wanted))
        # With those that the last ones look ahead to, as the stream has them.
        seen = min(frames, shown + model.lookahead)
        explanation = _explain(model, [video.blurred(i) for i in range(seen)])
    shots = _Shots(max_bytes, explanation)
    restored_flicker, blurred_flicker = Flicker(), Flicker()
    counted = rules.scored(frames)
    scores: list[tuple[float, ...]] = []
    restoration = _TimedRestoration(model, video, frames, wide=rules.needs_fractions)

    with ThreadPoolExecutor(2) as pool, _frames_folder(folder) as part:
        for i, (blurred, restored) in enumerate(restoration):
            sharp, written = video.sharp(i), _rounded(restored)
            if i in counted:
                # Both at once, and both before the next frame: restoring is timed on a quiet host.
                pair = [rules.quantised(restored), blurred]
                found = pool.map(lambda image, truth=sharp: rules.score(image, truth), pair)
                scores.append(tuple(value for score in found for value in score))
            restored_flicker.add(written, sharp)
            blurred_flicker.add(blurred, sharp)
            if i < shown:
                shots.offer(i, blurred, written, sharp)
            if part is not None:
                write_png(part / f"{i:06d}.png", written)
            progress.frame()

    psnr, ssim, psnr_blurred, ssim_blurred = zip(*scores, strict=True)
    video_scores = VideoScores(
        name=video.name,
        height=video.height,
        width=video.width,
        frames=frames,
        scored_from=counted.start,
        frame_psnr=psnr,
        frame_ssim=ssim,
        frame_psnr_blurred=psnr_blurred,
        frame_ssim_blurred=ssim_blurred,
        temporal_error=restored_flicker.rms(),
        temporal_error_blurred=blurred_flicker.rms(),
        seconds_per_frame=restoration.seconds_per_frame(),
    )
    return report.VideoReport(video_scores, shots.kept)


class _TimedRestoration:
    """Gives (blurred, restored) frame by frame and times what the network takes.

    Attributes:
      wide: frames are restored at 16 bits, for protocols that do not score rounded ones.
      repeats: how often each frame goes in.
    """

    def __init__(
        self, model: VideoRestorer, video: Video, frames: int, *, wide: bool, repeats: int = 1
    ) -> None:
        self.model, self.video, self.frames, self.wide = model, video, frames, wide
        self.repeats = repeats
        self.reading = 0.0
        self.durations: list[float] = []
        self.waiting: collections.deque[Frame8] = collections.deque()

    def __iter__(self) -> Iterator[tuple[Frame8, Pixels]]:
        restored = stream(self.model, self._read())
        while True:
            self.reading, began = 0.0, time.perf_counter()
            frame = next(restored, None)
            if frame is None:
                return
            self.durations.append(time.perf_counter() - began - self.reading)
            yield self.waiting.popleft(), frame

    def seconds_per_frame(self) -> float:
        """The median; the first frame compiles and fills the look-ahead, so it does not count."""
        if len(self.durations) > 1:
            return float(np.median(self.durations[1:]))
        again = _TimedRestoration(self.model, self.video, 1, wide=self.wide, repeats=4)
        list(again)
        return float(np.median(again.durations[1:]))

    def _read(self) -> Iterator[Pixels]:
        for i in [i for i in range(self.frames) for _ in range(self.repeats)]:
            began = time.perf_counter()
            frame = self.video.blurred(i)
            self.waiting.append(frame)
            self.reading += time.perf_counter() - began
            # 257 * 255 = 65535: the same number in [0, 1].
            yield frame.astype(np.uint16) * np.uint16(257) if self.wide else frame


class _Shots:
    """The frames that go into the report: every stride-th, as many as fit."""

    def __init__(self, max_bytes: int, explanation: Explanation | None) -> None:
        self.max_bytes, self.explanation = max_bytes, explanation
        self.kept: list[report.Shot] = []
        self.stride = 1

    def offer(self, index: int, blurred: Frame8, restored: Frame8, sharp: Frame8) -> None:
        """Takes the frame if it is its turn; when space runs out, every other one goes."""
        if index % self.stride:
            return
        self.kept.append(
            report.shot(
                index,
                blurred,
                restored,
                sharp,
                max_bytes=self.max_bytes,
                explanation=self.explanation,
                place=index,
            )
        )
        while len(self.kept) > 1 and report.shot_bytes(self.kept) > self.max_bytes:
            self.stride *= 2
            self.kept = [shot for shot in self.kept if shot["index"] % self.stride == 0]


def _explains(model: VideoRestorer) -> bool:
    """Whether the model has anything to show; nothing is computed to find out."""
    explain = explainer(model)
    if explain is None:
        return False
    clip = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), np.float32)
    return bool(jax.tree.leaves(jax.eval_shape(explain, clip)))


def _explain(model: VideoRestorer, frames: Sequence[Frame8]) -> Explanation:
    rebuild, parameters = split(model)

    @jax.jit
    def explain(parameters: Any, clip: jax.Array) -> Explanation:
        found = rebuild(parameters).explain_clip(clip)  # type: ignore[attr-defined]
        return _without_padding(found, model, *clip.shape[2:4])

    found: Explanation = jax.device_get(explain(parameters, from_uint8(np.stack(frames))[None]))
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(found)):
        raise UserError("--explain: the model's maps are not finite; its weights are broken")
    return found


def _without_padding(
    found: Explanation, model: VideoRestorer, height: int, width: int
) -> Explanation:
    """The maps of the frames alone; a model explains them padded to its ``multiple``."""
    shares = [size / model._round_up(size) for size in (height, width)]

    def cut(maps: jax.Array, axis: int) -> jax.Array:
        sides = zip(maps.shape[axis : axis + 2], shares, strict=True)
        inside = [slice(max(1, round(side * share))) for side, share in sides]
        return maps[(*[slice(None)] * axis, *inside)]

    weights = found.blending_weights
    return Explanation(
        None if weights is None else cut(weights, 2),
        tuple(
            dataclasses.replace(
                block, spatial_maps=cut(block.spatial_maps, 3), pixel_mix=cut(block.pixel_mix, 2)
            )
            for block in found.attention
        ),
    )


def _rounded(restored: Pixels) -> Frame8:
    """The frame as it is written, 8 bits."""
    if restored.dtype == np.uint8:
        return restored
    return ((restored.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _frames_folder(folder: Path | None) -> contextlib.AbstractContextManager[Path | None]:
    """Where the frames of a video are written, if they are; the folder appears when it is whole."""
    if folder is None:
        return contextlib.nullcontext()
    shutil.rmtree(folder, ignore_errors=True)  # of a start that ended after this folder was whole
    return replace_folder_when_whole(folder)


def _settings(loaded: LoadedModel, dataset: Dataset, config: EvaluationConfig) -> dict[str, Any]:
    """What a video's result depends on, by which it is known whether it is done."""
    digest = hashlib.sha256(json.dumps(network_to_json(loaded.network)).encode())
    for name, array in sorted(split(loaded.model)[1].items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "version": VERSION,
        "weights": digest.hexdigest(),
        "dataset": dataset.name,
        "dataset_variant": dataset.variant,
        "videos": [f"{v.name} {v.width}x{v.height} {len(v)}" for v in dataset.videos],
        "files": hashlib.sha256(
            json.dumps(list(map(identity, dataset.videos))).encode()
        ).hexdigest(),
        **json.loads(json.dumps(dataclasses.asdict(config))),
        "protocol": protocol(config.protocol).as_dict(),
    }


def _check_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Raises UserError unless ``out`` is free, or holds this evaluation, or may be replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: a file is there already")
    if not out.exists() or not any(out.iterdir()):
        return
    for name in ("videos", "frames"):
        if os.path.lexists(out / name) and not (out / name).is_dir():
            raise UserError(f"--out={out}: {name} in it is no folder")
    for name in ("evaluation.json", "metrics.json", "report.html"):
        if (out / name).is_dir():
            raise UserError(f"--out={out}: {name} in it is a folder")
    before = _read_json(out / "evaluation.json")
    if not isinstance(before, dict) or "weights" not in before:
        raise UserError(f"--out={out}: the folder holds something that is no evaluation")
    different = [name for name in settings if before.get(name) != settings[name]]
    if different and not overwrite:
        raise UserError(
            f"--out={out}: it holds an evaluation with other {', '.join(different)}; choose "
            "another folder, or replace it with --overwrite"
        )


def _prepare_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    if overwrite:
        for name in ("videos", "frames"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("metrics.json", "report.html"):
            (out / name).unlink(missing_ok=True)
    for name in ("videos", "frames") if settings["frames"] else ("videos",):
        (out / name).mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", settings)


def _read_json(path: Path) -> Any:
    """What the file says, or None if there is none or it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    """A number that the report page can show: JSON has no other."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _read_video(path: Path, settings: dict[str, Any]) -> report.VideoReport | None:
    """A video that is done, or None."""
    value = _read_json(path)
    if not isinstance(value, dict) or value.get("settings") != settings:
        return None
    try:
        scores = from_json(VideoScores, value.get("scores"), str(path))
    except UserError:
        return None
    shots = value.get("shots")
    return report.VideoReport(scores, shots) if isinstance(shots, list) else None


def _gather(files: Sequence[Path], settings: dict[str, Any]) -> Iterator[report.VideoReport]:
    """All videos, in order; waits for those of other processes."""
    for path in files:
        while (video := _read_video(path, settings)) is None:
            if jax.process_count() == 1:
                raise UserError(f"{path}: was removed or changed while the evaluation went on")
            time.sleep(1)
        yield video


def _metrics(
    loaded: LoadedModel, dataset: Dataset, config: EvaluationConfig, videos: Sequence[VideoScores]
) -> dict[str, Any]:
    rules = protocol(config.protocol)
    keep = ("name", "frames", "temporal_error", "temporal_error_blurred", "seconds_per_frame")
    overall = totals(videos, rules)
    return {
        **overall,
        "gain": overall["psnr"] - overall["psnr_blurred"],
        "frames": sum(video.frames for video in videos),
        "scored_frames": sum(len(video.frame_psnr) for video in videos),
        "seconds_per_frame": seconds_per_frame(videos),
        "video_mean": totals(videos, dataclasses.replace(rules, mean="videos")),
        "pooled": totals(videos, dataclasses.replace(rules, mean="frames")),
        "videos": [
            {**{name: getattr(video, name) for name in keep}, **video.means()} for video in videos
        ],
        "protocol": rules.as_dict(),
        "dataset": {"name": dataset.name, "variant": dataset.variant, "data": config.data},
        "checkpoint": {
            "source": loaded.source,
            "preset": loaded.preset,
            "step": loaded.step,
            "network": network_to_json(loaded.network),
        },
        "device": _device(),
        "versions": {
            "jaxdeblur": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _report(
    loaded: LoadedModel,
    dataset: Dataset,
    rules: Protocol,
    metrics: dict[str, Any],
    videos: Sequence[report.VideoReport],
) -> report.EvaluationReport:
    name = f"{dataset.name} ({dataset.variant})" if dataset.variant else dataset.name
    return report.EvaluationReport(
        title=f"{loaded.preset or loaded.source} on {name}",
        checkpoint=loaded.source,
        dataset=name,
        protocol=rules,
        device=metrics["device"],
        versions=metrics["versions"],
        made=metrics["made"],
        videos=videos,
    )


def _device() -> str:
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return f"a CPU with {cluster.cores()} cores"
    return str(device.device_kind)


def _slug(index: int, video: Video) -> str:
    return f"{index:03d}-{_safe(video.name)}"


def _safe(name: str) -> str:
    """A file name that stays in its folder, whatever the video is called."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "unnamed"


class _Progress:
    """A line that tells the video, the rate and the time left; on a terminal it rewrites itself."""

    def __init__(self, videos: int, frames: int, done_before: int) -> None:
        self.videos, self.frames = videos, frames
        self.video, self.done = 0, 0
        self.began = time.monotonic()
        self.shown = 0.0
        self.on_terminal = sys.stderr.isatty()
        if done_before:
            self._print(f"{done_before} videos were done before and are kept\n")

    def begin(self, name: str, frames: int) -> None:
        """A video begins."""
        self.video += 1
        self.name = name

    def frame(self) -> None:
        """A frame is done."""
        self.done += 1
        if self.done == 1:
            self.began = time.monotonic()  # the first frame compiles
        now = time.monotonic()
        if self.on_terminal and now - self.shown > 0.2 and self.done > 1:
            self.shown = now
            rate = (self.done - 1) / (now - self.began)
            left = int((self.frames - self.done) / rate)
            self._print(
                f"\r\033[Kvideo {self.video}/{self.videos} {self.name}  frame {self.done}/"
                f"{self.frames}  {rate:.1f} frames/s  {left // 60}:{left % 60:02} left"
            )

    def end(self, scores: VideoScores) -> None:
        """A video is done."""
        means = scores.means()
        gain = means["psnr"] - means["psnr_blurred"]
        start = "\r\033[K" if self.on_terminal else ""
        self._print(
            f"{start}video {self.video}/{self.videos} {self.name}: "
            f"{means['psnr']:.2f} dB ({gain:+.2f})\n"
        )

    def _print(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
