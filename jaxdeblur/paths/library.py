"""Equation 1 forwards and backwards, as pure functions of arrays.

    frames (5 H W 3)  --fit_paths-->  paths  --deconvolve-->  the middle frame, sharp
    sharp  (H W C)    --synthesise-->  blurred along the paths;  ``adjoint`` is its transpose

All work under ``jit`` and ``vmap``. ``synthesise`` and ``adjoint`` have gradients with respect to
frames, duty cycle and paths; the iterations of the fit have them in forward mode only
(``jax.jacfwd``, ``jax.jvp``). ``synthesise`` is the forward operator K of the literature on inverse
problems: eq. 1 of "Online video deblurring via dynamic temporal blending network" (ICCV 2017), with
a path for each tile. It is linear in the frame as stored, so ``adjoint`` is exact: <K x, y> =
<x, K' y>.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeblur.images import GAMMA, power
from jaxdeblur.paths.estimate import LEAST_SIDE, filtered, response_correction
from jaxdeblur.paths.light import ResponseCorrection
from jaxdeblur.paths.motion import moves_of, tiling_of
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, exposures, frequencies, otf
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import Stabiliser
from jaxdeblur.paths.tiles import cutter, inner, over_tiles, overlap_add, taper
from jaxdeblur.paths.window_fit import WINDOW, PastPaths, WindowFit, fit_window

_NOTHING = 1  # Frames that a stabiliser could have kept: none is looked for.


def fit_paths(
    frames: Float[Array, "5 H W 3"],
    duty: Float[Array, ""] | float = 1.0,
    linear: bool = False,
    present: Float[Array, 5] | None = None,
) -> WindowFit:
    """Fits the blur paths of the middle of five frames.

    Args:
      frames: as stored, in [0, 1]; at least 64 pixels high and wide.
      duty: the share of the time between frames that the shutter was open, above 0 and up to 1.
      linear: whether the camera averaged linear light, not stored values.
      present: 1 for each frame that exists, 0 for one to be ignored; by default all do.

    Returns:
      The paths of the tiles (``fit.knots``, in pixels), their noise-to-signal ratios and the
      frames' weights, and ``log_evidence_ratio``, by how much blur explains a tile better than no
      blur does, in nats per frequency.

    Raises:
      ValueError: frames hold no tile, or are not five.
    """
    if len(frames) != WINDOW or min(frames.shape[1:3]) < LEAST_SIDE:
        raise ValueError(
            f"frames must be {WINDOW} of at least {LEAST_SIDE}x{LEAST_SIDE} pixels, not of shape "
            f"{frames.shape}"
        )
    here = jnp.ones(WINDOW) if present is None else present
    known = Shutter.unknown(), Stabiliser.unknown(_NOTHING), PastPaths.unknown(frames.shape[1:3])
    return fit_window(frames, moves_of(frames), here, *known, duty, linear)


def deconvolve(
    frames: Float[Array, "3 H W 3"],
    paths: WindowFit,
    base: Float[Array, "H W 3"] | None = None,
) -> Float[Array, "H W 3"]:
    """Removes the blur from the middle of three frames: eq. 1 backwards, a Wiener filter.

    Args:
      frames: as stored, in [0, 1]: the middle three of ``fit_paths``.
      paths: from ``fit_paths``.
      base: half of the mean of the filter's prior, such as a network's result; by default the frame
        itself. The other half is the previous frame.
    """
    below = frames[1] if base is None else base
    correction = response_correction(
        frames, paths, below, ResponseCorrection.unknown(*frames.shape[1:3])
    )
    return filtered(frames, paths, below, frames[0], correction).sharp


def synthesise(sharp: Float[Array, "H W C"], paths: WindowFit) -> Float[Array, "H W C"]:
    """Blurs a frame along the paths of its exposure: eq. 1 forwards.

    The frame is as stored; where light was averaged linearly, so it is here.
    """

    def in_light() -> Float[Array, "H W C"]:
        blurred = _blurred(power(jnp.clip(sharp, 0.0, 1.0), GAMMA), paths)
        return power(jnp.clip(blurred, 0.0, 1.0), 1 / GAMMA)

    made: Float[Array, "H W C"]
    made = lax.cond(paths.linear, in_light, lambda: _blurred(sharp, paths))
    return made


def adjoint(blurred: Float[Array, "H W C"], paths: WindowFit) -> Float[Array, "H W C"]:
    """Returns the transpose of ``synthesise``, of values as stored, applied to a frame."""
    (back,) = jax.linear_transpose(lambda sharp: _blurred(sharp, paths), blurred)(blurred)
    return back


def _blurred(sharp: Float[Array, "H W C"], paths: WindowFit) -> Float[Array, "H W C"]:
    """Blurs each tile by its own transfer function; overlapping tiles share a pixel."""
    tiling = tiling_of(sharp.shape[:2])
    ramp = tiling.size - tiling.stride
    cut, basis = cutter(jnp.moveaxis(sharp, -1, 0), tiling), exposures(paths.duty)[1]

    def one(tile: tuple[Int[Array, 2], Float[Array, "P 2"]]) -> Float[Array, "C size size"]:
        centre, knots = tile
        path = jnp.einsum("jp,pc->jc", basis, knots)
        kernel = otf(path, SAMPLE_WEIGHTS[None], *frequencies(tiling.n))[0]
        spectra = lax.complex(kernel[0], kernel[1]) * jnp.fft.rfft2(cut(centre, 0))
        return inner(jnp.fft.irfft2(spectra, s=(tiling.n, tiling.n)), tiling)

    knots = paths.fit.knots
    knots = jnp.where(paths.large, 2 * knots[tiling.nearest(tiling, scale=2)], knots)
    tiles = over_tiles(one, (jnp.asarray(tiling.centres), knots))
    return jnp.moveaxis(overlap_add(tiles * taper(tiling.size, ramp), tiling), 0, -1)
