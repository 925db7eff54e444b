"""`roi_pool`, quantised max pooling, in plain jnp.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from xla_ops.roi.operands import RoIOperands
from xla_ops.roi.reference.bins import bin_pixels

# Values of an image's feature maps that one step of the loop over RoIs may hold.
_STEP_ELEMENTS = 1 << 24


def pool_maxima(operands: RoIOperands, *, output_size: tuple[int, int]) -> jax.Array:
    """Takes the maximum over the pixels of each bin of boxes.

    Args:
      operands: Maps [N, H, W, C]; boxes of whole numbers: first row, first column, rows
        and columns of pixels; no shift and no mask.
      output_size: (h, w).

    Returns:
      [N, B, h, w, C] in the maps' dtype; a bin without pixels is 0. The gradient goes
      to the first of a bin's greatest pixels, where NaN is greater than all else.
    """
    maps, boxes, levels, map_sizes, *_ = operands
    images, num_boxes = levels.shape
    channels, dtype = maps[0].shape[-1], maps[0].dtype
    bins = math.prod(output_size)
    if 0 in (images, num_boxes, channels):
        return jnp.zeros((images, num_boxes, *output_size, channels), dtype)
    # Gradients of the maps are then summed in the type of the boxes.
    maps = [x.astype(boxes.dtype) for x in maps]
    still = [jax.lax.stop_gradient(x) for x in maps]

    cost = max(math.prod(x.shape[1:]) for x in maps) * max(output_size)
    step = max(1, min(num_boxes, _STEP_ELEMENTS // cost))

    @jax.vmap
    def find_in_image(maps, map_sizes, boxes, levels):
        find = partial(_find, maps, map_sizes, output_size=output_size)
        return jax.lax.map(lambda x: find(*x), (boxes, levels), batch_size=step)

    pixel, empty = find_in_image(still, map_sizes, boxes, levels)
    flat = jnp.concatenate([x.reshape(images, -1, channels) for x in maps], axis=1)
    value = jnp.take_along_axis(
        flat, pixel.reshape(images, num_boxes * bins, channels), axis=1
    )
    value = jnp.where(empty[..., None], 0, value.reshape(pixel.shape))
    undefined = ~jnp.isfinite(boxes).all(-1)
    value = jnp.where(undefined[..., None, None, None], jnp.nan, value)
    return value.astype(dtype)


def _find(maps, map_sizes, box, level, *, output_size):
    """Where one box's maxima are.

    Returns:
      [h, w, C], the pixel's number among those of all maps; and [h, w], which bins
      have no pixel.
    """
    height, width = output_size
    pixel = jnp.zeros((height, width, maps[0].shape[-1]), jnp.int32)
    empty = jnp.ones((height, width), bool)
    first = 0
    for index, feature in enumerate(maps):
        area = feature.shape[0] * feature.shape[1]
        here = level == index
        top, bottom = bin_pixels(box[0], box[2], height, map_sizes[index, 0])
        left, right = bin_pixels(box[1], box[3], width, map_sizes[index, 1])
        # The first greatest pixel of every row, [w, H, C], then of these the first.
        x = _first_greatest(jnp.swapaxes(feature, 0, 1), left, right)
        most = jnp.take_along_axis(feature[None], x[:, :, None], axis=2)[:, :, 0]
        y = jax.vmap(partial(_first_greatest, begin=top, end=bottom))(most)
        x = jnp.take_along_axis(x, y, axis=1)
        place = jnp.swapaxes(first + y * feature.shape[1] + x, 0, 1)
        pixel = jnp.where(here, place, pixel)
        none = (bottom <= top)[:, None] | (right <= left)[None]
        empty = jnp.where(here, none, empty)
        first += area
    return pixel, empty


def _first_greatest(values, begin, end):
    """Index of the first greatest in [begin, end), along axis 0, [bins, ...]."""
    places = jnp.arange(values.shape[0], dtype=jnp.int32)[None]
    inside = (places >= begin[:, None]) & (places < end[:, None])
    inside = inside.reshape(*inside.shape, *(1,) * (values.ndim - 1))
    index = jnp.argmax(jnp.where(inside, values[None], -jnp.inf), axis=1)
    # Where all that is inside is -inf, argmax takes what stands before.
    begin = begin.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.clip(index.astype(jnp.int32), begin, values.shape[0] - 1)
