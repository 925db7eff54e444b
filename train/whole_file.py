"""Files that are there whole or not at all."""

import contextlib
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, in place of one that lies there, in one step.

    Whoever is stopped meanwhile, or finds no space, leaves what was there before.

    Raises:
      OSError: It cannot be written. Names `path`.
    """
    data = content.encode() if isinstance(content, str) else content
    # The same each time, so that what a killed process left is used up by the next.
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
