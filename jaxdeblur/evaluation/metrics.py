"""PSNR, SSIM, flicker, and the named protocols by which published tables were scored.

Everything here is NumPy on the host in double precision, independent of the code that it measures.
``docs/lab/protocols.md`` gives the source of each protocol.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from jaxdeblur.errors import UserError
from jaxdeblur.images import REC_601
from jaxdeblur.shapes import Frame8, GreyImage, Image, Pixels

PEAK = 255.0
"""The largest pixel value; floats are scored on the same scale."""

MAX_PSNR = 100.0
"""The PSNR of an identical frame in a mean, so that means are finite and fit into JSON."""

SsimKind = Literal["2-D", "3-D reflect", "3-D edge"]

Mean = Literal["videos", "frames"]

AnyImage: TypeAlias = Image | GreyImage


def psnr(image: AnyImage, reference: AnyImage) -> float:
    """Returns the peak signal-to-noise ratio in dB over all pixels and channels.

    Both are ``H W 3`` (or one plane, ``H W``), on the scale 0 to 255. Infinite if identical.
    """
    error = np.asarray(image, np.float64) - np.asarray(reference, np.float64)
    mean_square = float(np.mean(np.square(error)))
    return math.inf if mean_square == 0 else 10 * math.log10(PEAK**2 / mean_square)


def ssim(image: AnyImage, reference: AnyImage, kind: SsimKind = "2-D") -> float:
    """Returns the mean structural similarity (Wang et al. 2004), on the scale 0 to 255.

    Args:
      image: ``H W 3`` or ``H W``; at least 11 x 11 pixels for the 2-D kind.
      reference: the same shape.
      kind: "2-D", the usual one: an 11 x 11 Gaussian window with sigma 1.5 in each channel
        separately, only where the window lies inside the image. The two 3-D kinds also slide the
        window over the channels, and give about .03 more: "3-D reflect" as in Shift-Net's code (13
        taps, mirrored borders) and "3-D edge" as in NAFNet's (11 taps, replicated borders).

    Raises:
      ValueError: the image is smaller than the window.
    """
    if kind == "2-D" and min(image.shape[:2]) < 11:
        raise ValueError(f"the SSIM window is 11 x 11 pixels; the image has {image.shape[:2]}")
    smooth = _SMOOTH[kind]
    a, b = np.asarray(image, np.float64), np.asarray(reference, np.float64)
    mean_a, mean_b = smooth(a), smooth(b)
    variances = smooth(a * a + b * b) - (mean_a**2 + mean_b**2)  # smoothing is linear: one for both
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return float(np.mean(luminance * structure))


class Flicker:
    """The RMS difference between two videos' frame-to-frame changes, in grey levels.

    This equals the RMS change of the error from frame to frame: a static error costs nothing, and
    independent noise of standard deviation s in each frame costs sqrt(2) s. A video of one frame
    has no changes and gets 0.
    """

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None
        self._squares: list[float] = []

    def add(self, frame: Frame8, reference: Frame8) -> None:
        """Adds the next frame of the video and of its reference."""
        error = frame.astype(np.int16) - reference
        if self._previous is not None:
            self._squares.append(
                float(np.mean(np.square(error - self._previous, dtype=np.float64)))
            )
        self._previous = error

    def rms(self) -> float:
        """Returns the flicker of the frames so far."""
        return math.sqrt(math.fsum(self._squares) / len(self._squares)) if self._squares else 0.0


@dataclass(frozen=True)
class Protocol:
    """How a published table was scored, step by step; ``docs/lab/protocols.md`` has the sources.

    Attributes:
      name: the name for ``--protocol``.
      summary: one sentence for the report.
      quantise: "round" scores the uint8 that is written, "truncate" drops the fraction instead,
        "none" scores the clipped floats.
      crop: pixels cut from each border before scoring.
      skip_first: frames at the start of each video that are restored but not scored.
      skip_last: the same at its end.
      mean: "videos" averages each video and then the videos; "frames" averages all frames alike.
      ssim: the kind of SSIM.
      registered: scores the luminance after matching intensity and whole-pixel shift.
    """

    name: str
    summary: str
    quantise: Literal["round", "truncate", "none"] = "round"
    crop: int = 0
    skip_first: int = 0
    skip_last: int = 0
    mean: Mean = "videos"
    ssim: SsimKind = "2-D"
    registered: bool = False

    def quantised(self, restored: Pixels) -> Image:
        """Returns a restored frame as it is scored, on the scale 0 to 255.

        Frames of 8 bits are already rounded. At 16 bits, 257 steps are one grey level, so a score
        differs from that of the network's floats by less than 0.001 dB.
        """
        if restored.dtype == np.uint8:
            return restored
        return (restored // 257).astype(np.uint8) if self.quantise == "truncate" else restored / 257

    def scored(self, frames: int) -> range:
        """Returns the indices of the scored frames in a video of ``frames`` frames."""
        return range(self.skip_first, max(self.skip_first, frames - self.skip_last))

    def check_size(self, height: int, width: int, name: str) -> None:
        """Checks that frames of ``height`` and ``width`` pixels can be scored.

        Raises:
          UserError: they are too small; the message contains ``name``, that of their video.
        """
        if min(height, width) - 2 * self.crop < 11:
            raise UserError(
                f"{name}: {width}x{height} pixels are too small for protocol {self.name}: SSIM "
                f"needs {11 + 2 * self.crop} on each side"
            )

    def score(self, image: Image, reference: Image) -> tuple[float, float]:
        """Returns PSNR, at most ``MAX_PSNR``, and SSIM of one frame, 0 to 255."""
        height, width = image.shape[:2]
        inner = (slice(self.crop, height - self.crop), slice(self.crop, width - self.crop))
        a: AnyImage = image[inner]
        b: AnyImage = reference[inner]
        if self.registered:
            a, b = _registered_luminance(a, b)
        return min(psnr(a, b), MAX_PSNR), ssim(a, b, self.ssim)


PROTOCOLS: dict[str, Protocol] = {
    name: Protocol(name, **fields)
    for name, fields in tomllib.loads(
        Path(__file__).with_name("protocols.toml").read_text(encoding="utf-8")
    ).items()
}
"""Every protocol of ``docs/results.md`` by name; "jaxdeblur" is the default."""


@dataclass(frozen=True)
class VideoScores:
    """The scores of one video: PSNR in dB, flicker in grey levels.

    Attributes:
      frames: number of restored frames.
      scored_from: index of the first scored frame.
      frame_psnr, frame_ssim: of each scored frame after restoration.
      frame_psnr_blurred, frame_ssim_blurred: of the same frames before restoration.
      temporal_error, temporal_error_blurred: flicker of the restored and of the blurred video.
      seconds_per_frame: restoring only, without reading, scoring and compiling; None for one frame.
      found: duty, light and stabilised, as blur paths found them; {} for other models.
    """

    name: str
    height: int
    width: int
    frames: int
    scored_from: int
    frame_psnr: tuple[float, ...]
    frame_ssim: tuple[float, ...]
    frame_psnr_blurred: tuple[float, ...]
    frame_ssim_blurred: tuple[float, ...]
    temporal_error: float
    temporal_error_blurred: float
    seconds_per_frame: float | None
    found: dict[str, Any] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Returns the means over the scored frames: psnr, ssim, psnr_blurred, ssim_blurred."""
        return totals([self], "frames")


def totals(videos: Sequence[VideoScores], mean: Mean) -> dict[str, float]:
    """Returns the means over a data set, under the same names as ``VideoScores.means``.

    They are over the videos' means, or over all frames alike.
    """
    found = {}
    for name in ("psnr", "ssim", "psnr_blurred", "ssim_blurred"):
        of_videos = [getattr(video, f"frame_{name}") for video in videos]
        if mean == "frames":
            of_videos = [list(itertools.chain.from_iterable(of_videos))]
        found[name] = statistics.fmean(map(statistics.fmean, of_videos))
    return found


def seconds_per_frame(videos: Sequence[VideoScores]) -> float | None:
    """Returns the mean over all frames of all videos; None if unknown for any video."""
    known = [v.seconds_per_frame for v in videos if v.seconds_per_frame is not None]
    if len(known) < len(videos):
        return None
    return statistics.fmean(known, weights=[video.frames for video in videos])


def protocol(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
      UserError: there is none; the message lists all.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--protocol={name}: must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


# A Gaussian with sigma 1.5; by default scipy.ndimage cuts it at 4 sigma, which is 6 pixels.
_SMOOTH: dict[SsimKind, Callable[[np.ndarray], np.ndarray]] = {
    "2-D": lambda x: ndimage.gaussian_filter(x, 1.5, radius=5, axes=(0, 1))[5:-5, 5:-5],
    "3-D reflect": lambda x: ndimage.gaussian_filter(x, 1.5, mode="reflect"),
    "3-D edge": lambda x: ndimage.gaussian_filter(x, 1.5, radius=5, mode="nearest"),
}


def _registered_luminance(
    image: Image, reference: Image
) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """Returns both luminances, the image matched to the reference (Köhler et al. 2012; PVDNet).

    1. The image is multiplied by the factor that brings it closest to the reference.
    2. It is moved by the whole pixels at which the cross-correlation of the two grey images peaks.
    3. Pixels uncovered by the move are black in both, and count as correct.
    """
    x, z = reference.astype(np.float64), image.astype(np.float64)
    energy = np.sum(z * z)
    scaled = z if energy == 0 else np.sum(x * z) / energy * z
    rows, columns = whole_pixel_shift(scaled.mean(axis=-1), x.mean(axis=-1))
    luminance = np.array(REC_601)
    moved = ndimage.shift(scaled @ luminance, (rows, columns), order=0)
    inside = ndimage.shift(np.ones(moved.shape), (rows, columns), order=0)
    return moved, inside * (x @ luminance)


def whole_pixel_shift(
    image: Float[np.ndarray, "H W"], reference: Float[np.ndarray, "H W"]
) -> tuple[int, int]:
    """Returns the rows and columns by which to move ``image`` onto ``reference``.

    This is the peak of the circular cross-correlation; of equal peaks the first in column order, as
    in the original in MATLAB (Guizar-Sicairos et al. 2008, without upsampling).
    """
    spectrum = np.fft.fft2(reference) * np.conj(np.fft.fft2(image))
    correlation = np.abs(np.fft.ifft2(spectrum))
    height, width = correlation.shape
    column, row = divmod(int(np.argmax(correlation.T)), height)
    return row - height * (row >= height // 2), column - width * (column >= width // 2)
