"""Where a deformable convolution samples its input.

Letters: N batch, H W input map, P Q output map, R S kernel taps, G offset groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from xla_ops.arguments import check_array, check_pair, coordinate_dtype
from xla_ops.deform_conv.arguments import check_offset

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def sampling_positions(
    offset: Float[Array, "N P Q G RS 2"],
    *,
    input_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
) -> Float[Array, "N P Q G RS 2"]:
    """The positions at which `deform_conv2d` samples its input.

    With (i, j) = (p, q) * strides - (top, left) padding + (r, s) * kernel_dilation, tap
    rs = r * S + s of output pixel (p, q) and offset group g samples at

        (i + dy[n, p, q, g, rs], j + dx[n, p, q, g, rs])

    in pixels of the input, whose first pixel is at (0, 0). A position may lie outside
    the input, where `deform_conv2d` reads zeros, and is NaN or infinite where its
    offset is. It is differentiable, and runs on every platform in plain jnp.

    Args:
      offset: [N, P, Q, G, R*S, 2] as (dy, dx) in input pixels, float32, bfloat16,
        float16 or float64.
      input_size: (H, W) of the input, or one number for both.
      kernel_size: (R, S), or one number for both.
      strides: Integer or (vertical, horizontal) pair, as given to `deform_conv2d`, like
        all that follows.
      padding: "SAME", "VALID", an integer, a (vertical, horizontal) pair, or
        ((top, bottom), (left, right)).
      kernel_dilation: Integer or (vertical, horizontal) pair.

    Returns:
      [N, P, Q, G, R*S, 2] as (y, x) in input pixels; float32, or float64 for a float64
      `offset`.

    Raises:
      TypeError: An argument is of a type that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.

    Source: Dai et al. 2017 (arXiv:1703.06211) eq. 2.
    """
    offset = check_array("offset", offset)
    size = check_pair("input_size", input_size)
    taps = check_pair("kernel_size", kernel_size)
    window = check_offset(
        offset,
        (None, *size),
        taps,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        beside=f"`input_size` {size} and `kernel_size` {taps}",
    )
    offset = offset.astype(coordinate_dtype(offset.dtype))
    return positions_in_window(offset, taps, **window._asdict())


def positions_in_window(offset, kernel_size, strides, padding, dilation):
    """`sampling_positions` of checked arguments.

    Args:
      offset: [N, P, Q, G, R*S, 2] in the type of coordinates.
      kernel_size: (R, S).
      strides: Pair of pixels, like padding (top, left) and dilation.
      padding: Before the first row and the first column.
      dilation: From one tap to the next.

    Returns:
      [N, P, Q, G, R*S, 2] as (y, x), in the type of `offset`.
    """
    tap = jnp.arange(kernel_size[0] * kernel_size[1])
    in_kernel = tap // kernel_size[1], tap % kernel_size[1]
    moved = []
    for axis in (0, 1):
        corner = jnp.arange(offset.shape[1 + axis]) * strides[axis] - padding[axis]
        still = corner[:, None] + in_kernel[axis][None] * dilation[axis]
        # [1, P, 1, 1, R*S] or [1, 1, Q, 1, R*S].
        still = jnp.expand_dims(still.astype(offset.dtype), (0, 2 - axis, 3))
        moved.append(still + offset[..., axis])
    return jnp.stack(moved, axis=-1)
