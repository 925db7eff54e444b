"""Tensors as `torch.save` pickles them: views of storages, which several may share.

A storage has a persistent identifier in the pickle; its bytes stand elsewhere in the
file.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights import unpickle

# Bytes of the pickles in a file of torch.
MAX_PICKLE = 64 << 20
MAX_DIMENSIONS = 16
# A tensor may repeat the elements of its storage, but not without end.
_MAX_REPEATED = 1 << 24

STORAGES: dict[str, Any] = {
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


class Content:
    """The bytes of a storage.

    Args:
      shown: Its name, quoted.
      data: uint8; may be filled later.
      swap: Whether its numbers come in the other byte order.
    """

    def __init__(self, shown: str, data: np.ndarray, swap: bool = False):
        self._shown, self._data = shown, data
        self.size = data.size
        self._swap = swap
        # Of the numbers that were swapped.
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


class Storage(NamedTuple):
    """What a tensor is a view of."""

    content: Content
    dtype: np.dtype


def storage_dtype(kind: Any) -> np.dtype:
    """The element type of a storage, by its class in the pickle.

    Raises:
      ValueError: It is no such class.
    """
    if type(kind) not in (unpickle.Global, unpickle.StandIn):
        raise ValueError("damaged pickle (not the identifier of a storage)")
    if kind.name not in STORAGES:
        raise ValueError(f"damaged pickle ({quoted(kind.name)} is not a storage)")
    return np.dtype(STORAGES[kind.name])


def _rebuild_tensor(storage, offset, size, stride):
    if type(storage) is not Storage:
        raise ValueError("damaged pickle (a tensor without storage)")
    return _view(storage.content, storage.dtype, offset, size, stride)


def _rebuild_tensor_v2(
    storage, offset, size, stride, requires_grad, hooks, metadata=None
):
    return _rebuild_tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None
):
    if type(dtype) is not unpickle.Global or dtype.name not in _DTYPES:
        raise ValueError("damaged pickle (not an element type)")
    if type(storage) is not Storage:
        raise ValueError("damaged pickle (a tensor without storage)")
    dtype = np.dtype(_DTYPES[dtype.name])
    return _view(storage.content, dtype, offset, size, stride)


def _view(content: Content, dtype: np.dtype, offset, size, stride) -> np.ndarray:
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


def _rebuild_parameter(data, requires_grad, hooks, state=None):
    return data


# What makes the objects of torch's pickles, for `unpickle.load`.
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": unpickle.empty_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    **{name: unpickle.not_callable for name in (*STORAGES, *_DTYPES)},
}
