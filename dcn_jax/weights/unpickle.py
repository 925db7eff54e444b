"""A reader of pickles that can only make plain data.

`pickle` runs a program that may import and call anything. This reader interprets the
instructions that `torch.save` writes for dictionaries of tensors, and no others; it
never imports or calls what the file names, but looks the name up in a table of
constructors that the caller gives.

A pickle may also ask for far more memory or time than it has bytes. So instructions are
paid from a budget, keys cannot be made to collide, and integers are small.
"""

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dcn_jax.quoting import one_line

# Bytes that the objects of a pickle may take, beyond its texts.
_BUDGET = 64 << 20
# What an instruction is charged, more than it makes; so there are at most 524,288 of
# them. A tensor needs about 40. And what a call is charged beyond that.
_INSTRUCTION = 128
_CALL = 256
# Bytes of an integer, of a name, and numbers as keys (beyond 0, 1, 2, ... in order).
_MAX_INTEGER = 255
_MAX_NAME = 1000
_MAX_NUMBER_KEYS = 4096


class Global(NamedTuple):
    """A name in the file, standing for itself. One of `load`'s constructors."""

    name: str


def load(
    data: bytes,
    constructors: Mapping[str, Callable[..., Any]],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """The object that a pickle describes.

    Takes time in proportion to the length, and memory of at most 64 MiB beyond twice
    the length and what the two functions make.

    Args:
      data: The pickle, of protocol 2 to 5.
      constructors: What makes the object, for each full name ("module.name") that the
        pickle may apply to arguments. Names that are only mentioned, as types are, stay
        `Global`. Arguments may be of any type and tuples in them may be nested without
        end, as copies of one another: to be checked before they are looped over.
      persistent_load: Gives the object that a persistent identifier stands for; the
        same holds for the identifier.

    Raises:
      ValueError: The pickle is damaged, too large, or uses a name or an instruction
        outside this list; the message names it.
    """
    try:
        return _Machine(data, constructors, persistent_load).run()
    except (IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(f"damaged pickle ({one_line(repr(error), 200)})") from error


class _Machine:
    """The stack, the memo and the instructions."""

    def __init__(self, data, constructors, persistent_load):
        self._data = data
        self._at = 0  # position in the data
        self._constructors = constructors
        self._globals = {name: Global(name) for name in constructors}
        self._persistent_load = persistent_load
        self._budget = _BUDGET
        self._number_keys = _MAX_NUMBER_KEYS
        self._stack: list = []
        self._marked: list[list] = []  # the stacks below each open mark
        # By index: writers count from 0 or 1. An attacker's dictionary could collide.
        self._memo: list = []

    def run(self) -> Any:
        data, end = self._data, len(self._data)
        while self._at < end:
            code = data[self._at]
            self._at += 1
            if code == _STOP:
                return self._stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise ValueError(
                    f"pickle instruction {chr(code)!r} is not allowed here"
                )
            self._budget -= _INSTRUCTION
            if self._budget < 0:
                raise _too_large()
            instruction(self)
        raise ValueError("damaged pickle (no end)")

    def _charge(self, count: int) -> None:
        """Pays for `count` bytes, before they are taken."""
        self._budget -= count
        if self._budget < 0:
            raise _too_large()

    # Reading of arguments.

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise ValueError("damaged pickle (cut short)")
        return self._data[start : self._at]

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + _MAX_NAME + 1)
        if end < 0:
            raise ValueError(f"damaged pickle (a name beyond {_MAX_NAME} bytes)")
        line = self._take(end - self._at)
        self._at += 1
        return _decoded(line)

    def _pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # The instructions.

    def _proto(self):
        self._at += 1

    def _frame(self):
        self._at += 8

    def _mark(self):
        self._marked.append(self._stack)
        self._stack = []

    def _none(self):
        self._stack.append(None)

    def _true(self):
        self._stack.append(True)

    def _false(self):
        self._stack.append(False)

    def _int1(self):
        self._stack.append(self._unsigned(1))

    def _int2(self):
        self._stack.append(self._unsigned(2))

    def _int4(self):
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _long1(self):
        self._long(self._unsigned(1))

    def _long4(self):
        self._long(self._unsigned(4))

    def _long(self, width: int):
        if width > _MAX_INTEGER:
            raise ValueError(f"damaged pickle (an integer of {width} bytes)")
        self._charge(width)
        self._stack.append(int.from_bytes(self._take(width), "little", signed=True))

    def _float(self):
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _text1(self):
        self._text(1)

    def _text4(self):
        self._text(4)

    def _text8(self):
        self._text(8)

    def _text(self, width: int):
        data = self._take(self._unsigned(width))
        self._charge(len(data) * (_bytes_per_character(data) - 1))
        self._stack.append(_decoded(data))

    def _empty_dict(self):
        self._stack.append({})

    def _empty_list(self):
        self._stack.append([])

    def _empty_tuple(self):
        self._stack.append(())

    def _tuple1(self):
        self._tuple(1)

    def _tuple2(self):
        self._tuple(2)

    def _tuple3(self):
        self._tuple(3)

    def _tuple(self, count: int):
        if len(self._stack) < count:
            raise IndexError("stack is empty")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _tuple_to_mark(self):
        items = tuple(self._pop_to_mark())
        self._stack.append(items)

    def _append(self):
        value = self._stack.pop()
        _of_type(list, self._stack[-1]).append(value)

    def _appends(self):
        items = self._pop_to_mark()
        _of_type(list, self._stack[-1]).extend(items)

    def _set_item(self):
        value, key = self._stack.pop(), self._stack.pop()
        self._put(_of_type(dict, self._stack[-1]), key, value)

    def _set_items(self):
        items = self._pop_to_mark()
        target = _of_type(dict, self._stack[-1])
        if len(items) % 2:
            raise ValueError("damaged pickle (a key without a value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(target, key, value)

    def _put(self, target: dict, key: Any, value: Any):
        if type(key) is not str:
            # Nested tuples would also be hashable, but their hash can take forever.
            if not isinstance(key, int | float):
                raise TypeError(f"{type(key).__name__} as a key")
            # Only the hashes of texts are secret. 0, 1, 2, ... (or 1, 2, ...) do not
            # collide; of numbers that may, a file has few.
            if key not in (len(target), len(target) + 1):
                self._number_keys -= 1
                if self._number_keys < 0:
                    raise ValueError(
                        f"its pickle has more than {_MAX_NUMBER_KEYS} numbers as keys"
                    )
        target[key] = value

    def _put1(self):
        self._memoize(self._unsigned(1))

    def _put4(self):
        self._memoize(self._unsigned(4))

    def _memoize_next(self):
        self._memoize(len(self._memo))

    def _memoize(self, index: int):
        missing = index + 1 - len(self._memo)
        if missing > 0:
            self._charge(8 * missing)
            self._memo += [_MISSING] * missing
        self._memo[index] = self._stack[-1]

    def _get1(self):
        self._get(self._unsigned(1))

    def _get4(self):
        self._get(self._unsigned(4))

    def _get(self, index: int):
        value = self._memo[index]
        if value is _MISSING:
            raise IndexError(f"nothing under {index} in the memo")
        self._stack.append(value)

    def _global(self):
        module = self._line()
        self._stack.append(self._find(module, self._line()))

    def _stack_global(self):
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(_of_type(str, module), _of_type(str, name)))

    def _find(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if full not in self._globals:
            raise ValueError(
                f"it uses `{one_line(full, 200)}`, which is refused: only tensors, "
                "dictionaries, lists, tuples, text and numbers are read"
            )
        return self._globals[full]

    def _reduce(self):
        self._charge(_CALL)
        arguments = _of_type(tuple, self._stack.pop())
        function = _of_type(Global, self._stack.pop())
        self._stack.append(self._constructors[function.name](*arguments))

    def _build(self):
        # Attributes of a dictionary (torch keeps versions there).
        self._stack.pop()
        _of_type(dict, self._stack[-1])

    def _persistent(self):
        self._stack.append(self._persistent_load(self._stack.pop()))


_STOP = ord(".")
_MISSING = object()
_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine._proto,
    0x95: _Machine._frame,
    ord("("): _Machine._mark,
    ord("N"): _Machine._none,
    0x88: _Machine._true,
    0x89: _Machine._false,
    ord("K"): _Machine._int1,
    ord("M"): _Machine._int2,
    ord("J"): _Machine._int4,
    0x8A: _Machine._long1,
    0x8B: _Machine._long4,
    ord("G"): _Machine._float,
    0x8C: _Machine._text1,
    ord("X"): _Machine._text4,
    0x8D: _Machine._text8,
    ord("}"): _Machine._empty_dict,
    ord("]"): _Machine._empty_list,
    ord(")"): _Machine._empty_tuple,
    0x85: _Machine._tuple1,
    0x86: _Machine._tuple2,
    0x87: _Machine._tuple3,
    ord("t"): _Machine._tuple_to_mark,
    ord("a"): _Machine._append,
    ord("e"): _Machine._appends,
    ord("s"): _Machine._set_item,
    ord("u"): _Machine._set_items,
    ord("q"): _Machine._put1,
    ord("r"): _Machine._put4,
    0x94: _Machine._memoize_next,
    ord("h"): _Machine._get1,
    ord("j"): _Machine._get4,
    ord("c"): _Machine._global,
    0x93: _Machine._stack_global,
    ord("R"): _Machine._reduce,
    ord("b"): _Machine._build,
    ord("Q"): _Machine._persistent,
}


def _too_large() -> ValueError:
    return ValueError(
        "its pickle makes more objects than a dictionary of tensors has use for"
    )


def _of_type(kind, value):
    # A tuple subclass is no tuple here: Global must not pass for one.
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _bytes_per_character(data: bytes) -> int:
    """What Python takes for each character of a UTF-8 text, by its widest one."""
    if data.isascii() or not re.search(rb"[\xc4-\xff]", data):
        return 1
    return 4 if re.search(rb"[\xf0-\xff]", data) else 2


def _decoded(data: bytes) -> str:
    try:
        # Python's own pickles hold surrogates so.
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        # The error would carry the data with it.
        raise ValueError(f"damaged pickle (no text: {error.reason})") from None
