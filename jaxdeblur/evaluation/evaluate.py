"""Restores a data set, scores it by a protocol, and writes metrics, frames and a report.

Processes share the work by video, and each finished video has its own file: a second start of the
same evaluation resumes where the first one stopped.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdeblur import devices
from jaxdeblur.console import ProgressLine
from jaxdeblur.data.videos import Dataset, Video
from jaxdeblur.errors import UserError
from jaxdeblur.evaluation import report
from jaxdeblur.evaluation.config import EvaluationConfig
from jaxdeblur.evaluation.metrics import Flicker, VideoScores, protocol
from jaxdeblur.evaluation.results import (
    check_folder,
    gather,
    metrics_of,
    prepare_folder,
    read_video,
    settings_of,
)
from jaxdeblur.files import (
    replace_folder_when_whole,
    replace_when_whole,
    safe_name,
    write_json,
)
from jaxdeblur.models.explanation import Explanation, explainer
from jaxdeblur.models.parameters import split
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.stream import Stream, restore_frames, to_floats
from jaxdeblur.shapes import Frame8, Pixels
from jaxdeblur.video.animation import MAX_WIDTH, AnimationWriter
from jaxdeblur.video.comparison import Comparison
from jaxdeblur.video.image_file import write_png
from jaxdeblur.video.picture import Picture, rgb8_info
from jaxdeblur.video.pixels import PixelLayout
from jaxdeblur.weights.load import About

EXPLAINED_PIXELS = 2**23
"""Pixels of the frames that are explained together: 9 frames of 1280x720, whose features fit into a
few gigabytes. At least 3 frames are explained, and at most ``EXPLAINED_FRAMES``."""

EXPLAINED_FRAMES = 16
"""Explaining more frames than this only makes the page larger."""

SHOWN_PIXELS = 50 * 1280 * 720
"""Pixels of the frames in the report, all videos together: about 30 MB. Each shows at least two."""

PREVIEW_FRAMES, PREVIEW_RATE = 24, Fraction(8)
"""Frames and rate of ``--preview``: three seconds, slow enough to compare by eye."""


def evaluate(
    model: VideoRestorer,
    about: About,
    dataset: Dataset,
    config: EvaluationConfig,
    out: Path,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on a data set and writes the results to the folder ``out``.

    Every process of ``jax.distributed`` calls this and restores its share; all need one file
    system. Process 0 writes ``metrics.json`` and ``report.html``. The folder contains
    ``evaluation.json`` (what is evaluated), ``videos/`` (a file for each video, from which a second
    start resumes) and optionally ``frames/``.

    Args:
      model: the model.
      about: which network it is, for the results.
      dataset: blurred and sharp videos.
      config: the options.
      out: the folder for the results; an unfinished evaluation there is resumed.
      overwrite: whether to replace another evaluation there.

    Returns:
      The content of ``metrics.json``.

    Raises:
      UserError: ``out`` holds something else, the model has nothing to explain, or a video can't be
        read or has no frame that the protocol scores.
    """
    if config.explain and not _explains(model):
        raise UserError(
            f"--explain: {about.preset} has no paths, blending or attention to show, and no "
            "explain_clip"
        )
    lengths = [min(len(video), config.max_frames or len(video)) for video in dataset.videos]
    rules = protocol(config.protocol)
    pairs = zip(dataset.videos, lengths, strict=True)
    if short := [video.name for video, length in pairs if not rules.scored(length)]:
        raise UserError(f"{', '.join(short)}: too short; protocol {rules.name} scores no frame")
    for video in dataset.videos:
        rules.check_size(video.height, video.width, video.name)

    settings = settings_of(model, about, dataset, config)
    check_folder(out, settings, overwrite)
    devices.wait_for_all("the folder is checked")
    if jax.process_index() == 0:
        prepare_folder(out, settings, overwrite)
    devices.wait_for_all("the folder is prepared")

    files = [
        out / "videos" / f"{i:03d}-{safe_name(v.name)}.json" for i, v in enumerate(dataset.videos)
    ]
    mine = range(jax.process_index(), len(files), jax.process_count())
    work = [i for i in mine if read_video(files[i], settings) is None]
    line = ProgressLine("", sum(lengths[i] for i in work))
    if len(work) < len(mine):
        line.say(f"{len(mine) - len(work)} videos were already done and are kept")
    count = itertools.count(1)
    for number, i in enumerate(work, 1):
        video = dataset.videos[i]
        line.what = f"video {number}/{len(work)} {video.name}"
        result = _evaluate_video(
            model,
            video,
            lengths[i],
            config,
            shots=max(2, SHOWN_PIXELS // (len(files) * video.height * video.width)),
            folder=out / "frames" / files[i].stem if config.frames else None,
            preview=out / "preview.webp" if config.preview and i == 0 else None,
            frame_done=lambda: line.update(next(count)),
        )
        write_json(files[i], {"settings": settings, **dataclasses.asdict(result)})
        means = result.scores.means()
        gain = means["psnr"] - means["psnr_blurred"]
        line.say(f"{line.what}: {means['psnr']:.2f} dB ({gain:+.2f})")
    line.close()
    videos = gather(files, settings)
    metrics = metrics_of(about, dataset, config, [video.scores for video in videos])
    if jax.process_index() == 0:
        report.write(out / "report.html", metrics, videos)
        write_json(out / "metrics.json", metrics)
    return metrics


def _evaluate_video(
    model: VideoRestorer,
    video: Video,
    frames: int,
    config: EvaluationConfig,
    *,
    shots: int,
    folder: Path | None,
    preview: Path | None,
    frame_done: Callable[[], None],
) -> report.VideoReport:
    """Restores and scores one video frame by frame, and makes its pictures."""
    rules = protocol(config.protocol)
    explanation, shown = None, frames
    if config.explain:
        wanted = EXPLAINED_PIXELS // (video.height * video.width)
        shown = min(frames, EXPLAINED_FRAMES, max(3, wanted))
        # Includes the frames that the last ones look ahead to, as in the stream.
        seen = min(frames, shown + model.lookahead)
        explanation = _explain(model, [video.blurred(i) for i in range(seen)])
    if folder:  # left complete by a start that ended before the scores
        shutil.rmtree(folder, ignore_errors=True)
    pictured = range(0, shown, -(-shown // shots))
    pictures = []
    restored_flicker, blurred_flicker = Flicker(), Flicker()
    counted = rules.scored(frames)
    scores: list[tuple[float, ...]] = []
    restoration = _TimedRestoration(
        model, video, frames, wide=rules.quantise != "round", single=config.single
    )

    with (
        ThreadPoolExecutor(2) as pool,
        replace_folder_when_whole(folder) if folder else contextlib.nullcontext() as part,
        _previewing(preview, video) as show,
    ):
        for i, (blurred, restored) in enumerate(restoration):
            sharp, written = video.sharp(i), _rounded(restored)
            if i in counted:
                # Scored in parallel, but before the next frame: restoring is timed on an idle host.
                pair = [rules.quantised(restored), blurred]
                found = pool.map(lambda image, truth=sharp: rules.score(image, truth), pair)
                scores.append(tuple(value for score in found for value in score))
            restored_flicker.add(written, sharp)
            blurred_flicker.add(blurred, sharp)
            if i in pictured:
                pictures.append(report.shot(i, blurred, written, sharp, explanation))
            show(blurred, written)
            if part is not None:
                write_png(part / f"{i:06d}.png", written)
            frame_done()

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
        found={} if restoration.stream is None else restoration.stream.found,
        seconds_per_frame=restoration.seconds_per_frame(),
    )
    return report.VideoReport(video_scores, pictures)


class _TimedRestoration:
    """Yields (blurred, restored) frame by frame and times the network.

    Attributes:
      wide: whether frames are restored at 16 bits, for protocols that do not score rounded ones.
      single: whether each frame is restored on its own.
    """

    def __init__(
        self, model: VideoRestorer, video: Video, frames: int, *, wide: bool, single: bool = False
    ) -> None:
        self.model, self.video, self.frames = model, video, frames
        self.wide, self.single = wide, single
        self.reading = 0.0
        self.durations: list[float] = []
        self.waiting: collections.deque[Frame8] = collections.deque()
        self.stream: Stream | None = None

    def __iter__(self) -> Iterator[tuple[Frame8, Pixels]]:
        def open_stream(height: int, width: int, layout: PixelLayout) -> Stream:
            self.stream = Stream(self.model, height, width, layout)
            return self.stream

        restore = functools.partial(restore_frames, open_stream)
        parts = ([frame] for frame in self._read()) if self.single else (self._read(),)
        restored = itertools.chain.from_iterable(map(restore, parts))
        while True:
            self.reading, began = 0.0, time.perf_counter()
            frame = next(restored, None)
            if frame is None:
                return
            self.durations.append(time.perf_counter() - began - self.reading)
            yield self.waiting.popleft(), frame

    def seconds_per_frame(self) -> float | None:
        """Returns the median, without the first frame, which compiles; None for one frame."""
        return float(np.median(self.durations[1:])) if len(self.durations) > 1 else None

    def _read(self) -> Iterator[Pixels]:
        for i in range(self.frames):
            began = time.perf_counter()
            frame = self.video.blurred(i)
            self.waiting.append(frame)
            self.reading += time.perf_counter() - began
            # 257 * 255 = 65535: the same value in [0, 1].
            yield frame.astype(np.uint16) * np.uint16(257) if self.wide else frame


def _explains(model: VideoRestorer) -> bool:
    """Returns whether the model has anything to show, without computing it."""
    explain = explainer(model)
    clip = jax.ShapeDtypeStruct((1, 3, 64, 64, 3), np.float32)  # a single frame has no path
    return explain is not None and bool(jax.tree.leaves(jax.eval_shape(explain, clip)))


def _explain(model: VideoRestorer, frames: Sequence[Frame8]) -> Explanation:
    rebuild, parameters = split(model)

    @jax.jit
    def explain(parameters: Any, clip: jax.Array) -> Explanation:
        found = rebuild(parameters).explain_clip(clip)  # type: ignore[attr-defined]
        return _without_padding(found, model, *clip.shape[2:4])

    return jax.device_get(explain(parameters, to_floats(jax.device_put(np.stack(frames)))[None]))


def _without_padding(
    found: Explanation, model: VideoRestorer, height: int, width: int
) -> Explanation:
    """Cuts the maps to the frames; a model explains frames padded to its ``multiple``.

    The gate and the paths are located in pixels, so the padding does not move them.
    """
    shares = [size / model.round_up(size) for size in (height, width)]

    def cut(maps: jax.Array, axis: int) -> jax.Array:
        sides = zip(maps.shape[axis : axis + 2], shares, strict=True)
        inside = [slice(max(1, round(side * share))) for side, share in sides]
        return maps[(*[slice(None)] * axis, *inside)]

    weights = found.blending_weights
    return dataclasses.replace(
        found,
        blending_weights=None if weights is None else cut(weights, 2),
        attention=tuple(
            dataclasses.replace(
                block, spatial_maps=cut(block.spatial_maps, 3), pixel_mix=cut(block.pixel_mix, 2)
            )
            for block in found.attention
        ),
    )


def _rounded(restored: Pixels) -> Frame8:
    """Returns the frame as it is written, in 8 bits."""
    if restored.dtype == np.uint8:
        return restored
    return ((restored.astype(np.uint32) + 128) // 257).astype(np.uint8)


@contextlib.contextmanager
def _previewing(path: Path | None, video: Video) -> Iterator[Callable[[Frame8, Frame8], None]]:
    """Yields a function that takes blurred and restored frames; the first ones are animated."""
    if path is None:
        yield lambda blurred, restored: None
        return
    comparison = Comparison(rgb8_info(video.height, video.width, PREVIEW_RATE), MAX_WIDTH)
    with (
        replace_when_whole(path) as part,
        AnimationWriter(part, comparison.info, max_frames=PREVIEW_FRAMES) as animation,
    ):
        times = itertools.count()
        yield lambda blurred, restored: animation.write(
            comparison(Picture((blurred,), pts=next(times)), (restored,))
        )
