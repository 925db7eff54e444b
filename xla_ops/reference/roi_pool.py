"""RoI pooling in plain jnp: `roi_align` and `deform_roi_pool`.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI, S samples of a bin along one axis.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from xla_ops.reference.roi_boxes import (
    adaptive_weights,
    defined,
    finish,
    gather,
    grid_taps,
    known_level,
    pool_boxes,
)


def roi_pool(
    features, boxes, levels, map_sizes, shift, mask, *, output_size, sampling_ratio
):
    """Averages bilinear samples of feature maps over the bins of boxes.

    Bin (i, j) holds a grid of samples; the bin's value is their mean,
    a sample outside the map counting as 0, times the bin's mask.

    Args:
      features: Tuple of L maps, [N, H_l, W_l, C].
      boxes: [N, B, 4] as (y, x, height, width) in pixels of the box's own map, pixel
        centres at integers. A box that is not finite pools to NaN.
      levels: [N, B] int32, which map each box reads; zeros for any other number.
      map_sizes: [N, L, 2] int32, (height, width) of the part of each map that counts.
      shift: [N, B, h, w, 2] as (dy, dx) in pixels of the box's map, or None. NaN pools
        to NaN, infinity to 0.
      mask: [N, B, h, w] or None.
      output_size: (h, w).
      sampling_ratio: Samples of a bin along each axis; 0 takes ceil(box size / bins).

    Returns:
      [N, B, h, w, C] in the maps' dtype; computed in the dtype of `boxes`.
    """
    channels = features[0].shape[-1]
    if sampling_ratio:
        pool_box = partial(
            _pool_gather, output_size=output_size, sampling_ratio=sampling_ratio
        )
        cost = 4 * sampling_ratio**2 * math.prod(output_size) * channels
    else:
        pool_box = partial(_pool_dense, output_size=output_size)
        cost = math.prod(output_size) * max(f.shape[2] for f in features) * channels
    return pool_boxes(
        pool_box,
        features,
        boxes,
        levels,
        map_sizes,
        shift,
        mask,
        output_size=output_size,
        cost=cost,
    )


def _pool_gather(
    features, map_sizes, box, level, shift, mask, *, output_size, sampling_ratio
):
    """One box, `sampling_ratio` samples per bin and axis: reads their corners."""
    box, shift, undefined = defined(box, shift)
    known, _ = known_level(level, len(features))
    rows, columns = (
        grid_taps(box, shift, axis, output_size, sampling_ratio, map_sizes[known, axis])
        for axis in (0, 1)
    )
    group = jnp.zeros((1, 1), jnp.int32)
    pooled = gather([f[None] for f in features], group, level, rows, columns)
    return finish(pooled, mask, undefined)


def _pool_dense(features, map_sizes, box, level, shift, mask, *, output_size):
    """One box, as many samples as it takes: weighs all rows and columns of the map.

    A map must be finite everywhere.
    """
    box, shift, undefined = defined(box, shift)
    pooled = jnp.zeros((*output_size, features[0].shape[-1]), box.dtype)
    for index, feature in enumerate(features):
        weights, valid = [], []
        for axis, length in enumerate(feature.shape[:2]):
            size = map_sizes[index, axis]
            weight = adaptive_weights(box, shift, axis, output_size, length, size)
            weight = jnp.where(level == index, weight, 0)
            weights.append(jnp.broadcast_to(weight, (*output_size, length)))
            valid.append(jnp.arange(length, dtype=jnp.int32) < size)
        inside = (valid[0][:, None] & valid[1][None])[..., None]
        pooled += jnp.einsum(
            "ijy,yxc,ijx->ijc",
            weights[0],
            jnp.where(inside, feature, 0),
            weights[1],
            precision=jax.lax.Precision.HIGHEST,
        )
    return finish(pooled, mask, undefined)
