"""Trains a network: `python -m train.main --config=train/configs/FILE.py[:ARG]`."""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

from absl import flags

from train import cli
from train.task import Task

_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0 of a run of several, or 'auto'."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes of the run.")
_PROCESS = flags.DEFINE_integer("process", 0, "Rank of this process.")


def main(arguments: list[str], task: Task) -> None:
    """Trains the configured network in the work folder."""
    if arguments:
        raise ValueError(f"Unexpected arguments: {' '.join(arguments)}")
    # The cluster must be joined before anything asks jax for its devices.
    from train import sharding

    sharding.join_cluster(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)

    from train import loop

    loop.train(cli.config(), cli.workdir(), task)


if __name__ == "__main__":
    cli.run(main)
