"""Three layers of a ResNet in the forms that XLA differentiates fastest on a CPU.

They compute what `jax.lax.conv_general_dilated` and `flax.nnx.max_pool` do, up to the
order of sums, on every platform. On a CPU the gradient of a 1x1 convolution takes
several times as long as that of the same matrix product, the gradient of a windowed
maximum (select-and-scatter) as that of a maximum of shifted maps, and a stem of few
features longer than a 4x4 convolution of blocks of 2x2 pixels:
`scripts/benchmark/ops.py`, figures in docs/benchmarks.md.

Shape letters: N images, H W input map, P Q output map, C in channels, K out channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pointwise_conv(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "1 1 C K"],
    strides,
    padding,
    *,
    precision=None,
    out_sharding=None,
    **unused,
) -> Float[Array, "N P Q K"]:
    """1x1 convolution as a matrix product.

    Meant as the `conv_general_dilated` argument of `flax.nnx.Conv`, whose remaining
    arguments say nothing about a 1x1 convolution without padding and groups.
    """
    del padding, unused
    x = x[:, :: strides[0], :: strides[1]]
    n, p, q, c = x.shape
    y = jnp.dot(
        x.reshape(n * p * q, c),
        kernel[0, 0],
        precision=precision,
        out_sharding=out_sharding,
    )
    return y.reshape(n, p, q, kernel.shape[3])


def stem_conv_7x7(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "7 7 C K"],
    strides,
    padding,
    *,
    precision=None,
    **unused,
) -> Float[Array, "N P Q K"]:
    """7x7 convolution at stride 2, padding 3, as a 4x4 one of blocks of 2x2 pixels.

    P = ceil(H / 2). What it reads and the plain form does not is multiplied with zero:
    an infinite pixel makes one more row and column of NaN. Meant as the
    `conv_general_dilated` argument of a `flax.nnx.Conv` with these strides and this
    padding.
    """
    del strides, padding, unused
    # One more pixel before and a row and column of zeros in the kernel: blocks begin
    # at even pixels.
    x = jnp.pad(x, ((0, 0), *((4, 2 + size % 2) for size in x.shape[1:3]), (0, 0)))
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    n, h, w, c = x.shape
    # One axis at a time: jax says of two at once no more how a batch is split.
    x = x.reshape(n, h // 2, 2, w, c).reshape(n, h // 2, 2, w // 2, 2, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 2, 2 * c)
    k = kernel.reshape(4, 2, 4, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    return jax.lax.conv_general_dilated(
        x.reshape(n, h // 2, w // 2, 4 * c),
        k.reshape(4, 4, 4 * c, -1),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def max_pool_3x3(x: Float[Array, "N H W C"]) -> Float[Array, "N P Q C"]:
    """3x3 maximum at stride 2, padding 1, of a map that is nowhere negative.

    Zeros serve as padding, since no entry is smaller. P = ceil(H / 2). Of equal maxima
    the first in a window, row by row, has the gradient, as in torch and nnx.max_pool;
    it may be padding where all are zero, which a ReLU gives no gradient.
    """
    # The rows last: of equal maxima the upper one comes before one further left.
    for axis in (2, 1):
        size = x.shape[axis]
        odd = size % 2
        pad = [(0, 0)] * 4
        pad[axis] = (1, odd)
        padded = jnp.pad(x, pad)
        count = (size + odd) // 2
        shifted = [
            jax.lax.slice_in_dim(padded, k, k + 2 * count - 1, stride=2, axis=axis)
            for k in range(3)
        ]
        x = _first_of_maxima(_first_of_maxima(*shifted[:2]), shifted[2])
    return x


def _first_of_maxima(a: Array, b: Array) -> Array:
    """The maximum, NaN if there is one; `jnp.maximum` halves the gradient of ties."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
