"""Prepared copies of data sets on disk: made once, checked when opened, then removed.

    DATA_DIR/.SET.lock                       held while a copy is looked for or made
    DATA_DIR/SET/COPY/prepared.json          of what it is a copy, and its files
    DATA_DIR/SET/COPY/VERSION/...            what tfds writes

A copy counts from the moment its prepared.json is there. Who reads one holds a shared
lock on that file, so that nobody removes it meanwhile.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dcn_jax.quoting import one_line
from train.whole_file import write_whole

_log = logging.getLogger("train")
# There is one of our own, which knows how much there is to do.
tfds.disable_progress_bar()

_MANIFEST = "prepared.json"
# What a folder that cannot be written to answers.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(kw_only=True)
class PreparedConfig(tfds.core.BuilderConfig):
    """What a data set is made from; by default from nothing that can change."""

    name: str = ""

    @property
    def judged_by(self) -> str:
        """How detections are judged: a key of `train.tasks.detection.METRICS`."""
        return "coco"

    def stored_as(self, split: str) -> str:
        """Name of a split in a copy, of letters, digits and underscores."""
        return split

    def origin(self) -> Any:
        """What JSON can hold of the state that the last preparation read."""
        return None

    def is_current(self, origin: Any) -> bool:
        """Whether a copy with this `origin` is still what preparing would give."""
        del origin
        return True

    def categories(self, split: str) -> list[dict[str, Any]]:
        """`{"id", "name"}` of the categories, as they are before anything is prepared.

        Args:
          split: The split that is to be read.

        Raises:
          ValueError: There is no such split, or the data set is at fault.
          OSError: It cannot be read.
        """
        raise NotImplementedError

    def image_path(self, file_name: str) -> Path | None:
        """Where the image of a record lies; None: in the record."""
        del file_name
        return None

    @property
    def changes(self) -> bool:
        """Whether copies of several states can exist; each then gets its own suffix."""
        return False


class Copy:
    """A prepared data set, kept from removal while it is open.

    Attributes:
      builder: Its tfds builder.
      folder: Where it lies.
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, folder: Path, lease: "_Lease | None"
    ):
        self.builder = builder
        self.folder, self._lease = folder, lease

    def __getstate__(self) -> dict[str, Any]:
        # In a worker process, the process that started it holds the lock.
        return {**self.__dict__, "_lease": None}

    def unreadable(self, error: Exception) -> ValueError:
        """Says that a record cannot be read.

        Where its content is damaged, the copy is given up: the next run makes another.

        Args:
          error: What reading it raised.

        Returns:
          The exception to raise.
        """
        text = f"{self.folder}: the prepared data set cannot be read:"
        text += f" {one_line(str(error), 300)}"
        if "Corrupted" in str(error):
            with contextlib.suppress(OSError):
                (self.folder / _MANIFEST).unlink()
            text += " (it is prepared again when the run is started again)"
        return ValueError(text)


def find_copy(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    config: PreparedConfig,
    data_dir: Path,
) -> Copy | None:
    """Opens the current copy of a data set, if there is one; see `open_copy`."""
    return _find_copy(_Store(builder_class, config, data_dir), prepare=False)


def open_copy(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    config: PreparedConfig,
    data_dir: Path,
) -> Copy:
    """Opens the copy of a data set that is current, and makes it where there is none.

    Copies of former states are removed, and what interrupted preparations left.

    Args:
      builder_class: The data set.
      config: Its configuration; `name` is that of its copies, without a suffix.
      data_dir: Where copies are kept; created if missing.

    Raises:
      ValueError: The data set is at fault.
      OSError: It cannot be read, or a copy cannot be written.
    """
    copy = _find_copy(_Store(builder_class, config, data_dir), prepare=True)
    assert copy is not None
    return copy


def _find_copy(store: "_Store", *, prepare: bool) -> Copy | None:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.locked())
        except OSError as error:
            # On a disk that cannot be written, what is there can be read all the same.
            if error.errno not in _READ_ONLY:
                raise
            copy = store.open()
            if copy is None and prepare:
                folder = store.data_dir
                text = f"{folder}: the data set cannot be prepared: {error.strerror}"
                raise OSError(error.errno, text) from error
            return copy
        copy = store.open()
        if copy is None and prepare:
            copy = store.prepare()
        if copy is not None:
            store.tidy(copy)
        return copy


class _Store:
    """The copies of one data set in a folder."""

    def __init__(
        self,
        builder_class: type[tfds.core.GeneratorBasedBuilder],
        config: PreparedConfig,
        data_dir: Path,
    ):
        self.data_dir = data_dir
        self._builder_class, self._config = builder_class, config
        self._base = config.name
        self._root = data_dir / builder_class.name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Several processes of a run may come at once: one prepares, the rest wait."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        path = self.data_dir / f".{self._builder_class.name}.lock"
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def open(self) -> Copy | None:
        """Opens the copy that is current, if there is one that is whole."""
        for folder in self._copies():
            try:
                lease = _Lease(folder)
            except FileNotFoundError:
                continue
            manifest = _parsed(lease.text)
            if not isinstance(manifest, dict):
                reason = f"{_MANIFEST} cannot be read"
            elif not self._config.is_current(manifest.get("origin")):
                lease.close()
                continue
            else:
                reason = _difference(folder, manifest.get("files"))
            if reason is None:
                try:
                    builder = self._builder(folder.name)
                    if builder.info.splits:
                        return Copy(builder, folder, lease)
                    reason = f"it has no version {builder.version}"
                # Whatever tfds and protobuf raise where a file is not theirs.
                except Exception as error:
                    reason = one_line(str(error), 300)
                # The next copy is named after the data set, not after this one.
                self._config.name = self._base
            lease.close()
            _log.warning("%s is of no use (%s): it is prepared again", folder, reason)
            with contextlib.suppress(OSError):
                (folder / _MANIFEST).unlink()
        return None

    def prepare(self) -> Copy:
        """Makes a copy; the lock must be held."""
        self._remove_remains()
        name = self._base
        if self._config.changes:
            name += f"_{secrets.token_hex(4)}"
        folder = self._root / name
        try:
            start = time.monotonic()
            builder = self._builder(name)
            # It speaks of downloads, of which there are none.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
            files = _files(folder)
            manifest = {"origin": self._config.origin(), "files": files}
            write_whole(folder / _MANIFEST, json.dumps(manifest))
        except (RuntimeError, OSError) as error:
            self._remove_remains()
            # Without a number: what is wrong with the user's files, said already.
            number = getattr(error, "errno", None)
            if isinstance(error, OSError) and number is None:
                raise
            reason = one_line(str(error), 300)
            text = f"{folder}: the data set cannot be prepared: {reason}"
            raise (OSError(number, text) if number else OSError(text)) from error
        except BaseException:
            self._remove_remains()
            raise
        seconds = time.monotonic() - start
        size = sum(size for size, _ in files.values()) / 1e6
        _log.info("prepared in %.1f s: %.1f MB in %s", seconds, size, folder)
        return Copy(builder, folder, _Lease(folder))

    def tidy(self, current: Copy) -> None:
        """Removes all but the current copy that nobody reads; the lock must be held."""
        self._remove_remains()
        for folder in self._copies():
            if folder != current.folder and not _in_use(folder):
                _remove(folder)

    def _copies(self) -> list[Path]:
        """The folders of this data set's copies, whole or not."""
        if not self._config.changes:
            folders = [self._root / self._base]
        else:
            # The suffix is one of 8 hexadecimal digits.
            folders = sorted(self._root.glob(f"{self._base}_{'[0-9a-f]' * 8}"))
        return [folder for folder in folders if folder.is_dir()]

    def _builder(self, name: str) -> tfds.core.GeneratorBasedBuilder:
        self._config.name = name
        return self._builder_class(
            data_dir=str(self.data_dir),
            config=self._config,
            file_format="array_record",
        )

    def _remove_remains(self) -> None:
        """Removes what was not finished; nobody is at it, for the lock is held."""
        for folder in self._root.glob("*/incomplete.*"):
            _remove(folder)
            with contextlib.suppress(OSError):  # where more is in it
                folder.parent.rmdir()
        for folder in self._copies():
            if not (folder / _MANIFEST).exists():
                _remove(folder)


class _Lease:
    """A copy's manifest, open and locked as long as this lives."""

    def __init__(self, folder: Path):
        file = os.open(folder / _MANIFEST, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, file)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with open(file, "rb", closefd=False) as opened:
            self.text = opened.read()


def _in_use(folder: Path) -> bool:
    try:
        with (folder / _MANIFEST).open("rb") as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _remove(folder: Path) -> None:
    # First, so that half of a copy never counts as one.
    with contextlib.suppress(OSError):
        (folder / _MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _files(folder: Path) -> dict[str, list[Any]]:
    """Size of each file of a copy, and the digest of those that hold no records."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(_MANIFEST):
            name = path.relative_to(folder).as_posix()
            files[name] = [path.stat().st_size, _digest(path)]
    return files


def _digest(path: Path) -> str | None:
    # Records carry checksums of their own, which are compared when they are read.
    if path.suffix != ".json":
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _difference(folder: Path, files: Any) -> str | None:
    """Says how a copy differs from what was prepared, or None."""
    if not isinstance(files, dict) or not files:
        return f"{_MANIFEST} names no files"
    for name, state in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if [path.stat().st_size, _digest(path)] != state:
            return f"{name} was changed"
    return None
