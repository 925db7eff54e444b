"""Runs one case in a process of its own and says whether it stayed within bounds."""

import ctypes
import math
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

# The longest text of a refusal: a few lines of a terminal.
MAX_TEXT = 2000


class Bounds(NamedTuple):
    """What a case may take."""

    seconds: float  # of processor time
    memory: int  # bytes beyond what the process has before it


class Outcome(NamedTuple):
    """What a case did."""

    # "read" and "refused" are right. "raised": an exception that is no refusal;
    # "text": a refusal in an unbounded or unprintable text; "slow", "hung", "memory":
    # over the bounds; "died": ended by a signal.
    kind: str
    text: str  # of the refusal, or a traceback
    seconds: float  # processor time
    memory: int  # bytes, at the peak

    @property
    def right(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.kind in ("read", "refused")


def run_case(
    function: Callable[[], object],
    bounds: Bounds,
    refusals: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Outcome:
    """Calls `function` in a fork of this process.

    This process should have imported already what the function needs, and have no
    threads that the fork would miss.

    Args:
      function: The case.
      bounds: What it may take. To protect the machine, it is stopped at ten times the
        seconds, or two minutes more of wall time, as it may wait, and four times the
        memory (of addresses).
      refusals: Exceptions with which it may say that the input is wrong. MemoryError
        and RecursionError are never right.
    """
    _trim()
    answer, end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(answer)
            _limit_addresses(4 * bounds.memory + (64 << 20))
            _limit_seconds(10 * bounds.seconds)
            before = _own_pages()
            message = _attempt(function, refusals)
            # The parent knows the peak from the kernel, but not where it began.
            os.write(end, f"{before} {message}".encode(errors="backslashreplace"))
            status = 0
        finally:
            # No clean-up of what belongs to the parent.
            os._exit(status)
    os.close(end)
    with os.fdopen(answer, "rb", buffering=0) as pipe:
        message, hung = _receive(pipe.fileno(), child, 10 * bounds.seconds + 120)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Outcome("hung", "", seconds, 0)
    if not message:
        return Outcome("died", _ending(status), seconds, 0)
    before, kind, text = message.split(" ", 2)
    memory = max(0, usage.ru_maxrss * 1024 - int(before))
    if kind in ("read", "refused"):
        if memory > bounds.memory:
            kind = "memory"
        elif seconds > bounds.seconds:
            kind = "slow"
    return Outcome(kind, text, seconds, memory)


def _attempt(
    function: Callable[[], object], refusals: tuple[type[Exception], ...]
) -> str:
    """Returns the kind of what happened and its text."""
    try:
        function()
    except refusals as error:
        text = str(error)
        if len(text) > MAX_TEXT or not text.isprintable():
            return f"text {len(text)} characters: {text[:MAX_TEXT]!r}"
        return f"refused {type(error).__name__}: {text}"
    except BaseException:
        return f"raised {traceback.format_exc()[-MAX_TEXT:]}"
    return "read "


def _receive(pipe: int, child: int, seconds: float) -> tuple[str, bool]:
    """Returns what the child wrote, and whether it had to be killed."""
    deadline = time.monotonic() + seconds
    data = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            return "", True
        part = os.read(pipe, 1 << 16)
        if not part:
            return data.decode(), False
        data += part


def _trim() -> None:
    """Gives freed memory back, which a case would use without being seen to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _own_pages() -> int:
    """Returns the resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _limit_addresses(more: int) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


def _limit_seconds(more: float) -> None:
    limit = math.ceil(time.process_time() + more)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"
