"""Small tasks with known bounds, each made to test what one idea of the papers claims to do.

A clip is a function of a random generator alone. Pictures are grey, in three channels, and not
clipped. ``code`` is what the true answer depends on, for a network that receives it as input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from jaxdeblur.data.textures import Split, find_photographs
from jaxdeblur.shapes import Batch

Grey = Float[np.ndarray, "T H W"]


class Clip(NamedTuple):
    """The input, the target, and where it is scored."""

    shown: Grey
    target: Grey
    regions: dict[str, Bool[np.ndarray, "T H W"]]
    """The pixels over which errors are pooled, by name."""
    code: tuple[float, float] = (0.0, 0.0)
    """What is hidden from a single pixel, about -0.5 to 0.5."""


Task = Callable[[np.random.Generator, Split], Clip]


def batch(task: Task, seed: int, step: int, clips: int, *, told: bool = False) -> Batch:
    """Makes the clips of a training step, 0 to 255; ``told`` puts the code in channels 1 and 2."""
    made = [task(np.random.default_rng((seed, step, i)), "train") for i in range(clips)]
    return {
        "blurred": np.stack([in_colour(clip.shown, clip, told) for clip in made]),
        "sharp": np.stack([in_colour(clip.target, clip, told) for clip in made]),
    }


def in_colour(grey: Grey, clip: Clip, told: bool) -> Float[np.ndarray, "T H W 3"]:
    """Returns three equal channels, or one and the code, 0 to 255."""
    channels = np.repeat(grey[..., None], 3, axis=-1)
    if told:
        channels[..., 1:] = 0.5 + np.asarray(clip.code)
    return np.float32(255 * channels)


# --- A: what only a mark somewhere in the picture reveals ---

MARK, MOST = 8, 0.15
"""The side of the mark in pixels, and the largest distance of its mean from grey."""


def tint(
    rng: np.random.Generator,
    split: Split,
    *,
    effect: Literal["add", "gain", "shift"] = "add",
    frames: int = 3,
    marked: Literal["all", "one"] = "all",
    size: int = 48,
    reach: int = 12,
) -> Clip:
    """Makes noise on a random grey level a, a checkerboard whose mean is 0.5 + b, and flat decoys.

    The target is the picture minus b (a pixel reveals a + b at best: +3.01 dB), its contrast times
    1 + b / 0.3 (a pixel reveals nothing: 0 dB), or the picture shifted by 3 pixels in the direction
    given by the sign of b (the mean of both: +6.02 dB). The middle frame is scored, where a network
    that reads ``reach`` pixels to each side does not see the mark.
    """
    a, b = rng.uniform(-MOST, MOST, 2)
    if effect == "shift":
        b = np.copysign(2 * MOST / 3, b)
    level = {"add": 0.5 + a + b, "gain": 0.5, "shift": 0.5}[effect]
    still = level + rng.normal(0, 0.05 if effect == "add" else 0.1, (size, size))
    for _ in range(2):
        top, left = rng.integers(0, size - MARK, 2)
        still[top : top + MARK, left : left + MARK] = 0.5 + rng.uniform(-MOST, MOST)
    shown = np.repeat(still[None], frames, axis=0)
    top, left = rng.integers(0, size - MARK, 2)
    board = 0.5 + b + 0.3 * (-1.0) ** np.add.outer(np.arange(MARK), np.arange(MARK))
    of_frames = slice(None) if marked == "all" else rng.integers(frames)
    shown[of_frames, top : top + MARK, left : left + MARK] = board
    target = {
        "add": lambda: shown - b,
        "gain": lambda: 0.5 + (shown - 0.5) * (1 + b / 0.3),
        "shift": lambda: np.roll(shown, int(np.copysign(3, b)), axis=2),
    }[effect]()
    far = np.zeros_like(shown, bool)
    far[frames // 2] = True
    far[:, max(0, top - reach) : top + MARK + reach, max(0, left - reach) : left + MARK + reach] = 0
    return Clip(shown, target, {"far from the mark": far}, (b, b))


# --- B and D: a still picture of white noise, and new noise in each frame ---


def still_noise(
    rng: np.random.Generator, split: Split, *, frames: int = 24, size: int = 16, sprite: int = 0
) -> Clip:
    """B: only its past tells about a pixel, no neighbour. D: an opaque ``sprite`` moves in front.

    A fixed share w of the current frame leaves w / (2 - w) of the power of the noise, 0.1 RMS.
    """
    target = np.repeat(0.5 + rng.normal(0, 0.12, (1, size, size)), frames, axis=0)
    covered = np.zeros_like(target, bool)
    if sprite:
        picture = 0.5 + rng.normal(0, 0.12, (sprite, sprite))
        place, way = rng.integers(0, size, 2), rng.choice([-2, -1, 1, 2], 2)
        for t in range(frames):
            rows, columns = ((place[i] + t * way[i] + np.arange(sprite)) % size for i in (0, 1))
            target[t][np.ix_(rows, columns)] = picture
            covered[t][np.ix_(rows, columns)] = True
    late = np.arange(frames)[:, None, None]
    before = np.zeros_like(covered)
    for lag in range(1, 4):
        before[lag:] |= covered[:-lag]
    settled = {"frames 16 to 24": (late >= 16) & (late < 24), "frames from 150": late >= 150}
    regions = {name: chosen & ~covered & ~before for name, chosen in settled.items()}
    if sprite:
        regions |= {"sprite": (late >= 8) & covered}
        regions |= {"uncovered up to 3 frames ago": (late >= 8) & before & ~covered}
    return Clip(target + rng.normal(0, 0.1, target.shape), target, regions)


# --- C and E: photographs ---

MARGIN = 8
"""Pixels around the visible part, so that no line of blur reaches beyond the photograph."""


def lucky(rng: np.random.Generator, split: Split, *, frames: int = 12, size: int = 32) -> Clip:
    """C: a still photograph, blurred in each frame along a line of 2 to 13 pixels; 1 in 8 is sharp.

    The line is centred, so that nothing moves.
    """
    photograph = _cut(rng, split, size + 2 * MARGIN)
    extents = np.where(rng.random(frames) < 1 / 8, 0.0, rng.uniform(2, 13, frames))
    angles = rng.uniform(0, np.pi, frames)
    shown = _blurred(photograph, extents * np.array([np.sin(angles), np.cos(angles)]))
    target = _blurred(photograph, np.zeros((2, frames)))
    late, sharp = (np.arange(frames) >= 4)[:, None, None], (extents == 0)[:, None, None]
    everywhere = np.ones_like(shown, bool)
    regions = {
        "blurred frames": everywhere & late & ~sharp,
        "sharp ones": everywhere & late & sharp,
    }
    return Clip(shown, target, regions)


def one_motion(rng: np.random.Generator, split: Split, *, frames: int = 1, size: int = 64) -> Clip:
    """E: one motion of 2.5 to 7.5 pixels per frame for a whole photograph, half of it plain.

    The shutter is always open, so that the blur is as long as the motion. The middle frame is
    scored, without its border.
    """
    side = size + 2 * MARGIN
    photograph = _cut(rng, split, side)
    plain = np.kron(rng.random((side // 8, side // 8)) < 0.5, np.ones((8, 8), bool))
    photograph = np.where(plain, photograph.mean(), photograph)
    extent, angle = rng.uniform(2.5, 7.5), rng.uniform(0, np.pi)
    way = extent * np.array([np.sin(angle), np.cos(angle)])
    places = way[:, None] * (np.arange(frames) - frames // 2)
    shown = _blurred(photograph, np.repeat(way[:, None], frames, axis=1), places)
    target = _blurred(photograph, np.zeros((2, frames)), places)
    scored = np.zeros_like(shown, bool)
    scored[frames // 2, 8:-8, 8:-8] = True
    return Clip(shown, target, {"middle frame": scored}, (way[0] / 15, way[1] / 15))


def _blurred(
    picture: Float[np.ndarray, "S S"],
    ways: Float[np.ndarray, "2 T"],
    places: Float[np.ndarray, "2 T"] | None = None,
) -> Grey:
    """Averages the picture, for each frame, along a line (its way) that is centred at a place."""
    rows, columns = np.fft.fftfreq(len(picture))[:, None], np.fft.rfftfreq(len(picture))
    along, off = (
        rows * each[0][:, None, None] + columns * each[1][:, None, None]
        for each in (ways, np.zeros_like(ways) if places is None else places)
    )
    spectra = np.fft.rfft2(picture) * np.sinc(along) * np.exp(-2j * np.pi * off)
    return np.fft.irfft2(spectra, picture.shape)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _cut(rng: np.random.Generator, split: Split, side: int) -> Float[np.ndarray, "S S"]:
    """Returns a part of a photograph, randomly rotated and mirrored."""
    photographs = _photographs("train" if split == "train" else "test")
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(0, length - side + 1) for length in photograph.shape)
    part = np.rot90(photograph[top : top + side, left : left + side], rng.integers(4))
    return part[:, :: rng.choice([-1, 1])]


@functools.cache
def _photographs(split: Split) -> list[Float[np.ndarray, "H W"]]:
    """Loads photographs of installed packages in grey, at half size since they are compressed."""
    files = find_photographs(split) + (find_photographs("validation") if split == "test" else ())
    greys = [Image.open(file.path).convert("L").reduce(2) for file in files]
    return [np.asarray(grey, np.float64) / 255 for grey in greys]
