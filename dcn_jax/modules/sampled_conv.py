"""The pass of the deformable convolution layers, once offsets and masks are known.

Shape letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups; `*N` any axes, such as that of the batch, or none.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dcn_jax.modules.continued_map import continue_map, is_continued, undeformed_padding
from dcn_jax.modules.deform_conv_arguments import Arguments
from xla_ops import deform_conv2d, sampling_positions


def sampled_conv(
    x: Float[Array, "*N H W C"],
    offset: Float[Array, "*N P Q G RS 2"],
    kernel: Float[Array, "R S C_per_group K"],
    mask: Float[Array, "*N P Q G RS"] | None,
    bias: Float[Array, " K"] | None,
    map_sizes: Num[Array, "*N 2"] | None,
    arguments: Arguments,
) -> Float[Array, "*N P Q K"]:
    """`deform_conv2d` with a layer's arguments, and any axes before (H, W)."""
    leading = x.shape[:-3]
    axes = len(leading)
    x, offset = one_batch(x, axes), one_batch(offset, axes)
    mask = None if mask is None else one_batch(mask, axes)
    map_sizes = None if map_sizes is None else one_batch(map_sizes, axes)
    padding: Any = arguments.padding
    dilation: Any = arguments.kernel_dilation
    if is_continued(padding):
        x, offset, padding, dilation = continue_map(
            x,
            offset,
            padding=padding,
            kernel_size=arguments.kernel_size,
            strides=arguments.strides,
            kernel_dilation=dilation,
        )
    y = deform_conv2d(
        x,
        offset,
        kernel,
        mask,
        bias,
        strides=arguments.strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=arguments.feature_group_count,
        border=arguments.border,
        map_sizes=map_sizes if arguments.border == "v1" else None,
        precision=arguments.precision,
        implementation=arguments.implementation,
    )
    return y if axes == 1 else y.reshape(*leading, *y.shape[1:])


def samples(
    x: Float[Array, "*N H W C"],
    offset: Float[Array, "*N P Q G RS 2"],
    mask: Float[Array, "*N P Q G RS"] | None,
    map_sizes: Num[Array, "*N 2"] | None,
    arguments: Arguments,
) -> dict[str, Any]:
    """What `modules.deform_conv.Samples` holds."""
    size, axes = x.shape[-3:-1], x.ndim - 3
    if arguments.border != "v1":
        map_sizes = None
    offset = one_batch(offset, axes)
    padding = arguments.padding
    if is_continued(padding):
        padding = undeformed_padding(arguments.kernel_size, arguments.kernel_dilation)
    positions = functools.partial(
        sampling_positions,
        input_size=size,
        kernel_size=arguments.kernel_size,
        strides=arguments.strides,
        padding=padding,
        kernel_dilation=arguments.kernel_dilation,
    )
    _, p, q, _, taps, _ = offset.shape
    still = jnp.zeros((1, p, q, 1, taps, 2), offset.dtype)
    return {
        "offset": offset,
        "mask": None if mask is None else one_batch(mask, axes),
        "position": positions(offset),
        "undeformed": positions(still)[0, :, :, 0],
        "map_size": jnp.asarray(size, jnp.int32),
        "map_sizes": None if map_sizes is None else one_batch(map_sizes, axes),
    }


def one_batch(array: jax.Array, axes: int) -> jax.Array:
    """An array whose first axes, so many or none, are one."""
    if axes == 1:
        return array
    return array.reshape(math.prod(array.shape[:axes]), *array.shape[axes:])
