"""The gate: the share of the deconvolved frame used in each cell of 16 x 16 pixels, in [0, 1].

    g = 1 / (1 + exp(5.45 - 1.69 log(e + .25) + 1.08 log(R / E) + .39 log(E / D)))

e is the path's length during the exposure in pixels, R the energy that the reblurred frame leaves
unexplained, E that of the change from the blurred frame, and D that of the base's change. A change
is believed if it explains the frame, and if the network, which knows no path, wants one as large: a
wrong duty cycle makes edges ring where the base changes little. The numbers were fitted as
``benchmarks.gate`` does: they maximise the PSNR of what the gate mixes, where a loss against the
base counts twice. Without a base, the log-evidence ratio of blur to none, G, objects in its place:
log(E / D) is -3, and g is multiplied by s(G; -.1, .1).

In large frames the base goes without its finest size, and wants less than is right. Where tiles
agree on the shutter, what explains the frame is then enough:

    g = 1 / (1 + exp(1.97 log(e + .25) + 1.37 log(R / E) - 2.35))

and otherwise the exponent lies between both, by T(4.5). These three numbers were fitted alike, to
two rendered validation scenes each of 2, 5, 10 and 20 pixels at 1280x720, to GOPR0372, and to X4K
enlarged to that size (TEST01, 03, 08 and 11).

The filter multiplies the fitted noise-to-signal ratio by

    u = 4^(1 - T(4.5)),    T(h) = max(s(x; h, 1.8 h), s(w; .08, .15)),    x = b / (q + .02)

if the duty cycle is found from the video. s is the smooth step between two numbers, and b by how
many nats per tile an open shutter explains the video better than sharp frames (shutter.py). In a
single tile, slow motion of sharp frames is hard to distinguish from blur. q is the mean vote of a
tile against the duty cycle that was found: how far tiles contradict each other. Only a lead that
outweighs it is evidence; .02 is what tiles of one shutter disagree by. w is by how many votes a
tile prefers a short exposure: three frames hardly tell it from sharp ones, the zeros of the blur
do.

A codec predicts a frame from its neighbours, so that its errors move with the scene and pass for
texture. What makes tiles contradict each other is the noise that the fit has missed.

The second network's change has the share

    T(2.5)

Where nothing moves, or tiles contradict each other, it would take back what the base restored. A
sharp video is left to the base, which was trained to leave such frames alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.images import LUMA, reduce_size, smoothstep
from jaxdeblur.models.path_maps import CELL
from jaxdeblur.paths.motion import is_small
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import Stabiliser
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.wiener import Luminance

FITTED = (-5.451, 1.694, -1.084, -0.394)
"""The constant, and the factors of the three logarithms."""
FITTED_LARGE = (2.353, -1.973, -1.369)
"""The constant, and the factors of the first two, in large frames whose tiles agree."""

_SHORTEST = 0.25  # Pixels, added to e.
_UNASKED, _BLURRED = -3.0, (-0.1, 0.1)  # Of log(E / D) and G where no network could object.
_FLOOR = 0.5 / 255**2  # Of E and D: a change of less than a grey level proves nothing.

# Of x, for the second network and the fitted noise (docs/lab/paths.md).
_SECOND, _NOISE, _RISE = 2.5, 4.5, 1.8
_AGREED, _NOISIER = 0.02, 4.0
# Of w: .15 to .6 in short exposures, .1 at most in other video: eight X4K scenes, which chose it.
_SHORT_LEAD = (0.08, 0.15)


def evidence(
    change: Float[Array, "H W"],
    residual: Float[Array, "H W"],
    change_of_base: Float[Array, "H W 3"],
    length: Float[Array, "h w"],
) -> Float[Array, "h w 3"]:
    """Returns log(e + .25), log(R / E) and log(E / D) of every cell.

    Args:
      change: the filtered luminance minus the blurred one.
      residual: of the reblurred frame.
      change_of_base: the base minus the blurred frame.
      length: e.
    """
    images = jnp.stack([change**2, residual**2, (change_of_base**2).mean(-1)], -1)
    big, unexplained, of_base = jnp.moveaxis(reduce_size(images, CELL), -1, 0)
    big = big + _FLOOR
    told = length + _SHORTEST, (unexplained + 0.1 * _FLOOR) / big, big / (of_base + _FLOOR)
    return jnp.log(jnp.stack(told, -1))


def gate(
    made: Luminance,
    blurred: Float[Array, "H W 3"],
    base: Float[Array, "H W 3"],
    length: Float[Array, " N"],
    log_ratio: Float[Array, " N"],
    agreed: Float[Array, ""],
    tiling: Tiling,
) -> Float[Array, "h w 3"]:
    """Returns the gate, e and G of every cell.

    Args:
      made: the filtered luminance.
      blurred: the blurred frame.
      base: the frame as a network restores it, or unchanged.
      length: e of each tile.
      log_ratio: G of each tile.
      agreed: T(4.5).
      tiling: of the frame.
    """
    shape = -(-tiling.height // CELL), -(-tiling.width // CELL)
    e, ratio = (_at_cells(each, tiling, shape) for each in (length, log_ratio))
    known = evidence(made.sharp - blurred @ LUMA, made.residual, base - blurred, e)

    def share(known: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
        exponent = FITTED[0] + known @ jnp.array(FITTED[1:])
        if not is_small(tiling.height, tiling.width):
            explained = FITTED_LARGE[0] + known[..., :2] @ jnp.array(FITTED_LARGE[1:])
            exponent = exponent + agreed * (explained - exponent)
        return jax.nn.sigmoid(exponent)

    unasked = share(known.at[..., 2].set(_UNASKED)) * smoothstep(ratio, *_BLURRED)
    shares = jnp.where(jnp.any(base != blurred), share(known), unasked)
    return jnp.stack([shares, e, ratio], -1)


def noise_factor(agreed: Float[Array, ""]) -> Float[Array, ""]:
    """Returns u, in [1, 4]: by what frames are noisier than the fit of their paths shows."""
    return _NOISIER ** (1 - agreed)


def second_share(shutter: Shutter) -> Float[Array, ""]:
    """Returns the share of the second network's change that is used, T(2.5)."""
    return agreement(shutter, _SECOND)


def agreement(shutter: Shutter, least: float = _NOISE) -> Float[Array, ""]:
    """Returns T: how far an open shutter's lead outweighs what tiles disagree by, in [0, 1].

    Zeros that show a short exposure count as much.
    """
    lead = shutter.blurred / (shutter.disputed + _AGREED)
    return jnp.maximum(smoothstep(lead, least, _RISE * least), _is_short(shutter))


def _is_short(shutter: Shutter) -> Float[Array, ""]:
    return smoothstep(shutter.short_lead, *_SHORT_LEAD)


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
        "sharp": shutter.sharp_lead > 0,
        "agreement": second_share(shutter),
        "stabilised": stabiliser.stabilised,
        "blends": stabiliser.blends,
        "searched": stabiliser.frames,
    }


def facts(shutters: Shutter, stabilisers: Stabiliser) -> dict[str, float]:
    """Returns what is known of the first video, as numbers.

    They are the duty cycle, whether light is ``linear`` (1) or not, the number of ``tiles`` that
    told either, how far (0 to 1) the exposure is ``short`` and the tiles are in ``agreement``,
    whether tiles take the frames to be ``sharp``, whether the video is ``stabilised``, the number
    of frames that are ``blends``, and the number that were ``searched`` for a stabiliser.
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
        return ["taken to be sharp, so little is changed"]
    if known["agreement"] < 0.5:
        return [
            "blur paths count little: parts of the frames contradict each other on how long the "
            "shutter was open, as in compressed, clipped or blended video"
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
