"""The six equations against loops written from the paper; the block; its alternatives."""

from __future__ import annotations

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jaxdeblur.errors import UserError
from jaxdeblur.models import attention, fusion
from jaxdeblur.models.attention import FactorisedAttention
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.testing import float32_error

B, T, M, N, P, C = 2, 3, 4, 2, 6, 5
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def softmax(values):
    """Returns the softmax of a list of numbers, in plain Python."""
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


# --- The equations as loops, for one channel of one clip as in the paper; callers loop. ---


def loop_eq_1(logits):
    """A_s in T x M x HW: softmax along HW of each map of each frame."""
    maps = np.zeros_like(logits)
    for t, m in itertools.product(range(T), range(M)):
        maps[t, m] = softmax(logits[t, m].tolist())
    return maps


def loop_eq_2(maps, x):
    """G_s^m in T: map m times the frame, pixel by pixel, summed over HW."""
    squeezed = np.zeros((M, T))
    for m, t in itertools.product(range(M), range(T)):
        squeezed[m, t] = sum(maps[t, m, p] * x[t, p] for p in range(P))
    return squeezed


def loop_eq_3(logits):
    """A_t in N x T: softmax along T of each map."""
    return np.array([softmax(logits[n].tolist()) for n in range(N)])


def loop_eq_4(squeezed, maps):
    """G_st = G_s A_t^Tr: M x T times T x N, its MN elements row by row."""
    product = np.zeros((M, N))
    for m, n, t in itertools.product(range(M), range(N), range(T)):
        product[m, n] += squeezed[m, t] * maps[n, t]
    return [product[m, n] for m in range(M) for n in range(N)]


def loop_eq_5(logits):
    """A_p in MN x HW: softmax along the first dimension."""
    maps = np.zeros((M * N, P))
    for p in range(P):
        maps[:, p] = softmax(logits[p].tolist())
    return maps


def loop_eq_6(squeezed_window, maps):
    """y^R = G_st A_p: each pixel's mix of the MN elements."""
    return [sum(squeezed_window[k] * maps[k, p] for k in range(M * N)) for p in range(P)]


def test_eq_1_spatial_maps():
    logits = draw(B, T, M, P)
    maps = attention.spatial_maps(jnp.asarray(logits))
    chex.assert_trees_all_close(
        maps, np.stack([loop_eq_1(one) for one in logits]), atol=float32_error(P)
    )


def test_eq_2_spatial_squeeze():
    maps, x = draw(B, T, M, P), draw(B, T, P, C)
    squeezed = attention.spatial_squeeze(jnp.asarray(maps), jnp.asarray(x))
    for b, c in itertools.product(range(B), range(C)):
        expected = loop_eq_2(maps[b], x[b, :, :, c])
        chex.assert_trees_all_close(squeezed[b, :, :, c].T, expected, atol=1e-5)


def test_eq_3_temporal_maps():
    logits = draw(B, N, T)
    maps = attention.temporal_maps(jnp.asarray(logits))
    chex.assert_trees_all_close(
        maps, np.stack([loop_eq_3(one) for one in logits]), atol=float32_error(T)
    )


def test_eq_4_temporal_squeeze():
    squeezed, maps = draw(B, T, M, C), draw(B, N, T)
    gathered = attention.temporal_squeeze(jnp.asarray(squeezed), jnp.asarray(maps))
    for b, c in itertools.product(range(B), range(C)):
        expected = np.array(loop_eq_4(squeezed[b, :, :, c].T, maps[b]))
        chex.assert_trees_all_close(gathered[b, :, c], expected, atol=1e-5)


def test_eq_5_pixel_maps():
    logits = draw(B, P, M * N)
    maps = attention.pixel_maps(jnp.asarray(logits))
    expected = np.stack([loop_eq_5(one).T for one in logits])
    chex.assert_trees_all_close(maps, expected, atol=float32_error(M * N))


def test_eq_6_expand():
    maps, squeezed_window = draw(B, P, M * N), draw(B, M * N, C)
    y = attention.expand(jnp.asarray(maps), jnp.asarray(squeezed_window))
    for b, c in itertools.product(range(B), range(C)):
        expected = np.array(loop_eq_6(squeezed_window[b, :, c], maps[b].T))
        chex.assert_trees_all_close(y[b, :, c], expected, atol=1e-5)


def test_combination_k_is_m_times_n_plus_n():
    # Map m gathers 10 m from every frame and temporal map n takes frame n alone, which adds n.
    squeezed = 10.0 * jnp.arange(M)[None, None, :, None] + jnp.arange(T)[None, :, None, None]
    maps = jnp.eye(N, T)[None]
    gathered = attention.temporal_squeeze(squeezed, maps)
    np.testing.assert_array_equal(
        gathered[0, :, 0], [10 * m + n for m in range(M) for n in range(N)]
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_maps_are_float32_and_sum_to_one(dtype):
    def logits(*shape):
        return jnp.asarray(50 * draw(*shape), dtype)

    for maps in (
        attention.spatial_maps(logits(B, T, M, P)),
        attention.temporal_maps(logits(B, N, T)),
        attention.pixel_maps(logits(B, P, M * N)),
    ):
        chex.assert_type(maps, jnp.float32)
        chex.assert_trees_all_close(maps.sum(-1), jnp.ones(maps.shape[:-1]), atol=1e-5)


# --- The block ---


def make_block(seed=0, **fields):
    config = FstaConfig(spatial_maps=M, temporal_maps=N, **fields)
    return FactorisedAttention(config, C, rngs=nnx.Rngs(seed))


def run_block(block, clip, current):
    return block.fuse(clip[:, current], block.remember(clip))


def test_kernels_equal_the_equations():
    clip = jnp.asarray(draw(B, T, 2, 3, C))
    results = [
        run_block(make_block(implementation=implementation), clip, 1)
        for implementation in ("einsum", "auto")
    ]
    chex.assert_shape(results[0], (B, 2, 3, C))
    chex.assert_trees_all_close(*results, atol=1e-5)


def test_temporal_logits_are_a_convolution_over_the_window():
    block = make_block(temporal_kernel=3)
    pooled = draw(1, T, C)
    kernel = np.asarray(block.f_t[...])
    logits = np.zeros((N, T), np.float32)
    for n, t, i, c in itertools.product(range(N), range(T), range(3), range(C)):
        if 0 <= t + i - 1 < T:
            logits[n, t] += pooled[0, t + i - 1, c] * kernel[i, c, n]
    expected = loop_eq_3(logits)
    chex.assert_trees_all_close(block.temporal_maps(jnp.asarray(pooled))[0], expected, atol=1e-5)


def test_temporal_kernels_begin_as_the_others():
    """Their deviation is sqrt(2 / number of inputs), as in ``Conv``."""
    config = FstaConfig(spatial_maps=1, temporal_maps=32)
    kernel = FactorisedAttention(config, 64, rngs=nnx.Rngs(0)).f_t[...]
    assert float(jnp.std(kernel)) == pytest.approx((2 / (3 * 64)) ** 0.5, rel=0.05)


def test_memory_of_a_frame_ignores_the_order_of_its_pixels():
    frames = draw(B, 1, 4, 6, C)
    shuffled = RNG.permutation(frames.reshape(B, 1, 24, C), axis=2).reshape(frames.shape)
    block = make_block()
    memories = block.remember(jnp.asarray(frames)), block.remember(jnp.asarray(shuffled))
    rounding = float32_error(24 + C, np.abs(frames).max())  # 24 pixels of C channels are averaged.
    chex.assert_trees_all_close(*memories, rtol=0, atol=rounding)


def test_memory_of_a_frame_depends_on_that_frame_alone():
    clip = jnp.asarray(draw(B, T, 4, 6, C))
    block = make_block()
    alone = block.remember(clip[:, 1:2])
    among_others = jax.tree.map(lambda kept: kept[:, 1:2], block.remember(clip))
    chex.assert_trees_all_close(alone, among_others, rtol=0, atol=float32_error(24 + C))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_in_parts_is_the_memory_of_the_whole(dtype):
    frame = jnp.asarray(6 * draw(B, 1, 4, 6, C), dtype)  # so that rounded logits would show
    block = make_block(dtype=jnp.dtype(dtype).name)
    own = RNG.integers(0, 3, (4, 6))
    parts = [block.remember_part(frame, jnp.asarray(own == i)) for i in range(3)]
    joined = attention.combine_partials(attention.combine_partials(parts[2], parts[0]), parts[1])
    memory = block.finish(joined, frame)
    # In bfloat16 a sum may round to either of two neighbours.
    tolerance = {"atol": 1e-5} if dtype == jnp.float32 else {"rtol": 2**-8, "atol": 1e-3}
    chex.assert_trees_all_close(memory, block.remember(frame), **tolerance)


@pytest.mark.parametrize("implementation", ["einsum", "auto"])
def test_logits_of_a_1x1_convolution_are_not_rounded(implementation):
    clip = jnp.asarray(6 * draw(B, T, 4, 6, C), jnp.bfloat16)
    rough = make_block(implementation=implementation, dtype="bfloat16")
    exact = make_block(implementation="einsum")
    for name in ("f_s", "f_p"):  # as the kernels round the weights
        kernel = getattr(rough, name).kernel
        getattr(exact, name).kernel[...] = kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    memory = exact.remember(clip.astype(jnp.float32)).squeezed
    chex.assert_trees_all_close(
        rough.remember(clip).squeezed.astype(jnp.float32), memory, rtol=2**-8, atol=1e-3
    )


@pytest.mark.parametrize("implementation", ["einsum", "auto"])
def test_gradients(implementation):
    graph, parameters = nnx.split(make_block(implementation=implementation), nnx.Param)
    clip = jnp.asarray(draw(1, T, 2, 2, C))

    @jax.jit
    def run(parameters, clip):
        return run_block(nnx.merge(graph, parameters), clip, 2)

    check_grads(run, (parameters, clip), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


@pytest.mark.parametrize("implementation", ["einsum", "auto"])
def test_huge_logits_in_bfloat16_give_no_nan(implementation):
    block = make_block(implementation=implementation, dtype="bfloat16")
    for conv in (block.f_s, block.f_p):
        conv.kernel[...] = jnp.sign(conv.kernel[...])
    clip = jnp.asarray(1e4 / C * np.sign(draw(B, T, 2, 3, C)), jnp.bfloat16)
    y, gradient = jax.jit(jax.value_and_grad(lambda clip: run_block(block, clip, 0).sum()))(clip)
    chex.assert_tree_all_finite((y, gradient))


def test_key_frames_are_those_with_the_highest_logits():
    logits = jnp.asarray([[[0.0, 3.0, 1.0, 2.0], [5.0, -9.0, 0.0, 0.0]]])
    maps = attention.temporal_maps(attention.keep_key_frames(logits, 2))
    np.testing.assert_array_equal(maps[0] > 0, [[True, True, False, False]] * 2)
    chex.assert_trees_all_close(maps.sum(-1), jnp.ones((1, 2)), rtol=0, atol=float32_error(2))


def test_key_frames_of_equal_frames_are_as_many():
    maps = attention.temporal_maps(attention.keep_key_frames(jnp.zeros((1, N, 5)), 3))
    np.testing.assert_array_equal((maps > 0).sum(-1), [[3, 3]])


def test_all_frames_as_key_frames_changes_nothing():
    logits = jnp.asarray(draw(B, N, T))
    chex.assert_trees_all_equal(attention.keep_key_frames(logits, T), logits)


def test_a_block_has_as_many_key_frames_as_configured():
    pooled = jnp.asarray(draw(B, T, C))
    for count in range(1, T + 2):
        maps = make_block(key_frames=count).temporal_maps(pooled)
        np.testing.assert_array_equal((maps > 0).any(1).sum(-1), [min(count, T)] * B)


# --- Its alternatives ---


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_nonlocal_rows_are_the_full_affinity(rows):
    queries, keys, values = draw(B, 7, C), draw(B, 9, C), draw(B, 9, 4)
    logits = np.einsum("bqc,bsc->bqs", queries, keys) / C**0.5
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = fusion.nonlocal_rows(*map(jnp.asarray, (queries, keys, values)), rows)
    chex.assert_trees_all_close(y, np.einsum("bqs,bsd->bqd", weights, values), atol=1e-5)


def test_nonlocal_refuses_what_does_not_fit():
    block = fusion.NonLocal(FstaConfig(nonlocal_bytes=2**20), 8, rngs=nnx.Rngs(0))
    assert block.rows_at_once(1, 5, 16, 16) >= block.LEAST_ROWS
    with pytest.raises(UserError, match=r"fusion='nonlocal' does not fit.*MiB"):
        block.rows_at_once(1, 5, 180, 320)


def test_conv3d_is_a_three_dimensional_convolution():
    window = jnp.asarray(draw(1, 3, 4, 6, C))
    block = fusion.Conv3d(FstaConfig(window=3), C, rngs=nnx.Rngs(0))
    kernel = jnp.moveaxis(block.layers[0].kernel[...].reshape(3, 3, 3, C, C), 2, 0)
    expected = jax.lax.conv_general_dilated(
        window,
        kernel,
        (1, 1, 1),
        [(0, 0), (1, 1), (1, 1)],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    chex.assert_trees_all_close(block.fuse(window[:, 1], window), expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 4, 5])
def test_conv3d_takes_any_window_down_to_one_frame(window):
    frames = jnp.asarray(draw(1, window, 2, 2, C))
    block = fusion.Conv3d(FstaConfig(window=window, causal=True), C, rngs=nnx.Rngs(0))
    chex.assert_shape(block.fuse(frames[:, -1], frames), (1, 2, 2, C))
