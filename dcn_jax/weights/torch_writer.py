"""Writes state dicts as `torch.save` does, without torch."""

import os
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights.torch_tensors import STORAGES

_KINDS = {
    np.dtype(dtype): name
    for name, dtype in STORAGES.items()
    if not name.endswith("UntypedStorage")
}
_ORDERED = b"ccollections\nOrderedDict\n)R"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes an ordered dictionary of tensors, for `torch.load`.

    Raises:
      OSError: The file cannot be written.
      ValueError: torch has no such element type; the message names the tensor.
    """
    pickled = [b"\x80\x02", _ORDERED, b"("]
    for key, (name, tensor) in enumerate(tensors.items()):
        pickled += [_text(name), _tensor(key, name, tensor)]
    pickled.append(b"u.")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", b"".join(pickled))
        archive.writestr("weights/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            with archive.open(f"weights/data/{key}", "w") as member:
                little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
                flat = np.ascontiguousarray(little).reshape(-1)
                member.write(flat.view(np.uint8).data)
        archive.writestr("weights/version", b"3\n")


def _tensor(key: int, name: str, tensor: np.ndarray) -> bytes:
    if tensor.dtype not in _KINDS:
        raise ValueError(f"{quoted(name)} has the element type {tensor.dtype.name}")
    module, _, kind = _KINDS[tensor.dtype].rpartition(".")
    strides = [1]
    for size in tensor.shape[:0:-1]:
        strides.append(strides[-1] * size)
    storage = [_text("storage"), f"c{module}\n{kind}\n".encode(), _text(str(key))]
    storage += [_text("cpu"), _integer(tensor.size)]
    arguments = [_tuple(storage), b"Q", _integer(0)]
    arguments.append(_tuple([_integer(size) for size in tensor.shape]))
    arguments.append(_tuple([_integer(s) for s in strides[::-1][: tensor.ndim]]))
    arguments += [b"\x89", _ORDERED]  # requires_grad, hooks
    return _REBUILD + _tuple(arguments) + b"R"


def _tuple(items: list[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
