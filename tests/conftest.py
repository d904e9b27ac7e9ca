"""Sets up eight virtual CPU devices, a cache and fast compilation before any device is used."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Most tests spend their time compiling small programs: without optimisation the suite takes four
# fifths as long. JAX reads this when it is imported, also in the commands that tests start. Set
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment to compile everything as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older code for fused loops compiles in three fifths of the time. jaxlib 0.12 no longer has
# it, so the newest Python tests what users run, as do several commands that tests start without it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Commands that the tests start would compile all modules again and again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import psutil
import pytest

# A fifth of the time would go into collecting garbage, among all that JAX's caches hold. So it is
# rare, and leaves out what is older than a module of tests (`_forget_programs`).
gc.set_threshold(50_000, 20, 100)
_MUCH = 2 * 2**30  # Bytes of resident memory of a worker.

# A fresh cache, shared by the workers of one test run, so that nothing depends on an older run.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
_CACHE = Path(tempfile.gettempdir()) / f"jaxdeblur-tests-{_RUN}"
os.environ["JAXDEBLUR_CACHE"] = str(_CACHE)
jax.config.update("jax_num_cpu_devices", 8)
# Many tests compile the same programs: a training step, the renderer, and thousands of single
# operations. Keeping what takes 20 ms, not only 100, saves a tenth of the time.
# JAX compiles an entry that another worker is still writing, and warns (pyproject.toml ignores
# that). XLA's own caches, for GPUs, would make the folder a part of every entry's name.
jax.config.update("jax_compilation_cache_dir", str(_CACHE / "in-process"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@pytest.fixture(autouse=True)
def _compile_as_users_do(request: pytest.FixtureRequest) -> Iterator[None]:
    """Optimises the programs of tests marked ``gpu``."""
    before = jax.config.read("jax_disable_most_optimizations")
    # By marker: keywords include the names of folders, and a folder may be called gpu.
    if request.node.get_closest_marker("gpu"):
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Frees compiled programs when a worker holds much memory; it would reach 5 GB otherwise."""
    gc.freeze()
    yield
    if psutil.Process().memory_info().rss > _MUCH:
        gc.unfreeze()
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _remove_cache() -> object:
    yield
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _remove()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Cleans up in the process that started the workers, which outlives them."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _remove()


def _remove() -> None:
    import shutil

    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked ``gpu`` where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU; JAX found none here"))
