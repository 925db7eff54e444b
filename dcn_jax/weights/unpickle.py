"""A reader of pickles that can only make plain data.

`pickle` runs a program that may import and call anything. This reader interprets the
instructions that `torch.save` writes for dictionaries of tensors, and no others; it
never imports or calls what the file names, but looks the name up in a table of
constructors that the caller gives.

A pickle may also ask for far more memory or time than it has bytes. So instructions are
paid from a budget, keys cannot be made to collide, and integers are small.
"""

import pickletools
import re
import struct
from collections.abc import Callable, Mapping
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

# The instructions, by the number of bytes of the number that follows them.
_INSTRUCTIONS = {
    0: "MARK STOP NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "BUILD BINPERSID",
    1: "PROTO BININT1 LONG1 SHORT_BINUNICODE BINPUT BINGET",
    2: "BININT2",
    4: "BININT LONG4 BINUNICODE LONG_BINPUT LONG_BINGET",
    8: "FRAME BINFLOAT BINUNICODE8",
}
_WIDTHS = {n: width for width, names in _INSTRUCTIONS.items() for n in names.split()}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


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
        return _run(data, constructors, persistent_load)
    except UnicodeDecodeError as error:
        # Its text would hold the data.
        raise ValueError(f"damaged pickle (no text: {error.reason})") from None
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"damaged pickle ({one_line(repr(error), 200)})") from error


def _run(data, constructors, persistent_load):
    # One function, as calling one for each instruction would take most of the time.
    at, end = 0, len(data)
    stack: list = []
    marked: list[list] = []  # the stacks below each open mark
    # By index, as writers count from 0 or 1: the keys of a dictionary could collide.
    memo: list = []
    names = {name: Global(name) for name in constructors}
    budget, number_keys = _BUDGET, _MAX_NUMBER_KEYS
    while at < end:
        name = _NAMES.get(data[at], "")
        width = _WIDTHS.get(name)
        if width is None:
            raise ValueError(
                f"pickle instruction {name or hex(data[at])} is not allowed here"
            )
        at += 1 + width
        number = int.from_bytes(data[at - width : at], "little")
        budget -= _INSTRUCTION
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
                text = data[at : at + number]
                at += number
                if not text.isascii():
                    budget -= len(text) * (_bytes_per_character(text) - 1)
                    if budget < 0:
                        break
                stack.append(str(text, "utf-8", "surrogatepass"))
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
                stack.append(persistent_load(stack.pop()))
            case "REDUCE":
                budget -= _CALL
                arguments, function = stack.pop(), stack.pop()
                # A tuple subclass is no tuple here: Global must not pass for one.
                if type(arguments) is not tuple or type(function) is not Global:
                    raise TypeError("a call of what is no name, or with no tuple")
                stack.append(constructors[function.name](*arguments))
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
                integer = data[at : at + number]
                at += number
                budget -= number
                stack.append(int.from_bytes(integer, "little", signed=True))
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
                if type(stack[-1]) is not list:
                    raise TypeError("no list where one belongs")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                if name == "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                else:
                    items, stack = stack, marked.pop()
                target = stack[-1]
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
                lines = data[at : at + _MAX_NAME].split(b"\n", 2)
                if len(lines) < 3:
                    raise ValueError(
                        f"damaged pickle (a name beyond {_MAX_NAME} bytes)"
                    )
                at += len(lines[0]) + len(lines[1]) + 2
                full = b".".join(lines[:2]).decode(errors="backslashreplace")
                if full not in names:
                    raise _refused(full)
                stack.append(names[full])
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(module) is not str or type(attribute) is not str:
                    raise TypeError("a name that is no text")
                full = f"{module}.{attribute}"
                if full not in names:
                    raise _refused(full)
                stack.append(names[full])
            case "BUILD":
                # Attributes of a dictionary (torch keeps versions there).
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise TypeError("attributes of what is no dictionary")
            case "STOP":
                return stack.pop()
        if budget < 0:
            break
    if budget < 0:
        raise ValueError(
            "its pickle makes more objects than a dictionary of tensors has use for"
        )
    raise ValueError("damaged pickle (no end)")


# What stands in the memo under an index that was left out.
_MISSING = object()


def _refused(name: str) -> ValueError:
    return ValueError(
        f"it uses `{one_line(name, 200)}`, which is refused: only tensors, "
        "dictionaries, lists, tuples, text and numbers are read"
    )


def _bytes_per_character(data: bytes) -> int:
    """What Python takes for each character of a UTF-8 text, by its widest one."""
    if re.search(rb"[\xf0-\xff]", data):
        return 4
    return 2 if re.search(rb"[\xc4-\xff]", data) else 1
