"""Reads one matrix out of a MATLAB file of version 5, which lies in a structure.

SciPy reads these files too, but goes as deep, and takes as much memory, as a file asks
for. This walks over what it does not need, unpacks a bounded number of bytes, and reads
only what lies there.

Source: MathWorks, MAT-File Format, "Level 5".
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from dcn_jax.quoting import one_line

_HEADER = 128
# Elements of an array that are looked at; a structure has five, and one for each field.
_MOST_PARTS = 64
# Types of data elements.
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8",
    12: "i8", 13: "u8",
}  # fmt: skip
# Classes of arrays.
_STRUCT = 2
_NUMERIC = range(6, 16)


class _Broken(Exception):
    """Why a file is none that can be read."""


class _Array(NamedTuple):
    kind: int
    shape: tuple[int, ...]
    name: bytes
    rest: list[tuple[int, bytes]]  # its further elements: type, content


def read_field(
    data: bytes, name: str, variable: str, field: str, *, max_bytes: int
) -> np.ndarray:
    """Reads a field of a structure that is a real matrix.

    Args:
      data: The file.
      name: Its name, for messages.
      variable: Name of the structure.
      field: Name of the field.
      max_bytes: Of what is packed, at most so much is unpacked.

    Returns:
      [H, W], of the type that it is stored in.

    Raises:
      ValueError: One line that names the file: it is none of these, or has no such
        matrix.
    """
    try:
        for kind, content in _elements(_body(data), max_bytes):
            if kind != _MATRIX:
                continue
            found = _array(content)
            if found.name == variable.encode():
                return _matrix(_field(found, field))
        reason = f"it has no variable {variable}"
    except _Broken as error:
        reason = str(error)
    except (struct.error, zlib.error, IndexError, ValueError):
        reason = "it is broken, or cut short"
    raise ValueError(f"{one_line(name, 300)} cannot be read as a MATLAB file: {reason}")


def _body(data: bytes) -> bytes:
    if data[124:128] != b"\x00\x01IM":
        raise _Broken("it is not of version 5, little-endian")
    return data[_HEADER:]


def _elements(data: bytes, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields type and content of the elements of a file, unpacked."""
    left = max_bytes
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        content = _cut(data, position + 8, size)
        position += 8 + size
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(content, left + 1)
            left -= len(unpacked)
            if left < 0:
                raise _Broken(f"it unpacks to more than {max_bytes} bytes")
            kind, size = struct.unpack_from("<II", unpacked)
            content = _cut(unpacked, 8, size)
        yield kind, content


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields type and content of the elements within another."""
    position = 0
    while position < len(data):
        first, size = struct.unpack_from("<II", data, position)
        if first >> 16:  # of 4 bytes at most, which lie in the place of the size
            yield first & 0xFFFF, _cut(data, position + 4, min(first >> 16, 4))
            position += 8
        else:
            yield first, _cut(data, position + 8, size)
            position += 8 + (size + 7) // 8 * 8


def _cut(data: bytes, start: int, size: int) -> bytes:
    if start + size > len(data):
        raise _Broken("it is cut short")
    return data[start : start + size]


def _array(content: bytes) -> _Array:
    flags, shape, name, *rest = islice(_parts(content), _MOST_PARTS)
    if (flags[0], shape[0], name[0]) != (_UINT32, _INT32, _INT8):
        raise _Broken("an array of it has no flags, sizes or name")
    if len(shape[1]) % 4 or len(flags[1]) != 8:
        raise _Broken("an array of it has odd flags or sizes")
    sides = tuple(np.frombuffer(shape[1], "<i4").tolist())
    return _Array(flags[1][0], sides, name[1], rest)


def _field(found: _Array, field: str) -> _Array:
    """The content of a structure's field."""
    if found.kind != _STRUCT or found.shape != (1, 1):
        raise _Broken("its variable is no structure")
    (_, length), (_, names), *values = found.rest
    (width,) = struct.unpack_from("<i", length)
    if width < 1 or len(names) > _MOST_PARTS * width:
        raise _Broken("a structure of it has odd names of fields")
    fields = [
        names[start : start + width].split(b"\0")[0]
        for start in range(0, len(names), width)
    ]
    if field.encode() not in fields:
        raise _Broken(f"its variable has no field {field}")
    return _array(values[fields.index(field.encode())][1])


def _matrix(found: _Array) -> np.ndarray:
    kind, content = found.rest[0]
    if found.kind not in _NUMERIC or kind not in _NUMBERS or len(found.shape) != 2:
        raise _Broken("what it has there is no real matrix")
    height, width = found.shape
    number = np.dtype("<" + _NUMBERS[kind])
    if min(height, width) < 1 or height * width * number.itemsize != len(content):
        raise _Broken("a matrix of it has another size than it says")
    return np.frombuffer(content, number).reshape(width, height).T
