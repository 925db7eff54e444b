"""Pickled dictionaries of numpy arrays, as detectron2 publishes them (.pkl)."""

import os
from io import BufferedReader
from typing import Any

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights import unpickle
from dcn_jax.weights.torch_tensors import MAX_DIMENSIONS

# Kinds and widths of the elements, as numpy names them: numbers and truth values.
_TYPES = frozenset(
    (
        "b1",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
        "c8",
        "c16",
    )
)
_ENCODE = "_codecs.encode"


class PickledArray(unpickle.Unfinished):
    """An array of the pickle.

    Attributes:
      value: Read-only; None as long as the content has not come.
    """

    def __init__(self, texts: "_Texts"):
        self._texts = texts
        self.value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes (version, shape, dtype, is it in Fortran's order, bytes)."""
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("damaged pickle (not the content of an array)")
        _, shape, dtype, fortran, data = state
        if type(data) is str:  # of Python 2
            data = self._texts.encode(data)
        self.value = _array(data, dtype, shape, "F" if fortran is True else "C")


class _DType(unpickle.Unfinished):
    """An element type of the pickle."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if type(code) is not str or code not in _TYPES:
            raise ValueError(
                f"an array has the element type {quoted(code)}; expected numbers"
            )
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Takes (version, byte order, ...)."""
        if type(state) is not tuple or len(state) < 2 or type(state[1]) is not str:
            raise ValueError("damaged pickle (not an element type)")
        if state[1] not in "<|=":
            raise ValueError(
                f"an array has the byte order {quoted(state[1])}; expected '<'"
            )


def read_numpy_pickle(file: BufferedReader) -> Any:
    """The object in the file.

    Returns:
      Dictionaries, lists, tuples, text, numbers, bytes, and arrays as `PickledArray`.

    Raises:
      ValueError: It is no such file, or is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    texts = _Texts(size)
    constructors = {
        **_CONSTRUCTORS,
        **dict.fromkeys(_names("multiarray._reconstruct"), texts.reconstruct),
        **dict.fromkeys(_names("numeric._frombuffer"), texts.from_buffer),
        _ENCODE: texts.encode,
    }
    return unpickle.load(file, constructors, max_bytes=size, spent=(_ENCODE,))


class _Texts:
    """Bytes that a file holds as text, of which there are no more than it has.

    A text may be mentioned again and again, and each time its bytes are made anew.
    """

    def __init__(self, size: int):
        self._left = size

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise ValueError("damaged pickle (bytes that are no latin1 text)")
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("its arrays should have more bytes than the file")
        return text.encode("latin1")

    def reconstruct(self, kind: Any, shape: Any, code: Any) -> PickledArray:
        if type(kind) is not unpickle.Global or kind.name != "numpy.ndarray":
            raise ValueError("damaged pickle (an array of another kind)")
        return PickledArray(self)

    def from_buffer(
        self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> PickledArray:
        array = PickledArray(self)
        array.value = _array(data, dtype, shape, "C" if order == "K" else order)
        if order == "K":
            # As it lies in memory, and the order of the axes that it has.
            if type(axes) is not tuple or len(axes) != array.value.ndim:
                raise ValueError("damaged pickle (not the axes of an array)")
            array.value = array.value.transpose(axes)
        return array


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    # Tuples of a pickle can be as many copies of one another as there are atoms: these
    # are not looped over before it is clear that they are short and flat.
    if not (
        type(shape) is tuple
        and len(shape) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
        and type(dtype) is _DType
        and order in ("C", "F")
    ):
        raise ValueError(f"an array has shape {quoted(shape)}, or no element type")
    if type(data) is not bytes:
        raise ValueError("damaged pickle (an array without bytes)")
    elements = np.frombuffer(data, np.uint8)
    count = 1
    for n in shape:
        count *= n
    if count * dtype.dtype.itemsize != elements.size:
        raise ValueError(
            f"an array has shape {quoted(shape)} and type {dtype.dtype.name}, but "
            f"{elements.size} bytes"
        )
    return elements.view(dtype.dtype).reshape(shape, order=order)


def _names(function: str) -> tuple[str, str]:
    """What numpy calls it, before and since version 2."""
    return f"numpy.core.{function}", f"numpy._core.{function}"


def _no_bytes() -> bytes:
    return b""


_CONSTRUCTORS = {
    "collections.OrderedDict": unpickle.empty_dict,
    "numpy.ndarray": unpickle.not_callable,
    "numpy.dtype": _DType,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}
