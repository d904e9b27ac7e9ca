"""Measures frames per second of each preset, and of its torch twin if it has one."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import train_step
from benchmarks.common import has_torch
from benchmarks.gpu_day.kernels import network_share
from benchmarks.gpu_day.report import Report
from jaxdeblur import models, presets
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.parameters import split
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.stream import restore_pixels
from jaxdeblur.weights.load import load_model

PATHS = "strcnn_dtb_paths"
PATHS_ALONE = "paths"
PRESETS = ("strcnn_dtb", "fsta_concat", PATHS, PATHS_ALONE, "strcnn_dtb_choice", "strcnn")
"""``paths`` are blur paths without a network; they compute in float32."""
SIZES = ((1280, 720), (3840, 2160))
GOALS = {(1280, 720): 500, (3840, 2160): 60}
"""Frames per second of strcnn_dtb on an H200 (docs/lab/performance.md)."""


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Times streams and clips of each preset at each size, and a training step beside torch's."""
    rehearse = arguments.rehearse
    names, sizes = (("strcnn_dtb_small",), ((48, 32),)) if rehearse else (PRESETS, SIZES)
    clips = (1, 2, 32, 32, 3) if rehearse else (4, 5, 128, 128, 3)
    todo: list[tuple[str, Callable[[], Any]]] = [
        (f"{name} {w}x{h}", functools.partial(frames_of, name, w, h, 4 if rehearse else 100))
        for name, (w, h) in itertools.product(names, sizes)
    ]
    # Second, so that the most important results come first.
    todo.insert(1, (f"{names[0]} training step", lambda: training_step(names[0], clips)))
    for row in report.each(todo):
        print("  ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)


def training_step(name: str, clips: tuple[int, ...]) -> dict[str, Any]:
    """Returns the milliseconds of a step, ours and torch's."""
    network: Any = dataclasses.replace(presets.find(name).network, dtype="bfloat16")
    if not has_torch():
        return {"torch": "is not installed here"}
    return {"clips": clips, "ms": train_step.against_torch(name, network, clips, 5)}


def frames_of(name: str, width: int, height: int, count: int) -> dict[str, Any]:
    """Measures how fast a preset restores frames of a size, one by one and as a clip.

    Memory is the peak of the process so far, over all presets.
    """
    if name in (PATHS, PATHS_ALONE):
        network: Any = None
        # Without a network, they always compute in float32.
        model = load_model(name, dtype="bfloat16" if name == PATHS else None).model
    else:
        network = dataclasses.replace(presets.find(name).network, dtype="bfloat16")
        model = models.build(network)
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
    stream = Deblurrer(model).open_stream(height, width)

    def push(frame: np.ndarray) -> Any:
        return stream.push((frame,))

    found = _rates(push, jax.block_until_ready, frames, count, model.lookahead)
    restore_pixels(model, frames)
    began = time.perf_counter()
    restore_pixels(model, frames)
    found["clip_frames_a_second"] = len(frames) / (time.perf_counter() - began)
    statistics = jax.local_devices()[0].memory_stats() or {}
    found["peak_GiB_so_far"] = statistics.get("peak_bytes_in_use", 0) / 2**30
    if name == "strcnn_dtb" and (width, height) in GOALS:
        found["goal"] = GOALS[width, height]
    if isinstance(network, FstaConfig):
        found |= network_share(name, width, height)
    if network and train_step.has_twin(network) and has_torch():
        found["torch"] = torch_frames_of(network, model, frames, count)
    return found


def _rates(
    push: Callable[[np.ndarray], Any],
    wait: Callable[[Any], Any],
    frames: np.ndarray,
    count: int,
    untimed: int,
) -> dict[str, float]:
    """Returns frames per second without waiting for each, and milliseconds if each is awaited."""
    for i in range(untimed + 3):
        wait(push(frames[i % len(frames)]))
    seconds = []
    for i in range(count):
        began = time.perf_counter()
        wait(push(frames[i % len(frames)]))
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    for i in range(count):
        last = push(frames[i % len(frames)])
    wait(last)
    return {
        "frames_a_second": count / (time.perf_counter() - began),
        "median_ms": 1e3 * float(np.median(seconds)),
        "percentile_99_ms": 1e3 * float(np.percentile(seconds, 99)),
    }


def torch_frames_of(network: Any, model: Any, frames: np.ndarray, count: int) -> dict[str, float]:
    """Measures the same for the torch twin, with bfloat16 weights and channels-last layout."""
    import torch

    on_gpu = jax.default_backend() == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    twin = train_step.TorchTwin(network, split(model)[1]).to(device, torch.bfloat16)
    window: deque[Any] = deque(maxlen=2 * network.m + 1)
    carried: list[Any] = [None, None]

    def done(_: Any) -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def to_floats(pixels: np.ndarray) -> Any:
        return torch.from_numpy(pixels).to(device).to(torch.bfloat16) / 255

    def to_bytes(restored: Any) -> Any:
        return (restored.float().clamp(0, 1) * 255).round().to(torch.uint8)

    def push(frame: np.ndarray) -> Any:
        window.append(to_floats(frame))
        if len(window) < window.maxlen:
            return None
        x = twin.enter(torch.stack([*window])[None, None])[:, 0]
        y, *carried[:] = twin.recur(x, *carried)
        image = twin.leave(y[:, None])
        return to_bytes(window[network.m] + image[0, 0] if network.residual else image[0, 0])

    def clip() -> Any:
        restored = to_bytes(twin(to_floats(frames)[None])).cpu()
        done(None)
        return restored

    with torch.inference_mode():
        found = _rates(push, done, frames, count, 2 * network.m)
        clip()
        began = time.perf_counter()
        clip()
        found["clip_frames_a_second"] = len(frames) / (time.perf_counter() - began)
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(of)}" for name, of in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
