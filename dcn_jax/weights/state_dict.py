"""Named tensors of a file, whatever its format."""

import os

import jax.numpy as jnp
import numpy as np

from dcn_jax.weights.pth import read_pth

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
      ValueError: It is damaged, has another format, or holds no tensors or anything
        that would have to be executed; the message names the file.
      ImportError: The file is .safetensors, and that package is not installed.
    """
    if os.fspath(path).endswith(".safetensors"):
        tensors = _read_safetensors(path)
    else:
        tensors = _state_dict_in(read_pth(path))
    if not tensors:
        raise ValueError(f"{os.fspath(path)!r} holds no named tensors")
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
    from safetensors import SafetensorError, deserialize

    with open(path, "rb") as file:
        data = file.read()
    try:
        # The package's numpy reader has no bfloat16.
        entries = deserialize(data)
    except SafetensorError as error:
        raise ValueError(f"cannot read {os.fspath(path)!r}: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(
                f"cannot read {os.fspath(path)!r}: {name!r} has the element type "
                f"{entry['dtype']}"
            )
        dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return tensors
