"""The attention network runs the Pallas kernels on a GPU, as its lowered program shows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxdeblur import models
from jaxdeblur.models.fsta_config import FSTA_SMALL
from jaxdeblur.models.parameters import split
from jaxdeblur.shapes import Parameters

MOSAIC = "custom_call @mosaic_gpu"


def lowered(implementation: str, platform: str, *, train: bool) -> str:
    network = dataclasses.replace(FSTA_SMALL, window=3, implementation=implementation)
    rebuild, parameters = split(models.build(network))
    clip = jnp.zeros((1, 3, 16, 16, 3))

    def loss(parameters: Parameters) -> jax.Array:
        return jnp.mean(rebuild(parameters).restore_clip(clip) ** 2)

    function = jax.grad(loss) if train else loss
    gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        return jax.jit(function).trace(parameters).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.stress
@pytest.mark.parametrize("train", [False, True])
def test_the_network_calls_the_kernels_on_cuda(train: bool) -> None:
    blocks = len(FSTA_SMALL.attention_levels)
    # A squeeze and an expand in each block, plus their gradients in training.
    least = blocks * (4 if train else 2)
    for implementation in ("auto", "mosaic"):
        assert lowered(implementation, "cuda", train=train).count(MOSAIC) >= least
    assert MOSAIC not in lowered("einsum", "cuda", train=train)
    assert MOSAIC not in lowered("auto", "cpu", train=train)
