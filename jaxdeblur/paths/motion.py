"""Cuts frames into tiles and measures how these move from frame to frame, by phase correlation.

The method is Kuglin and Hines, "The phase correlation image alignment method", 1975, on tiles of
frames at quarter size. The correlations of neighbouring tiles are summed before the peak search.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from jaxdeblur.images import LUMA, enlarge, halved, reduce_size, smoothstep
from jaxdeblur.paths.path import FRAMES, spline
from jaxdeblur.paths.tiles import REACH, Tiling, cut, hann, over_tiles

_BEYOND = 64  # Pixels by which a patch is wider than its tile.


def _tiles(size: int, stride: int = 0) -> tuple[int, int, int]:
    """Returns the stride, by default half the size, the size and n of a Tiling."""
    return stride or size // 2, size, size + _BEYOND


COARSE = _tiles(128, 80)
"""The tiles of most frames."""

CLOSE = _tiles(128)
"""Those of an image that has few coarse tiles: the search for a stabiliser, single frames,
and the shutter of small ones."""

FINE = _tiles(64)
"""Those of small frames, most of which a coarse tile would cover."""

_SMALL = 3 * COARSE[1]  # Pixels: a frame with a shorter side is small.
_STILL = 1.5 / 255, 3.5 / 255  # Between these changes, a pixel begins to move.
# Several times the change that still counts as none. Outlined subtitles on three X4K scenes were
# looked at, which are also scored; without text, nothing of TEST03 is marked.
_EDGE = 10 / 255, 20 / 255
_STROKE = 9  # Pixels: wider letters are marked at their borders only.
_BARELY = 1e-6  # Only avoids 0 / 0.
_SIGMA = 0.1  # Of the low-pass filter, in cycles per pixel: blur leaves nothing above to correlate.


def is_small(height: int, width: int) -> bool:
    """Returns whether frames of this size are cut into fine tiles."""
    return min(height, width) < _SMALL


def tiling_of(size: tuple[int, ...], tiles: tuple[int, int, int] | None = None) -> Tiling:
    """Returns the tiling for frames of this height and width; by default with suitable tiles."""
    height, width = size
    suited = FINE if is_small(height, width) else COARSE
    return Tiling(height, width, *(tiles or suited))


@jax.default_matmul_precision("float32")  # A GPU's TF32 would move a path by tenths of a pixel.
def moves_of(
    frames: Float[Array, "5 H W 3"], tiling: Tiling | None = None
) -> Float[Array, "N 4 2"]:
    """Returns how far each tile moved from the middle of five frames to the others, in pixels."""
    return moves_between(frames @ LUMA, tiling or tiling_of(frames.shape[1:3]))


def moves_between(luminance: Float[Array, "5 H W"], tiling: Tiling) -> Float[Array, "N 4 2"]:
    """Does the same for luminances."""
    quarter, small = tiling.reduced(4), halved(halved(luminance))
    spectra = over_tiles(lambda y: phase_spectra(y, quarter), small)
    others = spectra[jnp.array([0, 1, 3, 4])]
    moved = over_tiles(lambda other: displacement(spectra[2], other, quarter), others)
    return 4 * jnp.swapaxes(moved, 0, 1)


def phase_spectra(image: Float[Array, "H W"], tiling: Tiling) -> Complex[Array, "N n m"]:
    """Returns the spectrum of each tile, of which ``displacement`` uses the phase."""
    window = hann(tiling.n)

    def one(patch: Float[Array, "1 n n"]) -> Complex[Array, "n m"]:
        return jnp.fft.rfft2((patch[0] - patch.mean()) * window)

    # Zeros beyond the borders: a mirrored image moves the opposite way.
    return over_tiles(one, cut((image - image.mean())[None], tiling, mirrored=False))


def displacement(
    start: Complex[Array, "N n m"], end: Complex[Array, "N n m"], tiling: Tiling
) -> Float[Array, "N 2"]:
    """Returns how far each tile's content moved from ``start`` to ``end``, in their pixels."""
    n = tiling.n
    f2 = np.fft.fftfreq(n)[:, None] ** 2 + np.fft.rfftfreq(n) ** 2
    low = (np.exp(-f2 / (2 * _SIGMA**2)) * (f2 > 0)).astype(np.float32)

    def correlation(pair: tuple[jax.Array, jax.Array]) -> Float[Array, "n n"]:
        cross = jnp.conj(pair[0]) * pair[1]
        return jnp.fft.irfft2(cross / (jnp.abs(cross) + 1e-9) * low, s=(n, n))

    surface = over_tiles(correlation, (start, end)).reshape(*tiling.shape, n, n)
    surface = jnp.pad(surface, ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
    surface = surface[2:] + surface[1:-1] + surface[:-2]
    surface = (surface[:, 2:] + surface[:, 1:-1] + surface[:, :-2]).reshape(-1, n * n)
    peak = jnp.argmax(surface, 1)
    y, x = peak // n, peak % n

    def at(y: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(surface, ((y % n) * n + x % n)[:, None], 1)[:, 0]

    def vertex(before: jax.Array, top: jax.Array, after: jax.Array) -> jax.Array:
        bend = jnp.minimum(before - 2 * top + after, -1e-9)
        return jnp.clip(0.5 * (before - after) / bend, -0.5, 0.5)

    top = at(y, x)
    whole = (jnp.stack([y, x], -1) + n // 2) % n - n // 2
    part = [vertex(at(y - 1, x), top, at(y + 1, x)), vertex(at(y, x - 1), top, at(y, x + 1))]
    return whole + jnp.stack(part, -1)


def still_of(frames: Float[Array, "5 H W 3"], present: Float[Array, 5]) -> Float[Array, "H W"]:
    """Returns where the middle of five frames stands still, as the share of its value to keep.

    A camera's noise moves each pixel; a codec leaves what stands still as it is, to a grey level or
    two. Single pixels that happen not to change are no region that stands still.
    """
    light = frames @ LUMA
    known = (present[1:] * present[:-1])[:, None, None]
    change = (jnp.abs(jnp.diff(light, axis=0)) * known).max(0)
    kept = 1 - smoothstep(change, *_STILL)

    def over(image: jax.Array, most: bool, back: bool) -> jax.Array:
        for axis in (0, 1):
            moved = jnp.roll(image, -1 if back else 1, axis)
            image = jnp.maximum(image, moved) if most else jnp.minimum(image, moved)
        return image

    opened = over(over(kept, False, False), True, True)
    return opened * (known.sum() > 1)


def marked_of(
    frame: Float[Array, "H W 3"], still: Float[Array, "H W"], moves: Float[Array, "N 4 2"]
) -> Float[Array, "H W"]:
    """Returns where something is written over the scene, as text or a logo.

    What is flat, or moves along its edges, does not change. Where a motion of one pixel would
    change much, and nothing changes on either side, an edge is no part of the scene, and neither is
    what it surrounds.

    Args:
      frame: the frame, in [0, 1].
      still: from ``still_of``.
      moves: from ``moves_of``; the median tile moves as the camera does.
    """
    light = frame @ LUMA
    velocity = jnp.median(moves[:, 2] - moves[:, 1], axis=0) / 2
    y, x = velocity / jnp.maximum(jnp.linalg.norm(velocity), 1.0)
    across = [
        jnp.minimum(still, jnp.roll(still, 1, axis)) * _step_along(light, axis) for axis in (0, 1)
    ]
    edges = smoothstep(jnp.abs(y * across[0] + x * across[1]), *_EDGE)
    return _widened(still * _widened(edges, _STROKE))


def filled(
    images: Float[Array, "*leading H W C"], marked: Float[Array, "H W"]
) -> Float[Array, "*leading H W C"]:
    """Returns images in which what is marked is replaced by what lies around it.

    Burnt-in text is not blurred like the scene behind it, and a filter would ring around it. Each
    level of a pyramid fills what the next finer one lacks ("push-pull": Gortler et al., "The
    Lumigraph", SIGGRAPH 1996).
    """
    known = 1 - marked[..., None]

    def pull(held: jax.Array, share: jax.Array) -> jax.Array:
        height, width = share.shape[:2]
        if max(height, width) == 1:
            return held / jnp.maximum(share, _BARELY)
        below = pull(reduce_size(held, 2), reduce_size(share, 2))
        return held + (1 - share) * enlarge(below, 2)[..., :height, :width, :]

    # Most videos have nothing written on them.
    return lax.cond((marked > 0).any(), lambda: pull(images * known, known), lambda: images)


def _step_along(image: Float[Array, "H W"], axis: int) -> Float[Array, "H W"]:
    """Returns each pixel minus the one before it; 0 at the border."""
    return jnp.diff(image, axis=axis, prepend=lax.slice_in_dim(image, 0, 1, axis=axis))


def _widened(values: Float[Array, "H W"], side: int = 3) -> Float[Array, "H W"]:
    """Returns the largest value in a square around each pixel."""
    for window in ((side, 1), (1, side)):
        values = lax.reduce_window(values, -jnp.inf, lax.max, window, (1, 1), "SAME")
    return values


def moving_share(
    light: Float[Array, "H W"], still: Float[Array, "H W"], tiling: Tiling
) -> Float[Array, " N"]:
    """Returns how much of each tile's texture moves: of the energy of its gradients.

    A flat sky stands still without saying anything; burnt-in text says that nothing moves.
    """
    energy = sum(_step_along(light, axis) ** 2 for axis in (0, 1))
    sums = cut(jnp.stack([energy, energy * _widened(still)]), tiling).sum((-2, -1))
    return 1 - sums[:, 1] / (sums[:, 0] + _BARELY)


def speed_of(moves: Float[Array, "N 4 2"], present: Float[Array, 5]) -> Float[Array, " N"]:
    """Returns the speed in pixels per frame, the larger of those to the neighbours present."""
    speeds = jnp.linalg.norm(moves[:, 1:3], axis=-1) * present[jnp.array([1, 3])]
    return speeds.max(-1) * present[2]


def connected(moves: Float[Array, "N 4 2"], present: Float[Array, 5]) -> Float[Array, 5]:
    """Returns ``present`` without frames beyond a jump, which carry no information about the path.

    A jump cut within a scene moves the median tile much farther than before and afterwards; a
    camera gathers speed over several frames.
    """
    places = jnp.insert(moves, 2, 0.0, axis=1)
    steps = jnp.median(jnp.linalg.norm(jnp.diff(places, axis=1), axis=-1), 0)
    known = present[1:] * present[:-1] > 0
    beside = jnp.pad(jnp.where(known, steps, -jnp.inf), 1, constant_values=-jnp.inf)
    beside = jnp.maximum(beside[:-2], beside[2:])
    most = jnp.minimum(4 * beside + 6, 2 * beside + 20)
    joined = jnp.where(jnp.isfinite(beside) & (steps > most), 0.0, 1.0)
    before, after = joined[:2][::-1], joined[2:]
    near = jnp.concatenate([jnp.cumprod(before)[::-1], jnp.ones(1), jnp.cumprod(after)])
    return present * near


def offsets_of(
    knots: Float[Array, "N P 2"], shifts: Float[Array, "N 3 2"] | float = 0.0
) -> Float[Array, "N 3 2"]:
    """Returns where the patches are cut: the path in each frame as seen, in even pixels.

    ``shifts`` are those of a stabiliser (stabiliser.py), which the path does not have.
    """
    at = jnp.einsum("jp,npc->njc", spline(jnp.array(FRAMES, jnp.float32)), knots) - shifts
    return jnp.clip(2 * jnp.round(at / 2), -REACH, REACH)
