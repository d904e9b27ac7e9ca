"""The expand as Mosaic GPU kernels: one read of the pixels and one write, forward and backward.

The rows of all products are pixels, and one row has all combinations of a pixel: its softmax is
completed in registers, which are the left operand of the product with g. In the backward pass, maps
and their derivatives also go through shared memory, for the products that sum over the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu

from kernels import tiles
from kernels.mosaic import (
    COLUMNS,
    Block,
    Load,
    Plan,
    Ref,
    across,
    down,
    first_derivative_only,
    full,
    transposed,
)
from kernels.operations import Sharding, sharded, sum_over_devices

LOG2E = 1.4426950408889634


def limit(x: Array, weights: Array, bias: Array, g: Array) -> str | None:
    """Says why the kernels cannot take these operands; None if they can.

    Args:
      x, weights, bias, g: as for `run`.
    """
    if x.dtype != g.dtype:
        return f"the kernels require x and g of the same dtype, not {x.dtype} and {g.dtype}"
    return tiles.limit(bias.size, max(x.shape[-1], g.shape[-1]), g.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run(
    sharding: Sharding | None, interpret: bool, x: Array, weights: Array, bias: Array, g: Array
) -> Array:
    """Computes `softmax_expand` for x and g of one dtype.

    Args:
      sharding: how the batch is spread over a mesh; None on one device.
      interpret: whether the kernels run on a CPU, slowly.
      x: pixels, [B, P, D].
      weights, bias: f_p, [D, K] and [K].
      g: the gathered vectors, [B, K, C].
    """
    here = partial(forward, interpret=interpret)
    return sharded(here, sharding, "bpd,dk,k,bkc->bpc")(x, weights, bias, g)


def _run_forward(
    sharding: Sharding | None, interpret: bool, *operands: Array
) -> tuple[Array, tuple[Array, ...]]:
    operands = first_derivative_only(operands)
    return run(sharding, interpret, *operands), operands


def _run_backward(
    sharding: Sharding | None, interpret: bool, operands: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    def on_one_device(x: Array, weights: Array, bias: Array, g: Array, dy: Array) -> Any:
        dx, dweights, dbias, dg = backward(x, weights, bias, g, dy, interpret)
        # The derivative of a replicated operand has on each device only that device's part.
        return (
            dx,
            sum_over_devices(dweights, sharding).astype(weights.dtype),
            sum_over_devices(dbias, sharding).astype(bias.dtype),
            dg.astype(g.dtype),
        )

    layout = "bpd,dk,k,bkc,bpc->bpd,dk,k,bkc"
    return sharded(on_one_device, sharding, layout)(*first_derivative_only((*operands, dy)))


run.defvjp(_run_forward, _run_backward)


def forward(x: Array, weights: Array, bias: Array, g: Array, interpret: bool) -> Array:
    """Expands g to the pixels of x on one device.

    Args:
      x, weights, bias, g, interpret: as for `run`.
    """
    (pixels, depth), (combinations, channels) = x.shape[1:], g.shape[-2:]
    moved = depth + channels
    plan = Plan.of("expand", x, combinations, channels, moved=moved, small=4, interpret=interpret)

    def expand(
        block: Block,
        x: Ref,
        weights: Sequence[Ref],
        g: Sequence[Ref],
        bias: Load,
        y: Ref,
        x_parts: Sequence[Ref],
        y_tile: Ref,
    ) -> None:
        def body(tile: Array, x: Ref) -> None:
            # The bias is loaded for each tile: kept, it would take the registers of a third block.
            a = _logits(plan, plan.as_operand(x, x_parts), weights, bias())
            highest = jnp.max(a, axis=1)
            if plan.parts == 1:  # one instruction, multiply and subtract, per exponent
                e = jnp.exp2(a * LOG2E - down(highest * LOG2E, a))
            else:
                e = jnp.exp(a - down(highest, a))
            inverse = 1 / jnp.sum(e, axis=1)
            of_tile = plan.product(plan.values, (plan.cut(e), g))
            block.send(of_tile * down(inverse, of_tile), y_tile, y, tile)

        block.over_tiles(body, [x])
        gpu.wait_smem_to_gmem(0)

    found = plan.call(
        expand,
        streams={"x": plan.stream(x)},
        matrices={
            "weights": plan.small_matrix(weights.astype(x.dtype).T),
            "g": plan.over_maps(g),
        },
        vectors={"bias": _bias(plan, bias)},
        results={"y": plan.like_stream(channels)},
        scratch={"x_parts": plan.cut_tile(), "y_tile": plan.tile()},
    )
    return found["y"][:, :pixels, :channels]


def backward(
    x: Array, weights: Array, bias: Array, g: Array, dy: Array, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    """Returns the derivatives with respect to x and, in float32, weights, bias and g.

    Args:
      x, weights, bias, g, interpret: as for `run`.
      dy: the derivative with respect to its result, [B, P, C].
    """
    (pixels, depth), (combinations, channels) = x.shape[1:], g.shape[-2:]
    moved = 2 * depth + channels
    plan = Plan.of(
        "expand backward", x, combinations, channels, moved=moved, small=12, interpret=interpret
    )

    def expand_backward(
        block: Block,
        x: Ref,
        dy: Ref,
        weights: Sequence[Ref],
        weights_over_maps: Sequence[Ref],
        g: Sequence[Ref],
        bias: Load,
        dx: Ref,
        dweights: Ref,
        dbias: Ref,
        dg: Ref,
        x_parts: Sequence[Ref],
        dy_parts: Sequence[Ref],
        maps_parts: Sequence[Ref],
        dx_tile: Ref,
        dweights_sum: Ref,
        dg_sum: Ref,
    ) -> None:
        biases = bias()  # loading them for each tile costs more than these registers

        def body(tile: Array, x: Ref, dy: Ref, dbias_sum: Array) -> Array:
            x_operand, dy_operand = plan.as_operand(x, x_parts), plan.as_operand(dy, dy_parts)
            a = _logits(plan, x_operand, weights, biases)
            e = jnp.exp(a - down(jnp.max(a, axis=1), a))
            p = e * down(1 / jnp.sum(e, axis=1), e)
            dp = plan.product(plan.logits, (dy_operand, transposed(g)))
            # Past the end dy is 0, hence dp and da too: those pixels add nothing.
            da = p * (dp - down(jnp.sum(p * dp, axis=1), dp))
            plan.store_transposed(maps_parts, p)
            plan.accumulate(dg_sum, transposed(dy_operand), transposed(maps_parts))
            da_cut = plan.store_transposed(maps_parts, da)
            plan.accumulate(dweights_sum, transposed(x_operand), transposed(maps_parts))
            of_tile = plan.product(plan.values, (da_cut, weights_over_maps))
            block.send(of_tile, dx_tile, dx, tile)
            return dbias_sum + jnp.sum(da, axis=0)

        block.result(dbias, block.over_tiles(body, [x, dy], full((plan.maps,), 0.0, COLUMNS)))
        block.result(dweights, dweights_sum[...])
        block.result(dg, dg_sum[...])
        gpu.wait_smem_to_gmem(0)

    rounded = weights.astype(x.dtype).T
    found = plan.call(
        expand_backward,
        streams={"x": plan.stream(x), "dy": plan.stream(dy)},
        matrices={
            "weights": plan.small_matrix(rounded),
            "weights_over_maps": plan.over_maps(rounded),
            "g": plan.small_matrix(g),
        },
        vectors={"bias": _bias(plan, bias)},
        results={
            "dx": plan.like_stream(depth),
            "dweights": plan.of_blocks(*plan.matrix),
            "dbias": plan.of_blocks(plan.maps),
            "dg": plan.of_blocks(*plan.matrix),
        },
        scratch={
            "x_parts": plan.cut_tile(),
            "dy_parts": plan.cut_tile(),
            "maps_parts": plan.operand(*reversed(plan.logits)),
            "dx_tile": plan.tile(),
        },
        sums=["dweights_sum", "dg_sum"],
    )
    dg = jnp.swapaxes(jnp.sum(found["dg"], axis=1), 1, 2)
    return (
        found["dx"][:, :pixels, :depth],
        jnp.sum(found["dweights"], axis=(0, 1))[:depth, :combinations],
        jnp.sum(found["dbias"], axis=(0, 1))[:combinations],
        dg[:, :combinations, :channels],
    )


def _bias(plan: Plan, bias: Array) -> Array:
    """Pads the bias with -inf for the combinations that pad a product."""
    absent = (0, plan.maps - bias.size)
    return jnp.pad(bias.astype(jnp.float32), absent, constant_values=-jnp.inf)


def _logits(plan: Plan, x: Sequence[Ref], weights: Sequence[Ref], bias: Array) -> Array:
    a = plan.product(plan.logits, (x, transposed(weights)))
    return a + across(bias, a)
