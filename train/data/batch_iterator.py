"""Reads the batches of a source in order and ahead of their use, by grain.

Threads of the process read, or processes of their own, which are started with the first
batch. Those ignore Ctrl-C and SIGTERM, which are for the run alone to heed, and end
when it closes them, or dies.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import logging as absl_logging

Arrays = dict[str, np.ndarray]


class BatchIterator(Iterator[Arrays]):
    """Iterates over a source whose elements are batches.

    The state is the number of the next batch, whoever reads it: an iterator goes on
    where another one stood that had more workers, or fewer.

    Args:
      source: Any batch by its number.
      workers: Processes that read; 0: threads of this one.
    """

    def __init__(self, source: grain.sources.RandomAccessDataSource, workers: int):
        self._source, self._workers = source, workers
        self._next = 0
        self._reading: Any = None

    def __next__(self) -> Arrays:
        """Returns the next batch.

        Raises:
          OSError: A worker died.
          Exception: What the source raises.
        """
        if self._reading is None:
            self._reading = self._start()
        try:
            batch = next(self._reading)
        except RuntimeError as error:
            if not self._workers:
                raise
            raise OSError(
                f"A process that reads images failed (`data.workers` is "
                f"{self._workers}). {error}"
            ) from error
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the place, as JSON can hold it."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a place that `get_state` returned."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """Ends the workers; the next batch would start them again."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _start(self) -> Any:
        """Begins to read at the next batch."""
        # An element is a whole batch, so few of them are kept ready.
        ahead = max(1, min(os.cpu_count() or 1, 8) // max(1, self._workers))
        dataset = grain.MapDataset.source(self._source)[self._next :].to_iter_dataset(
            grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        )
        if not self._workers:
            return iter(dataset)
        # Through pipes: containers have little shared memory, and grain may leave some
        # of it behind.
        dataset = grain.experimental.WithOptionsIterDataset(
            dataset, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        )
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=1
            ),
            worker_init_fn=functools.partial(_begin, absl_logging.get_verbosity()),
        )
        # Whose start would unblock the signals.
        resource_tracker.ensure_running()
        # Processes inherit what is blocked from the thread that starts them.
        blocked = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            reading = iter(dataset)
            # Makes the iterators that start_prefetch starts.
            reading.get_state()
            reading.start_prefetch()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return reading


def _begin(verbosity: int, index: int, count: int) -> None:
    """Begins a worker: it is as quiet as its parent, and dies with it."""
    del index, count
    absl_logging.set_verbosity(verbosity)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
