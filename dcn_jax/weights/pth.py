"""Files of `torch.save` (.pth, .pt), read with zipfile and numpy.

Such a file is a zip with the members NAME/data.pkl, a pickle of the saved object, and
NAME/data/KEY, the bytes of each storage. Tensors are views (offset, sizes, strides) of
a storage, which several may share.
"""

import os
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dcn_jax.weights import unpickle

# The number with which torch.save began its files before the zip format.
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGES: dict[str, Any] = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
    "torch.ComplexFloatStorage": np.complex64,
    "torch.ComplexDoubleStorage": np.complex128,
    # Its element type comes with each tensor.
    "torch.storage.UntypedStorage": np.uint8,
}
_DTYPES: dict[str, Any] = {
    "torch.float64": np.float64,
    "torch.float32": np.float32,
    "torch.float16": np.float16,
    "torch.bfloat16": jnp.bfloat16,
    "torch.float8_e4m3fn": jnp.float8_e4m3fn,
    "torch.float8_e4m3fnuz": jnp.float8_e4m3fnuz,
    "torch.float8_e5m2": jnp.float8_e5m2,
    "torch.float8_e5m2fnuz": jnp.float8_e5m2fnuz,
    "torch.float8_e8m0fnu": jnp.float8_e8m0fnu,
    "torch.int64": np.int64,
    "torch.int32": np.int32,
    "torch.int16": np.int16,
    "torch.int8": np.int8,
    "torch.uint64": np.uint64,
    "torch.uint32": np.uint32,
    "torch.uint16": np.uint16,
    "torch.uint8": np.uint8,
    "torch.bool": np.bool_,
    "torch.complex64": np.complex64,
    "torch.complex128": np.complex128,
}


class _Storage(NamedTuple):
    data: np.ndarray  # uint8, in the byte order of the file
    dtype: np.dtype


def read_pth(path: str | os.PathLike) -> Any:
    """The object in a file of `torch.save`.

    Args:
      path: A zip, as torch writes since version 1.6.

    Returns:
      Dictionaries, lists, tuples, text, numbers, and tensors as read-only numpy arrays,
      which are views of the file's bytes in memory.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is no such file, is damaged, contains sizes that its bytes do not
        bear out, or anything else than plain data; the message names the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LEGACY_START))
        if start == _LEGACY_START:
            raise ValueError(
                "it has the format of torch before 1.6, which is not read; save it "
                "again: torch.save(torch.load(old, weights_only=True), new)"
            )
        if not zipfile.is_zipfile(path):
            if tarfile.is_tarfile(path):
                raise ValueError(
                    "it is a tar archive, a format of torch before 0.2, which is not "
                    "read; save it again with a newer torch"
                )
            raise ValueError("it is not a file of torch.save (no zip archive)")
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, os.path.getsize(path)).read()
    except (ValueError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(f"cannot read {os.fspath(path)!r}: {error}") from error


class _Reader:
    """Reads one archive."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        self._archive = archive
        self._unread = file_size
        self._members: Mapping[str, zipfile.ZipInfo] = archive.NameToInfo
        self._storages: dict[str, np.ndarray] = {}
        roots = [
            name.removesuffix("data.pkl")
            for name in self._members
            if name == "data.pkl" or name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise ValueError(
                f"it is not a file of torch.save ({len(roots)} members data.pkl)"
            )
        self._root = roots[0]
        if self._root + "constants.pkl" in self._members:
            raise ValueError("it is a TorchScript program, not a dictionary of tensors")

    def read(self) -> Any:
        byte_order = b"little"
        if self._root + "byteorder" in self._members:
            byte_order = self._bytes("byteorder")
        if byte_order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {byte_order[:20]!r}")
        self._swap = byte_order == b"big"
        constructors = {
            "collections.OrderedDict": _ordered_dict,
            "torch._utils._rebuild_tensor": self._rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._rebuild_tensor_v3,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
            **{name: _not_callable for name in (*_STORAGES, *_DTYPES)},
        }
        return unpickle.load(
            self._bytes("data.pkl"), constructors, self._persistent_load
        )

    def _bytes(self, name: str) -> bytes:
        """A member's bytes, if the file really holds as many as it says."""
        info = self._members.get(self._root + name)
        if info is None:
            raise ValueError(f"it has no member {name!r}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its member {name!r} is compressed; torch stores them")
        self._unread -= info.file_size
        if (
            info.compress_size != info.file_size
            or info.header_offset < 0
            or self._unread < 0
        ):
            raise ValueError(
                f"its member {name!r} claims {info.file_size} bytes; the file has not "
                "so many"
            )
        data = self._archive.read(info)
        if len(data) != info.file_size:
            raise ValueError(f"its member {name!r} is cut short")
        return data

    def _persistent_load(self, identifier: Any) -> _Storage:
        match identifier:
            case ("storage", unpickle.Global(name), str(key), str(), int(count)):
                pass
            case _:
                raise ValueError("damaged pickle (not the identifier of a storage)")
        if name not in _STORAGES:
            raise ValueError(f"damaged pickle ({name} is not a storage)")
        if key not in self._storages:
            data = self._bytes(f"data/{key}")
            self._storages[key] = np.frombuffer(data, np.uint8)
        data, dtype = self._storages[key], np.dtype(_STORAGES[name])
        if count * dtype.itemsize != data.size:
            raise ValueError(
                f"storage {key!r} should have {count} elements of {dtype.name}; its "
                f"member has {data.size} bytes"
            )
        return _Storage(data, dtype)

    def _rebuild_tensor(self, storage, offset, size, stride):
        if not isinstance(storage, _Storage):
            raise ValueError("damaged pickle (a tensor without storage)")
        return self._view(storage.data, storage.dtype, offset, size, stride)

    def _rebuild_tensor_v2(
        self, storage, offset, size, stride, requires_grad, hooks, metadata=None
    ):
        return self._rebuild_tensor(storage, offset, size, stride)

    def _rebuild_tensor_v3(
        self, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None
    ):
        if not isinstance(dtype, unpickle.Global) or dtype.name not in _DTYPES:
            raise ValueError("damaged pickle (not an element type)")
        if not isinstance(storage, _Storage):
            raise ValueError("damaged pickle (a tensor without storage)")
        dtype = np.dtype(_DTYPES[dtype.name])
        return self._view(storage.data, dtype, offset, size, stride)

    def _view(self, data, dtype, offset, size, stride):
        """The tensor of these sizes and strides, in elements."""
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or any(
            type(n) is not int or n < 0 for n in numbers
        ):
            raise ValueError(f"a tensor has offset, size, stride {numbers}")
        if data.size % dtype.itemsize:
            raise ValueError(
                f"a storage of {data.size} bytes is not one of {dtype.name}"
            )
        count = data.size // dtype.itemsize
        if 0 in size:
            return np.empty(size, dtype)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if last >= count:
            raise ValueError(
                f"a tensor of size {size} and stride {stride} at {offset} does not fit "
                f"into its storage of {count} elements"
            )
        if self._swap:
            data = _swapped(data, dtype)
        return np.ndarray(
            size,
            dtype,
            buffer=data,
            offset=offset * dtype.itemsize,
            strides=[s * dtype.itemsize for s in stride],
        )


def _swapped(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bytes of numbers in the other byte order."""
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return data.reshape(-1, width)[:, ::-1].reshape(-1)


def _ordered_dict():
    return {}


def _rebuild_parameter(data, requires_grad, hooks):
    return data


def _not_callable(*arguments):
    raise ValueError("damaged pickle (a type in the place of a function)")
