"""RoI pooling in plain jnp: `roi_align` and `deform_roi_pool`.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI, S samples of a bin along one axis.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from xla_ops.roi.operands import RoIOperands
from xla_ops.roi.reference.bins import (
    adaptive_weights,
    defined,
    finish,
    gather,
    grid_taps,
    known_level,
    pool_boxes,
)


def pool_bilinear(
    operands: RoIOperands, *, output_size: tuple[int, int], sampling_ratio: int
) -> jax.Array:
    """Averages bilinear samples of feature maps over the bins of boxes.

    Bin (i, j) holds a grid of samples; the bin's value is their mean,
    a sample outside the map counting as 0, times the bin's mask.

    Args:
      operands: Maps [N, H, W, C], boxes with pixel centres at integers, shift
        [N, B, h, w, 2] or None.
      output_size: (h, w).
      sampling_ratio: Samples of a bin along each axis; 0 takes ceil(box size / bins).

    Returns:
      [N, B, h, w, C] in the maps' dtype; computed in the dtype of `boxes`.
    """
    maps = operands.maps
    channels = maps[0].shape[-1]
    if sampling_ratio:
        pool_box = partial(
            _pool_gather, output_size=output_size, sampling_ratio=sampling_ratio
        )
        cost = 4 * sampling_ratio**2 * math.prod(output_size) * channels
    else:
        pool_box = partial(_pool_dense, output_size=output_size)
        cost = math.prod(output_size) * max(x.shape[2] for x in maps) * channels
    return pool_boxes(pool_box, operands, output_size=output_size, cost=cost)


def _pool_gather(operands, *, output_size, sampling_ratio):
    """One box, `sampling_ratio` samples per bin and axis: reads their corners."""
    maps, box, level, map_sizes, shift, mask = operands
    box, shift, undefined = defined(box, shift)
    known, _ = known_level(level, len(maps))
    rows, columns = (
        grid_taps(box, shift, axis, output_size, sampling_ratio, map_sizes[known, axis])
        for axis in (0, 1)
    )
    group = jnp.zeros((1, 1), jnp.int32)
    pooled = gather([x[None] for x in maps], group, level, rows, columns)
    return finish(pooled, mask, undefined)


def _pool_dense(operands, *, output_size):
    """One box, as many samples as it takes: weighs all rows and columns of the map.

    A map must be finite everywhere.
    """
    maps, box, level, map_sizes, shift, mask = operands
    box, shift, undefined = defined(box, shift)
    pooled = jnp.zeros((*output_size, maps[0].shape[-1]), box.dtype)
    for index, x in enumerate(maps):
        weights, valid = [], []
        for axis, length in enumerate(x.shape[:2]):
            size = map_sizes[index, axis]
            weight = adaptive_weights(box, shift, axis, output_size, length, size)
            weight = jnp.where(level == index, weight, 0)
            weights.append(jnp.broadcast_to(weight, (*output_size, length)))
            valid.append(jnp.arange(length, dtype=jnp.int32) < size)
        inside = (valid[0][:, None] & valid[1][None])[..., None]
        pooled += jnp.einsum(
            "ijy,yxc,ijx->ijc",
            weights[0],
            jnp.where(inside, x, 0),
            weights[1],
            precision=jax.lax.Precision.HIGHEST,
        )
    return finish(pooled, mask, undefined)
