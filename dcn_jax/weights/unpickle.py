"""A reader of pickles that can only make plain data.

`pickle` runs a program that may import and call anything. This reader interprets the
instructions that `torch.save` writes for dictionaries of tensors, and no others; it
never imports or calls what the file names, but looks the name up in a table of
constructors that the caller gives.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Global(NamedTuple):
    """A name in the file, standing for itself. One of `load`'s constructors."""

    name: str


def load(
    data: bytes,
    constructors: Mapping[str, Callable[..., Any]],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """The object that a pickle describes.

    Args:
      data: The pickle, of protocol 2 to 5.
      constructors: What makes the object, for each full name ("module.name") that the
        pickle may apply to arguments. Names that are only mentioned, as types are, stay
        `Global`.
      persistent_load: Gives the object that a persistent identifier stands for.

    Raises:
      ValueError: The pickle is damaged, or uses a name or an instruction outside this
        list; the message names it.
    """
    try:
        return _run(data, constructors, persistent_load)
    except (IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"damaged pickle ({error!r})") from error


def _run(data, constructors, persistent_load):
    stack: list = []
    marked: list[list] = []  # the stacks below each open mark
    memo: dict[int, Any] = {}

    def pop_to_mark():
        nonlocal stack
        items, stack = stack, marked.pop()
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marked.append(stack)
                stack = []
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
            ):  # fmt: skip
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise IndexError("stack is empty")
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = tuple(pop_to_mark())
                stack.append(items)
            case "APPEND":
                value = stack.pop()
                _of_type(list, stack[-1]).append(value)
            case "APPENDS":
                items = pop_to_mark()
                _of_type(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _of_type(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items = pop_to_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _of_type(dict, stack[-1]).update((_key(k), v) for k, v in pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_find(argument.replace(" ", "."), constructors))
            case "STACK_GLOBAL":
                name, module = _of_type(str, stack.pop()), _of_type(str, stack.pop())
                stack.append(_find(f"{module}.{name}", constructors))
            case "REDUCE":
                arguments = _of_type(tuple, stack.pop())
                function = _of_type(Global, stack.pop())
                stack.append(constructors[function.name](*arguments))
            case "BUILD":
                # Attributes of a dictionary (torch keeps versions there).
                stack.pop()
                _of_type(dict, stack[-1])
            case "BINPERSID":
                stack.append(persistent_load(stack.pop()))
            case other:
                raise ValueError(f"pickle instruction {other} is not allowed here")
    raise ValueError("damaged pickle (no end)")


def _find(name, constructors):
    if name not in constructors:
        raise ValueError(
            f"it uses `{name}`, which is refused: only tensors, dictionaries, lists, "
            "tuples, text and numbers are read"
        )
    return Global(name)


def _of_type(kind, value):
    # A tuple subclass is no tuple here: Global must not pass for one.
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _key(value):
    # Nested tuples would also be hashable, but their hash can take forever.
    if not isinstance(value, str | int | float):
        raise TypeError(f"{type(value).__name__} as a key")
    return value
