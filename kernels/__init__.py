"""Softmax-squeeze and softmax-expand, the two halves of factorised spatio-temporal attention.

| operation | computes | source: attention, eq. |
|---|---|---|
| `softmax_squeeze(logits, x)` | G[m, c] = sum_p softmax_p(logits)[m, p] x[p, c] | 1-2 |
| `projected_squeeze(x, weights, bias)` | the same with logits = x weights + bias | 1-2 |
| `softmax_expand(logits, g)` | y[p, c] = sum_k softmax_k(logits)[p, k] g[k, c] | 5-6 |
| `projected_expand(x, weights, bias, g)` | the same with logits = x weights + bias | 5-6 |

Each takes `implementation`, see `Implementation`, and `sharding`, see `Sharding`. `x`, `g` and
the logits are float32, bfloat16 or float16; sums and softmaxes are float32 and nothing is TF32;
the result has the dtype of what is summed. All but "reference" without a sharding have
reverse-mode first derivatives only. For a frame squeezed in pieces: `project`, `squeeze_partial`,
`combine_partials`, `finish_partial`.
"""

from __future__ import annotations

from kernels.dispatch import Implementation
from kernels.operations import (
    projected_expand,
    projected_squeeze,
    softmax_expand,
    softmax_squeeze,
)
from kernels.reference import (
    Partial,
    combine_partials,
    finish_partial,
    project,
    squeeze_partial,
)
from kernels.sharding import Sharding

__all__ = [
    "Implementation",
    "Partial",
    "Sharding",
    "combine_partials",
    "finish_partial",
    "project",
    "projected_expand",
    "projected_squeeze",
    "softmax_expand",
    "softmax_squeeze",
    "squeeze_partial",
]
