"""Deformable convolution.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import _geometry
from xla_ops._call import (
    align,
    make_cuda_form,
    make_primitive,
    resolve_implementation,
)
from xla_ops.cuda import deform_conv as cuda
from xla_ops.reference import deform_conv as reference

if TYPE_CHECKING:
    from jaxtyping import Array, Float


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

    Any reverse-mode derivative of any order is available, also under `jax.vmap`,
    `jax.checkpoint`, `jax.lax.scan` and forward mode over it (`jax.jvp` of
    `jax.grad`); `jax.jvp` of the operator itself needs implementation="reference".
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
    (arXiv:1811.11168) eq. 1; border rule as in `torchvision.ops.deform_conv2d`.
    """
    implementation = resolve_implementation(implementation)
    x = _geometry.check_array("x", x)
    _geometry.check_rank("x", x, "N, H, W, C")
    kernel = _same_dtype("kernel", kernel, x)
    _geometry.check_rank("kernel", kernel, "R, S, C/feature_group_count, K")
    offset = _geometry.check_dtype_beside(
        "offset", _geometry.check_array("offset", offset), x
    )
    groups = _geometry.check_integer("feature_group_count", feature_group_count)
    images, height, width, channels = x.shape
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
    _geometry.check_map("x", x)
    _geometry.check_divides("feature_group_count", groups, channels, "channels of `x`")
    _geometry.check_divides(
        "feature_group_count", groups, features, "output channels of `kernel`"
    )
    _geometry.check_shape(
        "kernel",
        kernel,
        (kernel_height, kernel_width, channels // groups, features),
        "R, S, C/feature_group_count, K",
        f" for `x` {x.shape}",
    )
    if precision is not None:
        _geometry.check_precision(precision)
    window, (rows, columns) = _geometry.convolution_window(
        (height, width),
        (kernel_height, kernel_width),
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
    )
    if isinstance(padding, str) and padding == "SAME" and offset.ndim == 6:
        # jax does not always see that symbolic sizes are equal to these.
        ceil = [
            -(-n // s) for n, s in zip((height, width), window.strides, strict=True)
        ]
        rows = ceil[0] if offset.shape[1] == ceil[0] else rows
        columns = ceil[1] if offset.shape[2] == ceil[1] else columns
    taps = kernel_height * kernel_width
    _geometry.check_shape(
        "offset",
        offset,
        (images, rows, columns, None, taps, 2),
        "N, P, Q, G, R*S, 2",
        f" for `x` {x.shape} and `kernel` {kernel.shape}",
    )
    offset_groups = offset.shape[3]
    if offset_groups == 0 or channels % offset_groups:
        raise ValueError(
            f"`offset` has shape {offset.shape}; expected G = {offset_groups} to be a "
            f"divisor of the {channels} channels of `x`"
        )
    if mask is not None:
        mask = _geometry.check_dtype_beside(
            "mask", _geometry.check_array("mask", mask), x
        )
        _geometry.check_shape(
            "mask", mask, offset.shape[:-1], "N, P, Q, G, R*S", " as in `offset`"
        )
    if bias is not None:
        bias = _same_dtype("bias", bias, x)
        _geometry.check_shape("bias", bias, (features,), "K", " as in `kernel`")

    windows, place = _geometry.windows_of_any_size(
        window, (kernel_height, kernel_width)
    )
    if bias is not None:
        bias = bias[None, None, None]
    x, offset, kernel, mask, bias = align(
        x, offset, kernel[None], mask, bias, shared=(2, 4)
    )
    # Without jax.custom_vjp, so that jax.jvp works.
    plain = implementation == "reference"
    convolve: Any = _deform_conv2d_primal if plain else _deform_conv2d

    def branch(window):
        settings = _Settings(**window._asdict(), groups=groups, precision=precision)
        return lambda *operands: convolve(*operands, implementation, settings)

    branches = [branch(window) for window in windows]
    operands = x, offset, kernel, mask
    if len(branches) == 1:
        y = branches[0](*operands)
    else:
        y = jax.lax.switch(jnp.asarray(place), branches, *operands)
    if bias is None:
        return y
    # In the type of sums, in which the gradient of `bias` is summed too.
    real = _geometry.coordinate_dtype(x.dtype)
    return (y.astype(real) + bias.astype(real)).astype(x.dtype)


class _Settings(NamedTuple):
    """What the primitives need besides arrays; see `_geometry.Window`."""

    strides: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    precision: Any


def _same_dtype(name: str, value: Any, x: jax.Array) -> jax.Array:
    array = _geometry.check_array(name, value)
    if array.dtype != x.dtype:
        raise TypeError(
            f"`{name}` has dtype {array.dtype.name}; expected {x.dtype.name} as `x` has"
        )
    return array


def _attributes(*, strides, padding, dilation, groups, precision) -> dict[str, Any]:
    del precision
    return {
        "stride_h": np.int64(strides[0]),
        "stride_w": np.int64(strides[1]),
        "pad_top": np.int64(padding[0]),
        "pad_left": np.int64(padding[1]),
        "dilation_h": np.int64(dilation[0]),
        "dilation_w": np.int64(dilation[1]),
        "groups": np.int64(groups),
    }


def _forward_results(x, offset, kernel, *mask, **settings):
    return [((*offset.shape[:3], kernel.shape[-1]), x.dtype)]


def _backward_results(x, offset, kernel, *mask_and_gradient, **settings):
    real = offset.dtype
    gradients = [
        (x.shape, x.dtype),
        (offset.shape, real),
        ((x.shape[0], *kernel.shape[1:]), real),
    ]
    return gradients + [(mask.shape, real) for mask in mask_and_gradient[:-1]]


_forward = make_primitive(
    "dcn_jax.deform_conv2d.fwd",
    results=_forward_results,
    reference=reference.deform_conv2d,
    attributes=_attributes,
    shared=(2,),
    cuda=cuda.deform_conv2d,
)
_backward = make_primitive(
    "dcn_jax.deform_conv2d.bwd",
    results=_backward_results,
    reference=reference.deform_conv2d_gradients,
    attributes=_attributes,
    shared=(2,),
    cuda=cuda.deform_conv2d_gradients,
)


def _plain_summed_gradients(*operands, implementation, **settings):
    dx, doffset, dkernel, *dmask = _backward(
        *operands, implementation=implementation, **settings
    )
    # A product with ones: XLA's own sum over a leading axis is far slower on a CPU.
    ones = jnp.ones((1, dkernel.shape[0]), dkernel.dtype)
    dkernel = jnp.tensordot(ones, dkernel, 1, precision=jax.lax.Precision.HIGHEST)
    return dx, doffset, dkernel, *dmask


def _summed_results(x, offset, kernel, *mask_and_gradient, **settings):
    dx, doffset, (shape, real), *dmask = _backward_results(
        x, offset, kernel, *mask_and_gradient, **settings
    )
    return [dx, doffset, ((1, *shape[1:]), real), *dmask]


# Gradients for a kernel that all images share: [1, R, S, C/groups, K].
_summed_gradients = make_cuda_form(
    "dcn_jax.deform_conv2d.summed_bwd",
    plain=_plain_summed_gradients,
    results=_summed_results,
    cuda=cuda.deform_conv2d_summed_gradients,
    summed=(2,),
)


def _deform_conv2d_primal(
    x, offset, kernel, mask, implementation, settings
) -> jax.Array:
    y, _ = _deform_conv2d_fwd(x, offset, kernel, mask, implementation, settings)
    return y


def _deform_conv2d_fwd(x, offset, kernel, mask, implementation, settings):
    operands = (x, offset, kernel) + (() if mask is None else (mask,))
    (y,) = _forward(*operands, implementation=implementation, **settings._asdict())
    return y, (x, offset, kernel, mask)


def _deform_conv2d_bwd(implementation, settings, saved, gradient):
    x, offset, kernel, mask = saved
    operands = (x, offset, kernel) + (() if mask is None else (mask,))
    dx, doffset, dkernel, *dmask = _summed_gradients(
        *operands, gradient, implementation=implementation, **settings._asdict()
    )
    dkernel = dkernel.astype(kernel.dtype)
    return dx, doffset, dkernel, dmask[0] if dmask else None


_deform_conv2d = jax.custom_vjp(_deform_conv2d_primal, nondiff_argnums=(4, 5))
_deform_conv2d.defvjp(_deform_conv2d_fwd, _deform_conv2d_bwd)
