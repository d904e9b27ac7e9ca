"""What runs is what was named: the choice, its log line, its refusals, and the lowered program."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import kernels
from kernels import dispatch, measured, operations

TRITON = "__gpu$xla.gpu.triton"
MOSAIC = "custom_call @mosaic_gpu"
LOGITS = jax.ShapeDtypeStruct((1, 2, 4, 300), jnp.bfloat16)
X = jax.ShapeDtypeStruct((1, 2, 300, 16), jnp.bfloat16)
WEIGHTS = jax.ShapeDtypeStruct((16, 4), jnp.float32)
BIAS = jax.ShapeDtypeStruct((4,), jnp.float32)
PIXEL_LOGITS = jax.ShapeDtypeStruct((2, 300, 4), jnp.bfloat16)
PIXELS = jax.ShapeDtypeStruct((2, 300, 16), jnp.bfloat16)
G = jax.ShapeDtypeStruct((2, 4, 16), jnp.bfloat16)
# Each operation with its arguments, and the kernels it runs forward and backward.
OPERATIONS = {
    "softmax_squeeze": ((LOGITS, X), 2, 1),
    "projected_squeeze": ((X, WEIGHTS, BIAS), 2, 1),
    "softmax_expand": ((PIXEL_LOGITS, G), 1, 1),
    "projected_expand": ((PIXELS, WEIGHTS, BIAS, G), 1, 1),
}


def zeros(*shapes: jax.ShapeDtypeStruct) -> list[jax.Array]:
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]


def lowered(name: str, implementation: str, platform: str, *, backward: bool = False) -> str:
    arguments = OPERATIONS[name][0]
    function = partial(getattr(kernels, name), implementation=implementation)
    if backward:
        function = jax.grad(
            lambda *a: jnp.sum(getattr(kernels, name)(*a, implementation=implementation) ** 2),
            tuple(range(len(arguments))),
        )
    gpu = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", OPERATIONS)
def test_auto_is_the_kernels_on_cuda_and_the_einsum_on_a_cpu(name: str) -> None:
    _, forward, backward = OPERATIONS[name]
    for implementation in ("auto", "triton"):
        assert lowered(name, implementation, "cuda").count(TRITON) == forward
        whole = lowered(name, implementation, "cuda", backward=True)
        assert whole.count(TRITON) == forward + backward
    assert lowered(name, "mosaic", "cuda").count(MOSAIC) == 1
    whole = lowered(name, "mosaic", "cuda", backward=True)
    assert whole.count(MOSAIC) == 2
    assert TRITON not in whole
    on_cpu = lowered(name, "auto", "cpu", backward=True)
    assert TRITON not in on_cpu
    assert "dot_general" in on_cpu
    assert TRITON not in lowered(name, "reference", "cuda", backward=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_map_is_written(name: str) -> None:
    """No array of the maps' size, in any layout, but the logits that came as an argument."""
    maps = ("x4x300x", "x300x4x") if name.startswith("projected") else ("4x300xf32", "300x4xf32")
    assert not any(size in lowered(name, "triton", "cuda", backward=True) for size in maps)


@pytest.mark.parametrize("implementation", ["triton", "mosaic"])
def test_a_cpu_is_refused(implementation: str) -> None:
    x = jnp.ones((1, 2, 30, 4))
    with pytest.raises(NotImplementedError, match="compiled for cpu"):
        kernels.softmax_squeeze(jnp.ones((1, 2, 3, 30)), x, implementation=implementation)


@pytest.mark.parametrize(
    ("maps", "channels", "dtype", "largest"),
    [(257, 16, "bfloat16", 256), (130, 128, "float16", 16384), (64, 129, "float32", 128)],
)
def test_a_limit_is_named_and_auto_takes_the_einsum_beyond_it(
    maps: int, channels: int, dtype: str, largest: int, caplog: pytest.LogCaptureFixture
) -> None:
    logits = jnp.zeros((1, 3, maps), dtype)
    g = jnp.ones((1, maps, channels), dtype)
    for implementation in ("triton", "triton_interpret"):
        with pytest.raises(ValueError, match=f"{largest}.*{dtype}"):
            kernels.softmax_expand(logits, g, implementation=implementation)
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "kernels"):
        assert kernels.softmax_expand(logits, g).shape == (1, 3, channels)
    assert "takes the einsum, because the kernels take up to" in caplog.text


def test_a_limit_counts_the_wider_of_what_goes_in_and_out() -> None:
    for depth, channels in ((129, 4), (4, 129)):
        x, weights = jnp.zeros((1, 3, depth)), jnp.zeros((depth, 2))
        with pytest.raises(ValueError, match="128 channels"):
            kernels.projected_expand(
                x,
                weights,
                jnp.zeros(2),
                jnp.ones((1, 2, channels)),
                implementation="triton_interpret",
            )


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "kernels"):
        for name in OPERATIONS:
            lowered(name, "auto", "cpu")
            lowered(name, "auto", "cuda")
    assert sorted(record.message for record in caplog.records) == [
        "implementation='auto' on cpu takes the einsum",
        "implementation='auto' on cuda takes the Triton kernels, not measured",
    ]


def test_what_does_not_fit_is_refused() -> None:
    """Also where no type checker stands before the public functions, as it does in the tests."""
    check = partial(operations._check, operations._SOFTMAX_SQUEEZE)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 30\), \(1, 2, 31, 4\) do not fit 'btmp,btpc"):
        check((jnp.ones((1, 2, 3, 30)), jnp.ones((1, 2, 31, 4))))
    with pytest.raises(ValueError, match="do not fit"):
        check((jnp.ones((1, 2, 3, 0)), jnp.ones((1, 2, 0, 4))))
    with pytest.raises(TypeError, match="int32 where float32, bfloat16 or float16"):
        check((jnp.ones((1, 2, 3, 4), int), jnp.ones((1, 2, 4, 4))))
    with pytest.raises((TypeError, ValueError), match="fast"):
        dispatch.run("fast", "softmax_expand", abs, [jnp.ones(1)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("capability", "old"), [("7.5", True), ("8.0", False), ("9.0", False)])
def test_only_old_gpus_are_refused(
    capability: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong way round "auto" would never run a kernel where one could."""
    gpu = SimpleNamespace(compute_capability=capability, device_kind="a GPU")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    choice, why = dispatch._choose("softmax_expand", False, zeros(PIXEL_LOGITS, G))
    assert (choice == "reference") is old
    assert why == ("because sm_75 is older than sm_80" if old else "not measured")


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a JAX that has removed it, as it says it will."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    jax.clear_caches()
    dispatch._say_once.cache_clear()


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize("name", OPERATIONS)
def test_without_triton_mosaic_runs(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kernels"):
        assert lowered(name, "auto", "cuda", backward=True).count(MOSAIC) == 2
        assert "dot_general" in lowered(name, "auto", "cpu")
    assert "on cuda takes the Mosaic kernels, not measured" in caplog.text


@pytest.mark.usefixtures("no_triton")
def test_without_triton_other_gpus_take_the_einsum(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_generation", lambda: 80)
    with caplog.at_level(logging.INFO, "kernels"):
        text = lowered("softmax_expand", "auto", "cuda")
    assert MOSAIC not in text
    assert TRITON not in text
    assert "takes the einsum, because JAX" in caplog.text
    assert "has no jax.experimental.pallas.triton" in caplog.text


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize("implementation", ["triton", "triton_interpret"])
def test_without_triton_its_name_says_what_to_install(implementation: str) -> None:
    with pytest.raises(ImportError, match=r"pip install 'jax>=0\.10\.2,<0\.13'"):
        kernels.softmax_expand(
            jnp.ones((1, 3, 2)), jnp.ones((1, 2, 4)), implementation=implementation
        )


def test_mosaic_refuses_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_generation", lambda: 80)
    with pytest.raises(NotImplementedError, match="compiled for sm_80"):
        lowered("softmax_expand", "mosaic", "cuda")


def test_what_was_measured_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By GPU, operation, direction, dtype and the nearest size."""
    row = {"generation": 90, "operation": "softmax_expand", "backward": False}
    row |= {"dtype": "bfloat16", "channels": 16, "maps": 4}
    few = {"pixels": 500, "milliseconds": {"triton": 3.0, "mosaic": 2.0, "reference": 1.0}}
    many = {"pixels": 10**6, "milliseconds": {"triton": 3.0, "mosaic": 2.0, "reference": 9.0}}
    table = tmp_path / "measured.json"
    table.write_text(json.dumps([row | few, row | many]), encoding="utf-8")
    monkeypatch.setattr(measured, "TABLE", table)
    measured._rows.cache_clear()
    dispatch._say_once.cache_clear()
    try:
        monkeypatch.setattr(dispatch, "_generation", lambda: 90)
        large = zeros(jax.ShapeDtypeStruct((2, 10**5, 4), jnp.bfloat16), G)
        assert dispatch._choose("softmax_expand", False, large) == ("mosaic", "measured")
        with caplog.at_level(logging.INFO, "kernels"):
            assert TRITON not in lowered("softmax_expand", "auto", "cuda")
        assert "on cuda takes the einsum, measured" in caplog.text
        assert dispatch._choose("softmax_expand", True, large) == ("triton", "not measured")
        monkeypatch.setattr(dispatch, "_generation", lambda: 80)
        assert dispatch._choose("softmax_expand", False, large) == ("triton", "not measured")
    finally:
        measured._rows.cache_clear()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_size_of_a_call(name: str) -> None:
    pixels = {"dtype": "bfloat16", "pixels": 600, "channels": 16, "maps": 4}
    assert measured.size_of(name, zeros(*OPERATIONS[name][0])) == pixels
