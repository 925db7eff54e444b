"""RoI pooling in plain jnp: `roi_align` and `deform_roi_pool`.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI, S samples of a bin along one axis.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

# Values of an image's feature maps that one step of the loop over RoIs may hold.
_STEP_ELEMENTS = 1 << 24


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
    num_boxes = levels.shape[1]
    channels = features[0].shape[-1]
    dtype = features[0].dtype
    if 0 in (num_boxes, channels):
        return jnp.zeros((*levels.shape, *output_size, channels), dtype)
    # Gradients of the maps, too, are then summed in the type of the boxes.
    features = [f.astype(boxes.dtype) for f in features]
    pool_box = partial(
        _pool_gather if sampling_ratio else _pool_dense,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
    )
    if sampling_ratio:
        cost = 4 * sampling_ratio**2 * math.prod(output_size) * channels
    else:
        cost = math.prod(output_size) * max(f.shape[2] for f in features) * channels
    step = max(1, min(num_boxes, _STEP_ELEMENTS // max(cost, 1)))

    @jax.vmap
    def pool_image(features, map_sizes, *per_box):
        @jax.checkpoint
        def pool(per_box):
            return pool_box(features, map_sizes, *per_box)

        return jax.lax.map(pool, per_box, batch_size=step)

    return pool_image(features, map_sizes, boxes, levels, shift, mask).astype(dtype)


def _pool_gather(
    features, map_sizes, box, level, shift, mask, *, output_size, sampling_ratio
):
    """One box, `sampling_ratio` samples per bin and axis: reads their corners."""
    areas = [f.shape[0] * f.shape[1] for f in features]
    flat = jnp.concatenate(
        [f.reshape(area, f.shape[-1]) for f, area in zip(features, areas, strict=True)]
    )
    level, known = _known_level(level, len(features))
    first = jnp.asarray([sum(areas[:i]) for i in range(len(areas))], jnp.int32)[level]
    row = jnp.asarray([f.shape[1] for f in features], jnp.int32)[level]
    box, shift, undefined = _defined(box, shift)

    taps = []
    for axis in (0, 1):
        position, counted, _ = _samples(
            box, shift, axis, output_size, sampling_ratio, samples=sampling_ratio
        )
        low, high, fraction, inside = _cell(position, map_sizes[level, axis])
        inside &= counted & known
        index = jnp.concatenate([low, high], axis=-1)
        weight = jnp.concatenate([1 - fraction, fraction], axis=-1) / sampling_ratio
        taps.append((index, weight, jnp.concatenate([inside, inside], axis=-1)))
    (y, weight_y, inside_y), (x, weight_x, inside_x) = taps
    y, weight_y, inside_y = (t[..., :, None] for t in (y, weight_y, inside_y))
    x, weight_x, inside_x = (t[..., None, :] for t in (x, weight_x, inside_x))
    inside = jnp.broadcast_to(
        inside_y & inside_x, (*output_size, *[2 * sampling_ratio] * 2)
    )
    pixel = jnp.broadcast_to(first + y * row + x, inside.shape)
    weight = jnp.where(inside, weight_y * weight_x, 0)
    value = jnp.where(inside[..., None], flat[pixel], 0)
    pooled = (weight[..., None] * value).sum((2, 3))
    return _finish(pooled, mask, undefined)


def _pool_dense(
    features, map_sizes, box, level, shift, mask, *, output_size, sampling_ratio
):
    """One box, as many samples as it takes: weighs all rows and columns of the map.

    No more samples of a bin than `samples` lie on the map, whatever the box's size:
    two of them are at least half a pixel apart. A map must be finite everywhere.
    """
    box, shift, undefined = _defined(box, shift)
    pooled = jnp.zeros((*output_size, features[0].shape[-1]), box.dtype)
    for index, feature in enumerate(features):
        weights = []
        for axis in (0, 1):
            length = feature.shape[axis]
            position, counted, count = _samples(
                box, shift, axis, output_size, sampling_ratio, samples=2 * length + 6
            )
            low, high, fraction, inside = _cell(position, map_sizes[index, axis])
            inside &= counted & (level == index)
            weight = jnp.zeros((*inside.shape[:2], length), box.dtype)
            for pixel, part in ((low, 1 - fraction), (high, fraction)):
                pixels = jnp.arange(length, dtype=jnp.int32)
                hit = pixel[..., None] == pixels[None, None, None]
                part = jnp.where(inside, part, 0) / jnp.maximum(count, 1)
                weight += jnp.where(hit, part[..., None], 0).sum(2)
            weights.append(jnp.broadcast_to(weight, (*output_size, length)))
        rows, columns = (
            jnp.arange(length, dtype=jnp.int32) < map_sizes[index, axis]
            for axis, length in enumerate(feature.shape[:2])
        )
        valid = rows[:, None] & columns[None]
        value = jnp.where(valid[..., None], feature, 0)
        pooled += jnp.einsum(
            "ijy,yxc,ijx->ijc",
            weights[0],
            value,
            weights[1],
            precision=jax.lax.Precision.HIGHEST,
        )
    return _finish(pooled, mask, undefined)


def _known_level(level, num_levels):
    known = (level >= 0) & (level < num_levels)
    return jnp.where(known, level, 0), known


def _defined(box, shift):
    """Replaces what has no meaning by zeros; tells for which bins, [h or 1, w or 1]."""
    undefined = ~jnp.isfinite(box).all()
    box = jnp.where(undefined, 0, box)
    if shift is None:
        return box, None, undefined[None, None]
    bad = jnp.isnan(shift)
    return box, jnp.where(bad, 0, shift), bad.any(-1) | undefined


def _samples(box, shift, axis, output_size, sampling_ratio, samples):
    """Positions of the samples along one axis, [h or 1, w or 1, S].

    Returns also which of them belong to the bin (and may lie on the map), and how many
    samples the bin has.
    """
    start, extent, bins = box[axis], box[2 + axis], output_size[axis]
    bin_size = extent / bins
    bin_index = jnp.arange(bins, dtype=box.dtype)
    start += jnp.expand_dims(bin_index, 1 - axis) * bin_size
    if shift is not None:
        start += shift[..., axis]
    sample = jnp.arange(samples, dtype=box.dtype)[None, None]
    if sampling_ratio:
        count = jnp.asarray(sampling_ratio, box.dtype)
    else:
        count = jnp.maximum(jnp.ceil(bin_size), 0)
        step = jnp.where(count > 0, bin_size / jnp.maximum(count, 1), 1)
        first = jnp.floor((-1 - jax.lax.stop_gradient(start)) / step - 0.5)
        sample += jnp.clip(first, 0, count)[..., None]
    position = start[..., None] + (sample + 0.5) * bin_size / jnp.maximum(count, 1)
    return position, sample < count, count


def _cell(position, size):
    """Pixels beside a position on an axis of `size` pixels, as RoIAlign reads it.

    From -1 to `size` a position counts, and is moved to [0, size - 1]. The derivative
    is the right-hand one at pixels and 0 where the position was moved.
    """
    inside = (position >= -1) & (position <= size.astype(position.dtype)) & (size > 0)
    last = (size - 1).astype(position.dtype)
    position = jnp.where(inside & (position >= 0), position, 0)
    position = jnp.where(position > last, jnp.maximum(last, 0), position)
    low = jnp.floor(position)
    fraction = position - low
    low = low.astype(jnp.int32)
    return low, jnp.minimum(low + 1, jnp.maximum(size - 1, 0)), fraction, inside


def _finish(pooled, mask, undefined):
    if mask is not None:
        pooled *= mask[..., None]
    return jnp.where(undefined[..., None], jnp.nan, pooled)
