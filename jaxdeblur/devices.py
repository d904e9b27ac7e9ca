"""Devices and processes: which take part in a run, and how arrays are spread over the devices.

Also sets what a process keeps: freed memory, which makes everything on a CPU faster, and compiled
programs, so that a command starts quickly the second time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxdeblur.console import tell
from jaxdeblur.errors import UserError, message_of
from jaxdeblur.files import cache_folder
from jaxdeblur.options import ClusterConfig
from jaxdeblur.shapes import Batch

_ALONE = ClusterConfig()

# Seconds. Processes that restore videos end hours apart, and each waits for the others before it
# exits. A dead process is detected by its missing heartbeats, after 100 s, regardless of this.
_WAIT = 7 * 24 * 3600


def join(config: ClusterConfig) -> None:
    """Joins the other processes, if there are any; call it before anything touches a device.

    JAX configures itself where SLURM, Open MPI or a Kubernetes JobSet started the process.

    Raises:
      UserError: the other processes can't be found, or no device is as ``JAX_PLATFORMS`` says.
    """
    in_job_set = "JOBSET_NAME" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if config.coordinator is None and _processes_of_the_environment() == 1 and not in_job_set:
        _check_platforms()
        return
    # The training loop saves at SIGTERM; JAX's service would swallow the signal until it runs.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            shutdown_timeout_seconds=_WAIT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot connect to the other processes ({str(error).splitlines()[0]}); set "
            "--coordinator, --num-processes and --process-id"
        ) from error
    _check_platforms()


def _check_platforms() -> None:
    if not (wanted := os.environ.get("JAX_PLATFORMS")):
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: of a missing plugin
        why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device{why}; unset it, or set it to cpu"
        ) from error


def _processes_of_the_environment() -> int:
    """Returns how many processes SLURM or Open MPI started, this one included."""
    # A shell inside a SLURM allocation has SLURM_NTASKS but no rank: it is not a task.
    for size, rank in (
        ("SLURM_NTASKS", "SLURM_PROCID"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if rank in os.environ and os.environ.get(size, "").isdigit():
            return int(os.environ[size])
    return 1


_barriers = itertools.count()


def wait_for_all(where: str) -> None:
    """Waits until every process has reached ``where``, however far behind some are.

    It uses the coordination service, since a collective on CPUs (gloo) times out after 30 s. So
    such a wait must precede the first collective.
    """
    if jax.process_count() > 1:
        import orbax.checkpoint as ocp  # takes a second; one process alone skips it

        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"{where} {next(_barriers)}", timeout_ms=1000 * _WAIT)


def check_same(number: int, what: str) -> None:
    """Checks that ``number`` is the same in all processes.

    Raises:
      UserError: in every process, if the numbers differ.
    """
    if jax.process_count() == 1:
        return
    wait_for_all(what)
    numbers = multihost_utils.process_allgather(np.int32(number))
    if len(set(numbers.tolist())) > 1:
        raise UserError(f"the processes differ in the {what}: {', '.join(map(str, numbers))}")


def largest_of_all(number: int) -> jax.Array:
    """Returns the largest of the processes' numbers, dispatched asynchronously."""
    mesh = mesh_of(jax.devices())
    mine = np.full(jax.local_device_count(), number, np.int32)
    numbers = jax.make_array_from_process_local_data(clips_over(mesh), mine)
    return jax.jit(jnp.max, out_shardings=replicated(mesh))(numbers)


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux; containers and taskset may limit it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_spare = False  # Whether the last CPU device is outside the mesh.


def use_cores(batch_size: int, config: ClusterConfig = _ALONE, *, spare: bool = False) -> None:
    """Makes one CPU device per core, as far as the batch divides evenly; no effect on GPUs.

    XLA hardly uses a second core for small convolutions; the batch over two devices is 1.4 times
    faster on two cores. Call it before anything touches a device.

    Args:
      batch_size: clips over all processes.
      config: the processes.
      spare: whether to add a device outside the mesh, for scenes that are rendered during a step,
        since a device runs programs in sequence; ignored where several processes train.
    """
    global _spare
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if getattr(jax.config, "jax_num_cpu_devices", -1) > 0:  # set by the environment or a test
        return
    clips = batch_size // (config.num_processes or _processes_of_the_environment())
    groups = [n for n in range(1, cores() + 1) if clips and clips % n == 0]
    _spare = spare and clips == batch_size
    jax.config.update("jax_num_cpu_devices", max(groups, default=1) + _spare)


def make_mesh(batch_size: int) -> Mesh:
    """Returns a mesh with the axis ``data`` over all devices but a spare one (:func:`use_cores`).

    Raises:
      UserError: the devices can't share the batch evenly.
    """
    present = jax.devices()
    if _spare and jax.default_backend() == "cpu":
        present = present[:-1]
    if batch_size % len(present):
        raise UserError(
            f"--batch-size={batch_size} must be a multiple of the {len(present)} devices that "
            "share it"
        )
    return mesh_of(present)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh of these devices with the axis ``data``, over which clips are spread."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def clips_over(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of clips ``B T H W 3``: the batch over ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batches(batches: Iterator[Batch], mesh: Mesh) -> Iterator[Batch]:
    """Yields this process's clips of each batch, uint8, spread over all devices of ``mesh``."""
    sharding = clips_over(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(sharding, batch[name])
            for name in ("blurred", "sharp")
        }


def abstract_array(array: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    """Returns an array's shape and dtype with a sharding, to restore into or compile for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def described(device: jax.Device | None = None) -> str:
    """Describes a device, by default JAX's first, for figures and messages."""
    device = device or jax.local_devices()[0]
    number = f"{cores()} cores" if cores() != 1 else "1 core"
    return f"a CPU with {number}" if device.platform == "cpu" else str(device.device_kind)


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks; call it before work begins.

    XLA allocates its buffers anew for every program. By default glibc returns each large one to the
    system, so that the kernel zeroes all pages again in every step: a fifth of a training step
    (docs/lab/performance.md). ``MALLOC_MMAP_MAX_`` in the environment disables this.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_MAX_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    # Arenas other than the main one can't hold large blocks and would still map them.
    mallopt(_M_ARENA_MAX, 1)
    global _keeps
    _keeps = True


_keeps = False  # Whether freed memory is kept.
_scarce = False


def keeps_freed_memory() -> bool:
    """Returns whether ``keep_freed_memory`` took effect."""
    return _keeps


def memory_is_scarce() -> bool:
    """Returns whether ``save_memory`` was called, or the environment says to keep none."""
    return _scarce or "MALLOC_MMAP_MAX_" in os.environ


def save_memory() -> None:
    """Undoes ``keep_freed_memory`` for the rest of the process, since memory is scarce.

    A third of what is kept lies in gaps between blocks of other sizes. Without it, frames of
    1920x1080 take a seventh to a third longer (docs/lab/performance.md).
    """
    global _keeps, _scarce
    _scarce = True
    if not _keeps:
        return
    _keeps = False
    libc = ctypes.CDLL(None)
    for parameter, usual in ((_M_MMAP_MAX, 65536), (_M_TRIM_THRESHOLD, 2**17), (_M_TOP_PAD, 2**17)):
        libc.mallopt(parameter, usual)
    libc.malloc_trim(0)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the free bytes of the system or its container."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux: half of the machine's memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # The cache of files that were read counts as free.
        free = min(free, limit - used + int(pages["inactive_file"]))
    return free


def add_threads() -> None:
    """Gives XLA two threads more than there are cores; call it before JAX looks for devices.

    Each part of blur paths that runs keeps a thread, and hands some of its work to others, for
    which it would wait. A value of ``NPROC`` in the environment is kept.
    """
    os.environ.setdefault("NPROC", str(cores() + 2))


_DAMAGED = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']+)': (.*)", re.DOTALL
)


_kept: Path | None = None  # Where programs are kept.


def kept_folder() -> Path | None:
    """Returns the folder where ``keep_compiled`` keeps programs; None before it was called."""
    return _kept


@functools.cache
def _tell_once(text: str) -> None:
    tell(text)


def keep_compiled() -> None:
    """Turns on JAX's compilation cache, unless the environment already says where it is.

    JAX warns of an entry that a full disk or a power cut left truncated, and keeps it: every start
    would compile again. Here it is removed, so that JAX writes it anew.
    """
    global _kept
    # JAX's default leaves out programs that compile within a second, of which there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if where := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        _kept = Path(where)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:  # without such a folder, every start compiles
        _tell_once(f"compiled programs cannot be kept: {message_of(error)}")
        return
    _kept = folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _replace_damaged(folder)


def _replace_damaged(folder: Path) -> None:
    """Removes the entries of ``folder`` that JAX warns of, instead of its warnings.

    If entries cannot be written, one line says so.
    """
    show, said = warnings.showwarning, list[str]()

    def remove(message: Warning | str, *rest: Any, **others: Any) -> None:
        if (found := _DAMAGED.match(str(message))) is None:
            show(message, *rest, **others)
            return
        with contextlib.suppress(OSError):
            # Entries have the name of their program, then a hash.
            for entry in folder.iterdir():
                if entry.name.startswith(f"{found[2]}-"):
                    entry.unlink(missing_ok=True)
        if found[1] == "writing" and not said:
            said.append(f"{folder}: compiled programs cannot be kept: {found[3].splitlines()[0]}")
            tell(said[0])

    warnings.showwarning = remove
    warnings.filterwarnings("always", message=_DAMAGED.pattern)  # each program, not only the first
