"""What features of VGG19 add to a loss: STFAN's, with the user's file of weights.

Source: Zhou et al. (ICCV 2019), section 3.4, and sczhou/STFAN (losses/multiscaleloss.py,
models/VGG19.py), MIT: the mean squared errors of conv1_2, conv2_2 and conv3_3 of a VGG19 (Simonyan
and Zisserman 2015) trained on ImageNet, before their ReLU. Its weights do not ship with jaxdeblur.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import conv2d
from jaxdeblur.models.restorer import check_shape
from jaxdeblur.shapes import ReducedClip
from jaxdeblur.weights.reference_files import read_arrays

BLOCKS = ((0, 2), (5, 7), (10, 12, 14))
"""The convolutions up to conv3_3, by their places in torchvision's ``features``."""

BLOCK_WEIGHTS = (1.0, 0.2, 0.04)
SHARE = 0.01
"""Of the sum of the blocks' errors in the loss."""


def perceptual_error(restored: ReducedClip, sharp: ReducedClip, weights: str) -> Float[Array, ""]:
    """``SHARE`` times the weighted sum of the features' mean squared errors.

    Args:
      restored, sharp: clips in [0, 1]; VGG19 sees them as BGR in [-1, 1], as STFAN's code shows.
      weights: a file with torchvision's names, ``features.0.weight`` to ``features.14.bias``.

    Raises:
      UserError: the file can't be read, or holds no such weights.
    """
    check_shape(restored, sharp.shape, "the network")
    both = jnp.concatenate([restored, sharp]).reshape(-1, *restored.shape[2:])
    x, total = both[..., ::-1] * 2 - 1, jnp.float32(0)
    for block, share in zip(_read(weights), BLOCK_WEIGHTS, strict=True):
        for i, (kernel, bias) in enumerate(block):
            x = conv2d(jax.nn.relu(x) if i else x, jnp.asarray(kernel)) + bias
        ours, theirs = jnp.split(x, 2)
        total += share * jnp.mean((ours - lax.stop_gradient(theirs)) ** 2)
        x = lax.reduce_window(
            jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
    return SHARE * total


@functools.cache
def _read(path: str) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Kernels ``kh kw C_in C_out`` and biases, block by block."""
    arrays = read_arrays(Path(path))
    try:
        return [
            [
                (
                    arrays[f"features.{i}.weight"].astype(np.float32).transpose(2, 3, 1, 0),
                    arrays[f"features.{i}.bias"].astype(np.float32),
                )
                for i in block
            ]
            for block in BLOCKS
        ]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"--vgg19={path}: no weights of VGG19 by torchvision's names ({error})"
        ) from None
