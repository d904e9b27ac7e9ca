"""The process keeps freed memory, and XLA has a spare thread (jaxdeblur/devices.py)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from jaxdeblur import devices
from jaxdeblur.errors import UserError
from jaxdeblur.options import ClusterConfig

# Counts the page faults of five 64 MB blocks, allocated in turn after a first one.
_SCRIPT = """
import resource, sys
import numpy as np
from jaxdeblur import devices
if sys.argv[1] == "kept":
    devices.keep_freed_memory()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


_RETURNED = """
import numpy as np, psutil
from jaxdeblur import devices
resident = lambda: psutil.Process().memory_info().rss / 2**20
devices.keep_freed_memory()
np.ones(2**25), np.ones(2**20)
assert not devices.memory_is_scarce()
held = resident()
devices.save_memory()
assert devices.memory_is_scarce()
print(held - resident())
kept = np.ones(2**25)
del kept
print(held - resident())
"""


def page_faults(how: str, **environment: str) -> int:
    # NumPy would request huge pages, with which 64 MB causes few faults.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    command = [sys.executable, "-c", _SCRIPT, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout)


@pytest.mark.stress  # starts three processes
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it speaks to glibc")
def test_blocks_are_used_again_and_not_mapped_anew() -> None:
    one_block = 2**26 // os.sysconf("SC_PAGE_SIZE")
    as_it_is, kept = page_faults("as it is"), page_faults("kept")
    assert as_it_is > 4 * one_block
    assert kept < one_block // 10
    # A user's own setting of the allocator is respected.
    assert page_faults("kept", MALLOC_MMAP_MAX_="65536") > 4 * one_block


def test_xla_has_two_threads_more_than_cores_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NPROC", "7")  # first, so that it is removed after the test
    devices.add_threads()
    assert os.environ["NPROC"] == "7"
    monkeypatch.delenv("NPROC")
    devices.add_threads()
    assert os.environ["NPROC"] == str(devices.cores() + 2)


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize\nmore"), AssertionError()])
def test_a_platform_without_a_device_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    devices.join(ClusterConfig())  # without a wish, JAX chooses
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda: JAX finds no such device") as caught:
        devices.join(ClusterConfig())
    assert ("more" in str(caught.value), "set it to cpu" in str(caught.value)) == (False, True)


def test_a_damaged_entry_of_the_cache_is_removed_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("jit_step-0a1b-cache", "jit_step-ff-cache", "jit_stepping-00-cache"):
        (tmp_path / name).touch()
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    with warnings.catch_warnings():
        devices._replace_damaged(tmp_path)
        text = "persistent compilation cache entry for 'jit_step': zlib.error: incomplete"
        warnings.warn(f"Error reading {text}", stacklevel=1)
        assert [path.name for path in tmp_path.iterdir()] == ["jit_stepping-00-cache"]
        (tmp_path / "jit_step-ff-cache").touch()
        warnings.warn(f"Error reading {text}", stacklevel=1)  # each time, not only the first
        assert len(list(tmp_path.iterdir())) == 1
        assert (shown, capsys.readouterr().err) == ([], "")
        for _ in range(2):  # a full disk
            warnings.warn(f"Error writing {text}", stacklevel=1)
        said = f"{tmp_path}: compiled programs cannot be kept: zlib.error: incomplete\n"
        assert (shown, capsys.readouterr().err) == ([], said)
        warnings.simplefilter("always")
        warnings.warn("another", stacklevel=1)
        assert shown == ["another"]


def test_without_a_place_for_the_cache_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        devices.keep_compiled()
    said = f"compiled programs cannot be kept: {tmp_path}/file/compiled: Not a directory\n"
    assert capsys.readouterr().err == said


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_where_memory_is_scarce_freed_memory_is_returned() -> None:
    command = [sys.executable, "-c", _RETURNED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # 264 MB had been kept; later blocks are returned at once.
    assert all(float(line) > 240 for line in done.stdout.split())
