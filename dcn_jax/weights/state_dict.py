"""Named tensors of a file, whatever its format."""

import math
import os
from io import BufferedReader
from typing import Any

import jax.numpy as jnp
import numpy as np

from dcn_jax.quoting import one_line, quoted
from dcn_jax.regular_file import open_regular
from dcn_jax.weights.pth import MAX_BYTES, MAX_DIMENSIONS, read_pth

# Bytes of the header of a .safetensors file; a tensor needs about 100.
_MAX_HEADER = 4 << 20

_SAFETENSORS_DTYPES = {
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


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a state dict in a .pth or .pt file.

    A state dict may stand in the file alone or under "state_dict" or "model"; the
    prefix "module." of data-parallel training is taken off. What is not a tensor is
    left out.

    Args:
      path: The file; its suffix decides between the formats.

    Returns:
      Arrays by name, in the file's order and types (bfloat16 is `jnp.bfloat16`). They
      may be read-only views of one another's memory, as in the file.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is damaged, has another format, holds no tensors or anything that
        would have to be executed, asks for more memory or time than its bytes bear out,
        is no regular file, or has more than 8 GiB; the message names the file.
      ImportError: The file is .safetensors, and that package is not installed.
    """
    if os.fspath(path).endswith(".safetensors"):
        tensors = _read_safetensors(path)
    else:
        tensors = _state_dict_in(read_pth(path))
    if not tensors:
        raise ValueError(f"{quoted(os.fspath(path), 500)} holds no named tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def _state_dict_in(content) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {}
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }


def _read_safetensors(path) -> dict[str, np.ndarray]:
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
                return {
                    name: _tensor(file, name, header.get_slice(name))
                    for name in header.offset_keys()
                }
        except (ValueError, SafetensorError, MemoryError) as error:
            reason = one_line(str(error), 400) or "not enough memory"
            raise ValueError(
                f"cannot read {quoted(os.fspath(path), 500)}: {reason}"
            ) from error


def _tensor(file: BufferedReader, name: str, entry: Any) -> np.ndarray:
    """The tensor at the file's position."""
    if entry.get_dtype() not in _SAFETENSORS_DTYPES:
        raise ValueError(f"{quoted(name)} has the element type {entry.get_dtype()}")
    dtype = np.dtype(_SAFETENSORS_DTYPES[entry.get_dtype()])
    shape = entry.get_shape()
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{quoted(name)} has {len(shape)} dimensions")
    data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    if file.readinto(data.data) != data.size:
        raise ValueError(f"{quoted(name)} is cut short")
    data.flags.writeable = False
    return data.view(dtype).reshape(shape)
