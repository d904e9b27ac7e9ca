"""Devices and processes: who takes part in a run, and how arrays are spread over the devices."""

from __future__ import annotations

import dataclasses
import os

import jax
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
        if self.num_processes is not None and self.process_id is not None:
            if self.num_processes < 1:
                raise UserError(f"--num-processes is 1 or more, not {self.num_processes}")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(f"--process-id is 0 to {self.num_processes - 1}")


def join(config: ClusterConfig) -> None:
    """Joins the other processes, if there are any; call it before anything touches a device.

    JAX finds its place by itself where SLURM, Open MPI or a Kubernetes JobSet started it.
    """
    if config.coordinator is not None:
        jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    elif _started_by_a_cluster():
        jax.distributed.initialize()


def _started_by_a_cluster() -> bool:
    sizes = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    # A shell inside a SLURM allocation has SLURM_NTASKS but no rank: it is not a task.
    ranked = "SLURM_PROCID" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ
    in_job_set = "JOBSET_NAME" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return (ranked and any(size.isdigit() and int(size) > 1 for size in sizes)) or in_job_set


def use_cores(batch_size: int) -> None:
    """Makes one CPU device a core, as far as the batch divides; no effect on GPUs.

    XLA hardly uses a second core for small convolutions; the batch over two devices is 1.4 times
    faster on two cores. Call it before anything touches a device.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if getattr(jax.config, "jax_num_cpu_devices", -1) > 0:  # set by the caller's environment or by a test
        return
    cores = len(os.sched_getaffinity(0))
    devices = max(n for n in range(1, cores + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(batch_size: int, rows: int = 1) -> Mesh:
    """All devices as a mesh with the axes ``data`` (over clips) and ``rows`` (over rows of pixels).

    Raises:
      UserError: the devices can't share the batch or the rows evenly.
    """
    devices = jax.device_count()
    if devices % rows:
        raise UserError(f"--rows={rows} does not divide the number of devices, {devices}")
    if batch_size % (devices // rows):
        raise UserError(
            f"--batch-size={batch_size} must be a multiple of {devices // rows}, "
            f"since {devices} devices{f' in rows of {rows}' if rows > 1 else ''} share it"
        )
    return jax.make_mesh(
        (devices // rows, rows), ("data", "rows"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def clips_over(mesh: Mesh) -> NamedSharding:
    """Clips ``B T H W 3``: the batch over ``data``, the rows of pixels over ``rows``."""
    return NamedSharding(mesh, PartitionSpec("data", None, "rows"))
