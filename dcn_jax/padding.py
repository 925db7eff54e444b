"""Which part of a padded canvas is image.

Images of one batch share a canvas and are zero-padded at the right and the bottom.
Every map that is read by an operation with an extent (a convolution, a pooling, a
normalisation over positions) is cleared or masked outside its valid part first, so
that the padding never changes a result.

Shape letters: N batch, H W map, C channels.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def map_sizes(sizes: Int[Array, "N 2"], stride: int) -> Int[Array, "N 2"]:
    """Valid (height, width) of a map at `stride`, from the images' valid sizes.

    Convolutions and poolings padded as in ResNet take a size to its half, rounded up;
    halving k times is rounding size / 2^k up once.
    """
    return (sizes + (stride - 1)) // stride


def valid_mask(sizes: Int[Array, "N 2"], hw: Sequence[int]) -> Bool[Array, "N H W"]:
    """Positions of [H, W] maps that lie inside the valid sizes."""
    rows = jnp.arange(hw[0], dtype=sizes.dtype)[None, :] < sizes[:, :1]
    columns = jnp.arange(hw[1], dtype=sizes.dtype)[None, :] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def clear_padding(
    x: Float[Array, "N H W C"], sizes: Int[Array, "N 2"] | None
) -> Float[Array, "N H W C"]:
    """Sets everything outside the valid sizes to zero; None means all is valid."""
    if sizes is None:
        return x
    return jnp.where(valid_mask(sizes, x.shape[1:3])[..., None], x, jnp.zeros_like(x))
