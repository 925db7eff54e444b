"""A plain convolution whose gradient of the kernel is fast on a CPU too.

XLA computes that gradient as one more convolution, whose window is the whole map. On a
CPU it takes longer than a matrix product for each tap of the kernel, the more so the
larger the map (`python -m scripts.benchmark.ops --only='spatial_conv'`). All else is
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

_NHWC = ("NHWC", "HWIO", "NHWC")


class _Form(NamedTuple):
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    precision: Any


def spatial_conv(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "R S D K"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = _NHWC,
    feature_group_count: int = 1,
    **others: Any,
) -> Float[Array, "N P Q K"]:
    """`jax.lax.conv_general_dilated` of maps, fast to differentiate by the kernel.

    Meant as the `conv_general_dilated` argument of a two-dimensional `flax.nnx.Conv`.
    Has derivatives of any order, by forward and reverse mode. Left to XLA are
    convolutions in groups, of few features, of small maps, of a dilated map, in half
    precision, and with any of lax's arguments that is not named here but `precision`.

    Args:
      x: Maps.
      kernel: Weights.
      strides: Down and across, in pixels.
      padding: "SAME", "VALID", or (before, after) in pixels for each axis.
      lhs_dilation: Of the maps.
      rhs_dilation: Of the kernel.
      dimension_numbers: Not read: maps are NHWC and kernels HWIO.
      feature_group_count: Groups of channels.
      **others: As lax has them.
    """
    precision = others.get("precision")
    del dimension_numbers
    if (
        min(kernel.shape[2:]) < _MIN_FEATURES
        or not _is_large(x, kernel)
        or feature_group_count != 1
        or any(step != 1 for step in lhs_dilation)
        or x.dtype.itemsize < 4
        or any(
            value is not None for name, value in others.items() if name != "precision"
        )
    ):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=_NHWC,
            feature_group_count=feature_group_count,
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
        dimension_numbers=_NHWC,
        precision=form.precision,
    )


def _along(form, primals, tangents):
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    parts = []
    if not isinstance(x_tangent, jax.custom_derivatives.SymbolicZero):
        parts.append(_conv(x_tangent, kernel, form))
    if not isinstance(kernel_tangent, jax.custom_derivatives.SymbolicZero):
        parts.append(_along_kernel(x, kernel_tangent, form))
    y = _conv(x, kernel, form)
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


_conv.defjvp(_along, symbolic_zeros=True)


# The backward pass keeps the map, on every platform, not what the taps read of it.
@functools.partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
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

    # One after another, each read when it is wanted: all at once, or kept by the loop,
    # would be R * S copies of the map.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total, tap):
        return total + product(*tap), None

    places = jnp.indices((r, s)).reshape(2, r * s)
    taps = (kernel.reshape(r * s, c, k), *places * jnp.asarray(form.dilation)[:, None])
    total = product(*(tap[0] for tap in taps))
    total, _ = jax.lax.scan(add, total, tuple(tap[1:] for tap in taps))
    return total.reshape(n, p, q, k)
