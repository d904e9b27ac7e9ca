"""Validation during a run, on videos that are never trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxdeblur.data.training_data import TrainingData
from jaxdeblur.evaluation.metrics import MAX_PSNR, psnr
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.restoration.stream import restore_clip
from jaxdeblur.shapes import Parameters, PixelClip

_FRAMES = 8  # Of each video.


class Validation:
    """Computes PSNR on videos never trained on, from the uint8 frames that a user would get."""

    def __init__(self, data: TrainingData, rebuild: Callable[[Parameters], VideoRestorer]) -> None:
        self.rebuild = rebuild
        self.name = data.scored("validation").spec
        """The source of the videos."""
        self.single = data.config.single == 1
        """Whether each frame is restored by itself, as in training."""
        self.image: UInt8[np.ndarray, "H W 3"] = np.zeros((1, 1, 3), np.uint8)
        """The first video's middle frame: blurred, restored and sharp, side by side."""
        self.clips = []
        # Only process 0 scores, so the others need not read or render the videos.
        for video in data.validate if jax.process_index() == 0 else ():
            frames = range(min(len(video), _FRAMES))
            self.clips.append(
                (
                    np.stack([video.blurred(i) for i in frames]),
                    np.stack([video.sharp(i) for i in frames]),
                )
            )

    def __call__(self, parameters: Parameters) -> dict[str, float]:
        """Returns means over videos and the least gain, in dB; empty except on process 0."""
        # Process 0 uses its own copy of the parameters; the others wait at their next step.
        if jax.process_index() != 0:
            return {}
        local = {name: jnp.asarray(array.addressable_data(0)) for name, array in parameters.items()}
        model = self.rebuild(local)
        before, after = [], []
        for number, (blurred, sharp) in enumerate(self.clips):
            if self.single:
                restored = np.concatenate([restore_clip(model, frame[None]) for frame in blurred])
            else:
                restored = restore_clip(model, blurred)
            before.append(_mean_psnr(blurred, sharp))
            after.append(_mean_psnr(restored, sharp))
            if number == 0:
                middle = len(sharp) // 2
                self.image = np.concatenate(
                    [clip[middle] for clip in (blurred, restored, sharp)], axis=1
                )
        gains = np.subtract(after, before)
        return {
            "psnr": float(np.mean(after)),
            "psnr_blurred": float(np.mean(before)),
            "gain": float(gains.mean()),
            "least_gain": float(gains.min()),
        }


def _mean_psnr(frames: PixelClip, sharp: PixelClip) -> float:
    """Returns the mean PSNR as in all scores, where an identical frame counts ``MAX_PSNR``."""
    pairs = zip(frames, sharp, strict=True)
    return float(np.mean([min(psnr(a, b), MAX_PSNR) for a, b in pairs]))
