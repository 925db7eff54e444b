"""What the branches of layers need on an Explicit mesh: only the batch is split.

There jax refuses a convolution or product of arrays that are split along channels, and
the layers' operators split by the batch alone. Without such a mesh nothing is done.
"""

import jax
from jax.sharding import PartitionSpec as P


def split_by_batch(x: jax.Array) -> jax.Array:
    """`x` [N, ...], split over an Explicit mesh along its first axis alone."""
    return _split(x, jax.typeof(x).sharding.spec[0])


def conv_general_dilated(x, kernel, *args, out_sharding=None, **kwargs):
    """`jax.lax.conv_general_dilated` of images [N, ...] by a kernel that all share."""
    del out_sharding
    return jax.lax.conv_general_dilated(
        split_by_batch(x), _split(kernel, None), *args, **kwargs
    )


def dot_general(x, kernel, *args, out_sharding=None, **kwargs):
    """`jax.lax.dot_general` of rows [N, ...] with a matrix that all share."""
    del out_sharding
    return jax.lax.dot_general(split_by_batch(x), _split(kernel, None), *args, **kwargs)


def _split(x, leading):
    spec = P(leading, *(None,) * (x.ndim - 1))
    return x if jax.typeof(x).sharding.spec == spec else jax.sharding.reshard(x, spec)
