"""What the fields of a configuration may hold, and the check of a whole one.

Rules are data. A table beside the fields (as `train.configs._base.RULES`) has those
with a range or a shape; any other field takes the type of its default.
"""

import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import getitem
from typing import Any, Protocol

from dcn_jax.quoting import one_line, quoted
from train.config_dict import ConfigDict

# Counters, indices and sizes are 32-bit integers in the compiled programs.
_LARGEST = 2**31 - 1
_HUGE = sys.float_info.max
# So many faults are told at once.
_SHOWN = 5


class Rule(Protocol):
    """A set of values; its `str` completes "expected ..."."""

    def accepts(self, value: Any) -> bool:
        """Returns whether a field may hold `value`."""
        ...


@dataclass(frozen=True)
class Integer:
    """Integers of 32 bits in a range; True and False are none."""

    at_least: int = -_LARGEST - 1
    at_most: int = _LARGEST

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        integer = isinstance(value, int) and not isinstance(value, bool)
        return integer and self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        if self == Integer():
            return "a 32-bit integer"
        if self.at_most == _LARGEST:
            return f"a 32-bit integer of at least {self.at_least}"
        return f"an integer from {self.at_least} to {self.at_most}"


@dataclass(frozen=True)
class Number:
    """Finite numbers in a range."""

    at_least: float = -math.inf
    at_most: float = math.inf
    # Whether `at_least` itself is left out.
    above: bool = False

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        # Not by `isfinite`, which fails for integers beyond the range of floats.
        if not -_HUGE <= value <= _HUGE or (self.above and value == self.at_least):
            return False
        return self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        bounds = []
        if self.at_least > -math.inf:
            bounds.append(
                f"{'above' if self.above else 'of at least'} {self.at_least:g}"
            )
        if self.at_most < math.inf:
            bounds.append(f"at most {self.at_most:g}")
        return " ".join(["a finite number", " and ".join(bounds)]).strip()


@dataclass(frozen=True)
class ZeroOr:
    """The integer 0, which switches something off, and what another rule accepts."""

    other: Rule

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return (type(value) is int and value == 0) or self.other.accepts(value)

    def __str__(self) -> str:
        return f"0 or {self.other}"


@dataclass(frozen=True)
class EmptyOr:
    """The tuple (), which switches something off, and what another rule accepts."""

    other: Rule

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if isinstance(value, tuple | list) and not value:
            return True
        return self.other.accepts(value)

    def __str__(self) -> str:
        return f"{self.other}, or ()"


@dataclass(frozen=True)
class Boolean:
    """True and False."""

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Text:
    """Strings."""

    empty: bool = True

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return (
            isinstance(value, str) and "\0" not in value and bool(value or self.empty)
        )

    def __str__(self) -> str:
        return "a string" if self.empty else "a string that is not empty"


@dataclass(frozen=True)
class OneOf:
    """A few values, each of the type that it has here."""

    values: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return any(type(value) is type(v) and value == v for v in self.values)

    def __str__(self) -> str:
        *first, last = map(repr, self.values)
        return f"{', '.join(first)} or {last}"


@dataclass(frozen=True)
class Pattern:
    """Regular expressions."""

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        try:
            return isinstance(value, str) and re.compile(value) is not None
        except (re.error, OverflowError, RecursionError):
            return False

    def __str__(self) -> str:
        return "a regular expression"


@dataclass(frozen=True)
class Row:
    """Tuples (or lists) of a fixed length, with one rule for each place."""

    items: tuple[Rule, ...]

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, tuple | list) or len(value) != len(self.items):
            return False
        return all(rule.accepts(v) for rule, v in zip(self.items, value, strict=True))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


@dataclass(frozen=True)
class Several:
    """Tuples (or lists) of any length, with one rule for all."""

    item: Rule
    empty: bool = False
    # Whether each must be greater than the one before.
    rising: bool = False

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, tuple | list) or not (value or self.empty):
            return False
        if not all(self.item.accepts(v) for v in value):
            return False
        return not self.rising or all(a < b for a, b in pairwise(value))

    def __str__(self) -> str:
        text = f"({self.item}, ...)" + (", rising" if self.rising else "")
        return f"{text}, or ()" if self.empty else text


@dataclass(frozen=True)
class _Anything:
    def accepts(self, value: Any) -> bool:
        return True


COUNT = Integer(at_least=1)
WHOLE = Integer(at_least=0)
POSITIVE = Number(0, above=True)
NONNEGATIVE = Number(0)
SHARE = Number(0, 1)
# What arrays of memory are made of.
SIDE = Integer(1, 1 << 15)
ROWS = Integer(1, 1 << 17)
BATCH = Integer(1, 1 << 16)

_BY_TYPE = {bool: Boolean(), int: Integer(), float: Number(), str: Text()}


def rule_of_type(type_: Any) -> Rule:
    """Returns the rule for an annotation; one that is no plain type allows all."""
    return _BY_TYPE.get(type_, _Anything())


def check_config(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    rules: Mapping[str, Rule],
    ordered: Sequence[tuple[str, str]] = (),
) -> None:
    """Refuses a configuration with wrong fields or values.

    Args:
      config: What `get_config` returned.
      defaults: Every field. A section that is empty here may hold anything: it is
        checked where its fields are known.
      rules: Dotted path of a field -> rule, where the default's type does not say all.
      ordered: Pairs of dotted paths; the first must not exceed the second.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    faults = list(_faults(config, defaults, rules, tuple(_paths(defaults))))
    if not faults:
        for low, high in ordered:
            if _at(config, low) > _at(config, high):
                faults.append(
                    f"`{low}` is {_at(config, low)}; expected at most `{high}`, which "
                    f"is {_at(config, high)}"
                )
    _raise(faults)


def check_fields(
    where: str, given: Mapping[str, Any], rules: Mapping[str, Rule]
) -> None:
    """Refuses fields of a section that it does not have, and values of a wrong type.

    Args:
      where: Path of the section.
      given: Its fields.
      rules: Field -> rule, for all that it may have.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    faults = []
    for name, value in given.items():
        if name not in rules:
            beside = [f"{where}.{n}" for n in rules]
            faults.append(_no_field(f"{where}.{name}", beside, beside))
        elif not rules[name].accepts(value):
            text = _shown(value)
            faults.append(f"`{where}.{name}` is {text}; expected {rules[name]}")
    _raise(faults)


def _raise(faults: Sequence[str]) -> None:
    """Raises the faults, where there are any, as one ValueError of one line."""
    if faults:
        more = len(faults) - _SHOWN
        text = "; ".join(faults[:_SHOWN])
        raise ValueError(text + (f"; and {more} more." if more > 0 else "."))


def _shown(value: Any) -> str:
    return "a section" if isinstance(value, ConfigDict) else quoted(value)


def _paths(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths of all fields."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _at(config: Any, path: str) -> Any:
    return reduce(getitem, path.split("."), config)


def _faults(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    rules: Mapping[str, Rule],
    paths: Sequence[str],
    prefix: str = "",
) -> Iterator[str]:
    """Yields what is wrong with a section; `paths` are those of the configuration."""
    for name in config:
        if name not in defaults:
            yield _no_field(prefix + name, [prefix + n for n in defaults], paths)
    for name, default in defaults.items():
        path = prefix + name
        if name not in config:
            yield f"`{path}` is missing"
        elif not isinstance(default, ConfigDict):
            rule = rules.get(path) or _rule_of(default)
            if not rule.accepts(config[name]):
                yield f"`{path}` is {_shown(config[name])}; expected {rule}"
        elif not isinstance(config[name], ConfigDict):
            yield f"`{path}` is {_shown(config[name])}; expected a section of fields"
        elif default:
            yield from _faults(config[name], default, rules, paths, f"{path}.")


def _no_field(path: str, beside: Sequence[str], paths: Sequence[str]) -> str:
    """Says that there is no such field, and which of its section, or all, is meant."""
    path = path[:200]
    name = path.rpartition(".")[2]
    # A slip of the pen, a field of another section, or else the whole choice.
    close = difflib.get_close_matches(path, beside, 1, 0.75)
    close = close or [p for p in paths if p.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(path, paths, 1, 0.8)
    if close:
        hint = f"did you mean `{close[0]}`?"
    else:
        names = [p.rpartition(".")[2] for p in beside]
        hint = f"its section has {', '.join(names) or 'none'}"
    return f"there is no field `{one_line(path, 100)}` ({hint})"


def _rule_of(default: Any) -> Rule:
    """Returns the rule that the type of a default makes."""
    if isinstance(default, tuple | list) and default:
        return Several(_rule_of(default[0]))
    return rule_of_type(type(default))
