"""A plain convolution whose gradient of the kernel is fast on a CPU too.

XLA computes that gradient as one more convolution, whose window is the whole map. On a
CPU it takes longer than a matrix product for each tap of the kernel, the more so the
larger the map (`scripts/benchmark/ops.py`, figures in docs/benchmarks.md). All else is
`jax.lax.conv_general_dilated`, on other platforms everything.

Shape letters: N images, H W input map, P Q output map, C in channels, D of them in a
group, K out channels, R S kernel taps.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Products of narrower matrices, or of fewer multiplications, are no faster than XLA's
# convolution.
_MIN_FEATURES = 32
_MIN_PRODUCT = 2**24


class _Form(NamedTuple):
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    precision: Any


def spatial_conv(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "R S D K"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> Float[Array, "N P Q K"]:
    """`jax.lax.conv_general_dilated` of maps, fast to differentiate by the kernel.

    Meant as the `conv_general_dilated` argument of a two-dimensional `flax.nnx.Conv`
    that is not transposed. Has derivatives of any order, by forward and reverse mode.
    Convolutions in groups, of few features, of small maps or in half precision are left
    to XLA.
    """
    if (
        min(kernel.shape[2:]) < _MIN_FEATURES
        or not _is_large(x, kernel)
        or feature_group_count != 1
        or x.dtype.itemsize < 4
    ):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            **others,
        )
    strides, dilation = tuple(strides), tuple(rhs_dilation)
    if isinstance(padding, str):
        reach = [
            (taps - 1) * step + 1
            for taps, step in zip(kernel.shape[:2], dilation, strict=True)
        ]
        padding = jax.lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    pads = tuple((low, high) for low, high in padding)
    return _conv(x, kernel, _Form(strides, pads, dilation, precision))


def _is_large(x, kernel):
    product = math.prod((*x.shape, kernel.shape[3]))
    # Sizes of an export may be symbols.
    return isinstance(product, int) and product >= _MIN_PRODUCT


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _conv(x, kernel, form):
    return _plain(x, kernel, form)


def _plain(x, kernel, form):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        form.strides,
        form.padding,
        rhs_dilation=form.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=form.precision,
    )


def _along(form, primals, tangents):
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    y = _conv(x, kernel, form)
    tangent = jnp.zeros_like(y)
    if not isinstance(x_tangent, jax.custom_derivatives.SymbolicZero):
        tangent += _conv(x_tangent, kernel, form)
    if not isinstance(kernel_tangent, jax.custom_derivatives.SymbolicZero):
        tangent += _along_kernel(x, kernel_tangent, form)
    return y, tangent


_conv.defjvp(_along, symbolic_zeros=True)


def _along_kernel(x, kernel, form):
    """The convolution, in the form whose transpose by the kernel is fast."""
    plain, by_taps = (functools.partial(f, form=form) for f in (_plain, _by_taps))
    return jax.lax.platform_dependent(x, kernel, cpu=by_taps, default=plain)


def _by_taps(x, kernel, form):
    x = jnp.pad(x, ((0, 0), *form.padding, (0, 0)))
    r, s, c, k = kernel.shape
    spans, sizes = [], []
    for size, count, dilation, stride in zip(
        x.shape[1:3], (r, s), form.dilation, form.strides, strict=True
    ):
        sizes.append((size - (count - 1) * dilation - 1) // stride + 1)
        spans.append((sizes[-1] - 1) * stride + 1)
    n, (p, q) = x.shape[0], sizes
    rows, columns = form.strides

    def product(weights, top, left):
        read = jax.lax.dynamic_slice(x, (0, top, left, 0), (n, *spans, c))
        read = read[:, ::rows, ::columns].reshape(n * p * q, c)
        return jnp.dot(read, weights, precision=form.precision)

    # One after another, each read when it is wanted: all at once, or kept for the
    # backward pass, would be R * S copies of the map.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total, tap):
        return total + product(*tap), None

    places = jnp.indices((r, s)).reshape(2, r * s)
    taps = (kernel.reshape(r * s, c, k), *places * jnp.asarray(form.dilation)[:, None])
    total = product(*(tap[0] for tap in taps))
    total, _ = jax.lax.scan(add, total, tuple(tap[1:] for tap in taps))
    return total.reshape(n, p, q, k)
