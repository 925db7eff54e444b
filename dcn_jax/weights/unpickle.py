"""A reader of pickles that can only make plain data.

`pickle` runs a program that may import and call anything. This reader interprets the
instructions that are written for dictionaries of tensors and what stands beside them,
and no others. It never imports or calls what the file names, but looks the name up in a
table of constructors that the caller gives; whatever else the file would make is a
`StandIn`, which does nothing.

A pickle may also ask for far more memory or time than it has bytes. So instructions are
paid from a budget, keys cannot be made to collide, and integers are small.
"""

import abc
import pickletools
import re
import struct
from collections.abc import Callable, Collection, Mapping
from io import BufferedIOBase
from typing import Any, NamedTuple

from dcn_jax.quoting import one_line

# Bytes that the objects of a pickle may take, beyond its texts.
_BUDGET = 64 << 20
# What an instruction is charged, more than it makes, and what a call is beyond that. So
# there is room for 8,000 tensors, of some 30 instructions and 3 calls each.
_INSTRUCTION = 160
_CALL = 1024
# Bytes of an integer, of a name, and numbers as keys (beyond 0, 1, 2, ... in order).
_MAX_INTEGER = 255
_MAX_NAME = 1000
_MAX_NUMBER_KEYS = 4096
# Python 2 has no bytes: what is longer than this is no text of it.
_MAX_TEXT_2 = 1 << 16

# The instructions, by the number of bytes of the number that follows them.
_INSTRUCTIONS = {
    0: "MARK STOP NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "NEWOBJ BUILD BINPERSID",
    1: "PROTO BININT1 LONG1 SHORT_BINUNICODE SHORT_BINBYTES SHORT_BINSTRING BINPUT "
    "BINGET",
    2: "BININT2",
    4: "BININT LONG4 BINUNICODE BINBYTES BINSTRING LONG_BINPUT LONG_BINGET",
    8: "FRAME BINFLOAT BINUNICODE8 BINBYTES8 BYTEARRAY8",
}
_WIDTHS = {n: width for width, names in _INSTRUCTIONS.items() for n in names.split()}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Global(NamedTuple):
    """A name in the file, standing for itself. One of `load`'s constructors."""

    name: str


class StandIn:
    """Stands for whatever the file would make of a name that is no constructor.

    It is called, given items and attributes, and is none the wiser.

    Attributes:
      name: "module.name", as in the file.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def refusal(self) -> ValueError:
        """Says that it stands where there is use for plain data alone."""
        return ValueError(
            f"it uses `{one_line(self.name, 200)}`, which is refused: only tensors, "
            "dictionaries, lists, tuples, text and numbers are read"
        )


class Unfinished(abc.ABC):
    """What a constructor may return whose content comes later (instruction BUILD)."""

    @abc.abstractmethod
    def set_state(self, state: Any) -> None:
        """Takes the content, which may be anything."""


def load(
    file: BufferedIOBase,
    constructors: Mapping[str, Callable[..., Any]],
    persistent_load: Callable[[Any], Any] | None = None,
    *,
    max_bytes: int,
    spent: Collection[str] = (),
) -> Any:
    """The object that a pickle describes.

    Takes time in proportion to the length, and memory of at most 64 MiB beyond twice
    the length of its texts, once that of its bytes, and what the two functions make.

    Args:
      file: At the beginning of the pickle, of protocol 2 to 5; afterwards at its end.
      constructors: What makes the object, for each full name ("module.name") that the
        pickle may apply to arguments. Names that are only mentioned, as types are, stay
        `Global`. Arguments may be of any type and tuples in them may be nested without
        end, as copies of one another: to be checked before they are looped over.
      persistent_load: Gives the object that a persistent identifier stands for; the
        same holds for the identifier. None: there are none.
      max_bytes: The longest pickle.
      spent: Constructors whose arguments nothing else refers to: they are forgotten,
        as they may be long.

    Returns:
      The object, with a `StandIn` for each that a name off the list would make.

    Raises:
      ValueError: The pickle is damaged, too large, applies one of the names to what it
        is not for, or uses an instruction outside this list; the message names it.
    """
    try:
        return _run(file, max_bytes, constructors, persistent_load, spent)
    except UnicodeDecodeError as error:
        # Its text would hold the data.
        raise ValueError(f"damaged pickle (no text: {error.reason})") from None
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"damaged pickle ({one_line(repr(error), 200)})") from error


def _run(file, left, constructors, persistent_load, spent):
    # One function, as calling one for each instruction would take most of the time.
    read = file.read
    stack: list = []
    marked: list[list] = []  # the stacks below each open mark
    # By index, as writers count from 0 or 1: the keys of a dictionary could collide.
    memo: list = []
    names: dict[str, Global | StandIn] = {name: Global(name) for name in constructors}
    budget, number_keys = _BUDGET, _MAX_NUMBER_KEYS
    while code := read(1):
        name = _NAMES.get(code[0], "")
        width = _WIDTHS.get(name)
        if width is None:
            raise ValueError(
                f"pickle instruction {name or hex(code[0])} is not allowed here"
            )
        number = int.from_bytes(read(width), "little") if width else 0
        left -= 1 + width
        budget -= _INSTRUCTION
        if left < 0 or budget < 0:
            break
        match name:
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                index = len(memo) if name == "MEMOIZE" else number
                missing = index + 1 - len(memo)
                if missing > 0:
                    budget -= 16 * missing  # a list that grows is held twice
                    if budget < 0:
                        break
                    memo += [_MISSING] * missing
                memo[index] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                if memo[number] is _MISSING:
                    raise IndexError(f"nothing under {number} in the memo")
                stack.append(memo[number])
            case "BININT1" | "BININT2":
                stack.append(number)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                left -= number
                if left < 0:
                    break
                text = read(number)
                if not text.isascii():
                    budget -= len(text) * (_bytes_per_character(text) - 1)
                    if budget < 0:
                        break
                stack.append(str(text, "utf-8", "surrogatepass"))
                text = b""  # it may be long
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                left -= number
                if left < 0:
                    break
                stack.append(read(number))
            case "SHORT_BINSTRING" | "BINSTRING":
                left -= number
                if left < 0:
                    break
                text = read(number)
                short = number <= _MAX_TEXT_2
                stack.append(str(text, "latin1") if short else text)
            case "MARK":
                marked.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise IndexError("stack is empty")
                stack[-count:] = [tuple(stack[-count:])]
            case "EMPTY_TUPLE":
                stack.append(())
            case "BINPERSID":
                budget -= _CALL
                if persistent_load is None:
                    raise TypeError("a persistent identifier")
                stack.append(persistent_load(stack.pop()))
            case "REDUCE":
                budget -= _CALL
                arguments, function = stack.pop(), stack.pop()
                # A tuple subclass is no tuple here: Global must not pass for one.
                if type(arguments) is not tuple:
                    raise TypeError("a call with no tuple")
                stack.append(_call(function, arguments, constructors))
                if type(function) is Global and function.name in spent:
                    _forget(memo, arguments)
                arguments = ()
            case "NEWOBJ":
                budget -= _CALL
                arguments, kind = stack.pop(), stack.pop()
                if type(arguments) is not tuple or type(kind) is not StandIn:
                    raise TypeError("an object of what is no type, or with no tuple")
                stack.append(kind)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT":
                stack.append(number - ((number & 1 << 31) << 1))
            case "LONG1" | "LONG4":
                if number > _MAX_INTEGER:
                    raise ValueError(f"damaged pickle (an integer of {number} bytes)")
                left -= number
                budget -= number
                stack.append(int.from_bytes(read(number), "little", signed=True))
            case "BINFLOAT":
                stack.append(struct.unpack(">d", number.to_bytes(8, "little"))[0])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                if name == "APPEND":
                    items = [stack.pop()]
                else:
                    items, stack = stack, marked.pop()
                if type(stack[-1]) is list:
                    stack[-1].extend(items)
                elif type(stack[-1]) is not StandIn:
                    raise TypeError("no list where one belongs")
            case "SETITEM" | "SETITEMS":
                if name == "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                else:
                    items, stack = stack, marked.pop()
                target = stack[-1]
                if type(target) is StandIn:
                    continue
                if type(target) is not dict or len(items) % 2:
                    raise TypeError("no dictionary, or no value, where one belongs")
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if type(key) is not str:
                        # Nested tuples have hashes too, which can take forever.
                        if not isinstance(key, int | float):
                            raise TypeError(f"{type(key).__name__} as a key")
                        # Only the hashes of texts are secret. 0, 1, 2, ... do not
                        # collide; of numbers that may, a file has few.
                        if key not in (len(target), len(target) + 1):
                            number_keys -= 1
                    target[key] = value
                    if number_keys < 0:
                        raise ValueError(
                            f"its pickle has more than {_MAX_NUMBER_KEYS} numbers as "
                            "keys"
                        )
            case "GLOBAL":
                lines = [file.readline(_MAX_NAME) for _ in range(2)]
                if not all(line.endswith(b"\n") for line in lines):
                    raise ValueError(
                        f"damaged pickle (a name beyond {_MAX_NAME} bytes)"
                    )
                left -= sum(map(len, lines))
                parts = [line[:-1].decode(errors="backslashreplace") for line in lines]
                full = ".".join(parts)
                budget -= len(full)
                if full not in names:
                    names[full] = StandIn(full)
                stack.append(names[full])
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(module) is not str or type(attribute) is not str:
                    raise TypeError("a name that is no text")
                if len(module) + len(attribute) > _MAX_NAME:
                    raise TypeError(f"a name beyond {_MAX_NAME} characters")
                full = f"{module}.{attribute}"
                budget -= len(full)
                if full not in names:
                    names[full] = StandIn(full)
                stack.append(names[full])
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if isinstance(target, Unfinished):
                    target.set_state(state)
                # Attributes of a dictionary (torch keeps versions there).
                elif type(target) not in (dict, StandIn):
                    raise TypeError("attributes of what is no dictionary")
            case "STOP":
                result = stack.pop()
                if type(result) is StandIn:
                    raise result.refusal()
                return result
        if budget < 0 or left < 0:
            break
    if budget < 0:
        raise ValueError(
            "its pickle makes more objects than a dictionary of tensors has use for"
        )
    raise ValueError("damaged pickle (no end)")


def empty_dict() -> dict:
    """A constructor: what `collections.OrderedDict` is without items."""
    return {}


def not_callable(*arguments: Any) -> Any:
    """A constructor for types that are only mentioned."""
    raise ValueError("damaged pickle (a type in the place of a function)")


# What stands in the memo under an index that was left out, or is forgotten.
_MISSING = object()


def _call(function, arguments, constructors):
    if type(function) is StandIn:
        return function
    if type(function) is not Global:
        raise TypeError("a call of what is no name")
    return constructors[function.name](*arguments)


def _forget(memo, arguments):
    """Leaves out the arguments of a call, among what was noted last."""
    for index in range(max(0, len(memo) - 4), len(memo)):
        if any(memo[index] is value for value in (arguments, *arguments[:1])):
            memo[index] = _MISSING


def _bytes_per_character(data: bytes) -> int:
    """What Python takes for each character of a UTF-8 text, by its widest one."""
    if re.search(rb"[\xf0-\xff]", data):
        return 4
    return 2 if re.search(rb"[\xc4-\xff]", data) else 1
