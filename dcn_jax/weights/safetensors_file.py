"""Files of the safetensors format: a header in JSON, then the tensors' bytes."""

import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

import jax.numpy as jnp
import numpy as np

from dcn_jax.quoting import one_line, quoted
from dcn_jax.regular_file import open_regular
from dcn_jax.weights.pth import MAX_BYTES
from dcn_jax.weights.torch_tensors import MAX_DIMENSIONS

# Bytes of the header; a tensor needs about 100.
_MAX_HEADER = 4 << 20

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def read_safetensors(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file, read-only, and the texts in its header.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is damaged, or asks for more memory than it has bytes; the message
        names the file.
      ImportError: The package safetensors is not installed.
    """
    # Only users of this format need the package.
    from safetensors import SafetensorError, safe_open

    with open_regular(path, max_bytes=MAX_BYTES) as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            # The package makes some 20 times as much of it.
            if length > _MAX_HEADER:
                raise ValueError(
                    f"its header claims {length} bytes; expected at most {_MAX_HEADER}"
                )
            file.seek(length, os.SEEK_CUR)
            # The package checks that the tensors follow one another, without gaps. It
            # would hold them twice, and its numpy form has no bfloat16.
            with safe_open(path, framework="np", backend="pread") as header:
                tensors = {
                    name: _tensor(file, name, header.get_slice(name))
                    for name in header.offset_keys()
                }
                return tensors, header.metadata() or {}
        except (ValueError, SafetensorError, MemoryError) as error:
            reason = one_line(str(error), 400) or "not enough memory"
            raise ValueError(
                f"cannot read {quoted(os.fspath(path), 500)}: {reason}"
            ) from error


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors, and texts into the header.

    Raises:
      OSError: The file cannot be written.
      ValueError: The format has no such element type; the message names the tensor.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # The widest first: then all are aligned.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    at = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{quoted(name)} has the element type {tensor.dtype.name}")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = np.ascontiguousarray(tensors[name]).reshape(-1)
            file.write(flat.view(np.uint8).data)


def _tensor(file: BufferedReader, name: str, entry: Any) -> np.ndarray:
    """The tensor at the file's position."""
    if entry.get_dtype() not in _DTYPES:
        raise ValueError(f"{quoted(name)} has the element type {entry.get_dtype()}")
    dtype = np.dtype(_DTYPES[entry.get_dtype()])
    shape = entry.get_shape()
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{quoted(name)} has {len(shape)} dimensions")
    data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    if file.readinto(data.data) != data.size:
        raise ValueError(f"{quoted(name)} is cut short")
    data.flags.writeable = False
    return data.view(dtype).reshape(shape)
