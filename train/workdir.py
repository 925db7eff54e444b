"""The folder of a run belongs to one run at a time."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax
import numpy as np
from jax.experimental import multihost_utils

_log = logging.getLogger("train")

_LOCK = "lock"
# What a file system says that has no locks, as some of a network.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Holds a work folder, which is made if missing, against a second run.

    The lock is the kernel's, on <workdir>/lock, so a process that was killed holds
    nothing, whatever it left in that file. Process 0 holds it for its run's others.

    Raises:
      ValueError: Another run holds it. Every process of this one raises.
      OSError: The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((workdir / _LOCK).open("a+b"))
                holder = _lock(file)
            except OSError as error:
                refusal = error
            else:
                if holder is not None:
                    refusal = _in_use(workdir, holder)
        refused = np.int32(refusal is not None)
        # All processes end together, instead of waiting for the one that was refused.
        if multihost_utils.broadcast_one_to_all(refused):
            raise refusal or _in_use(workdir, "")
        yield


def _in_use(workdir: Path, holder: str) -> ValueError:
    return ValueError(
        f"The folder {workdir} is in use by another run{holder}; expected that one to "
        f"have ended, or another --workdir."
    )


def _lock(file: IO[bytes]) -> str | None:
    """Takes the lock; returns who else holds it, as far as is known, or None."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        known = file.read(200).decode(errors="replace").strip()
        return f" ({known})" if known.isprintable() and known else ""
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _log.warning(
            "WARNING: %s has no locks (%s): a second run in this folder would not be "
            "noticed",
            file.name,
            error.strerror,
        )
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    file.flush()
    return None
