"""Blurred videos under the conditions of real cameras, phones and editors, with their truth.

``CONDITIONS`` makes each from the frames of a high-speed scene (or, for ``PAIRED``, from a video
that is already blurred). The truth is the middle frame of each exposure, processed as the blurred
frame is, but without noise, denoising and compression. All that is random depends on the names of
condition and scene.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from jaxdeblur.data.degradation import (
    Codec,
    Stored,
    add_noise,
    apply_gains,
    compress,
    denoise,
    from_light,
    light,
    sharpen,
    to_bytes,
    to_stored,
    tone_curve,
)
from jaxdeblur.images import GAMMA, LUMA
from jaxdeblur.shapes import Video8

TAU, PERIOD, MOST = 7, 8, 4
"""High-speed frames in an exposure, from one exposure to the next, and exposures of a scene."""
WINDOW = (270, 512)
"""Rows and columns of the central window that paired videos are cut to."""
PAIRED_FIRST, PAIRED_FRAMES = 12, 6
"""Which frames of a paired video are taken."""

_READOUT = 5  # High-speed frames from the first row's exposure to the last one's, in whole steps.
_ZOOM = 1 / 0.9  # Stabilising phones show the middle of the frame, so as to have margins.
_LEAST_SHARED = 0.02  # Radians between frames: more is a mismeasured turn.
_MOVES, _AROUND = 6 / 255, 9  # A change of brightness that is motion, and the pixels around it.
_BARS = 34 / 270  # Height of a letterbox bar, as a share of the frame's.
_DARK, _LAMPS, _LAMP_RADIUS = 20 / 255, 14, 1.2  # Mean of a dark scene; point lights, pixels.


@dataclasses.dataclass
class Made:
    """A video to restore and its truth.

    Attributes:
      blurred: the input.
      sharp: its truth.
      regions: parts of the frames that are scored by themselves as well.
      parts: frames that are scored by themselves as well, by their indices.
    """

    blurred: Video8
    sharp: Video8
    regions: dict[str, Bool[np.ndarray, "T H W"]] = dataclasses.field(default_factory=dict)
    parts: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @property
    def is_sharp(self) -> bool:
        """Whether the input has no blur: then it should come back unchanged."""
        return self.blurred is self.sharp


@dataclasses.dataclass(frozen=True)
class Scene:
    """A high-speed scene and the one that follows it, for cuts."""

    name: str
    frames: Video8
    other: Callable[[], Video8]


Condition = Callable[[Scene, np.random.Generator], Made]
CONDITIONS: dict[str, Condition] = {}
PAIRED: dict[str, Callable[[Video8, Video8], Made]] = {}


def random_of(condition: str, scene: str) -> np.random.Generator:
    """Returns the generator of all that is random in a condition of a scene."""
    return np.random.default_rng(zlib.crc32(f"{condition}/{scene}".encode()))


def _condition(name: str) -> Callable[[Condition], Condition]:
    def keep(make: Condition) -> Condition:
        CONDITIONS[name] = make
        return make

    return keep


# --- Exposures ---


def expose(
    frames: Stored, tau: int = TAU, period: int = PERIOD, linear: bool = False
) -> tuple[Stored, Stored]:
    """Averages ``tau`` of every ``period`` frames, of their light if told; also the middle ones."""
    starts = range(0, len(frames) - tau + 1, period)[:MOST]
    seen = light(frames) if linear else frames
    blurred = np.stack([seen[start : start + tau].mean(axis=0) for start in starts])
    sharp = np.stack([frames[start + tau // 2] for start in starts])
    return from_light(blurred) if linear else blurred, sharp


def _made(blurred: Stored, sharp: Stored, **more: dict) -> Made:
    return Made(to_bytes(blurred), to_bytes(sharp), **more)


def _exposed(scene: Scene, **how: float) -> tuple[Stored, Stored]:
    return expose(to_stored(scene.frames), **how)


def _plain(name: str, **how: float) -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        return _made(*_exposed(scene, **how))


_plain("baseline")
_plain("linear-light", linear=True)
_plain("11-of-11", tau=11, period=11)
_plain("short-exposure", tau=3)


@_condition("moving-and-still")
def _parts(scene: Scene, rng: np.random.Generator) -> Made:
    """As baseline, scored where the picture moves during an exposure and where it stands still."""
    blurred, sharp = _exposed(scene)
    grey = ndimage.gaussian_filter(to_stored(scene.frames) @ LUMA, (0, 1, 1))
    starts = range(0, len(grey) - TAU + 1, PERIOD)[:MOST]
    ranges = np.stack([np.ptp(grey[start : start + TAU], axis=0) for start in starts])
    moving = ndimage.maximum_filter(ranges, (1, _AROUND, _AROUND)) > _MOVES
    return _made(blurred, sharp, regions={"moving": moving, "still": ~moving})


# --- Motion that a phone has taken out ---


def track(sharp: Stored) -> tuple[Float[np.ndarray, "T 2"], Float[np.ndarray, " T"]]:
    """Measures where the scene is in each frame, pixels (y, x), and its roll, radians."""
    grey = sharp @ LUMA
    half = grey.shape[2] // 2
    place, roll = [np.zeros(2)], [0.0]
    for before, after in itertools.pairwise(grey):
        left, right = (
            shift_of(before[:, :half], after[:, :half]),
            shift_of(before[:, half:], after[:, half:]),
        )
        turn = (right - left)[0] / half
        place.append(place[-1] + shift_of(before, after))
        roll.append(roll[-1] + float(np.clip(turn, -_LEAST_SHARED, _LEAST_SHARED)))
    return np.array(place), np.array(roll)


def shift_of(before: Float[np.ndarray, "H W"], after: Float[np.ndarray, "H W"]) -> np.ndarray:
    """Returns (dy, dx) with after(x) = before(x - d), to a twentieth of a pixel."""
    window = np.outer(np.hanning(before.shape[0]), np.hanning(before.shape[1]))
    seen = ((frame - frame.mean()) * window for frame in (before, after))
    # Without normalisation, the strong low frequencies count, which blur and noise leave alone.
    return -phase_cross_correlation(*seen, upsample_factor=20, normalization=None)[0]


def warp(
    frames: Stored, place: Float[np.ndarray, "T 2"], roll: Float[np.ndarray, " T"], zoom: float
) -> Stored:
    """Shows each frame around a place, (y, x) pixels from its middle, turned and enlarged.

    A frame turned by ``roll`` has a roll of that size for :func:`track`.
    """
    middle = (np.array(frames.shape[1:3]) - 1) / 2
    moved = np.empty_like(frames)
    for t, frame in enumerate(frames):
        cosine, sine = np.cos(roll[t]), np.sin(roll[t])
        turn = np.array([[cosine, -sine], [sine, cosine]]) / zoom
        offset = middle + place[t] - turn @ middle
        for channel in range(3):
            moved[t, ..., channel] = ndimage.affine_transform(
                frame[..., channel], turn, offset, order=3, mode="nearest"
            )
    return np.clip(moved, 0, 1)


def stabilise(removed: float, with_roll: bool, *videos: Stored) -> Iterator[Stored]:
    """Takes a share of the motion of the last of the videos, the sharp one, out of all of them."""
    place, roll = track(videos[-1])
    place, roll = (removed * (each - each.mean(axis=0)) for each in (place, roll))
    for video in videos:
        yield warp(video, place, -roll if with_roll else np.zeros_like(roll), _ZOOM)


def _stabilised(name: str, removed: float, with_roll: bool = False) -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        return _made(*stabilise(removed, with_roll, *_exposed(scene)))


_stabilised("stabilised", 1.0)
_stabilised("stabilised-with-rotation", 1.0, with_roll=True)
_stabilised("stabilised-by-half", 0.5)


@_condition("rolling-shutter")
def _rolling(scene: Scene, rng: np.random.Generator) -> Made:
    """Each row is exposed a little later than the one above, as is its truth."""
    frames = to_stored(scene.frames)
    delays = np.arange(frames.shape[1]) * (_READOUT + 1) // frames.shape[1]
    video = [
        np.concatenate([each[:, delays == delay] for delay, each in enumerate(delayed)], axis=1)
        for delayed in zip(
            *(expose(frames[delay : delay - _READOUT or None]) for delay in range(_READOUT + 1)),
            strict=True,
        )
    ]
    return _made(*video)


# --- Codec, noise, the phone ---


def _compressed(name: str, crf: int, codec: Codec = "h264") -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        blurred, sharp = map(to_bytes, _exposed(scene))
        return Made(compress(blurred, crf, codec), sharp)


for _crf in (18, 23, 28):
    _compressed(f"h264-{_crf}", _crf)
for _crf in (24, 30):
    _compressed(f"hevc-{_crf}", _crf, "hevc")


def _noisy(name: str, sigma: float) -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        blurred, sharp = _exposed(scene)
        return _made(add_noise(blurred, sigma, rng), sharp)


for _sigma in (5.0, 10.0):
    _noisy(f"noise-{_sigma:g}", _sigma)


@_condition("stabilised-h264-18")
def _stabilised_then_compressed(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = map(to_bytes, stabilise(1.0, True, *_exposed(scene)))
    return Made(compress(blurred, 18), sharp)


@_condition("stabilised-noise-5")
def _noisy_then_stabilised(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = _exposed(scene)
    _, stable = stabilise(1.0, True, blurred, sharp)
    noisy, _ = stabilise(1.0, True, add_noise(blurred, 5.0, rng), sharp)
    return _made(noisy, stable)


def _phone(name: str, stabilised: bool) -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        """The whole chain: linear light, noise, denoising, tone curve, sharpening, H.264."""
        blurred, sharp = _exposed(scene, linear=True)
        blurred = denoise(add_noise(blurred, 4.0, rng), 10.0)
        if stabilised:
            blurred, sharp = stabilise(1.0, True, blurred, sharp)
        blurred, sharp = (sharpen(tone_curve(each, 0.5), 0.7, 1.2) for each in (blurred, sharp))
        return Made(compress(to_bytes(blurred), 21), to_bytes(sharp))


_phone("phone", stabilised=False)
_phone("phone-stabilised", stabilised=True)


# --- Brightness ---


def _with_gains(name: str, gain: Callable[[int, int], float]) -> None:
    @_condition(name)
    def _(scene: Scene, rng: np.random.Generator) -> Made:
        blurred, sharp = _exposed(scene)
        gains = np.array([gain(t, len(blurred)) for t in range(len(blurred))])
        return _made(apply_gains(blurred, gains), apply_gains(sharp, gains))


_with_gains("flicker", lambda t, count: 1.1 if t % 2 else 0.9)
_with_gains("fade", lambda t, count: 1 - 0.8 * t / max(count - 1, 1))


def _in_light(lit: Stored) -> tuple[Stored, Stored]:
    """Exposes linear light, which clips at 1; light and stored values are ``T H W 3``."""
    starts = range(0, len(lit) - TAU + 1, PERIOD)[:MOST]
    blurred = np.stack([lit[start : start + TAU].mean(axis=0) for start in starts])
    return from_light(blurred), from_light(np.stack([lit[start + TAU // 2] for start in starts]))


@_condition("clipped-highlights")
def _clipped(scene: Scene, rng: np.random.Generator) -> Made:
    """What is bright is four times as bright, beyond what the sensor holds."""
    lit = light(to_stored(scene.frames))
    bright = np.clip((lit @ LUMA - 0.45) / 0.35, 0, 1)[..., None]
    return _made(*_in_light(lit * (1 + 3 * bright * bright * (3 - 2 * bright))))


def _darkened(scene: Scene) -> Stored:
    lit = light(to_stored(scene.frames))
    return lit * (np.float32(_DARK**GAMMA) / lit.mean())


def _with_read_noise(video: Stored, sigma: float, rng: np.random.Generator) -> Stored:
    return video + np.float32(sigma / 255) * rng.standard_normal(video.shape, dtype=np.float32)


@_condition("dark")
def _dark(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = _in_light(_darkened(scene))
    return _made(_with_read_noise(blurred, 2, rng), sharp)


@_condition("night-lamps")
def _night(scene: Scene, rng: np.random.Generator) -> Made:
    """A dark scene with point lights that move with it and clip."""
    lit = _darkened(scene)
    coarse = np.arange(0, len(lit), 4)  # tracked in steps that are large enough to measure
    place, _ = track(to_stored(scene.frames[coarse]))
    times = np.arange(len(lit))
    path = np.stack([np.interp(times, coarse, place[:, axis]) for axis in (0, 1)], axis=1)
    height, width = lit.shape[1:3]
    at = rng.uniform([20, 20], [height - 20, width - 20], (_LAMPS, 2))
    colours = (12 * rng.uniform(0.5, 1, (_LAMPS, 3))).astype(np.float32)
    rows, columns = np.mgrid[:height, :width]
    for t in range(len(lit)):
        for (y, x), colour in zip(at + path[t], colours, strict=True):
            distance = (rows - y) ** 2 + (columns - x) ** 2
            lit[t] += np.exp(-distance / (2 * _LAMP_RADIUS**2))[..., None] * colour
    blurred, sharp = _in_light(lit)
    return _made(_with_read_noise(blurred, 3, rng), sharp)


# --- Frames out of order of time ---


@_condition("duplicates")
def _duplicates(scene: Scene, rng: np.random.Generator) -> Made:
    """The second frame comes twice."""
    blurred, sharp = _exposed(scene)
    order = [0, 1, *range(1, len(blurred))]
    return _made(blurred[order], sharp[order], parts={"first twin": [1], "second twin": [2]})


@_condition("cut")
def _cut(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = _exposed(scene)
    others = expose(to_stored(scene.other()))
    both = (np.concatenate(pair) for pair in zip((blurred, sharp), others, strict=True))
    count = len(blurred)
    return _made(*both, parts={"last before": [count - 1], "first after": [count]})


@_condition("two-frames-blended")
def _blended(scene: Scene, rng: np.random.Generator) -> Made:
    """An editor halved the rate: each frame is the mean of two, 3 of 4 frames each."""
    frames = to_stored(scene.frames)
    starts = range(0, len(frames) - 7, 8)[:MOST]
    blurred = [
        (frames[s : s + 3].mean(axis=0) + frames[s + 4 : s + 7].mean(axis=0)) / 2 for s in starts
    ]
    return _made(np.stack(blurred), frames[[s + 3 for s in starts]])


@_condition("pulldown-blended")
def _pulldown(scene: Scene, rng: np.random.Generator) -> Made:
    """24 frames/s became 30: frames are mixed by their distance in time, as is their truth."""

    def resampled(video: Stored) -> Stored:
        times = 0.8 * np.arange((len(video) - 1) * 5 // 4 + 1)
        first = times.astype(int)
        second = np.minimum(first + 1, len(video) - 1)
        share = (times - first).astype(np.float32)[:, None, None, None]
        return (1 - share) * video[first] + share * video[second]

    return _made(*map(resampled, _exposed(scene)))


@_condition("interlaced-blended")
def _interlaced(scene: Scene, rng: np.random.Generator) -> Made:
    """Two fields, 3 of 4 frames each, smoothed down the rows by a deinterlacer."""
    frames = to_stored(scene.frames)
    starts = range(0, len(frames) - PERIOD + 1, PERIOD)[:MOST]
    woven = np.stack([frames[s : s + 3].mean(axis=0) for s in starts])
    woven[:, 1::2] = np.stack([frames[s + 4 : s + 7, 1::2].mean(axis=0) for s in starts])
    smooth = (
        ndimage.convolve1d(video, [0.25, 0.5, 0.25], axis=1, mode="nearest")
        for video in (woven, frames[[s + 3 for s in starts]])
    )
    return _made(*smooth)


# --- What an editor adds ---


@_condition("letterbox")
def _letterbox(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = _exposed(scene)
    bar = round(_BARS * blurred.shape[1])
    picture = np.zeros(blurred.shape[:3], bool)
    picture[:, bar:-bar] = True
    shown = (np.where(picture[..., None], video, 0) for video in (blurred, sharp))
    return _made(*shown, regions={"picture": picture})


@functools.cache
def overlay(height: int, width: int) -> Float[np.ndarray, "H W 4"]:
    """Draws subtitles, a date and a translucent logo: colour and opacity in [0, 1]."""
    scale = min(height / 270, width / 512)
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)

    def write(text: str, at: tuple[float, float], size: int, **how: object) -> None:
        font = ImageFont.load_default(max(6, round(size * scale)))
        draw.text(at, text, font=font, **how)

    edge = {"stroke_width": max(1, round(2 * scale)), "stroke_fill": (0, 0, 0, 255)}
    said = {"fill": (255, 255, 255, 255), "anchor": "mm", **edge}
    write("he asked us where the road would end", (width / 2, height - 34 * scale), 20, **said)
    write("and nobody knew it", (width / 2, height - 13 * scale), 20, **said)
    write("2024-06-11 18:32:07", (10 * scale, 8 * scale), 16, fill=(255, 220, 80, 255))
    x, y = width - 54 * scale, 12 * scale
    draw.ellipse((x, y, x + 40 * scale, y + 40 * scale), fill=(255, 255, 255, 120))
    inner = (x + 12 * scale, y + 12 * scale, x + 28 * scale, y + 28 * scale)
    draw.rectangle(inner, fill=(200, 30, 40, 200))
    return np.asarray(image, np.float32) / 255


@_condition("text-and-logo")
def _text(scene: Scene, rng: np.random.Generator) -> Made:
    blurred, sharp = _exposed(scene)
    drawn = overlay(*blurred.shape[1:3])
    colour, opacity = drawn[..., :3], drawn[..., 3:]
    text = np.broadcast_to(opacity[..., 0] > 0, blurred.shape[:3])
    shown = (video * (1 - opacity) + colour * opacity for video in (blurred, sharp))
    return _made(*shown, regions={"text": text, "rest": ~text})


# --- Sharp video, which should come back as it is ---


@_condition("sharp")
def _sharp(scene: Scene, rng: np.random.Generator) -> Made:
    _, sharp = _exposed(scene)
    sharp = to_bytes(sharp)
    return Made(sharp, sharp)


@_condition("sharp-stabilised")
def _sharp_stabilised(scene: Scene, rng: np.random.Generator) -> Made:
    _, sharp = _exposed(scene)
    (still,) = map(to_bytes, stabilise(1.0, False, sharp))
    return Made(still, still)


# --- A camera's own pixels: videos that are blurred already ---


def _own_pixels(crf: int | None) -> Callable[[Video8, Video8], Made]:
    def make(blurred: Video8, sharp: Video8) -> Made:
        return Made(blurred if crf is None else compress(blurred, crf), sharp)

    return make


PAIRED["own-pixels"] = _own_pixels(None)
for _crf in (18, 23):
    PAIRED[f"own-pixels-h264-{_crf}"] = _own_pixels(_crf)
