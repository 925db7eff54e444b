"""Opening of files that somebody names: only such as end, and of a sane size."""

import contextlib
import os
import stat
from io import BufferedReader

from dcn_jax.quoting import quoted

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike, *, max_bytes: int) -> BufferedReader:
    """Opens a file to be read, without waiting for what may never come.

    Args:
      path: Names the file.
      max_bytes: The largest size that is opened.

    Returns:
      The file, at its start.

    Raises:
      OSError: It cannot be opened.
      ValueError: It is a folder, a pipe, a socket or a device, or too large; the
        message names it.
    """
    # Opening alone can do something to a device, and waits for a pipe's other end.
    _check(path, os.stat(path), max_bytes)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=_open_without_waiting))
        # The name may have come to stand for something else.
        _check(path, os.fstat(file.fileno()), max_bytes)
        stack.pop_all()
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check(path: str | os.PathLike, status: os.stat_result, max_bytes: int) -> None:
    name = quoted(os.fspath(path), 500)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise ValueError(f"{name} is {kind}; expected a regular file")
    if status.st_size > max_bytes:
        raise ValueError(
            f"{name} has {status.st_size} bytes; expected at most {max_bytes}"
        )
