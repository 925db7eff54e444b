"""Writes files as `torch.save` does, without torch."""

import struct
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}


class View(NamedTuple):
    """A tensor as torch stores it: a window onto a storage, in elements."""

    storage: np.ndarray  # 1-d; tensors that share it are given the same object
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Parameter(NamedTuple):
    """A `torch.nn.Parameter`."""

    data: np.ndarray


class Call(NamedTuple):
    """A global of the pickle, applied to arguments."""

    module: str
    name: str
    arguments: tuple


def write_pth(path, content: Any, *, byte_order: str = "little", **members) -> None:
    """Writes `content`; `members` replace or add members, by names after NAME/."""
    storages: list[np.ndarray] = []
    pickled = b"\x80\x02" + _pickle(content, storages) + b"."
    files = {"data.pkl": pickled, "byteorder": byte_order.encode(), "version": b"3\n"}
    for key, storage in enumerate(storages):
        width = storage.dtype.itemsize // (2 if storage.dtype.kind == "c" else 1)
        words = storage.view(f"u{width}")
        order = "<" if byte_order == "little" else ">"
        files[f"data/{key}"] = words.astype(f"{order}u{width}").tobytes()
    files.update(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"weights/{name}", data)


def write_legacy(path, content: Any, **parts: bytes) -> None:
    """Writes `content` as torch did before version 1.6.

    `parts` replace the pickles "number", "version", "system", "object", "keys", or the
    bytes of the storages, "data".
    """
    storages: list[np.ndarray] = []
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    pickled = {
        "number": _pickle(0x1950A86A20F9469CFC6C, []),
        "version": _pickle(1001, []),
        "system": _pickle(system, []),
        "object": _pickle(content, storages, legacy=True),
        "keys": _pickle([str(key) for key in range(len(storages))], []),
    }
    files = {name: b"\x80\x02" + data + b"." for name, data in pickled.items()}
    files["data"] = b"".join(
        struct.pack("<q", storage.size) + storage.tobytes() for storage in storages
    )
    with open(path, "wb") as file:
        for data in (files | parts).values():
            file.write(data)


def _pickle(value: Any, storages: list[np.ndarray], legacy: bool = False) -> bytes:
    def many(values):
        return b"".join(_pickle(v, storages, legacy) for v in values)

    match value:
        case Call(module, name, arguments):
            return _global(module, name) + many([arguments]) + b"R"
        case Parameter(data):
            arguments = many([data, True, OrderedDict()])
            function = _global("torch._utils", "_rebuild_parameter")
            return function + b"(" + arguments + b"tR"
        case View():
            return _tensor(value, storages, legacy)
        case np.ndarray():
            value = np.asarray(value, order="C")
            stride = tuple(s // value.itemsize for s in value.strides)
            view = View(value.reshape(-1), 0, value.shape, stride)
            return _tensor(view, storages, legacy)
        case OrderedDict():
            items = b"(" + many(v for item in value.items() for v in item) + b"u"
            # torch keeps version numbers in an attribute.
            state = b"}" + _pickle("_metadata", storages) + b"}sb"
            return _global("collections", "OrderedDict") + b")R" + items + state
        case dict():
            return b"}(" + many(v for item in value.items() for v in item) + b"u"
        case list():
            return b"](" + many(value) + b"e"
        case tuple():
            return b"(" + many(value) + b"t"
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
    raise TypeError(type(value))


def _tensor(view: View, storages: list[np.ndarray], legacy: bool) -> bytes:
    if not any(storage is view.storage for storage in storages):
        storages.append(view.storage)
    key = next(i for i, storage in enumerate(storages) if storage is view.storage)
    dtype = view.storage.dtype.name
    untyped = dtype not in _STORAGES
    kind = (
        _global("torch.storage", "UntypedStorage")
        if untyped
        else _global("torch", _STORAGES[dtype])
    )
    count = view.storage.nbytes if untyped else view.storage.size
    identifier = _pickle("storage", []) + kind
    identifier += b"".join(_pickle(v, []) for v in (str(key), "cpu", count))
    arguments = b"(" + identifier + (b"N" if legacy else b"") + b"tQ"
    arguments += b"".join(_pickle(v, []) for v in view[1:])
    arguments += _pickle(False, []) + _pickle(OrderedDict(), [])
    if untyped:
        arguments += _global("torch", dtype)
    function = "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2"
    return _global("torch._utils", function) + b"(" + arguments + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
