"""Checks of the arguments that the constructors of layers and heads take.

Modules keep what these functions return: NumPy's numbers and arrays would be leaves of
the module, which have no value under jit.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from xla_ops import arguments
from xla_ops.deform_conv import window

check_integer = arguments.check_integer


def check_pair(name: str, value: Any) -> tuple[int, int]:
    """Returns an integer, or a pair, list or NumPy array of two, as a pair.

    Raises:
      TypeError: It is none of them.
      ValueError: There are not two, or one is less than 1.
    """
    return arguments.check_pair(name, _as_list(value))


def check_padding(
    padding: Any,
) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """Returns "SAME", "VALID" or ((top, bottom), (left, right)).

    Raises:
      TypeError, ValueError: `padding` is neither that, nor an integer or a pair.
    """
    return window.check_padding(_as_list(padding))


def check_number(name: str, value: Any) -> float:
    """Returns a number as float.

    Raises:
      TypeError: It is not a number.
      ValueError: It is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        what = type(value).__name__ if hasattr(value, "dtype") else repr(value)
        raise TypeError(f"`{name}` is {what}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"`{name}` is {value!r}; expected a finite number")
    return number


def check_scales(value: Any) -> float | tuple[float, ...]:
    """Returns `spatial_scale`, a positive number or one for each level of a pyramid.

    Raises:
      TypeError: It is neither a number nor a sequence of numbers; a jax array, which
        has no value under jit, is none.
      ValueError: It is empty, or one is not positive and finite.
    """
    value = _as_list(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        scales = check_number("spatial_scale", value)
        positive = scales > 0
    else:
        scales = tuple(check_number("spatial_scale", scale) for scale in value)
        positive = scales and min(scales) > 0
    if not positive:
        raise ValueError(f"`spatial_scale` is {value!r}; expected more than 0")
    return scales


def check_rngs(rngs: Any) -> nnx.Rngs:
    """Returns `rngs`.

    Raises:
      TypeError: It is not an `nnx.Rngs`.
      ValueError: It has neither a stream `params` nor a default.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(
            f"`rngs` is {type(rngs).__name__}; expected flax.nnx.Rngs, such as "
            "nnx.Rngs(0)"
        )
    if not hasattr(rngs, "params"):
        raise ValueError("`rngs` has no stream `params`; expected it, or a default")
    return rngs


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
