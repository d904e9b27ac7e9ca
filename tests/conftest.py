"""Set before anything touches a device: eight virtual CPU devices, a cache, quick compilation."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Most tests spend their time compiling small programs: without optimisation the suite takes four
# fifths of the time. JAX reads this when it is imported, also in the commands that tests start;
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment compiles everything as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older code for fused loops compiles in three fifths of the time. jaxlib 0.12 has it no more,
# so the newest Python tests what users run; commands that tests start do without it everywhere.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import psutil
import pytest

_MUCH = 2 * 2**30  # Bytes that a worker holds.

# A fresh cache, shared by the workers of one test run, so that nothing depends on an older run.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
_CACHE = Path(tempfile.gettempdir()) / f"jaxdeblur-tests-{_RUN}"
os.environ["JAXDEBLUR_CACHE"] = str(_CACHE)
jax.config.update("jax_num_cpu_devices", 8)
# Many tests compile the same programs: a training step, the renderer. A folder each, since one
# worker may read what another is still writing.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
jax.config.update("jax_compilation_cache_dir", str(_CACHE / f"compiled-{_WORKER}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.01)


@pytest.fixture(autouse=True)
def _compile_as_users_do(request: pytest.FixtureRequest) -> Iterator[None]:
    """Optimises the programs of tests marked ``gpu``."""
    before = jax.config.read("jax_disable_most_optimizations")
    # By marker: the keywords have the folders' names too, and one may be called gpu.
    if request.node.get_closest_marker("gpu"):
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Frees what tests compiled once it is much: a worker would end with 5 GB otherwise."""
    yield
    if psutil.Process().memory_info().rss > _MUCH:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _remove_cache() -> object:
    yield
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _remove()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The process that started the workers outlives them and cleans up."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _remove()


def _remove() -> None:
    import shutil

    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped with the reason where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU; JAX found none here"))
