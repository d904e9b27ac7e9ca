"""Devices and processes: who takes part in a run, and how arrays are spread over the devices.

And what a process keeps: freed memory, which makes everything on a CPU faster, and compiled
programs, so that a second start of a command is quick.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder
from jaxdeblur.options import ClusterConfig
from jaxdeblur.shapes import Batch

_ALONE = ClusterConfig()

# Seconds. Processes that restore videos end hours apart, and each waits for the others before it
# leaves. One that has died is found out by its missing heartbeats, after 100 s, whatever this says.
_WAIT = 7 * 24 * 3600


def join(config: ClusterConfig) -> None:
    """Joins the other processes, if there are any; call it before anything touches a device.

    JAX finds its place by itself where SLURM, Open MPI or a Kubernetes JobSet started it.

    Raises:
      UserError: the others can't be found.
    """
    if config.coordinator is None and not _started_by_a_cluster():
        return
    # The loop saves at SIGTERM itself; JAX's service would swallow the signal until the loop runs.
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
            f"the other processes can't be joined ({str(error).splitlines()[0]}); say where they "
            "are by --coordinator, --num-processes and --process-id"
        ) from error


def _started_by_a_cluster() -> bool:
    return _processes_of_the_environment() > 1 or (
        "JOBSET_NAME" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    )


def _processes_of_the_environment() -> int:
    """How many processes SLURM or Open MPI started together with this one."""
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
    """Waits until every process has come to ``where``, however far behind some are.

    By way of the service that introduced them: a collective on CPUs (gloo) gives up after 30 s, so
    one of these comes before the first collective.
    """
    if jax.process_count() > 1:
        import orbax.checkpoint as ocp  # a second that one process alone need not wait

        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"{where} {next(_barriers)}", timeout_ms=1000 * _WAIT)


def check_same(number: int, what: str) -> None:
    """Compares ``number`` over all processes.

    Raises:
      UserError: in every process, if it is not the same in all of them.
    """
    if jax.process_count() == 1:
        return
    wait_for_all(what)
    numbers = multihost_utils.process_allgather(np.int32(number))
    if len(set(numbers.tolist())) > 1:
        raise UserError(f"the processes differ in the {what}: {', '.join(map(str, numbers))}")


def largest_of_all(number: int) -> jax.Array:
    """The largest of the processes' numbers; not waited for, like every other computation."""
    mesh = mesh_of(jax.devices())
    mine = np.full(jax.local_device_count(), number, np.int32)
    numbers = jax.make_array_from_process_local_data(clips_over(mesh), mine)
    return jax.jit(jnp.max, out_shardings=replicated(mesh))(numbers)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux; containers and taskset allow some alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_spare = False  # Whether the last CPU device is in no mesh.


def use_cores(batch_size: int, config: ClusterConfig = _ALONE, *, spare: bool = False) -> None:
    """Makes one CPU device a core, as far as the batch divides; no effect on GPUs.

    XLA hardly uses a second core for small convolutions; the batch over two devices is 1.4 times
    faster on two cores. Call it before anything touches a device.

    Args:
      batch_size: clips over all processes.
      config: the processes.
      spare: one device more, in no mesh, for scenes that are rendered during a step: a device runs
        one program after another. Not where several processes train.
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
    """All devices but a spare one (:func:`use_cores`) as a mesh with the axis ``data``.

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
    """These devices as a mesh with the axis ``data``, over which clips are spread."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def clips_over(mesh: Mesh) -> NamedSharding:
    """Clips ``B T H W 3``: the batch over ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batches(batches: Iterator[Batch], mesh: Mesh) -> Iterator[Batch]:
    """This process's clips of each batch, uint8, as arrays spread over all devices of ``mesh``."""
    sharding = clips_over(mesh)
    for batch in batches:
        yield {
            name: jax.make_array_from_process_local_data(sharding, batch[name])
            for name in ("blurred", "sharp")
        }


def abstract_array(array: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    """An array's shape and type, placed: what is restored into."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


# Parameters of mallopt(3), from malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def described(device: jax.Device | None = None) -> str:
    """A device in words, JAX's first by default: what figures and messages name."""
    device = device or jax.local_devices()[0]
    number = f"{cores()} cores" if cores() != 1 else "1 core"
    return f"a CPU with {number}" if device.platform == "cpu" else str(device.device_kind)


def free_in_container(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes below a container's limit; what it keeps of files that were read counts as free.

    Raises:
      OSError, ValueError: this is no container, or one without a limit.
    """
    limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
    stats = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return limit - used + int(stats["inactive_file"])


def keep_freed_memory() -> None:
    """Tells glibc not to give large freed blocks back to the system; call it before work begins.

    XLA allocates its buffers anew for every program. By default glibc maps each large one from the
    system and returns it after use, so the kernel zeroes every page of every step again: a fifth of
    a training step (docs/lab/performance.md). The process then holds the most memory that it takes
    to its end. ``MALLOC_MMAP_MAX_`` in the environment speaks against it.
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
    # Other arenas than the main one can't hold large blocks and would map them all the same.
    mallopt(_M_ARENA_MAX, 1)


def add_thread() -> None:
    """Gives XLA a thread more than there are cores; call it before JAX looks for devices.

    The convolutions of a base keep a thread for each core busy. Blur paths, which run beside it
    (restoration/stream.py), hand some of their work to the same threads, and would wait for them.
    ``NPROC`` in the environment, where XLA reads the number, stays as it is.
    """
    os.environ.setdefault("NPROC", str(cores() + 1))


def keep_compiled() -> None:
    """Turns JAX's compilation cache on, unless the environment already says where it is.

    Without a place for it, as where there is no home folder, every start compiles.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(UserError):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
