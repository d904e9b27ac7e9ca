"""Traces kept from start to start: made once, the same results, and never one that is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdeblur import devices, models
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.restoration import placement, traces
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.stream import Stream

BASE = StrcnnConfig(width=4, blocks=1, head_width=0, residual=True)
# Frames too small for a tile, so that the parts compile quickly.
MODEL = models.build(PathsConfig(base=BASE, duty=0.7, light="stored", stabilised="no"))
VIDEO = np.random.default_rng(0).integers(0, 256, (4, 22, 34, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "_kept", tmp_path)
    return tmp_path / "traces"


def start() -> np.ndarray:
    """Restores as a new process would, which knows nothing of the traces read before."""
    traces._traces_in.cache_clear()
    placement.program.cache_clear()
    return Deblurrer(MODEL, tile="none")(VIDEO)


def test_a_second_start_traces_no_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(MODEL, *VIDEO.shape[1:3])
    alone = np.stack([np.asarray(planes[0]) for planes in stream.restore(VIDEO)])
    np.testing.assert_array_equal(start(), alone)
    (file,) = folder.iterdir()
    written = file.read_bytes()

    def traced(*_: object) -> None:
        raise AssertionError("a part is traced again")

    with monkeypatch.context() as patched:
        patched.setattr(placement, "_step", traced)
        np.testing.assert_array_equal(start(), alone)
    assert file.read_bytes() == written

    file.write_bytes(written[: len(written) // 2])  # damaged by a full disk
    np.testing.assert_array_equal(start(), alone)
    assert len(file.read_bytes()) == len(written)

    Deblurrer(MODEL, tile="none").compile(22, 38)
    (other,) = set(folder.iterdir()) - {file}
    shutil.copy(other, file)  # another program's
    np.testing.assert_array_equal(start(), alone)
    with monkeypatch.context() as patched:
        patched.setattr(placement, "_step", traced)
        np.testing.assert_array_equal(start(), alone)


def test_whatever_changes_a_trace_has_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = jax.devices()[0]
    one = traces.traces_of(MODEL, device, 22, 34)
    assert one == traces.traces_of(MODEL, device, 22, 34)
    leaky = models.build(
        PathsConfig(base=StrcnnConfig(width=4, blocks=1, head_width=0, residual=True, leak=0.1))
    )
    others = [
        traces.traces_of(MODEL, device, 22, 36),
        traces.traces_of(MODEL.with_options(light="linear"), device, 22, 34),
        # The same config and shapes, but another network.
        traces.traces_of(PathRestorer(MODEL.config, leaky.base), device, 22, 34),
    ]
    monkeypatch.setattr(traces, "_digest_of_sources", lambda: "edited")
    others.append(traces.traces_of(MODEL, device, 22, 34))
    assert len({one, *others}) == 5


def test_no_trace_is_kept_of_a_class_whose_source_is_unknown(folder: Path) -> None:
    class Own(type(MODEL.base)):  # type: ignore[misc]
        pass

    own = PathRestorer(PathsConfig(), Own(BASE, rngs=models.registry.nnx.Rngs(0)))
    assert traces.traces_of(own, jax.devices()[0]) is None
    assert traces.traces_of(MODEL.base, jax.devices()[0]) is None, "one part is traced quickly"


def test_nothing_is_kept_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_kept", None)
    assert traces.traces_of(MODEL, jax.devices()[0]) is None


def test_old_traces_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_MOST", 2)
    for name in "abc":
        traces.Traces(folder / f"{name}.zip").write()
    assert len(list(folder.iterdir())) == 2
    assert (folder / "c.zip").exists()
