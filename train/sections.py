"""Sections of a configuration, from the constructors whose arguments they hold.

A name, a default and their explanation stand once, in the constructor.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from train.config_dict import ConfigDict

T = TypeVar("T")


def arguments_of(make: Callable[..., Any], **changes: Any) -> ConfigDict:
    """Returns the arguments of a constructor with their defaults, as a section.

    An argument is a field where its default, or its change, is a bool, a number, a
    string or a tuple of those; or a frozen dataclass, whose own arguments then are a
    subsection. The others, as modules and types, are left to who calls `construct`.

    Args:
      make: A class or a function.
      **changes: Values in the place of defaults, or of arguments without one.

    Raises:
      TypeError: There is no such argument.
    """
    parameters = _parameters(make)
    for name in changes:
        if name not in parameters:
            raise TypeError(
                f"{make.__name__} has no argument `{name}`; it has "
                f"{', '.join(parameters)}"
            )
    section = ConfigDict()
    for name, parameter in parameters.items():
        value = changes.get(name, parameter.default)
        if _is_record(value):
            given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            section[name] = arguments_of(type(value), **given)
        elif name in changes or _is_value(value):
            section[name] = value
    return section


def construct(make: Callable[..., T], section: Mapping[str, Any], **wired: Any) -> T:
    """Returns what a constructor makes of a section of `arguments_of`.

    Args:
      make: As it was given there.
      section: Its fields, changed or not.
      **wired: The arguments that are no fields.

    Raises:
      ValueError: As the constructor.
    """
    return make(**settings_of(make, section), **wired)


def settings_of(make: Callable[..., Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a section holds, subsections as what they stand for.

    Args:
      make: As it was given to `arguments_of`.
      section: Its fields, changed or not.
    """
    parameters = _parameters(make)
    arguments = {}
    for name, value in section.items():
        default = parameters[name].default
        if _is_record(default):
            value = construct(type(default), value)
        arguments[name] = value
    return arguments


def _parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    if not isinstance(make, type):
        return dict(inspect.signature(make).parameters)
    # The metaclass of NNX's modules hides their own signature.
    _, *parameters = inspect.signature(make.__init__).parameters.items()
    return dict(parameters)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_value, value))
    return isinstance(value, bool | int | float | str)
