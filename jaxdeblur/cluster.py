"""Devices and processes: who takes part in a run, and how arrays are spread over the devices."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdeblur.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Which processes work together; under SLURM, Open MPI or JobSet nothing need be said.

    Attributes:
      coordinator: address of process 0, as host:port.
      num_processes: how many processes take part.
      process_id: which of them this is, from 0.
      rows: over how many devices the rows of each frame are spread, for frames too large for one.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    rows: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"--rows is a number of devices, 1 or more, not {self.rows}")
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(value is not None for value in given) and None in given:
            raise UserError("--coordinator, --num-processes and --process-id go together")
        if self.coordinator is not None and not re.fullmatch(r"\S+:\d{1,5}", self.coordinator):
            raise UserError(f"--coordinator is HOST:PORT of process 0, not {self.coordinator!r}")
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise UserError(f"--num-processes is 1 or more, not {self.num_processes}")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(f"--process-id is 0 to {self.num_processes - 1}")


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
        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"{where} {next(_barriers)}", timeout_ms=1000 * _WAIT)


def check_same(number: int, what: str) -> None:
    """Raises :class:`UserError` in every process if ``number`` is not the same in all of them."""
    if jax.process_count() == 1:
        return
    wait_for_all(what)
    numbers = multihost_utils.process_allgather(np.int32(number))
    if len(set(numbers.tolist())) > 1:
        raise UserError(f"the processes differ in the {what}: {', '.join(map(str, numbers))}")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux; containers and taskset allow some alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cores(batch_size: int, config: ClusterConfig = _ALONE) -> None:
    """Makes one CPU device a core, as far as the batch divides; no effect on GPUs.

    XLA hardly uses a second core for small convolutions; the batch over two devices is 1.4 times
    faster on two cores. Call it before anything touches a device.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if getattr(jax.config, "jax_num_cpu_devices", -1) > 0:  # set by the environment or a test
        return
    clips = batch_size // (config.num_processes or _processes_of_the_environment())
    groups = [n for n in range(1, cores() // config.rows + 1) if clips and clips % n == 0]
    jax.config.update("jax_num_cpu_devices", config.rows * max(groups, default=1))


def make_mesh(batch_size: int, rows: int = 1) -> Mesh:
    """All devices as a mesh with the axes ``data`` (over clips) and ``rows`` (over rows of pixels).

    Raises:
      UserError: the devices can't share the batch or the rows evenly.
    """
    devices = jax.device_count()
    if devices % rows:
        raise UserError(f"--rows={rows} does not divide the number of devices, {devices}")
    if jax.local_device_count() % rows:  # each process reads whole clips
        raise UserError(
            f"--rows={rows} does not divide the {jax.local_device_count()} devices of each process"
        )
    if batch_size % (devices // rows):
        raise UserError(
            f"--batch-size={batch_size} must be a multiple of {devices // rows}, "
            f"since {devices} devices{f' in rows of {rows}' if rows > 1 else ''} share it"
        )
    return jax.make_mesh(
        (devices // rows, rows), ("data", "rows"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def row_devices(rows: int) -> list[jax.Device]:
    """The devices of this process over which restoration shares out the rows of a frame."""
    devices = jax.local_devices()
    if len(devices) < rows:
        raise UserError(f"--rows={rows}: this process has {len(devices)} device(s)")
    return devices[:rows]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def clips_over(mesh: Mesh) -> NamedSharding:
    """Clips ``B T H W 3``: the batch over ``data``, the rows of pixels over ``rows``."""
    return NamedSharding(mesh, PartitionSpec("data", None, "rows"))
