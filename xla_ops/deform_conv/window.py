"""How the kernel of a convolution moves over the map.

Letters: H W input map, P Q output map, R S kernel taps.
"""

import itertools
from typing import Any, NamedTuple

import jax

from xla_ops.arguments import LIMIT, check_integer, check_pair


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
