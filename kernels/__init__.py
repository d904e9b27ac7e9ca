"""Softmax-squeeze and softmax-expand, the two halves of factorised spatio-temporal attention.

    softmax_squeeze(x, weights):          G[m, c] = sum_p softmax_p(x weights)[p, m] x[p, c]
    softmax_expand(x, weights, bias, g):  y[p, c] = sum_k softmax_k(x weights + bias)[p, k] g[k, c]

are eq. 1-2 and 5-6 of the attention paper, with f_s and f_p as 1x1 projections inside.

Each takes `implementation` (see `Implementation`) and `sharding` (see `Sharding`). `x` and `g` are
float32, bfloat16 or float16; sums and softmaxes are float32 and nothing is TF32; the result has
the dtype of what is summed. `project`, `squeeze_partial`, `combine_partials` and `finish_partial`
squeeze a frame in pieces.
"""

from __future__ import annotations

from kernels.operations import Implementation, Sharding, softmax_expand, softmax_squeeze
from kernels.reference import (
    Partial,
    combine_partials,
    finish_partial,
    project,
    squeeze_partial,
)

__all__ = [
    "Implementation",
    "Partial",
    "Sharding",
    "combine_partials",
    "finish_partial",
    "project",
    "softmax_expand",
    "softmax_squeeze",
    "squeeze_partial",
]
