"""How far a call raises the process's peak of resident memory (Linux).

Needs the standard library alone: torch's interpreter imports it too.
"""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_SETTLED_AFTER_S = 10


def peak_growth(run: Callable[[], _T]) -> tuple[int, _T]:
    """Bytes that resident memory grew at most during `run`, and its result.

    What the allocator holds back is returned first, so that memory that `run` takes is
    new to the process. The result is part of the growth.
    """
    _settle()
    # Sets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = run()
    return _status("VmHWM") - before, result


def _settle() -> None:
    """Frees what is free to go, and waits until resident memory has stopped falling.

    jax may free the source of a copy a little later, on a thread of its own. A kernel
    that takes idle pages away goes on for minutes, and is not waited for.
    """
    gc.collect()
    resident = None
    for _ in range(_SETTLED_AFTER_S):
        if resident is not None and _status("VmRSS") >= resident:
            break
        resident = _status("VmRSS")
        time.sleep(1)
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.M)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
