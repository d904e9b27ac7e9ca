"""What cameras and phones do to frames on their way into a file: noise, processing, compression.

A camera reads its sensor (gain, clipping, noise), processes the frame (denoising, a tone curve,
sharpening), stabilises the video and compresses it (4:2:0, then H.264 or HEVC).
``draw_degradation`` draws all of this for a clip and ``degrade`` applies it. The steps are
functions of their own, which ``benchmarks.real_video`` uses as well. Frames are floats in [0, 1],
as stored, until the codec.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from jaxdeblur.images import GAMMA, LUMA
from jaxdeblur.shapes import Frame8, Video8

Stored: TypeAlias = Float[np.ndarray, "T H W 3"]
"""The frames of a video in [0, 1], as files store them: not linear light."""
Codec: TypeAlias = Literal["h264", "hevc"]

_ENCODERS = {"h264": "libx264", "hevc": "libx265"}
# So that the same frames always give the same bytes: one thread (readers run several at once), and
# not x264's code for AVX-512, which does not (x264 165, as PyAV 18 brings it).
_SETTINGS = {
    "h264": {"threads": "1", "x264-params": "asm=SSE4.2"},
    "hevc": {"x265-params": "log-level=none:pools=1:frame-threads=1"},
}
_FLOOR = 0.3  # The share of the noise's variance at mid grey that does not grow with the light.
_MID_GREY = 128 / 255
_REACH, _NEAR = 2, 1.2  # Half of the bilateral filter's window and its spatial deviation, pixels.
_LEAST_CODED = 96  # Pixels: of smaller frames, x265's bytes differ from run to run.


Span: TypeAlias = tuple[float, float]
"""A range (least, most)."""


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
    """How often each step happens to a degraded clip and how strong it is then.

    Strengths are drawn uniformly from their ranges. The defaults reach from nearly clean files to
    what messengers make of dark videos.
    """

    stabilised: float = 0.3
    """Share of clips from whose frames a stabiliser takes the motion, though not their blur."""
    taken: Span = (0.5, 1.0)
    """The share of the motion that it takes."""
    clipped: float = 0.15
    """Share of clips with more light than the sensor holds."""
    brightness: Span = (1.2, 4.0)
    """By how much their light is multiplied."""
    uneven: float = 0.25
    """Share of clips whose brightness changes: mains flicker, automatic exposure, fades."""
    flicker: Span = (0.0, 0.12)
    """Amplitude of the flicker, as a share of the brightness, at a random frequency."""
    drift: Span = (-0.1, 0.1)
    """Logarithm of the brightness of a frame over that of the last."""
    noisy: float = 0.5
    noise: Span = (0.0, 10.0)
    """Standard deviation at mid grey, grey levels of 255."""
    denoised: float = 0.5
    """Share of noisy clips that are denoised."""
    smoothing: Span = (1.5, 3.0)
    """Strength of denoising, relative to the noise."""
    toned: float = 0.3
    """Share of clips with a tone curve."""
    tone: Span = (-0.3, 0.7)
    sharpened: float = 0.3
    """Share of clips with an unsharp mask."""
    amount: Span = (0.2, 1.0)
    radius: Span = (0.8, 1.6)
    coded: float = 0.7
    """Share of clips that are compressed."""
    hevc: float = 0.3
    """Share of those in HEVC; others are in H.264."""
    crf: Span = (0.0, 32.0)


class Degradation(NamedTuple):
    """What happens to the frames of one clip, in this order; None where nothing does."""

    stabilised: float | None
    """The share of the motion that is taken."""
    brightness: float | None
    gains: Float[np.ndarray, " T"] | None
    noise: float | None
    smoothing: float | None
    tone: float | None
    mask: tuple[float, float] | None
    """Amount and radius of the unsharp mask."""
    codec: tuple[int, Codec] | None
    """Its rate factor and name."""


def draw_degradation(
    rng: np.random.Generator, frames: int, config: DegradationConfig = DegradationConfig()
) -> Degradation:
    """Draws what happens to a clip of ``frames`` frames."""

    def happens(share: float) -> bool:
        return bool(rng.random() < share)

    def within(span: Span) -> float:
        return float(rng.uniform(*span))

    stabilised = within(config.taken) if happens(config.stabilised) else None
    brightness = within(config.brightness) if happens(config.clipped) else None
    gains = None
    if happens(config.uneven):
        times = np.arange(frames) - frames // 2
        wave = np.sin(2 * np.pi * (rng.uniform(0.05, 0.5) * times + rng.random()))
        gains = (1 + within(config.flicker) * wave) * np.exp(within(config.drift) * times)
    noise = within(config.noise) if happens(config.noisy) else None
    smoothing = None
    if noise is not None and happens(config.denoised):
        smoothing = noise * within(config.smoothing)
    tone = within(config.tone) if happens(config.toned) else None
    mask = (within(config.amount), within(config.radius)) if happens(config.sharpened) else None
    codec: tuple[int, Codec] | None = None
    if happens(config.coded):
        codec = round(within(config.crf)), "hevc" if happens(config.hevc) else "h264"
    return Degradation(stabilised, brightness, gains, noise, smoothing, tone, mask, codec)


def degrade(
    blurred: Video8, sharp: Video8, drawn: Degradation, rng: np.random.Generator
) -> tuple[Video8, Video8]:
    """Returns the degraded frames and their truth.

    The truth keeps what a deblurrer should not undo: brightness, tone and sharpening. It has no
    noise, denoising or compression. Frames at an end that repeat the next one stand for neighbours
    that a video does not have, so they still repeat it afterwards.

    Args:
      blurred: the frames as an ideal camera stores them.
      sharp: the sharp frames at the same times.
      drawn: what happens, for as many frames.
      rng: generator of the noise.
    """
    first, last = _repeated(blurred), len(blurred) - 1 - _repeated(blurred[::-1])
    order = np.clip(np.arange(len(blurred)), min(first, last), max(first, last))
    if drawn.stabilised is not None:  # First: it moves whole pixels, so the order does not matter.
        blurred, sharp = stabilise(blurred, sharp, drawn.stabilised)
    seen, truth = to_stored(blurred), to_stored(sharp)
    if drawn.brightness is not None:
        seen, truth = (brighten(video, drawn.brightness) for video in (seen, truth))
    if drawn.gains is not None:
        seen, truth = (apply_gains(video, drawn.gains) for video in (seen, truth))
    if drawn.noise is not None:
        seen = add_noise(seen, drawn.noise, rng)
    if drawn.smoothing:
        seen = denoise(seen, drawn.smoothing)
    if drawn.tone is not None:
        seen, truth = tone_curve(seen, drawn.tone), tone_curve(truth, drawn.tone)
    if drawn.mask is not None:
        seen, truth = sharpen(seen, *drawn.mask), sharpen(truth, *drawn.mask)
    stored = to_bytes(seen[order[0] : order[-1] + 1])
    if drawn.codec is not None:
        stored = compress(stored, *drawn.codec)
    return stored[order - order[0]], to_bytes(truth)[order]


def _repeated(frames: Video8) -> int:
    """Returns how many frames at the beginning repeat the one that follows."""
    alike = (np.array_equal(one, two) for one, two in itertools.pairwise(frames))
    return sum(1 for _ in itertools.takewhile(bool, alike))


def stabilise(blurred: Video8, sharp: Video8, share: float) -> tuple[Video8, Video8]:
    """Takes a share of the motion from frames: moves each by whole pixels against it.

    The motion is that of the whole picture, by phase correlation of neighbouring sharp frames.
    Beyond its border, a frame continues mirrored. Blur stays as long as it was.
    """
    light = to_stored(sharp) @ LUMA
    window = np.prod(np.meshgrid(*map(np.hanning, light.shape[1:]), indexing="ij"), axis=0)
    spectra = np.fft.rfft2((light - light.mean((1, 2), keepdims=True)) * window)
    cross = spectra[:-1].conj() * spectra[1:]
    surfaces = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=light.shape[1:])
    sides = np.array(light.shape[1:])
    peaks = [np.unravel_index(surface.argmax(), surface.shape) for surface in surfaces]
    moves = [(np.array(peak) + sides // 2) % sides - sides // 2 for peak in peaks]
    places = np.cumsum([np.zeros(2), *moves], axis=0)
    places -= places[len(places) // 2]

    def moved(frame: Frame8, place: np.ndarray) -> Frame8:
        rows, columns = (
            np.abs((np.arange(side) + round(at) + side - 1) % (2 * side - 2) - (side - 1))
            for side, at in zip(sides, share * place, strict=True)
        )
        return frame[rows[:, None], columns]

    stable = [np.stack(list(map(moved, video, places))) for video in (blurred, sharp)]
    return stable[0], stable[1]


def to_stored(frames: Video8) -> Stored:
    """Converts bytes to floats in [0, 1]."""
    return frames.astype(np.float32) / 255


def to_bytes(frames: Stored) -> Video8:
    """Clips to [0, 1] and rounds to bytes."""
    return np.rint(255 * np.clip(frames, 0, 1)).astype(np.uint8)


def light(frames: Stored) -> Stored:
    """Returns linear light by the gamma of GOPRO's ``blur_gamma``."""
    return np.maximum(frames, 0) ** np.float32(GAMMA)


def from_light(frames: Stored) -> Stored:
    """Stores linear light; what exceeds 1 is clipped."""
    return np.clip(frames, 0, 1) ** np.float32(1 / GAMMA)


def add_noise(frames: Stored, sigma: float, rng: np.random.Generator) -> Stored:
    """Adds Poisson-Gaussian noise and clips.

    ``sigma`` is its standard deviation at mid grey, in grey levels of 255. A part of the variance
    is read noise; the rest grows with the light, as the number of photons does.
    """
    spread = sigma / 255 * np.sqrt(_FLOOR + (1 - _FLOOR) * np.clip(frames, 0, 1) / _MID_GREY)
    noise = rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames + spread * noise, 0, 1).astype(np.float32)


def denoise(frames: Stored, strength: float) -> Stored:
    """Smooths each frame lightly, as phones do: a bilateral filter of 5 x 5 pixels.

    ``strength`` is its deviation between brightnesses, in grey levels of 255. The brightness alone
    guides it, since distances of colours (scikit-image's filter) take noise for edges.
    """
    luma = frames @ LUMA
    reach = range(-_REACH, _REACH + 1)
    around = [(0, 0), (_REACH, _REACH), (_REACH, _REACH)]
    wide, wide_luma = np.pad(frames, [*around, (0, 0)], "edge"), np.pad(luma, around, "edge")
    total, weights = np.zeros_like(frames), np.zeros_like(luma)
    for down, across in itertools.product(reach, reach):
        rows = slice(_REACH + down, _REACH + down + frames.shape[1])
        columns = slice(_REACH + across, _REACH + across + frames.shape[2])
        apart = (down**2 + across**2) / _NEAR**2
        unlike = ((wide_luma[:, rows, columns] - luma) * np.float32(255 / strength)) ** 2
        weight = np.exp(-(unlike + np.float32(apart)) / 2)
        total += weight[..., None] * wide[:, rows, columns]
        weights += weight
    return total / weights[..., None]


def sharpen(frames: Stored, amount: float, radius: float) -> Stored:
    """Applies an unsharp mask: adds ``amount`` of what a Gaussian of ``radius`` pixels removes."""
    soft = ndimage.gaussian_filter(frames, (0, radius, radius, 0))
    return np.clip(frames + np.float32(amount) * (frames - soft), 0, 1)


def tone_curve(frames: Stored, strength: float) -> Stored:
    """Raises contrast by an S-curve: 0 changes nothing, 1 is ``3 x^2 - 2 x^3``, flat at its ends.

    A negative strength lowers the contrast of mid-tones instead.
    """
    x = np.clip(frames, 0, 1)
    return (1 - strength) * x + strength * x * x * (3 - 2 * x)


def apply_gains(frames: Stored, gains: Float[np.ndarray, " T"]) -> Stored:
    """Multiplies each frame by its gain and clips."""
    return np.clip(frames * gains.astype(np.float32)[:, None, None, None], 0, 1)


def brighten(frames: Stored, gain: float) -> Stored:
    """Multiplies the light of averaged frames; above 1, highlights clip as on a full sensor."""
    return from_light(np.float32(gain) * light(frames))


def compress(frames: Video8, crf: int, codec: Codec = "h264") -> Video8:
    """Encodes a video as 4:2:0 in memory and decodes it.

    ``crf`` is the encoder's constant rate factor: 0 (H.264: only colour loses resolution) to 51.
    Odd or very small sizes are encoded with their last row or column repeated.
    """
    import av  # only needed here

    height, width = frames.shape[1:3]
    beyond = [(0, max(side % 2, _LEAST_CODED - side)) for side in (height, width)]
    even = np.pad(frames, [(0, 0), *beyond, (0, 0)], mode="edge")
    encoder: Any = av.CodecContext.create(_ENCODERS[codec], "w")
    encoder.height, encoder.width = even.shape[1:3]
    encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", 30, Fraction(1, 30)
    encoder.options = {"crf": str(crf), "preset": "medium", **_SETTINGS[codec]}
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1
    decoded: list[Frame8] = []

    def decode(packet: av.Packet | None) -> None:
        decoded.extend(picture.to_ndarray(format="rgb24") for picture in decoder.decode(packet))

    for number, frame in enumerate(even):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts = number
        for packet in encoder.encode(picture):
            decode(packet)
    for packet in encoder.encode(None):
        decode(packet)
    decode(None)
    if len(decoded) != len(frames):
        raise ValueError(f"{codec}: {len(frames)} frames went in, but {len(decoded)} came out")
    return np.ascontiguousarray(np.stack(decoded)[:, :height, :width])
