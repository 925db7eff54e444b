"""Where arrays live: the mesh, the placement of state and batches, several processes.

The mesh has the axes `data`, which divides batches, and `model`, which divides the
output features of wide fully connected layers. Its axes are automatic: XLA's
partitioner inserts the collectives. Everything else is replicated.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# A fully connected kernel is divided when it has at least this many elements: below,
# the exchange of activations costs more than the multiplication.
_WIDE = 1 << 20


def join_cluster(coordinator: str, processes: int, process: int) -> None:
    """Joins the other processes of a run; without a coordinator, does nothing.

    Args:
      coordinator: "host:port" of process 0, or "auto" where jax finds the cluster
        itself (Slurm, Cloud TPU, Open MPI); "" reads JAX_COORDINATOR_ADDRESS,
        JAX_NUM_PROCESSES and JAX_PROCESS_ID, and runs alone where they are not set.
      processes: Number of processes of the run.
      process: Rank of this one, from 0.

    Raises:
      ValueError: The rank is out of its range, several processes have no coordinator,
        or the cluster cannot be joined.
    """
    if not coordinator and "JAX_COORDINATOR_ADDRESS" in os.environ:
        coordinator = os.environ["JAX_COORDINATOR_ADDRESS"]
        processes = int(os.environ.get("JAX_NUM_PROCESSES", processes))
        process = int(os.environ.get("JAX_PROCESS_ID", process))
    if not coordinator and processes > 1:
        raise ValueError(
            f"`processes` is {processes}, without `coordinator`; expected host:port of "
            f"process 0, or 'auto'."
        )
    if not coordinator:
        return
    where: dict[str, Any] = {}
    if coordinator != "auto":
        if not 0 <= process < processes:
            raise ValueError(
                f"`process` is {process}; expected 0 to {processes - 1}, as the run "
                f"has {processes} processes."
            )
        where = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
    try:
        jax.distributed.initialize(**where)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Cannot join the cluster (`coordinator` is {coordinator!r}): {error}"
        ) from error


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over all devices, or these; `model` of them share wide layers.

    Raises:
      ValueError: The number of devices is no multiple of `model`.
    """
    count = jax.device_count() if devices is None else len(devices)
    if model < 1 or count % model:
        raise ValueError(
            f"`mesh.model` is {model}; expected a divisor of the {count} devices."
        )
    return jax.make_mesh(
        (count // model, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Refuses a batch that the devices and processes cannot share equally."""
    shares = mesh.shape["data"]
    if batch_size < 1 or batch_size % shares:
        raise ValueError(
            f"`{field}` is {batch_size}; expected a multiple of the {shares} devices "
            f"that divide a batch."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Placement of what every device holds whole."""
    return NamedSharding(mesh, P())


def divided(mesh: Mesh) -> NamedSharding:
    """Placement of arrays whose first axis is the batch."""
    return NamedSharding(mesh, P("data"))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Placement of a tree of parameters or of what the optimiser keeps for them."""
    parts = mesh.shape["model"]

    def place(leaf: Any) -> NamedSharding:
        wide = leaf.ndim == 2 and leaf.size >= _WIDE and leaf.shape[-1] % parts == 0
        return NamedSharding(mesh, P(None, "model") if wide and parts > 1 else P())

    return jax.tree.map(place, state)


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices, as global arrays."""
    sharding = divided(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
