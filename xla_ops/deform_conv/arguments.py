"""Checks of the arguments of deformable convolution.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xla_ops.arguments import (
    LIMIT,
    check_array,
    check_beside,
    check_integer,
    check_rank,
    check_shape,
)
from xla_ops.deform_conv.torch_hints import (
    check_map_and_kernel,
    told_mask,
    told_offset,
)
from xla_ops.deform_conv.window import Window, convolution_window


class Operands(NamedTuple):
    """The arrays of a call.

    Attributes:
      x: [N, H, W, C].
      offset: [N, P, Q, G, R*S, 2] in the type of coordinates.
      kernel: [R, S, C/groups, K] in the type of `x`.
      mask: [N, P, Q, G, R*S] in the type of coordinates, or None.
      bias: [K] in the type of `x`, or None.
    """

    x: jax.Array
    offset: jax.Array
    kernel: jax.Array
    mask: jax.Array | None
    bias: jax.Array | None


def check_arguments(
    x: Any,
    offset: Any,
    kernel: Any,
    mask: Any,
    bias: Any,
    *,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    feature_group_count: Any,
    precision: Any,
) -> tuple[Operands, Window, int]:
    """Checks the arguments of `deform_conv2d`, which says what they are.

    Returns:
      The arrays, the window, and the number of channel groups.

    Raises:
      TypeError, ValueError: An argument does not fit; the message names it.
    """
    x = check_array("x", x)
    check_rank("x", x, "N, H, W, C")
    kernel = _same_dtype("kernel", kernel, x)
    check_rank("kernel", kernel, "R, S, C/feature_group_count, K")
    offset = check_beside("offset", offset, x)
    groups = check_integer("feature_group_count", feature_group_count)
    check_map_and_kernel(x, kernel, offset, groups)
    _check_sizes(x, kernel, groups)
    if precision is not None:
        check_precision(precision)
    window = check_offset(
        offset,
        x.shape[:3],
        kernel.shape[:2],
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        beside=f"`x` {x.shape} and `kernel` {kernel.shape}",
    )
    channels, offset_groups = x.shape[3], offset.shape[3]
    if offset_groups == 0 or channels % offset_groups:
        raise ValueError(
            f"`offset` has shape {offset.shape}; expected G = {offset_groups} to be a "
            f"divisor of the {channels} channels of `x`"
        )
    if mask is not None:
        mask = check_beside("mask", mask, x)
        why = f" as in `offset`{told_mask(mask, kernel.shape[:2])}"
        check_shape("mask", mask, offset.shape[:-1], "N, P, Q, G, R*S", why)
    if bias is not None:
        bias = _same_dtype("bias", bias, x)
        check_shape("bias", bias, kernel.shape[3:], "K", " as in `kernel`")
    return Operands(x, offset, kernel, mask, bias), window, groups


def check_offset(
    offset: jax.Array,
    images_and_size: Sequence,
    kernel_size: tuple[int, int],
    *,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    beside: str,
) -> Window:
    """Checks that offsets have the shape of a convolution's samples.

    Args:
      offset: Should be [N, P, Q, G, R*S, 2].
      images_and_size: (N, H, W), with None for an N that does not matter.
      kernel_size: (R, S).
      strides: As in `convolution_window`.
      padding: As in `convolution_window`.
      kernel_dilation: As in `convolution_window`.
      beside: For the message: what the expected shape follows from.

    Returns:
      The convolution's window.

    Raises:
      TypeError, ValueError: It has another shape, or the window's arguments do not fit.
    """
    images, *size = images_and_size
    window, output = convolution_window(
        (size[0], size[1]),
        kernel_size,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
    )
    if isinstance(padding, str) and padding == "SAME" and offset.ndim == 6:
        # jax does not always see that symbolic sizes are equal to these.
        ceil = [-(-n // s) for n, s in zip(size, window.strides, strict=True)]
        pairs = zip(ceil, offset.shape[1:3], output, strict=True)
        output = tuple(c if c == n else m for c, n, m in pairs)
    taps = kernel_size[0] * kernel_size[1]
    check_shape(
        "offset",
        offset,
        (images, *output, None, taps, 2),
        "N, P, Q, G, R*S, 2",
        f" for {beside}{told_offset(offset, kernel_size)}",
    )
    return window


def _check_sizes(x: jax.Array, kernel: jax.Array, groups: int) -> None:
    """Checks the axes of `x` [N, H, W, C] and `kernel` [R, S, C/groups, K]."""
    _, height, width, channels = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    for name, array, sizes in [
        ("x", x, {"H": height, "W": width, "C": channels}),
        ("kernel", kernel, {"R": kernel_height, "S": kernel_width, "K": features}),
    ]:
        for letter, size in sizes.items():
            if size == 0:
                raise ValueError(
                    f"`{name}` has shape {array.shape}; expected {letter} of at least 1"
                )
    # Symbolic sizes of jax.export are checked by the kernels.
    numbers = isinstance(height, int) and isinstance(width, int)
    # The pixels of a map with a border of zeros are numbered.
    if numbers and (height + 1) * (width + 1) >= LIMIT:
        raise ValueError(
            f"`x` has shape {x.shape}; expected (H + 1) * (W + 1) less than {LIMIT}"
        )
    for total, what in [
        (channels, "channels of `x`"),
        (features, "output channels of `kernel`"),
    ]:
        if total % groups:
            raise ValueError(
                f"`feature_group_count` is {groups}; expected a divisor of the {total} "
                f"{what}"
            )
    check_shape(
        "kernel",
        kernel,
        (kernel_height, kernel_width, channels // groups, features),
        "R, S, C/feature_group_count, K",
        f" for `x` {x.shape}",
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


def _same_dtype(name: str, value: Any, x: jax.Array) -> jax.Array:
    array = check_array(name, value)
    if array.dtype != x.dtype:
        raise TypeError(
            f"`{name}` has dtype {array.dtype.name}; expected {x.dtype.name} as `x` has"
        )
    return array
