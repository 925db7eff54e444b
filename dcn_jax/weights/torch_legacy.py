"""Files of `torch.save` before version 1.6, which mmdetection publishes still.

Five pickles in a row: a number, the version, the writer's system, the saved object, the
names of its storages; then of each storage the count of its elements, eight bytes, and
the elements.
"""

import os
from io import BufferedReader
from typing import Any

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights import unpickle
from dcn_jax.weights.torch_tensors import (
    CONSTRUCTORS,
    MAX_PICKLE,
    Content,
    Storage,
    storage_dtype,
)

_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8

# The number as it stands in the file, after one of a few prefixes.
MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def read_legacy(file: BufferedReader) -> Any:
    """The object in the file.

    Raises:
      ValueError: It is damaged, or comes from a machine with the other byte order.
    """
    return _Reader(file).read()


class _Reader:
    """Reads the object in one file."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        # Bytes and elements of each storage; the bytes are read after the object.
        self._storages: dict[str, tuple[np.ndarray, int]] = {}
        self._claimed = 0

    def read(self) -> Any:
        if self._pickled() != _NUMBER or self._pickled() != _VERSION:
            raise ValueError("it is not a file of torch.save (another version)")
        system = self._pickled()
        if type(system) is not dict or system.get("little_endian") is not True:
            raise ValueError("it was not written on a little-endian machine")
        content = self._pickled(self._persistent_load)
        self._fill(self._pickled())
        return content

    def _pickled(self, persistent_load=None) -> Any:
        left = min(MAX_PICKLE, self._size - self._file.tell())
        return unpickle.load(self._file, CONSTRUCTORS, persistent_load, max_bytes=left)

    def _persistent_load(self, identifier: Any) -> Storage:
        if type(identifier) is not tuple or len(identifier) != 6:
            raise ValueError("damaged pickle (not the identifier of a storage)")
        match identifier:
            case ("storage", kind, str(key), str(), int(count), part):
                pass
            case _:
                raise ValueError("damaged pickle (not the identifier of a storage)")
        dtype = storage_dtype(kind)
        if key not in self._storages:
            nbytes = count * dtype.itemsize
            self._claimed += max(nbytes, 0) + _COUNT_BYTES
            if count < 0 or self._claimed > self._size:
                raise ValueError(
                    f"storage {quoted(key)} should have {quoted(count)} elements of "
                    f"{dtype.name}; the file has {self._size} bytes"
                )
            self._storages[key] = np.empty(nbytes, np.uint8), count
        data, elements = self._storages[key]
        if data.size != count * dtype.itemsize or elements != count:
            raise ValueError(f"storage {quoted(key)} comes in two sizes")
        if part is not None:
            data = _part(key, data, part, dtype.itemsize)
        return Storage(Content(quoted(key), data), dtype)

    def _fill(self, keys: Any) -> None:
        """Reads the storages' bytes, which are all that is left of the file."""
        if type(keys) is not list or len(keys) != len(self._storages):
            raise ValueError("damaged file (not the names of its storages)")
        left = self._size - self._file.tell()
        if self._claimed != left:
            raise ValueError(
                f"its storages should have {self._claimed} bytes; the file has {left}"
            )
        for key in keys:
            if type(key) is not str or key not in self._storages:
                raise ValueError("damaged file (not the names of its storages)")
            data, count = self._storages.pop(key)
            written = int.from_bytes(self._file.read(_COUNT_BYTES), "little")
            if written != count:
                raise ValueError(
                    f"storage {quoted(key)} should have {count} elements; the file "
                    f"says {written}"
                )
            if self._file.readinto(data.data) != data.size:
                raise ValueError(f"storage {quoted(key)} is cut short")


def _part(key: str, data: np.ndarray, part: Any, itemsize: int) -> np.ndarray:
    """The elements of a storage that another one is a view of."""
    match part:
        case (_, int(offset), int(count)) if type(part) is tuple:
            if offset >= 0 and count >= 0 and (offset + count) * itemsize <= data.size:
                return data[offset * itemsize : (offset + count) * itemsize]
    raise ValueError(f"damaged pickle (not a part of storage {quoted(key)})")
