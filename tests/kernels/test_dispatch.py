"""The named implementation runs: the choice, its log line, refusals and the lowered program."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import kernels
from kernels import operations

MOSAIC = "custom_call @mosaic_gpu"
X = jax.ShapeDtypeStruct((1, 2, 300, 24), jnp.bfloat16)
WEIGHTS = jax.ShapeDtypeStruct((24, 5), jnp.float32)
BIAS = jax.ShapeDtypeStruct((5,), jnp.float32)
PIXELS = jax.ShapeDtypeStruct((2, 300, 24), jnp.bfloat16)
G = jax.ShapeDtypeStruct((2, 5, 24), jnp.bfloat16)
OPERATIONS = {
    "softmax_squeeze": (X, WEIGHTS),
    "softmax_expand": (PIXELS, WEIGHTS, BIAS, G),
}
GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB")
OTHERS = ("NVIDIA A100-SXM4-40GB", "NVIDIA L4", "NVIDIA B200", "NVIDIA GeForce RTX 4090")


def lowered(
    name: str, implementation: str, platform: str, device: str = "NVIDIA H200", *, grad: bool = True
) -> str:
    arguments = OPERATIONS[name]
    function = partial(getattr(kernels, name), implementation=implementation)
    if grad:
        function = jax.grad(
            lambda *a: jnp.sum(getattr(kernels, name)(*a, implementation=implementation) ** 2),
            tuple(range(len(arguments))),
        )
    gpu = AbstractDevice(device_kind=device, num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    operations._say_once.cache_clear()
    jax.clear_caches()
    caplog.set_level(logging.INFO, "kernels")
    return caplog


@pytest.mark.parametrize("name", OPERATIONS)
def test_auto_is_the_kernels_on_hopper_and_the_einsum_elsewhere(name: str) -> None:
    for implementation in ("auto", "mosaic"):
        assert lowered(name, implementation, "cuda", grad=False).count(MOSAIC) == 1
        assert lowered(name, implementation, "cuda").count(MOSAIC) == 2
    # A program for the CPU of a machine with such a GPU.
    on_cpu = lowered(name, "auto", "cpu")
    assert MOSAIC not in on_cpu
    assert "dot_general" in on_cpu
    assert MOSAIC not in lowered(name, "einsum", "cuda")


@pytest.mark.parametrize("device", GPUS + OTHERS)
def test_only_hopper_runs_the_kernels(device: str) -> None:
    """wgmma exists only there; see tests/kernels/test_compile.py."""
    program = lowered("softmax_expand", "auto", "cuda", device, grad=False)
    assert (MOSAIC in program) is (device in GPUS)
    if device in OTHERS:
        with pytest.raises(NotImplementedError, match=f"{device} is not a Hopper GPU"):
            lowered("softmax_expand", "mosaic", "cuda", device, grad=False)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_map_is_written(name: str) -> None:
    """The program has no array of the maps' size, padded or not, in any layout."""
    text = lowered(name, "mosaic", "cuda")
    assert not any(size in text for size in ("x5x300x", "x300x5x", "x16x300x", "x300x16x"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_cpu_is_refused(name: str) -> None:
    arguments = [jnp.zeros(a.shape, a.dtype) for a in OPERATIONS[name]]
    with pytest.raises(NotImplementedError, match="not a Hopper GPU; use 'auto' or 'einsum'"):
        getattr(kernels, name)(*arguments, implementation="mosaic")


@pytest.mark.parametrize(
    ("maps", "channels", "dtype", "named"),
    [
        (129, 16, "bfloat16", "144 and 64"),
        (65, 64, "float16", "4096"),
        (16, 65, "float32", "64 ch"),
    ],
)
def test_a_limit_is_named_and_auto_takes_the_einsum_beyond_it(
    maps: int,
    channels: int,
    dtype: str,
    named: str,
    said: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "_target", lambda: ("NVIDIA H200", True))
    x, weights = jnp.zeros((1, 1, 3, channels), dtype), jnp.zeros((channels, maps))
    with pytest.raises(ValueError, match=f"support up to.*{named}"):
        kernels.softmax_squeeze(x, weights, implementation="mosaic")
    assert kernels.softmax_squeeze(x, weights).shape == (1, 1, maps, channels)
    assert "uses the einsum: the kernels support up to" in said.text


def test_a_limit_counts_the_wider_of_what_goes_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_target", lambda: ("NVIDIA H200", True))
    for depth, channels in ((65, 4), (4, 65)):
        arguments = jnp.zeros((1, 3, depth)), jnp.zeros((depth, 2)), jnp.zeros(2)
        with pytest.raises(ValueError, match="64 channels"):
            kernels.softmax_expand(*arguments, jnp.ones((1, 2, channels)), implementation="mosaic")


def test_the_choice_is_logged_once(said: pytest.LogCaptureFixture) -> None:
    for name in OPERATIONS:
        lowered(name, "auto", "cuda", "NVIDIA L4", grad=False)
        lowered(name, "auto", "cuda", grad=False)
        kernels.softmax_squeeze(jnp.ones((1, 1, 3, 4)), jnp.ones((4, 2)))
    assert sorted(record.message for record in said.records) == [
        "implementation='auto' uses the Mosaic kernels on NVIDIA H200",
        "implementation='auto' uses the einsum: NVIDIA L4 is not a Hopper GPU",
        "implementation='auto' uses the einsum: cpu is not a Hopper GPU",
    ]


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_target", lambda: ("NVIDIA H200", True))
    # The tests' type checker would stop these calls first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for implementation in get_args(kernels.Implementation):
        with pytest.raises((TypeError, ValueError), match=r"Incompatible shapes|Size of label"):
            kernels.softmax_squeeze(
                jnp.ones((1, 2, 30, 3)), jnp.ones((4, 5)), implementation=implementation
            )
    unknown: Any = "fast"
    with pytest.raises(ValueError, match="fast"):
        kernels.softmax_squeeze(jnp.ones((1, 2, 3, 4)), jnp.ones((4, 5)), implementation=unknown)


def test_nothing_deprecated_is_used() -> None:
    jax.clear_caches()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for name in OPERATIONS:
            lowered(name, "mosaic", "cuda")
    assert [str(w.message) for w in seen if "deprecat" in str(w.message).lower()] == []
