"""`deform_conv2d`, deformable convolution.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from xla_ops._jax import align, resolve_implementation
from xla_ops.arguments import coordinate_dtype
from xla_ops.deform_conv.arguments import check_arguments
from xla_ops.deform_conv.border import check_border, replicating_offset
from xla_ops.deform_conv.primitives import Settings, convolve
from xla_ops.deform_conv.window import windows_of_any_size

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


def deform_conv2d(
    x: Float[Array, "N H W C"],
    offset: Float[Array, "N P Q G RS 2"],
    kernel: Float[Array, "R S C_per_group K"],
    mask: Float[Array, "N P Q G RS"] | None = None,
    bias: Float[Array, " K"] | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    border: str = "zeros",
    map_sizes: Num[Array, "N 2"] | None = None,
    precision: Any = None,
    implementation: str | None = None,
) -> Float[Array, "N P Q K"]:
    """Deformable convolution: DCNv1, or DCNv2 where there is a mask.

    With (i, j) = (p, q) * strides - (top, left) padding + (r, s) * kernel_dilation,

        y[n, p, q, k] = bias[k] + sum over r, s, c of
            kernel[r, s, c, k] * mask[n, p, q, g, rs]
            * x(n, i + dy[n, p, q, g, rs], j + dx[n, p, q, g, rs], c)

    where x(n, y, x, c) is the bilinear value of a map that is surrounded by zeros, and
    g is the offset group of channel c: group g moves channels g*C/G to (g+1)*C/G - 1.

    The derivative with respect to offset at an integer position is the right-hand one,
    as in `torchvision.ops.deform_conv2d`, also at exactly -1. A sample at an infinite
    or far away position is 0 and has derivatives 0, as long as what it is multiplied
    with is finite. A NaN position gives NaN in the outputs it enters, and in the
    gradients of offset, mask and kernel that it enters.

    Derivatives of any order are available, by forward and reverse mode in any nesting,
    also under `jax.vmap`, `jax.checkpoint` and `jax.lax.scan`. The first derivative is
    made by kernels, further ones by the plain form. A tangent costs a forward pass for
    each of `x`, `kernel` and `mask` that moves, and four where `offset` does.
    The backward pass samples `x` again: nothing larger than the arguments is kept for
    it. Its bits do not depend on the number of threads.

    The batch may be split over devices, by an Auto or Explicit mesh or `jax.shard_map`;
    each device then works on its own images, and the gradient of `kernel` is summed.

    Args:
      x: Input, [N, H, W, C], float32, bfloat16, float16 or float64.
      offset: [N, P, Q, G, R*S, 2] as (dy, dx) in input pixels. May be float32 beside a
        half-precision `x`: half precision cannot express sub-pixel places on a large
        map.
      kernel: [R, S, C/feature_group_count, K], in the dtype of `x`.
      mask: [N, P, Q, G, R*S], a factor for each sample; None is DCNv1. May be float32
        like `offset`.
      bias: [K], in the dtype of `x`, or None.
      strides: Integer or (vertical, horizontal) pair.
      padding: "SAME", "VALID", an integer, a (vertical, horizontal) pair, or
        ((top, bottom), (left, right)).
      kernel_dilation: Integer or (vertical, horizontal) pair.
      feature_group_count: Groups of channels that are convolved apart.
      border: What lies around the map: "zeros", or the rule of DCNv1's first release,
        "v1", for weights that were trained by it: a sample at a negative position or
        behind the map is 0, one between the last pixel and the end of the map, less
        than a pixel away, is that pixel.
      map_sizes: [N, 2], only for "v1": (height, width) of the part of each image's map
        that is no padding, where that rule's map ends. None: whole maps.
      precision: Of the products, as in `jax.lax.dot_general`; the CPU kernel computes
        in full float32 (float64) always.
      implementation: None takes the kernel where the platform has one, else the plain
        jnp form with a warning; "ffi" asks for the kernel, "reference" for the plain
        form. The environment variable DCN_JAX_IMPLEMENTATION replaces None.

    Returns:
      [N, P, Q, K] in the dtype of `x`; sums and coordinates are float32 for half
      precision.

    Raises:
      TypeError: An argument is not an array, or has a dtype that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.
      NotImplementedError: "ffi", and the platform has no kernel.
      RuntimeError: The CPU kernels are not built.

    Source: Dai et al. 2017 (arXiv:1703.06211) eq. 2 and 3; Zhu et al. 2019
    (arXiv:1811.11168) eq. 1; zeros around the map as in
    `torchvision.ops.deform_conv2d`.
    """
    implementation = resolve_implementation(implementation)
    operands, window, groups = check_arguments(
        x,
        offset,
        kernel,
        mask,
        bias,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
    )
    x, offset, kernel, mask, bias = operands
    sizes = check_border(border, map_sizes, x)
    kernel_size = kernel.shape[0], kernel.shape[1]
    if bias is not None:
        bias = bias[None, None, None]
    x, offset, kernel, mask, bias, sizes = align(
        *(x, offset, kernel[None], mask, bias, sizes), shared=(2, 4)
    )

    def branch(window):
        settings = Settings(**window._asdict(), groups=groups, precision=precision)

        def run(x, offset, kernel, mask):
            if sizes is not None:
                offset = replicating_offset(offset, sizes, kernel_size, window)
            return convolve(x, offset, kernel, mask, implementation, settings)

        return run

    windows, place = windows_of_any_size(window, kernel_size)
    branches = [branch(window) for window in windows]
    arrays = x, offset, kernel, mask
    if len(branches) == 1:
        y = branches[0](*arrays)
    else:
        y = jax.lax.switch(jnp.asarray(place), branches, *arrays)
    if bias is None:
        return y
    # In the type of sums, in which the gradient of `bias` is summed too.
    real = coordinate_dtype(x.dtype)
    return (y.astype(real) + bias.astype(real)).astype(x.dtype)
