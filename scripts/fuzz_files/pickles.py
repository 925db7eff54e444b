"""Draws pickles as torch and numpy write them, and such as they never would."""

import struct
from collections.abc import Callable

import numpy as np

_FLOAT = b"ctorch\nFloatStorage\n"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_ORDERED = b"ccollections\nOrderedDict\n"
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
_DTYPE = b"cnumpy\ndtype\nX\2\0\0\0%s\x89\x88\x87R(K\3X\1\0\0\0%sNNNJ\xff\xff\xff\xff"
_DTYPE_END = b"J\xff\xff\xff\xffK\0tb"
_ENCODE = b"c_codecs\nencode\n"


def text(data: bytes) -> bytes:
    """The instruction for a text."""
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """The instruction for an integer."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > 255:
        return b"\x8b" + struct.pack("<I", len(data)) + data
    return b"\x8a" + bytes([len(data)]) + data


def state_dict(
    rng: np.random.Generator, counts: list[int], legacy: bool
) -> list[bytes]:
    """The parts of a pickled state dict: names and tensors.

    Args:
      rng: Draws names and views.
      counts: Elements of the float32 storages "0", "1", ...
      legacy: Whether it is of a file of torch before 1.6.

    Returns:
      Head, then names and tensors in turn, then the end.
    """
    parts = [b"\x80\x02" + _ORDERED + b")R("]
    for key, count in enumerate(counts):
        width = int(rng.integers(1, 9))
        size, stride = (count // width, width), (width, 1)
        arguments = [
            tensor_storage(key, count, legacy),
            integer(0),
            *(b"(" + b"".join(map(integer, n)) + b"t" for n in (size, stride)),
            *(b"\x89", _ORDERED + b")R"),
        ]
        if rng.random() < 0.03:
            arguments[int(rng.integers(5))] = odd_value(rng)
        name = odd_text(rng) if rng.random() < 0.02 else b"layer%d.weight" % key
        parts += [text(name), _REBUILD + b"(" + b"".join(arguments) + b"tR"]
    return [*parts, b"u}" + text(b"_metadata") + b"}sb."]


def tensor_storage(key: int, count: int, legacy: bool) -> bytes:
    """The instructions for a storage."""
    place = text(b"storage") + _FLOAT + text(b"%d" % key) + text(b"cpu")
    return b"(" + place + integer(count) + (b"N" if legacy else b"") + b"tQ"


def arrays(rng: np.random.Generator, counts: list[int]) -> list[bytes]:
    """The parts of a pickled dictionary of float32 arrays.

    Args:
      rng: Draws names, and what is wrong.
      counts: Elements of each.

    Returns:
      Head, then names and arrays in turn, then the end.
    """
    parts = [b"\x80\x02}("]
    for key, count in enumerate(counts):
        data = bytes(4 * count)
        if rng.random() < 0.5:
            # As protocol 2 has it: text, and a call.
            content = _ENCODE + text(data) + text(b"latin1") + b"\x86R"
        else:
            content = b"B" + struct.pack("<I", len(data)) + data
        kind = (b"f4", b"f8", b"O8")[rng.choice(3, p=[0.96, 0.02, 0.02])]
        order = b"<" if rng.random() < 0.98 else b">"
        state = [
            b"K\1",
            integer(count) + b"\x85",
            _DTYPE % (kind, order) + _DTYPE_END,
            b"\x89",
            content,
        ]
        if rng.random() < 0.03:
            state[int(rng.integers(5))] = odd_value(rng)
        name = odd_text(rng) if rng.random() < 0.02 else b"layer%d.weight" % key
        parts += [text(name), _ARRAY + b"(" + b"".join(state) + b"tb"]
    return [*parts, b"u."]


def odd_text(rng: np.random.Generator) -> bytes:
    """A text that a terminal or a reader may stumble over."""
    unit = (b"a", b"a.", b"\x1b[31m", b"\n", b"\xe2\x80\xae", "😀".encode(), b"\xff")
    return unit[rng.integers(len(unit))] * int(10 ** rng.uniform(0, 6.5))


def odd_value(rng: np.random.Generator) -> bytes:
    """The instructions for a value that nobody expects."""
    match int(rng.integers(10)):
        case 0:
            return b")" + b"q\xffh\xff\x86" * int(rng.integers(1, 500))
        case 1:
            return integer(int(rng.integers(-(2**63), 2**63)) << int(rng.integers(99)))
        case 2:
            return integer(1 << int(10 ** rng.uniform(0, 7)))
        case 3:
            return text(odd_text(rng))
        case 4:
            return b"(" + b"K\x01" * int(10 ** rng.uniform(0, 6)) + b"t"
        case 5:
            return b"]" + b")\x85" * int(rng.integers(100))
        case 6:
            return b"}" + b"K\x01Ns"
        case 7:
            return _FLOAT
        case 8:
            return tensor_storage(
                int(rng.integers(3)), int(rng.integers(100)), rng.random() < 0.5
            )
        case _:
            return b"G" + rng.bytes(8)


# Pieces of programs; the first part needs nothing of the stack.
_PUSHES = (
    *(b"N", b"(", b"}", b"]", b")", b"\x88", b"K\x01", b"M\x01\x02", b"\x8c\x01a"),
    *(b"J\xff\xff\xff\x7f", b"G\x7f\xf0\0\0\0\0\0\0", b"X\0\0\0\0", b"\x8a\0"),
    *(b"h\0", b"j\0\0\0\0", b")\x85", b"}K\x01Ns", b"]Na", b"(NNt", b"(NNe", b"N\x94"),
    *(_FLOAT, _ORDERED, _ORDERED + b")R", _REBUILD, b"Nq\0", b"Nr\0\0\1\0"),
    *(_ARRAY, _ENCODE, b"cos\nsystem\n", b"C\1a", b"B\2\0\0\0ab", b"U\1a"),
)
_CHANGES = (
    *(b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R", b"b", b"Q", b"."),
    *(b"q\0", b"q\1", b"r\xff\xff\0\0", b"\x94", b"\x93", b"0", b"1", b"2", b"i", b"o"),
    *(b"\x81", b"\x92", b"\x82\1", b"P1\n", b"I1\n"),
    b"\x95" + bytes(8),
)


def program(rng: np.random.Generator) -> bytes:
    """Random instructions."""
    pieces = [
        _PUSHES[rng.integers(len(_PUSHES))]
        if rng.random() < 0.7
        else _CHANGES[rng.integers(len(_CHANGES))]
        for _ in range(int(10 ** rng.uniform(0, 4)))
    ]
    return b"\x80\x02" + b"".join(pieces) + b"."


def flood(rng: np.random.Generator) -> bytes:
    """A few instructions, a million times."""
    every = _PUSHES + _CHANGES
    unit = b"".join(
        every[rng.integers(len(every))] for _ in range(int(rng.integers(1, 5)))
    )
    start = [b"N\x94", b"}\x94", b"]\x94", b")\x94", _ORDERED + b"\x94)\x94"]
    head = b"\x80\x02" + start[rng.integers(len(start))]
    return head + unit * int(10 ** rng.uniform(4, 7.3) / len(unit)) + b"."


def numbered(rng: np.random.Generator) -> bytes:
    """A dictionary with numbers as keys, which may collide."""
    count = int(10 ** rng.uniform(2, 5.5))
    step = [1, 2**61 - 1, 2**40, 2**20, 5][rng.integers(5)]
    keys: list[Callable[[int], bytes]] = [
        lambda i: integer(i * step),
        lambda i: b"G" + struct.pack(">d", float(i) * 2.0 ** float(step % 64)),
    ]
    key = keys[rng.integers(2)]
    return b"\x80\x02}(" + b"".join(key(i) + b"N" for i in range(count)) + b"u."
