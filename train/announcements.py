"""What a run says of itself beside its log lines: what it is, and what it compiles."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from dcn_jax.quoting import one_line
from train.config_dict import ConfigDict

_log = logging.getLogger("train")
# In the folder of a run.
LOG_FILE = "log.txt"


class _LogFile(logging.FileHandler):
    """A file that is left as it is where it cannot be written, as on a full disk.

    What has to be written, metrics and checkpoints, says so; `logging` would print a
    traceback for each line.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the line."""

    def close(self) -> None:
        """Drops what was not written yet."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_file(workdir: Path, active: bool) -> Iterator[None]:
    """Keeps what a run says in its folder too, behind what former runs said.

    Args:
      workdir: The folder.
      active: Whether this process writes.

    Raises:
      OSError: The file cannot be opened.
    """
    if not active:
        yield
        return
    handler = _LogFile(workdir / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    try:
        yield
    except Exception as error:
        # The program says it on the terminal.
        text = f"ended: {one_line(str(error))}"
        handler.handle(_log.makeRecord(_log.name, logging.ERROR, "", 0, text, (), None))
        raise
    finally:
        _log.removeHandler(handler)
        handler.close()


def say_run(
    config: ConfigDict,
    mesh: Mesh,
    parameters: Mapping[str, Any],
    trained: Collection[str],
    steps: int,
    images: int,
) -> None:
    """Says what is trained on what.

    Args:
      config: Of the run.
      mesh: Of its devices.
      parameters: Shapes, by dotted path.
      trained: Paths of those that are not kept fixed.
      steps: Of the run.
      images: That training uses.
    """
    devices = list(mesh.devices.flat)
    split = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    _log.info(
        "%d device%s (%s), split by %s; %d process%s",
        len(devices),
        "s" * (len(devices) > 1),
        devices[0].device_kind,
        split,
        jax.process_count(),
        "es" * (jax.process_count() > 1),
    )
    _log.info(
        "%s parameters, of which %s are trained; %s",
        f"{sum(value.size for value in parameters.values()):,}",
        f"{sum(parameters[path].size for path in trained):,}",
        config.dtype,
    )
    _log.info(
        "%d steps of %d images: %.1f passes over %d images",
        steps,
        config.batch_size,
        steps * config.batch_size / images,
        images,
    )


class Compilations:
    """Says what is compiled, which is what the first step of each shape waits for.

    Args:
      canvases: Of the training images; there is a program for each.
    """

    def __init__(self, canvases: Collection[Sequence[int]]):
        self._expected = len(canvases)
        self._seen: set[tuple[int, ...]] = set()

    def __contains__(self, canvas: tuple[int, int]) -> bool:
        return canvas in self._seen

    @contextlib.contextmanager
    def of(self, canvas: tuple[int, int]) -> Iterator[None]:
        """Says that the program of a canvas is compiled, and how long that took."""
        self._seen.add(canvas)
        count = max(len(self._seen), self._expected)
        name = "x".join(map(str, canvas))
        _log.info("compiling %s (%d of %d)", name, len(self._seen), count)
        start = time.monotonic()
        yield
        _log.info("compiled %s in %.0f s", name, time.monotonic() - start)
