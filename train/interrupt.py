"""Ctrl-C and SIGTERM: a run saves its state and ends; all else just ends.

Nobody should see a traceback, or wait for a library, because they wanted to stop. So
Ctrl-C ends the process while libraries load (`end_at_once`), raises KeyboardInterrupt
in a program (`interruptible`), and waits for the step of a run (`Interrupts.held`).
Pressed again it ends the process, whatever that is doing. A program that has cleaned up
after a KeyboardInterrupt does not wait for its libraries either (`end_by_ctrl_c`).

This module imports nothing that takes time: programs import it before all else.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_log = logging.getLogger("train")


def end_at_once() -> None:
    """Lets Ctrl-C end the process, as of any program that is not Python.

    A KeyboardInterrupt in the middle of an import is shown at length by some libraries
    and swallowed by others.
    """
    # A shell lets its background commands ignore it, and so they should.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_by_ctrl_c() -> NoReturn:
    """Ends the process by the signal itself, so that a shell's loop over runs ends too.

    Python's own end waits for all threads; one that KeyboardInterrupt kept from being
    entered in its pool would never hear of it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    # The signal comes to another thread first, perhaps.
    while True:
        time.sleep(1)


def interruptible(function: Callable[..., None]) -> Callable[..., None]:
    """Makes the first Ctrl-C in a function a KeyboardInterrupt, the second the end."""

    @functools.wraps(function)
    def run(*arguments: Any) -> None:
        with Interrupts():
            function(*arguments)

    return run


class Interrupts:
    """What signals asked for, from `__enter__` to `__exit__`.

    Attributes:
      received: The first signal that came, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._held = False

    def __enter__(self) -> "Interrupts":
        self._stack = contextlib.ExitStack()
        self._before = signal.getsignal(signal.SIGINT)
        if self._before != signal.SIG_IGN:
            self._stack.callback(signal.signal, signal.SIGINT, self._before)
            signal.signal(signal.SIGINT, self._receive)
        # A notebook, say, would not like to be ended by the watch.
        if self._before == signal.SIG_DFL:
            self._watch()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM only set `received`, for the caller to end soon.

        Raises:
          KeyboardInterrupt: Ctrl-C came, within or, unnoticed, before.
        """
        self._raise_if_interrupted()
        with contextlib.ExitStack() as stack:
            previous = signal.signal(signal.SIGTERM, self._receive)
            stack.callback(signal.signal, signal.SIGTERM, previous)
            self._held = True
            try:
                yield
            finally:
                self._held = False
        self._raise_if_interrupted()

    def _raise_if_interrupted(self) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            # The second does what the first would have done.
            signal.signal(signal.SIGINT, self._before)
        self.received = self.received or signal.Signals(number)
        if not self._held:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Answers Ctrl-C while the main thread is in a library, such as a compiler.

        Python calls a handler only when the main thread is back from there.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        thread = threading.Thread(target=self._answer, args=(reader,), daemon=True)
        thread.start()
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # In reverse: the signals go elsewhere, the thread ends, its pipe is closed.
        self._stack.callback(os.close, reader)
        self._stack.callback(thread.join)
        self._stack.callback(os.close, writer)
        self._stack.callback(signal.set_wakeup_fd, previous)

    def _answer(self, reader: int) -> None:
        count = 0
        while number := os.read(reader, 1):
            if number[0] != signal.SIGINT:
                continue
            count += 1
            if count > 1:
                os._exit(128 + signal.SIGINT)
            _log.info("Ctrl-C: ending as soon as it can; once more ends at once")
