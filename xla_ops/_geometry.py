"""Sizes of outputs, and the checks of arguments with all their messages.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import itertools
import operator
from typing import Any, NamedTuple

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


def check_map(name: str, array: jax.Array) -> None:
    """Checks that the pixels of a map [N, H, W, C] can be numbered.

    Raises:
      ValueError: The map, with a border of zeros, has too many.
    """
    height, width = array.shape[1:3]
    # Symbolic sizes of jax.export are checked by the kernels.
    numbers = isinstance(height, int) and isinstance(width, int)
    if numbers and (height + 1) * (width + 1) >= LIMIT:
        raise ValueError(
            f"`{name}` has shape {array.shape}; expected (H + 1) * (W + 1) less than "
            f"{LIMIT}"
        )


def check_dtype_beside(name: str, array: jax.Array, x: jax.Array) -> jax.Array:
    """Casts coordinates or factors that stand beside `x` to the coordinate type.

    Raises:
      TypeError: `array` is float64 and `x` is not: the cast would lose digits.
    """
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


class Window(NamedTuple):
    """How a kernel moves over the map, in pixels, as (vertical, horizontal) pairs."""

    strides: tuple[int, int]
    padding: tuple[int, int]  # Before the first row and column.
    dilation: tuple[int, int]


def convolution_window(
    size: tuple[Any, Any],
    kernel_size: tuple[int, int],
    *,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
) -> tuple[Window, tuple[Any, Any]]:
    """Resolves the arguments of a convolution.

    Args:
      size: (H, W), which may be symbolic sizes of jax.export.
      kernel_size: (R, S).
      strides: Integer or pair.
      padding: "SAME", "VALID", an integer, a (vertical, horizontal) pair, or
        ((top, bottom), (left, right)).
      kernel_dilation: Integer or pair.

    Returns:
      The window, and the size (P, Q) of the output; 0 where the kernel does not fit.

    Raises:
      TypeError, ValueError: An argument is not of this form, or the padded map is so
        large that 32 bits do not count its rows or columns.
    """
    strides = check_pair("strides", strides)
    dilation = check_pair("kernel_dilation", kernel_dilation)
    extent = _extent(kernel_size, dilation)
    pads = check_padding(padding)
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(size, extent, strides, pads)
    output = []
    for length, reach, step, (before, after) in zip(
        size, extent, strides, pads, strict=True
    ):
        padded = length + before + after
        # Symbolic sizes are left to the kernels, which count positions in 64 bits.
        if isinstance(padded, int) and padded >= LIMIT:
            raise ValueError(
                f"`padding` is {padding!r}, which makes {padded} rows or columns of "
                f"{length} with `kernel_dilation` {kernel_dilation!r}; expected less "
                f"than {LIMIT}"
            )
        count = (padded - reach) // step + 1
        # Symbolic sizes of jax.export have no maximum with 0.
        output.append(max(count, 0) if isinstance(count, int) else count)
    window = Window(strides, (pads[0][0], pads[1][0]), dilation)
    return window, (output[0], output[1])


def windows_of_any_size(
    window: Window, kernel_size: tuple[int, int]
) -> tuple[list[Window], Any]:
    """The windows that `window` may turn out to be when symbolic sizes are known.

    With a stride, "SAME" pads by what the size leaves when divided by it, which is one
    of a few numbers.

    Args:
      window: Of `convolution_window`.
      kernel_size: (R, S).

    Returns:
      Windows of numbers only, and the place of the right one among them: 0 where
      `window` is such a one, else a scalar that the program computes.
    """
    choices, place = [], 0
    reach = _extent(kernel_size, window.dilation)
    for pad, extent, step in zip(window.padding, reach, window.strides, strict=True):
        if isinstance(pad, int):
            choices.append((pad,))
            continue
        # In the last stride of the map is at least one pixel, and at most all.
        least, most = max(extent - step, 0) // 2, (extent - 1) // 2
        choices.append(tuple(range(least, most + 1)))
        place = place * len(choices[-1]) + (pad - least)
    windows = [window._replace(padding=pair) for pair in itertools.product(*choices)]
    return windows, place


def _extent(kernel_size, dilation) -> tuple[int, int]:
    """Rows and columns from the first tap of a kernel to the last."""
    (r, s), (down, right) = kernel_size, dilation
    return (r - 1) * down + 1, (s - 1) * right + 1


def check_padding(
    padding: Any,
) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """Returns "SAME", "VALID" or ((top, bottom), (left, right)).

    Args:
      padding: One of these, an integer, or a (vertical, horizontal) pair.

    Raises:
      TypeError, ValueError: It is none of them.
    """
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"`padding` is {padding!r}; expected {_PADDINGS}")
        return padding
    if isinstance(padding, tuple | list):
        if len(padding) != 2:
            raise ValueError(f"`padding` is {padding!r}; expected {_PADDINGS}")
        vertical, horizontal = padding
        return (
            check_pair("padding", vertical, minimum=0),
            check_pair("padding", horizontal, minimum=0),
        )
    both = check_integer("padding", padding, minimum=0)
    return (both, both), (both, both)


_PADDINGS = (
    '"SAME", "VALID", an integer, a (vertical, horizontal) pair or '
    "((top, bottom), (left, right))"
)


def check_precision(precision: Any) -> None:
    """Checks that jax knows a precision of products.

    Raises:
      ValueError: It does not.
    """
    matrix = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    try:
        hash(precision)  # Parameters of a program have to be hashable.
        jax.eval_shape(lambda x: jax.lax.dot(x, x, precision=precision), matrix)
    except (TypeError, ValueError):
        raise ValueError(
            f"`precision` is {precision!r}; expected what `jax.lax.dot_general` takes: "
            "None, a string such as 'highest', a jax.lax.Precision, a pair of either, "
            "or a jax.lax.DotAlgorithmPreset"
        ) from None


def check_divides(name: str, count: int, total: int, what: str) -> None:
    """Checks that `count` groups split `total` channels evenly.

    Raises:
      ValueError: They do not.
    """
    if total % count:
        raise ValueError(
            f"`{name}` is {count}; expected a divisor of the {total} {what}"
        )


def _one_of(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
