"""The gate: the share of the deconvolved frame used in each cell of 16 x 16 pixels, in [0, 1].

    g = s(e; .5, 1.2) s(G; -.1, .1) (1 - .6 s(a; .2, .9)) (1 - s(r; .02, .3)) (1 - s(c; .98, .995))

s is the smooth step between two numbers, e the path's length during the exposure in pixels, and G
the log-evidence ratio of blur to none. r = R / (R + E), with R the energy that the
reblurred frame leaves unexplained and E that of the change. a = A / (A + E), with A the energy of X
of the neighbours minus X of the frame alone. c = E / (E + V), with V the variance of the blurred
frame: a change with fifty times that energy is ringing, which reblurring does not reveal.

If the duty cycle is found from the video, g is multiplied by

    t = max(T(1), s(w; .08, .15)),    T(h) = s(x; h, 1.8 h) (1 - s(q; .055, .07) (1 - s(v; 1, 3)))

where x = b / (q + .02), and b is by how many nats per tile an open shutter explains the video
better than sharp frames (shutter.py). In a single tile, slow motion of sharp frames is hard to
distinguish from blur. q is the mean vote of a tile against the duty cycle that was found: how far
tiles contradict each other. Only a lead that outweighs it is evidence; .02 is what tiles of one
shutter disagree by. v is the median tile's speed in pixels per frame: where objects move before a
still background, what they cover and mirror lets tiles contradict each other, and a wrong duty
cycle makes edges ring. w is by how many votes a tile prefers a short exposure: three frames hardly
tell it from sharp ones, the zeros of the blur do.

The filter multiplies the fitted noise-to-signal ratio by

    u = 4^(1 - max(s(x; 4.5, 8.1), s(w; .08, .15)))

A codec predicts a frame from its neighbours, so that its errors move with the scene and pass for
texture. What makes tiles contradict each other is the noise that the fit has missed.

The second network's change has the share

    max(T(2.5), s(w; .08, .15), s(n; 2, 8) (1 - s(q; .02, .035)) (1 - S))
    S = s(l; -.01, .005) (1 - s(k; .032, .042))

where n is the number of moving tiles that were evaluated, l the mean vote of a tile for sharp
frames and against long exposures, and k that against sharp frames and for the likeliest exposure.
Where nothing moves, or tiles contradict each other, it would take back what the base restored. A
video that moves, and that sharp frames explain better than long exposures and nearly as well as
short ones, is sharp, and left to the base, which was trained to leave such frames alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.images import reduce_size, smoothstep
from jaxdeblur.models.path_maps import CELL
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import Stabiliser
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.wiener import Luminance

# Of x, for the filter, the second network and the fitted noise (docs/lab/paths.md).
_FILTER, _SECOND, _NOISE, _RISE = 1.0, 2.5, 4.5, 1.8
_AGREED, _NOISIER = 0.02, 4.0
_DISPUTED = (0.055, 0.07)  # Of q: 0.08 in a video of a shiny kettle.
_STILL = (1.0, 3.0)  # Of v.
_SHARP, _SHORT = (-0.01, 0.005), (0.032, 0.042)  # Of l, at least .006 in sharp videos; of k.
# Of w: .15 to .6 in short exposures, .1 at most in other video: eight X4K scenes, which chose it.
_SHORT_LEAD = (0.08, 0.15)
_TOLD, _ALIKE = (2.0, 8.0), (0.02, 0.035)  # Of n; of q.

_FLOOR = 0.5 / 255**2  # Of E: a change of less than a grey level proves nothing.


def gate(
    made: Luminance,
    blurred: Float[Array, "H W"],
    length: Float[Array, " N"],
    log_ratio: Float[Array, " N"],
    tiling: Tiling,
) -> Float[Array, "h w 3"]:
    """Returns the gate, e and G of every cell.

    Args:
      made: the filtered luminance.
      blurred: the blurred luminance.
      length: e of each tile.
      log_ratio: G of each tile.
      tiling: of the frame.
    """
    squares = [(made.sharp - blurred) ** 2, made.residual**2, made.disagreement**2]
    images = jnp.stack([*squares, blurred, blurred**2], -1)
    change, residual, apart, mean, square = jnp.moveaxis(reduce_size(images, CELL), -1, 0)
    change, variance = change + _FLOOR, jnp.maximum(square - mean**2, 0) + 2 * _FLOOR
    shape = change.shape[0], change.shape[1]
    e, g = (_at_cells(each, tiling, shape) for each in (length, log_ratio))
    r, a = residual / (residual + change), apart / (apart + change)
    c = change / (change + variance)
    share = smoothstep(e, 0.5, 1.2) * smoothstep(g, -0.1, 0.1)
    share = share * (1 - 0.6 * smoothstep(a, 0.2, 0.9)) * (1 - smoothstep(r, 0.02, 0.3))
    share = share * (1 - smoothstep(c, 0.98, 0.995))
    return jnp.stack([share, e, g], -1)


def trusted(shutter: Shutter, speed: Float[Array, ""]) -> Float[Array, ""]:
    """Returns t, in [0, 1]: how far the video appears blurred, and by one shutter; v is speed."""
    return jnp.maximum(_outweighs(shutter, _FILTER, speed), _is_short(shutter))


def noise_factor(shutter: Shutter) -> Float[Array, ""]:
    """Returns u, in [1, 4]: by what frames are noisier than the fit of their paths shows."""
    agreed = jnp.maximum(_outweighs(shutter, _NOISE), _is_short(shutter))
    return _NOISIER ** (1 - agreed)


def _is_short(shutter: Shutter) -> Float[Array, ""]:
    """Returns how far the zeros show a short exposure, in [0, 1]."""
    return smoothstep(shutter.short_lead, *_SHORT_LEAD)


def _outweighs(
    shutter: Shutter, least: float, speed: Float[Array, ""] | None = None
) -> Float[Array, ""]:
    """Returns how far an open shutter's lead outweighs what tiles disagree by, in [0, 1].

    That is T, or without a speed its first factor.
    """
    share = smoothstep(shutter.blurred / (shutter.disputed + _AGREED), least, _RISE * least)
    if speed is None:
        return share
    disputed = smoothstep(shutter.disputed, *_DISPUTED) * (1 - smoothstep(speed, *_STILL))
    return share * (1 - disputed)


def _sharp(shutter: Shutter) -> Float[Array, ""]:
    """Returns how far the frames appear to be sharp, in [0, 1]."""
    of_long, of_any = shutter.sharp_leads
    return smoothstep(of_long, *_SHARP) * (1 - smoothstep(-of_any, *_SHORT))


def second_share(shutter: Shutter, speed: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the share of the second network's change that is used, in [0, 1]; v is ``speed``."""
    trust = jnp.maximum(_outweighs(shutter, _SECOND, speed), _is_short(shutter))
    alike = smoothstep(shutter.tiles, *_TOLD) * (1 - smoothstep(shutter.disputed, *_ALIKE))
    return jnp.maximum(trust, alike * (1 - _sharp(shutter)))


@jax.jit  # Dozens of programs of one number each would take seconds.
def _facts(shutters: Shutter, stabilisers: Stabiliser) -> dict[str, Array]:
    known: tuple[Shutter, Stabiliser]
    known = jax.tree.map(lambda leaf: leaf[0], (shutters, stabilisers))
    shutter, stabiliser = known
    return {
        "duty": shutter.duty,
        "linear": shutter.linear,
        "tiles": shutter.tiles,
        "short": _is_short(shutter),
        "sharp": _sharp(shutter),
        "agreement": _outweighs(shutter, _FILTER),
        "stabilised": stabiliser.stabilised,
        "blends": stabiliser.blends,
        "searched": stabiliser.frames,
    }


def facts(shutters: Shutter, stabilisers: Stabiliser) -> dict[str, float]:
    """Returns what is known of the first video, as numbers.

    They are the duty cycle, whether light is ``linear`` (1) or not, the number of ``tiles`` that
    told either, how far (0 to 1) the exposure is ``short``, the frames ``sharp`` and the tiles in
    ``agreement``, whether the video is ``stabilised``, the number of frames that are ``blends``,
    and the number that were ``searched`` for a stabiliser.
    """
    return {name: float(value) for name, value in _facts(shutters, stabilisers).items()}


def remarks(known: dict[str, float]) -> list[str]:
    """Returns what the user should know of a video, a line each; ``known`` are its ``facts``."""
    if known["stabilised"]:
        return ["stabilised: frames are blurred by more motion than they show, which was found"]
    if known["blends"]:
        return ["frames are blended from two, which is restored only in part"]
    if known["tiles"] < 1:
        return [
            "hardly anything moves, so blur was left to the network alone; if a phone stabilised "
            "the video, --single may restore more"
        ]
    if known["short"] > 0.5:
        return []
    if known["sharp"] > 0.5:
        return ["taken to be sharp: restored by the network alone, which changes little there"]
    if known["agreement"] < 0.5:
        return [
            "restored by the network alone: parts of the frames contradict each other on how long "
            "the shutter was open, as in compressed, clipped or blended video"
        ]
    return []


def _at_cells(
    tiles: Float[Array, " N"], tiling: Tiling, shape: tuple[int, int]
) -> Float[Array, "h w"]:
    """Interpolates values of tiles bilinearly to the centres of cells."""
    middles = [(np.arange(n) + 0.5) * CELL / tiling.stride for n in shape]
    rows, columns = (
        np.maximum(1 - np.abs(middle[:, None] - np.arange(count)), 0)
        for middle, count in zip(middles, tiling.shape, strict=True)
    )
    grid = tiles.reshape(tiling.shape)
    return jnp.einsum("yr,xc,rc->yx", rows.astype(np.float32), columns.astype(np.float32), grid)
