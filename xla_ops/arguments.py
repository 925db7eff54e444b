"""Checks of arguments that all operators share, with their messages."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The kernels are compiled for these.
FLOATS = ("float32", "bfloat16", "float16", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# The kernels number the pixels of a map in 32 bits.
LIMIT = 2**31


def coordinate_dtype(dtype) -> np.dtype:
    """Type of coordinates and sums: float64 beside float64, else float32."""
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")


def check_array(
    name: str,
    value: Any,
    dtypes: tuple[str, ...] = FLOATS,
    *,
    saturate: bool = False,
) -> jax.Array:
    """Returns `value` as a jax array.

    Args:
      name: In messages.
      value: The array.
      dtypes: What its dtype may be.
      saturate: While 64-bit types are off, jax keeps the low 32 bits of a NumPy
        integer. True makes it the nearest integer that 32 bits hold, and floats, which
        then lose digits, whole numbers towards 0.

    Raises:
      TypeError: It is not an array, or its dtype is not one of `dtypes` in the byte
        order of this machine.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"`{name}` is {type(value).__name__}; expected an array")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` is a masked array; expected an array without a mask")
    # Before jax sees it, which has no words of its own for strings and objects.
    if value.dtype.name not in dtypes:
        raise TypeError(
            f"`{name}` has dtype {value.dtype.name}; expected {_one_of(dtypes)}"
        )
    if not value.dtype.isnative:
        raise TypeError(
            f"`{name}` has dtype {value.dtype.str}; expected the byte order of this "
            "machine, as `numpy.ndarray.astype` gives it"
        )
    if saturate and isinstance(value, np.ndarray):
        value = _saturated(value)
    return jnp.asarray(value)


def _saturated(value: np.ndarray) -> np.ndarray:
    narrow = jax.dtypes.canonicalize_dtype(value.dtype)
    if narrow == value.dtype:
        return value
    whole = jnp.issubdtype(narrow, jnp.integer)
    limits = np.iinfo(narrow) if whole else np.finfo(narrow)
    if not whole:
        value = np.trunc(value)
    value = np.minimum(value, value.dtype.type(limits.max))
    return np.maximum(value, value.dtype.type(limits.min)).astype(narrow)


def check_rank(name: str, array: jax.Array, letters: str) -> None:
    """Checks the number of axes; `letters` names them, as in "N, H, W, C".

    Raises:
      ValueError: The rank differs.
    """
    if array.ndim != len(letters.split(", ")):
        raise ValueError(f"`{name}` has shape {array.shape}; expected ({letters})")


def check_shape(
    name: str, array: jax.Array, expected: tuple, letters: str, why: str = ""
) -> None:
    """Checks the shape; a None in `expected` allows any size there.

    Raises:
      ValueError: The shape differs.
    """
    fits = array.ndim == len(expected) and all(
        want is None or size == want
        for size, want in zip(array.shape, expected, strict=True)
    )
    if not fits:
        names = letters.split(", ")
        sizes = [
            name if want is None else str(want)
            for name, want in zip(names, expected, strict=True)
        ]
        shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        raise ValueError(
            f"`{name}` has shape {array.shape}; expected {shape} = ({letters}){why}"
        )


def check_beside(name: str, value: Any, x: jax.Array) -> jax.Array:
    """Returns coordinates or factors that stand beside `x` in the coordinate type.

    Raises:
      TypeError: `value` is not an array of floats, or is float64 and `x` is not: the
        cast would lose digits.
    """
    array = check_array(name, value)
    wanted = coordinate_dtype(x.dtype)
    if array.dtype.itemsize > wanted.itemsize:
        raise TypeError(
            f"`{name}` has dtype {array.dtype.name}; expected {wanted.name} or less "
            f"beside data of dtype {x.dtype.name}"
        )
    return array.astype(wanted)


def check_integer(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int.

    Raises:
      TypeError: It is not an integer.
      ValueError: It is less than `minimum`, or more than 32 bits hold.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}; expected an integer") from None
    if value < minimum:
        raise ValueError(f"`{name}` is {value}; expected at least {minimum}")
    if value >= LIMIT:
        raise ValueError(f"`{name}` is {value}; expected less than {LIMIT}")
    return value


def check_pair(name: str, value: Any, minimum: int = 1) -> tuple[int, int]:
    """Returns an integer, or a (vertical, horizontal) pair of them, as a pair.

    Raises:
      TypeError: It is neither.
      ValueError: An integer is less than `minimum`.
    """
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(
                f"`{name}` is {value!r}; expected an integer or a pair of integers"
            )
        first, second = value
    else:
        first = second = value
    return check_integer(name, first, minimum), check_integer(name, second, minimum)


def _one_of(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def whole_size(x: jax.Array) -> jax.Array:
    """Size of a map [N, H, W, C], [1, 2] int32."""
    return jnp.asarray([x.shape[1:3]], jnp.int32)


def check_map_sizes(name: str, sizes: Any, x: jax.Array) -> jax.Array:
    """Size of the part of each image's map that counts.

    Args:
      name: In messages.
      sizes: Should be [N, 2]; more than the map is the map, and NaN 0.
      x: The map, [N, H, W, C].

    Returns:
      [N, 2] int32.

    Raises:
      TypeError, ValueError: It does not fit.
    """
    sizes = check_array(name, sizes, (*INTEGERS, *FLOATS), saturate=True)
    check_shape(name, sizes, (x.shape[0], 2), "N, 2")
    if sizes.dtype.itemsize < 4:
        # A narrow type may not hold the size of the map.
        whole_numbers = jnp.issubdtype(sizes.dtype, jnp.integer)
        sizes = sizes.astype(jnp.int32 if whole_numbers else jnp.float32)
    # NaN compares with nothing and becomes 0.
    inside = jnp.minimum(sizes, whole_size(x).astype(sizes.dtype))
    return jnp.where(sizes > 0, inside, 0).astype(jnp.int32)
