"""Files that are there whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Has a file written under another name, which then takes the place of `path`.

    Whoever is stopped meanwhile, or finds no space, leaves what was there before.

    Raises:
      OSError: It cannot be written. Names `path`.
    """
    # The same each time, so that what a killed process left is used up by the next.
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one step, see `whole_file`.

    Raises:
      OSError: It cannot be written. Names `path`.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
