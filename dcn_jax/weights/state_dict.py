"""Named tensors of a file, whatever its format."""

import os
from typing import Any, NamedTuple

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights.numpy_pickle import PickledArray
from dcn_jax.weights.pth import read_pth
from dcn_jax.weights.safetensors_file import read_safetensors
from dcn_jax.weights.unpickle import StandIn


class WeightFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, np.ndarray]
    texts: dict[str, str]  # beside them, by name: of a header, or of "meta"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a state dict in a pickled one.

    A state dict may stand in the file alone or under "state_dict" or "model"; the
    prefix "module." of data-parallel training is taken off. What is not a tensor is
    left out.

    Args:
      path: The file; .safetensors has this suffix, the other formats, those of
        `torch.save` (.pth, .pt) and pickles of numpy arrays (.pkl), are told apart by
        their content.

    Returns:
      Arrays by name, in the file's order and types (bfloat16 is `jnp.bfloat16`). They
      may be read-only views of one another's memory, as in the file.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is damaged, has another format, holds no tensors, or among them
        anything that would have to be executed, asks for more memory or time than its
        bytes bear out, is no regular file, or has more than 8 GiB; the message names
        the file. What stands beside the tensors is not executed either.
      ImportError: The file is .safetensors, and that package is not installed.
    """
    return read_weights(path).tensors


def read_weights(path: str | os.PathLike) -> WeightFile:
    """As `read_state_dict`, with the texts that stand beside the tensors."""
    file = quoted(os.fspath(path), 500)
    if os.fspath(path).endswith(".safetensors"):
        tensors, texts = read_safetensors(path)
    else:
        content = read_pth(path)
        texts = _texts_in(content)
        try:
            tensors = _state_dict_in(content)
        except ValueError as error:
            raise ValueError(f"cannot read {file}: {error}") from error
    if not tensors:
        raise ValueError(f"{file} holds no named tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return WeightFile(tensors, texts)


def _state_dict_in(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {}
    for wrapper in ("state_dict", "model"):
        inner = content.get(wrapper)
        if isinstance(inner, StandIn):
            raise inner.refusal()
        if isinstance(inner, dict):
            content = inner
            break
    tensors = {}
    for name, value in content.items():
        if isinstance(value, StandIn):
            raise value.refusal()
        if isinstance(value, PickledArray):
            value = value.value
        if isinstance(name, str) and isinstance(value, np.ndarray):
            tensors[name] = value
    return tensors


def _texts_in(content: Any) -> dict[str, str]:
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return {}
    return {
        name: value
        for name, value in meta.items()
        if isinstance(name, str) and isinstance(value, str)
    }
