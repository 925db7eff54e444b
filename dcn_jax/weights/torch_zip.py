"""Files of `torch.save` since version 1.6: zip archives.

The members are NAME/data.pkl, a pickle of the saved object, and NAME/data/KEY, the
bytes of each storage.
"""

import io
from io import BufferedReader
from typing import Any

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights import unpickle
from dcn_jax.weights.archive import Archive
from dcn_jax.weights.torch_tensors import (
    CONSTRUCTORS,
    MAX_PICKLE,
    Content,
    Storage,
    storage_dtype,
)


def read_zip(file: BufferedReader) -> Any:
    """The object in the archive.

    Raises:
      ValueError: It is no archive of torch, or is damaged.
    """
    try:
        archive = Archive(file)
    except ValueError as error:
        raise ValueError(f"it is not a file of torch.save ({error})") from error
    return _Reader(archive).read()


class _Reader:
    """Reads the object in one archive."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._contents: dict[str, Content] = {}
        roots = [
            name.removesuffix("data.pkl")
            for name in archive.names
            if name == "data.pkl" or name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise ValueError(
                f"it is not a file of torch.save ({len(roots)} members data.pkl)"
            )
        self._root = roots[0]
        if self._root + "constants.pkl" in archive.names:
            raise ValueError("it is a TorchScript program, not a dictionary of tensors")

    def read(self) -> Any:
        byte_order = b"little"
        if self._root + "byteorder" in self._archive.names:
            byte_order = self._bytes("byteorder", 16).tobytes()
        if byte_order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {byte_order!r}")
        self._swap = byte_order == b"big"
        pickled = io.BytesIO(self._bytes("data.pkl", MAX_PICKLE).tobytes())
        return unpickle.load(
            pickled, CONSTRUCTORS, self._persistent_load, max_bytes=MAX_PICKLE
        )

    def _bytes(self, name: str, max_bytes: int | None = None) -> np.ndarray:
        return self._archive.read(self._root + name, max_bytes)

    def _persistent_load(self, identifier: Any) -> Storage:
        if type(identifier) is not tuple or len(identifier) != 5:
            raise ValueError("damaged pickle (not the identifier of a storage)")
        match identifier:
            case ("storage", kind, str(key), str(), int(count)):
                pass
            case _:
                raise ValueError("damaged pickle (not the identifier of a storage)")
        dtype = storage_dtype(kind)
        if key not in self._contents:
            data = self._bytes(f"data/{key}")
            self._contents[key] = Content(quoted(key), data, self._swap)
        content = self._contents[key]
        if count * dtype.itemsize != content.size:
            raise ValueError(
                f"storage {quoted(key)} should have {quoted(count)} elements of "
                f"{dtype.name}; its member has {content.size} bytes"
            )
        return Storage(content, dtype)
