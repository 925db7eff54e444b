"""Processes that read: the same batches, one line where one fails, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.launch import ROOT
from train.data.batch_iterator import BatchIterator


class Numbers:
    """Batch i holds the number i; some end otherwise."""

    def __init__(self, count=sys.maxsize, refused=None, deadly=None):
        self.count, self.refused, self.deadly = count, refused, deadly

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number == self.refused:
            raise ValueError(f"The image {number} is broken.")
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": np.full((2, 3), number)}


def numbers(batches):
    found = [batch["number"] for batch in batches]
    assert all(type(n) is np.ndarray and (n == n[0, 0]).all() for n in found)
    return [int(n[0, 0]) for n in found]


def take(iterator, count):
    return numbers(next(iterator) for _ in range(count))


def test_threads_read_in_order_and_go_on_anywhere():
    iterator = BatchIterator(Numbers(), 0)
    assert take(iterator, 4) == [0, 1, 2, 3]
    iterator.set_state({"next_index": 10**12})
    assert take(iterator, 3) == [10**12 + i for i in range(3)]
    assert numbers(BatchIterator(Numbers(5), 0)) == [0, 1, 2, 3, 4]


def test_a_worker_goes_on_where_threads_stood_and_they_where_it_stood():
    threads, worker = BatchIterator(Numbers(), 0), BatchIterator(Numbers(), 1)
    take(threads, 3)
    worker.set_state(json.loads(json.dumps(threads.get_state())))
    assert take(worker, 4) == [3, 4, 5, 6]
    state = json.loads(json.dumps(worker.get_state()))
    worker.close()
    threads.set_state(state)
    assert take(threads, 2) == [7, 8]


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_two_workers_take_turns(count):
    iterator = BatchIterator(Numbers(count), 2)
    assert numbers(iterator) == list(range(count))
    iterator.set_state({"next_index": min(count, 3)})
    assert numbers(iterator) == list(range(3, count))
    iterator.close()


def test_what_a_worker_raises_is_raised_here():
    iterator = BatchIterator(Numbers(refused=2), 1)
    assert take(iterator, 2) == [0, 1]
    with pytest.raises(ValueError) as found:
        next(iterator)
    assert str(found.value) == "The image 2 is broken."
    iterator.close()


def test_a_worker_that_dies_is_an_error_of_one_line():
    iterator = BatchIterator(Numbers(deadly=0), 1)
    with pytest.raises(OSError, match=r"`data\.workers` is 1.*exit code -9") as found:
        next(iterator)
    assert "\n" not in str(found.value)
    iterator.close()


PROGRAM = """
import multiprocessing, signal, sys, time
from absl import flags
from tests.train.test_batch_iterator import Numbers
from train.data.batch_iterator import BatchIterator
from train.interrupt import Interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
flags.FLAGS.mark_as_parsed()
sys.excepthook = lambda kind, *error: print(kind.__name__)
iterator = BatchIterator(Numbers(), 2)
with Interrupts() as interrupts, interrupts.held():
    next(iterator)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while not interrupts.received:
        next(iterator)
        time.sleep(0.01)
    for _ in range(50):
        next(iterator)
    iterator.close()
    print(len(multiprocessing.active_children()), "left", flush=True)
"""


def lives(pid):
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_no_worker_outlives_a_run_and_none_heeds_its_signals():
    """Ctrl-C in a terminal, or a batch system, signals the workers too."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    processes = {
        number: subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for number in numbers
    }
    for number, process in processes.items():
        assert process.stdout is not None
        line = process.stdout.readline()
        workers = [int(pid) for pid in line.split()]
        assert len(workers) == 2, process.communicate()
        assert all(map(lives, workers))
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=120)
        expected = {
            signal.SIGINT: "0 left\nKeyboardInterrupt\n",
            signal.SIGTERM: "0 left\n",
            signal.SIGKILL: "",
        }
        assert out == expected[number], errors
        assert "Traceback" not in errors
        for _ in range(200):
            if not any(map(lives, workers)):
                break
            time.sleep(0.05)
        assert not any(map(lives, workers))
