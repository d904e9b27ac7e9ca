"""Dynamic temporal blending: eq. 2 and 3 of the paper on STRCNN+DTB.

Source: "Online Video Deblurring via Dynamic Temporal Blending Network" (Kim, Lee, Schoelkopf,
Hirsch, ICCV 2017), section 4.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdeblur.models.layers import Conv
from jaxdeblur.shapes import Features


class TemporalBlending(nnx.Module):
    """Mixes the current features with the blended features of the previous frame, per pixel.

    Eq. 3 as printed is circular: B acts on the blended features that it helps to compute. We read
    h_n there, as every re-implementation does. A and B are one 5x5 convolution of both maps,
    concatenated, without bias, so that w = beta exactly where the two responses cancel.

    Args:
      width: channels of the features.
      kernel: size of A and B.
      beta: initial beta, above 0 and below 1.
      distance: whether to initialise B as -A.
      dtype: of the computation.
      rngs: what the kernels are drawn from.
    """

    def __init__(
        self,
        width: int,
        *,
        kernel: int = 5,
        beta: float = 0.5,
        distance: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.compare = Conv(2 * width, width, kernel, gain=0.5, bias=None, dtype=dtype, rngs=rngs)
        if distance:  # B = -A, so that equal maps get w = beta
            a = self.compare.kernel[...][:, :, :width]
            self.compare.kernel[...] = jnp.concatenate([a, -a], axis=2)
        # Stored as an unbounded logit, so that training can't leave 0 <= beta <= 1.
        self.beta_logit = nnx.Param(jnp.log(jnp.float32(beta)) - jnp.log1p(jnp.float32(-beta)))

    @property
    def beta(self) -> jax.Array:
        """The smallest weight of the current frame, 0 to 1."""
        return jax.nn.sigmoid(self.beta_logit[...])

    def weights(self, blended: Features, current: Features) -> Features:
        """Returns w_n, the weight of the current frame, beta to 1."""
        # Eq. 3: w_n = min(1, |tanh(A h~_{n-1} + B h_n)| + beta)
        response = self.compare(jnp.concatenate([blended, current], axis=-1))
        # Broadcast in float32, like a convolution's bias (``add_bias``).
        beta = jnp.broadcast_to(self.beta, response.shape).astype(response.dtype)
        return jnp.minimum(1.0, jnp.abs(jnp.tanh(response)) + beta)

    def __call__(
        self, blended: Features, current: Features, first: jax.Array
    ) -> tuple[Features, Features]:
        """Returns h~_n and w_n from h~_{n-1} and h_n; where ``first`` is true, w_n = 1."""
        w = jnp.where(first, jnp.ones((), current.dtype), self.weights(blended, current))
        # Eq. 2: h~_n = w_n * h_n + (1 - w_n) * h~_{n-1}
        return w * current + (1 - w) * blended, w
