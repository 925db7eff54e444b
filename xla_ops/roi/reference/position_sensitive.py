"""Position-sensitive RoI pooling in plain jnp.

Letters: N batch, L pyramid levels, G channel groups, H W map, C channels of a group, B
RoIs of an image, h w bins of a RoI, K classes, T pixels of a bin along one axis.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops.roi.operands import RoIOperands
from xla_ops.roi.reference.bins import (
    adaptive_weights,
    cut_pixels,
    defined,
    finish,
    gather,
    grid_taps,
    known_level,
    pool_boxes,
    quotient,
)


def pool_groups(
    operands: RoIOperands,
    *,
    output_size: tuple[int, int],
    group_size: tuple[int, int],
    sampling: str,
    samples: int,
) -> jax.Array:
    """Averages feature maps over the bins of boxes, each bin in its own channels.

    Bin (i, j) reads group (i * group_h // h, j * group_w // w).

    Args:
      operands: Maps [N, G, H, W, C]; shift [N, B, h, w, K, 2], for each of K equal
        parts of the channels, or None.
      output_size: (h, w).
      group_size: (group_h, group_w), whose product is G.
      sampling: "grid": the mean of a grid of bilinear samples, as in `roi_align`;
        "parts": those of deform_ps_roi_pool; "pixels": the mean of the whole pixels
        that a bin touches.
      samples: Of a bin along each axis; 0 with "grid" is adaptive. "pixels" has none.

    Returns:
      [N, B, h, w, C] in the maps' dtype; computed in the dtype of `boxes`. The adaptive
      grid and "pixels" need maps that are finite everywhere.
    """
    maps = operands.maps
    channels = maps[0].shape[-1]
    settings = dict(output_size=output_size, group_size=group_size, sampling=sampling)
    if samples:
        pool_box = partial(_pool_gather, samples=samples, **settings)
        cost = 4 * samples**2 * math.prod(output_size) * channels
    else:
        pool_box = partial(_pool_dense, **settings)
        cost = math.prod(output_size) * max(x.shape[3] for x in maps) * channels
    return pool_boxes(pool_box, operands, output_size=output_size, cost=cost)


def _pool_gather(operands, *, output_size, group_size, sampling, samples):
    """One box, `samples` samples per bin and axis: reads their corners."""
    maps, box, level, map_sizes, shift, mask = operands
    taps_of = _part_taps if sampling == "parts" else grid_taps
    group = jnp.asarray(_group_of_bins(output_size, group_size))
    known, _ = known_level(level, len(maps))

    def pool_class(maps, shift):
        clean_box, clean_shift, undefined = defined(box, shift)
        rows, columns = (
            taps_of(
                clean_box,
                clean_shift,
                axis,
                output_size,
                samples,
                map_sizes[known, axis],
            )
            for axis in (0, 1)
        )
        pooled = gather(maps, group, level, rows, columns)
        return finish(pooled, mask, undefined)

    if shift is None:
        return pool_class(maps, None)
    split = [x.reshape(*x.shape[:-1], shift.shape[2], -1) for x in maps]
    pooled = jax.vmap(pool_class, in_axes=(3, 2), out_axes=2)(split, shift)
    return pooled.reshape(*output_size, -1)


def _group_of_bins(output_size, group_size):
    """Which group each bin reads, [h, w] int32."""
    row, column = (
        np.arange(bins, dtype=np.int32) * groups // bins
        for bins, groups in zip(output_size, group_size, strict=True)
    )
    return row[:, None] * group_size[1] + column[None]


def _part_taps(box, shift, axis, output_size, samples, size):
    """Pixels that the samples of deform_ps_roi_pool read along an axis of `size`.

    A sample counts from -0.5 to size - 0.5, and is moved to [0, size - 1]; the mean is
    over those that count. At pixels the derivative is 0.

    Returns:
      Index, weight, and whether it counts, each [h or 1, w or 1, 2 * samples].
    """
    bins = output_size[axis]
    bin_size = quotient(box[2 + axis], bins)
    bin_index = jnp.arange(bins, dtype=box.dtype)
    start = box[axis] + jnp.expand_dims(bin_index, 1 - axis) * bin_size
    if shift is not None:
        start += shift[..., axis]
    sample = jnp.arange(samples, dtype=box.dtype)[None, None]
    position = start[..., None] + quotient(sample * bin_size, samples)

    last = (size - 1).astype(box.dtype)
    inside = (position >= -0.5) & (position <= last + 0.5) & (size > 0)
    position = jnp.where(inside & (position > 0), position, 0)
    position = jnp.where(position > last, jnp.maximum(last, 0), position)
    low = jnp.floor(position)
    fraction = position - low
    fraction = jnp.where(fraction > 0, fraction, 0)
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(size - 1, 0))
    count = jnp.maximum(inside.sum(-1, keepdims=True, dtype=jnp.int32), 1)
    weight = jnp.concatenate([1 - fraction, fraction], axis=-1) / count.astype(
        box.dtype
    )
    index = jnp.concatenate([low, high], axis=-1)
    return index, weight, jnp.concatenate([inside, inside], axis=-1)


def _pool_dense(operands, *, output_size, group_size, sampling):
    """One box that is not shifted: weighs all rows and columns of each bin's group."""
    maps, box, level, map_sizes, _, mask = operands
    box, _, undefined = defined(box, None)
    pooled = jnp.zeros((*output_size, maps[0].shape[-1]), box.dtype)
    group = _group_of_bins(output_size, group_size)
    for index, feature in enumerate(maps):
        weights, valid = [], []
        for axis in (0, 1):
            length, size = feature.shape[1 + axis], map_sizes[index, axis]
            if sampling == "pixels":
                weight = _pixel_weights(box, axis, output_size[axis], length, size)
            else:
                weight = adaptive_weights(box, None, axis, output_size, length, size)
                weight = weight.reshape(output_size[axis], length)
            weights.append(jnp.where(level == index, weight, 0))
            valid.append(jnp.arange(length, dtype=jnp.int32) < size)
        inside = (valid[0][:, None] & valid[1][None])[None, ..., None]
        value = jnp.where(inside, feature, 0)
        pooled += jnp.einsum(
            "iy,ijyxc,jx->ijc",
            weights[0],
            value[group],
            weights[1],
            precision=jax.lax.Precision.HIGHEST,
        )
    return finish(pooled, mask, undefined)


def _pixel_weights(box, axis, bins, length, size):
    """Weights of the whole pixels that each bin touches, [bins, length]."""
    # Divided last, as the kernel does.
    share = jnp.arange(bins + 1, dtype=box.dtype) * box[2 + axis]
    edge = box[axis] + quotient(share, bins)
    begin, end = cut_pixels(jnp.floor(edge[:-1]), jnp.ceil(edge[1:]), size)
    pixel = jnp.arange(length, dtype=jnp.int32)[None]
    inside = (pixel >= begin[:, None]) & (pixel < end[:, None])
    count = jnp.maximum(end - begin, 1).astype(box.dtype)
    return jnp.where(inside, 1 / count[:, None], 0)
