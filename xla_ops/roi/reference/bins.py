"""What the plain jnp forms of RoI pooling share.

Letters: N batch, L pyramid levels, G channel groups, H W map, C channels, B RoIs of an
image, h w bins of a RoI, S samples of a bin along one axis, T their pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xla_ops.roi.operands import RoIOperands

# Values of an image's feature maps that one step of the loop over RoIs may hold.
_STEP_ELEMENTS = 1 << 24


def pool_boxes(
    pool_box: Callable[[RoIOperands], jax.Array],
    operands: RoIOperands,
    *,
    output_size: tuple[int, int],
    cost: int,
) -> jax.Array:
    """Pools every box of every image.

    Args:
      pool_box: `(operands) -> [h, w, C]` for one box.
      operands: Of all boxes. Sums are in the type of `boxes`.
      output_size: (h, w).
      cost: Values of the maps that `pool_box` holds at a time.

    Returns:
      [N, B, h, w, C] in the maps' dtype.
    """
    num_boxes = operands.levels.shape[1]
    channels, dtype = operands.maps[0].shape[-1], operands.maps[0].dtype
    if 0 in (num_boxes, channels):
        return jnp.zeros((*operands.levels.shape, *output_size, channels), dtype)
    # Gradients of the maps, too, are then summed in the type of the boxes.
    maps = [x.astype(operands.boxes.dtype) for x in operands.maps]
    step = max(1, min(num_boxes, _STEP_ELEMENTS // max(cost, 1)))

    @jax.vmap
    def pool_image(image):
        @jax.checkpoint
        def pool(per_box):
            box, level, shift, mask = per_box
            return pool_box(
                image._replace(boxes=box, levels=level, shift=shift, mask=mask)
            )

        per_box = image.boxes, image.levels, image.shift, image.mask
        return jax.lax.map(pool, per_box, batch_size=step)

    return pool_image(operands._replace(maps=maps)).astype(dtype)


def gather(maps, group, level, rows, columns):
    """Sums the weighted pixels of a box's bins.

    Args:
      maps: L maps, [G, H, W, C].
      group: [h or 1, w or 1] int32, which of the groups each bin reads.
      level: Which map the box reads.
      rows: Index, weight, and whether it counts, of the pixels along the vertical
        axis, each [h or 1, w or 1, T].
      columns: The same along the horizontal axis.

    Returns:
      [h, w, C].
    """
    areas = [x.shape[0] * x.shape[1] * x.shape[2] for x in maps]
    flat = jnp.concatenate(
        [x.reshape(area, x.shape[-1]) for x, area in zip(maps, areas, strict=True)]
    )
    level, known = known_level(level, len(maps))
    first, height, width = (
        jnp.asarray(values, jnp.int32)[level]
        for values in (
            [sum(areas[:i]) for i in range(len(areas))],
            [x.shape[1] for x in maps],
            [x.shape[2] for x in maps],
        )
    )
    y, inside_y = (t[..., :, None] for t in (rows[0], rows[2]))
    x, inside_x = (t[..., None, :] for t in (columns[0], columns[2]))
    inside = inside_y & inside_x & known
    pixel = first + (group[..., None, None] * height + y) * width + x
    pixel, inside = jnp.broadcast_arrays(pixel, inside)
    shape = inside.shape[:2]
    weight_y, weight_x = (
        jnp.broadcast_to(taps, (*shape, taps.shape[-1]))
        for taps in (rows[1], columns[1])
    )
    weight = jnp.where(inside, _product("hwy,hwx->hwyx", weight_y, weight_x), 0)
    value = jnp.where(inside[..., None], flat[pixel], 0)
    return _product(
        "hwt,hwtc->hwc",
        weight.reshape(*shape, -1),
        value.reshape(*shape, -1, value.shape[-1]),
    )


def _product(subscripts, a, b):
    """A product of matrices, and no sum of products.

    A sum of products over the last but one of seven axes, as vmap makes them of this,
    ends the process on a CPU: jaxlib 0.10's YNNPACK reads beyond an array.
    """
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


def known_level(level, num_levels):
    """The level, 0 for one that is not there, and whether it is."""
    known = (level >= 0) & (level < num_levels)
    return jnp.where(known, level, 0), known


def defined(box, shift):
    """Replaces what has no meaning by zeros; tells for which bins, [h or 1, w or 1]."""
    undefined = ~jnp.isfinite(box).all()
    box = jnp.where(undefined, 0, box)
    if shift is None:
        return box, None, undefined[None, None]
    bad = jnp.isnan(shift)
    return box, jnp.where(bad, 0, shift), bad.any(-1) | undefined


def samples_of_bins(box, shift, axis, output_size, sampling_ratio, samples):
    """Positions of the samples along one axis, [h or 1, w or 1, S].

    Returns also which of them belong to the bin (and may lie on the map), and how many
    samples the bin has.
    """
    start, extent, bins = box[axis], box[2 + axis], output_size[axis]
    bin_size = quotient(extent, bins)
    bin_index = jnp.arange(bins, dtype=box.dtype)
    start += jnp.expand_dims(bin_index, 1 - axis) * bin_size
    if shift is not None:
        start += shift[..., axis]
    sample = jnp.arange(samples, dtype=box.dtype)[None, None]
    if sampling_ratio:
        count = jnp.asarray(sampling_ratio, box.dtype)
    else:
        count = jnp.maximum(jnp.ceil(bin_size), 0)
        step = jnp.where(count > 0, quotient(bin_size, jnp.maximum(count, 1)), 1)
        first = jnp.floor((-1 - jax.lax.stop_gradient(start)) / step - 0.5)
        sample += jnp.clip(first, 0, count)[..., None]
    moved = quotient((sample + 0.5) * bin_size, jnp.maximum(count, 1))
    position = start[..., None] + moved
    return position, sample < count, count


def grid_taps(box, shift, axis, output_size, sampling_ratio, size):
    """Pixels that a bin's `sampling_ratio` samples read along an axis of `size` pixels.

    Returns:
      Index, weight, and whether it counts, each [h or 1, w or 1, 2 * sampling_ratio].
    """
    position, counted, _ = samples_of_bins(
        box, shift, axis, output_size, sampling_ratio, samples=sampling_ratio
    )
    low, high, fraction, inside = cell(position, size)
    inside &= counted
    index = jnp.concatenate([low, high], axis=-1)
    weight = jnp.concatenate([1 - fraction, fraction], axis=-1) / sampling_ratio
    return index, weight, jnp.concatenate([inside, inside], axis=-1)


def adaptive_weights(box, shift, axis, output_size, length, size):
    """Weights of all pixels of an axis in each bin, with as many samples as it takes.

    No more samples of a bin lie on the map than are looked at here, whatever the box's
    size: two of them are at least half a pixel apart.

    Args:
      box: [4].
      shift: [h, w, 2] or None.
      axis: 0 vertical, 1 horizontal.
      output_size: (h, w).
      length: Of the map along the axis.
      size: Of its part that counts.

    Returns:
      [h or 1, w or 1, length].
    """
    position, counted, count = samples_of_bins(
        box, shift, axis, output_size, 0, samples=2 * length + 6
    )
    low, high, fraction, inside = cell(position, size)
    inside &= counted
    weight = jnp.zeros((*inside.shape[:2], length), box.dtype)
    for pixel, part in ((low, 1 - fraction), (high, fraction)):
        pixels = jnp.arange(length, dtype=jnp.int32)
        hit = pixel[..., None] == pixels[None, None, None]
        part = jnp.where(inside, part, 0) / jnp.maximum(count, 1)
        weight += jnp.where(hit, part[..., None], 0).sum(2)
    return weight


def cell(position, size):
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


def bin_pixels(start, extent, bins, size):
    """Pixels [begin, end) of each bin along an axis of `size` pixels, [bins] each."""
    step = quotient(extent, bins)
    index = jnp.arange(bins, dtype=extent.dtype)
    begin = start + jnp.floor(index * step)
    end = start + jnp.ceil((index + 1) * step)
    return cut_pixels(begin, end, size)


def cut_pixels(begin, end, size):
    """The pixels [begin, end) that lie on an axis of `size` pixels."""
    return tuple(
        jnp.clip(edge, 0, size.astype(edge.dtype)).astype(jnp.int32)
        for edge in (begin, end)
    )


def quotient(values, divisor):
    """Divides, and rounds once.

    Where XLA sees one divisor for all values it multiplies them by its inverse, which
    rounds differently: a bin would begin or end a pixel away from torchvision's, and a
    sample at the border of a map would lie outside it.
    """
    return values / jnp.where(jnp.isnan(values), values, divisor)


def finish(pooled, mask, undefined):
    """Multiplies bins by their mask; NaN where `defined` says so."""
    if mask is not None:
        pooled *= mask[..., None]
    return jnp.where(undefined[..., None], jnp.nan, pooled)
