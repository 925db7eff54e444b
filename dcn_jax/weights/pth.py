"""Files of `torch.save` (.pth, .pt), read with zipfile and numpy.

Such a file is a zip with the members NAME/data.pkl, a pickle of the saved object, and
NAME/data/KEY, the bytes of each storage. Tensors are views (offset, sizes, strides) of
a storage, which several may share.
"""

import math
import os
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from dcn_jax.quoting import one_line, quoted
from dcn_jax.regular_file import open_regular
from dcn_jax.weights import unpickle
from dcn_jax.weights.archive import Archive

# Bytes of the largest files that are read, and of the pickles in them.
MAX_BYTES = 8 << 30
_MAX_PICKLE = 64 << 20
# A tensor may repeat the elements of its storage, but not without end.
_MAX_REPEATED = 1 << 24
MAX_DIMENSIONS = 16

# How other files begin: that of torch.save before the zip format (a number, pickled),
# and what `_other_format` says of them.
_LEGACY_NUMBER = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

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


class _Content:
    """The bytes of a storage."""

    def __init__(self, shown: str, data: np.ndarray, swap: bool):
        self._shown, self._data = shown, data
        self.size = data.size
        # Whether its numbers came in the other byte order, and the width of those that
        # were swapped.
        self._swap = swap
        self._width = 0

    def elements(self, dtype: np.dtype) -> np.ndarray:
        """The storage as a read-only array of one axis."""
        if self.size % dtype.itemsize:
            raise ValueError(f"a storage of {self.size} bytes is not one of {dtype}")
        width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        if self._swap and width != self._width:
            if self._width:
                raise ValueError(
                    f"storage {self._shown} has numbers of {self._width} and of "
                    f"{width} bytes, in another byte order than this machine's"
                )
            # In place: every tensor would need a copy of its own.
            self._data.view(f"u{width}").byteswap(inplace=True)
            self._width = width
        elements = self._data.view(dtype)
        elements.flags.writeable = False
        return elements


class _Storage(NamedTuple):
    """What a tensor is a view of."""

    content: _Content
    dtype: np.dtype


def read_pth(path: str | os.PathLike) -> Any:
    """The object in a file of `torch.save`.

    Needs memory for the file's content once, and at most some 200 MB beyond.

    Args:
      path: A zip, as torch writes since version 1.6.

    Returns:
      Dictionaries, lists, tuples, text, numbers, and tensors as read-only numpy arrays,
      which are views of the storages in memory.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is no such file, is damaged, contains sizes that its bytes do not
        bear out, or anything else than plain data; the message names the file, and is
        short and printable whatever stands in it.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        try:
            return _read(file)
        except (ValueError, MemoryError) as error:
            reason = one_line(str(error), 400) or "not enough memory"
            raise ValueError(
                f"cannot read {quoted(os.fspath(path), 500)}: {reason}"
            ) from error


def _read(file: BinaryIO) -> Any:
    other = _other_format(file.read(512))
    if other:
        raise ValueError(other)
    try:
        archive = Archive(file)
    except ValueError as error:
        raise ValueError(f"it is not a file of torch.save ({error})") from error
    return _Reader(archive).read()


def _other_format(start: bytes) -> str | None:
    """What the file is that begins so, if it is known not to be a zip."""
    if _LEGACY_NUMBER in start[:32]:
        return (
            "it has the format of torch before 1.6, which is not read; save it again: "
            "torch.save(torch.load(old, weights_only=True), new)"
        )
    # Nothing is unpacked to find out what is in it.
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            return f"it is compressed ({name}), which is not read; unpack it first"
    if start[257:262] == b"ustar":
        return (
            "it is a tar archive, a format of torch before 0.2, which is not read; "
            "save it again with a newer torch"
        )
    return None


class _Reader:
    """Reads the object in one archive."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._contents: dict[str, _Content] = {}
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
        constructors = {
            "collections.OrderedDict": _ordered_dict,
            "torch._utils._rebuild_tensor": self._rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._rebuild_tensor_v3,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
            "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
            **{name: _not_callable for name in (*_STORAGES, *_DTYPES)},
        }
        pickled = self._bytes("data.pkl", _MAX_PICKLE).tobytes()
        return unpickle.load(pickled, constructors, self._persistent_load)

    def _bytes(self, name: str, max_bytes: int | None = None) -> np.ndarray:
        return self._archive.read(self._root + name, max_bytes)

    def _persistent_load(self, identifier: Any) -> _Storage:
        if type(identifier) is not tuple or len(identifier) != 5:
            raise ValueError("damaged pickle (not the identifier of a storage)")
        match identifier:
            case ("storage", unpickle.Global(name), str(key), str(), int(count)):
                pass
            case _:
                raise ValueError("damaged pickle (not the identifier of a storage)")
        if name not in _STORAGES:
            raise ValueError(f"damaged pickle ({name} is not a storage)")
        if key not in self._contents:
            data = self._bytes(f"data/{key}")
            self._contents[key] = _Content(quoted(key), data, self._swap)
        content, dtype = self._contents[key], np.dtype(_STORAGES[name])
        if count * dtype.itemsize != content.size:
            raise ValueError(
                f"storage {quoted(key)} should have {quoted(count)} elements of "
                f"{dtype.name}; its member has {content.size} bytes"
            )
        return _Storage(content, dtype)

    def _rebuild_tensor(self, storage, offset, size, stride):
        if type(storage) is not _Storage:
            raise ValueError("damaged pickle (a tensor without storage)")
        return _view(storage.content, storage.dtype, offset, size, stride)

    def _rebuild_tensor_v2(
        self, storage, offset, size, stride, requires_grad, hooks, metadata=None
    ):
        return self._rebuild_tensor(storage, offset, size, stride)

    def _rebuild_tensor_v3(
        self, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None
    ):
        if type(dtype) is not unpickle.Global or dtype.name not in _DTYPES:
            raise ValueError("damaged pickle (not an element type)")
        if type(storage) is not _Storage:
            raise ValueError("damaged pickle (a tensor without storage)")
        dtype = np.dtype(_DTYPES[dtype.name])
        return _view(storage.content, dtype, offset, size, stride)


def _view(content: _Content, dtype: np.dtype, offset, size, stride) -> np.ndarray:
    """The tensor of these sizes and strides, in elements."""
    # Tuples of a pickle can be as many copies of one another as there are atoms: these
    # are not looped over before it is clear that they are short and flat.
    if not (
        type(size) is type(stride) is tuple
        and len(size) == len(stride) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *size, *stride))
    ):
        raise ValueError(
            f"a tensor has offset, size, stride {quoted(offset)}, {quoted(size)}, "
            f"{quoted(stride)}"
        )
    elements = content.elements(dtype)
    if 0 in size:
        return np.empty(size, dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= elements.size:
        raise ValueError(
            f"a tensor of size {quoted(size)} and stride {quoted(stride)} at {offset} "
            f"does not fit into its storage of {elements.size} elements"
        )
    if math.prod(size) > max(elements.size, _MAX_REPEATED):
        raise ValueError(
            f"a tensor of size {quoted(size)} is too large for its storage of "
            f"{elements.size} elements"
        )
    return np.ndarray(
        size,
        dtype,
        buffer=elements,
        offset=offset * dtype.itemsize,
        strides=[s * dtype.itemsize for s in stride],
    )


def _ordered_dict():
    return {}


def _rebuild_parameter(data, requires_grad, hooks, state=None):
    return data


def _not_callable(*arguments):
    raise ValueError("damaged pickle (a type in the place of a function)")
