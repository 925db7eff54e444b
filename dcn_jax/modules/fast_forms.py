"""Two layers of a ResNet in the forms that XLA differentiates fastest on a CPU.

Both compute exactly what `jax.lax.conv_general_dilated` and `flax.nnx.max_pool` do. On
a CPU the gradient of a 1x1 convolution takes several times as long as that of the same
matrix product, and the gradient of a windowed maximum (select-and-scatter) as that of a
maximum of shifted maps: `scripts/benchmark/ops.py`, figures in docs/benchmarks.md.

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
