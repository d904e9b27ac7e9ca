"""The squeeze as Mosaic GPU kernels: one pass over the pixels, forward and backward.

The rows of a product are pixels and its columns maps, so that few maps leave none of its 64 rows
idle. The online softmax runs down the columns; its weights then go through shared memory to become
the right operand of x^T e, whose rows are channels. XLA joins the partial results of a frame's
blocks, some megabytes at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu
from jaxtyping import Float32

from kernels import tiles
from kernels.mosaic import (
    COLUMNS,
    WGMMA,
    Block,
    Load,
    Plan,
    Ref,
    across,
    first_derivative_only,
    full,
    transposed,
)
from kernels.operations import Sharding, sharded, sum_over_devices
from kernels.reference import FLOOR, Partial, finish_partial


class Saved(NamedTuple):
    """What the derivative needs of a squeeze: its log-sum-exp in two parts, and G.

    exp(a - maximum) * inverse_total is accurate where a - (maximum + log(total)) is not: at a
    logit of 1e4 the nearest float32 values are 1e-3 apart.
    """

    maximum: Float32[Array, "B T M"]
    inverse_total: Float32[Array, "B T M"]
    squeezed: Float32[Array, "B T M C"]


def limit(x: Array, weights: Array) -> str | None:
    """Says why the kernels cannot take these shapes; None if they can."""
    return tiles.limit(weights.shape[-1], x.shape[-1], x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(sharding: Sharding | None, interpret: bool, x: Array, weights: Array) -> Array:
    """Computes `softmax_squeeze`.

    Args:
      sharding: how the batch is spread over a mesh; None on one device.
      interpret: whether the kernels run on a CPU, slowly.
      x: pixels, [B, T, P, C].
      weights: f_s, [C, M].
    """
    return _run_forward(sharding, interpret, x, weights)[0]


def _run_forward(
    sharding: Sharding | None, interpret: bool, x: Array, weights: Array
) -> tuple[Array, Any]:
    x, weights = first_derivative_only((x, weights))

    def on_one_device(x: Array, weights: Array) -> tuple[Array, Array, Array]:
        whole = forward(x, weights, interpret)
        return whole.maximum, 1 / whole.total, finish_partial(whole)

    saved = Saved(*sharded(on_one_device, sharding, "btpc,cm->btm,btm,btmc")(x, weights))
    return saved.squeezed.astype(x.dtype), (x, weights, saved)


def _run_backward(
    sharding: Sharding | None, interpret: bool, kept: Any, dg: Array
) -> tuple[Array, Array]:
    x, weights, saved, dg = first_derivative_only((*kept, dg))

    def on_one_device(
        x: Array, weights: Array, maximum: Array, inverse: Array, squeezed: Array, dg: Array
    ) -> tuple[Array, Array]:
        saved = Saved(maximum, inverse, squeezed)
        dx, dweights = backward(x, weights, saved, dg, interpret)
        return dx, sum_over_devices(dweights, sharding).astype(weights.dtype)

    layout = "btpc,cm,btm,btm,btmc,btmc->btpc,cm"
    return sharded(on_one_device, sharding, layout)(x, weights, *saved, dg.astype(jnp.float32))


run.defvjp(_run_forward, _run_backward)


def forward(x: Array, weights: Array, interpret: bool) -> Partial:
    """Squeezes the pixels of x on one device into a Partial."""
    channels, maps = weights.shape
    frames = _frames(x)
    plan = Plan.of("squeeze", frames, maps, channels, moved=channels, small=6, interpret=interpret)

    def squeeze(
        block: Block,
        x: Ref,
        weights: Sequence[Ref],
        maximum: Ref,
        total: Ref,
        accumulator: Ref,
        x_parts: Sequence[Ref],
        e_parts: Sequence[Ref],
    ) -> None:
        def body(tile: Array, x: Ref, carry: tuple[Array, Array, Array]) -> Any:
            highest, totals, gathered = carry
            x_operand = plan.as_operand(x, x_parts)
            a = _logits(block, tile, x_operand, weights)
            higher = jnp.maximum(highest, jnp.max(a, axis=0))
            e = jnp.exp(a - across(higher, a))
            cut = plan.store_transposed(e_parts, e)
            # Summed after the product's rounding, so that the weights of G sum to 1. Otherwise what
            # all pixels have in common would not cancel in the logits' derivative, dG (x - G).
            taken = cut[0].astype(jnp.float32) if plan.parts == 1 else e
            before = jnp.exp(highest - higher)
            added = plan.product(plan.matrix, (transposed(x_operand), transposed(e_parts)))
            return (
                higher,
                totals * across(before, totals) + taken,
                gathered * across(before, gathered) + added,
            )

        # The online softmax. Totals are kept for each row of the tiles and summed at the end.
        nothing = (
            full((plan.maps,), FLOOR, COLUMNS),
            full(plan.logits, 0.0),
            full(plan.matrix, 0.0),
        )
        highest, totals, gathered = block.over_tiles(body, [x], nothing)
        block.result(maximum, highest)
        block.result(total, jnp.sum(totals, axis=0))
        block.result(accumulator, gathered)

    found = plan.call(
        squeeze,
        streams={"x": plan.stream(frames)},
        matrices={"weights": plan.small_matrix(weights.astype(x.dtype).T)},
        vectors={},
        results={
            "maximum": plan.of_blocks(plan.maps),
            "total": plan.of_blocks(plan.maps),
            "accumulator": plan.of_blocks(*plan.matrix),
        },
        scratch={"x_parts": plan.cut_tile(), "e_parts": plan.operand(*reversed(plan.logits))},
    )
    maximum = jnp.max(found["maximum"], axis=1)
    share = jnp.exp(found["maximum"] - maximum[:, None])
    total = jnp.sum(found["total"] * share, axis=1)
    accumulator = jnp.sum(found["accumulator"] * share[:, :, None], axis=1)
    lead = x.shape[:2]
    return Partial(
        maximum[:, :maps].reshape(*lead, maps),
        total[:, :maps].reshape(*lead, maps),
        jnp.swapaxes(accumulator, 1, 2)[:, :maps, :channels].reshape(*lead, maps, channels),
    )


def backward(
    x: Array, weights: Array, saved: Saved, dg: Array, interpret: bool
) -> tuple[Array, Array]:
    """Returns the derivatives with respect to x and, in float32, the weights.

    Args:
      x, weights, interpret: as for `run`.
      saved: from the forward pass.
      dg: the derivative with respect to its result, [B, T, M, C].
    """
    channels, maps = weights.shape
    frames = _frames(x)
    moved = 2 * channels
    plan = Plan.of(
        "squeeze backward", frames, maps, channels, moved=moved, small=8, interpret=interpret
    )

    def squeeze_backward(
        block: Block,
        x: Ref,
        weights: Sequence[Ref],
        weights_over_maps: Sequence[Ref],
        dg: Sequence[Ref],
        dg_over_maps: Sequence[Ref],
        maximum: Load,
        inverse_total: Load,
        delta: Load,
        dx: Ref,
        dweights: Ref,
        x_parts: Sequence[Ref],
        da_parts: Sequence[Ref],
        dx_tile: Ref,
        dweights_sum: Ref,
    ) -> None:
        def body(tile: Array, x: Ref) -> None:
            x_operand = plan.as_operand(x, x_parts)
            a = _logits(block, tile, x_operand, weights)
            p = jnp.exp(a - across(maximum(), a)) * across(inverse_total(), a)
            dp = plan.product(plan.logits, (x_operand, transposed(dg)))
            da = plan.store_transposed(da_parts, p * (dp - across(delta(), dp)))
            of_tile = plan.product(
                plan.values, (plan.cut(p), dg_over_maps), (da, weights_over_maps)
            )
            plan.accumulate(dweights_sum, transposed(x_operand), transposed(da_parts))
            block.send(of_tile, dx_tile, dx, tile)

        block.over_tiles(body, [x])
        block.result(dweights, dweights_sum[...])
        gpu.wait_smem_to_gmem(0)

    def vector(v: Array) -> Array:
        return jnp.pad(_frames(v), ((0, 0), (0, plan.maps - maps)))

    rounded, dg_of_frames = weights.astype(x.dtype).T, _frames(dg)
    found = plan.call(
        squeeze_backward,
        streams={"x": plan.stream(frames)},
        matrices={
            "weights": plan.small_matrix(rounded),
            "weights_over_maps": plan.over_maps(rounded),
            "dg": plan.small_matrix(dg_of_frames),
            "dg_over_maps": plan.over_maps(dg_of_frames),
        },
        vectors={
            "maximum": vector(saved.maximum),
            "inverse_total": vector(saved.inverse_total),
            "delta": vector(jnp.sum(dg * saved.squeezed, axis=-1)),
        },
        results={"dx": plan.like_stream(channels), "dweights": plan.of_blocks(*plan.matrix)},
        scratch={
            "x_parts": plan.cut_tile(),
            "da_parts": plan.operand(*reversed(plan.logits)),
            "dx_tile": plan.tile(),
        },
        sums=["dweights_sum"],
    )
    return (
        found["dx"][:, : x.shape[-2], :channels].reshape(x.shape),
        jnp.sum(found["dweights"], axis=(0, 1))[:channels, :maps],
    )


def _logits(block: Block, tile: Array, x: Sequence[Ref], weights: Sequence[Ref]) -> Array:
    """Computes a tile's logits, -inf beyond the last pixel."""
    plan = block.plan
    a = plan.product(plan.logits, (x, transposed(weights)))
    rows, _ = plan.logits
    if plan.chunks * plan.tiles_a_chunk * rows == plan.pixels:
        return a
    row = gpu.broadcasted_iota(jnp.int32, a.shape, 0, layout=WGMMA)
    return jnp.where(row < plan.pixels - tile * rows, a, full(a.shape, -jnp.inf))


def _frames(array: Array) -> Array:
    return rearrange(array, "b t ... -> (b t) ...")
