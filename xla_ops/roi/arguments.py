"""Checks of the arguments that the operators of RoI pooling share.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops.arguments import (
    INTEGERS,
    check_array,
    check_beside,
    check_integer,
    check_pair,
    check_rank,
    check_shape,
    coordinate_dtype,
)

# The kernels refuse more, which is far beyond any use. Up to this side, float32 holds
# every place on a map.
_MAX_SAMPLES = 2**16
_MAX_SIDE = 2**24
# XLA counts the bytes of an array in 64 bits, and ends the process where they overflow;
# the plain form's largest array has the four corners of all samples.
_MAX_SAMPLED = 2**58


def check_maps(features, spatial_scale, levels, map_sizes):
    """Checks feature maps and what belongs to them.

    Args:
      features: Map [N, H, W, C], or a sequence of maps, the levels of a pyramid.
      spatial_scale: A number, or for a pyramid one for each level.
      levels: None for one map; its shape is not checked here.
      map_sizes: None, or [N, 2], for a pyramid one for each level.

    Returns:
      The list of L maps, the list of their scales, and the sizes of their parts that
      count, [N, L, 2] int32.

    Raises:
      TypeError, ValueError: An argument does not fit; the message names it.
    """
    if isinstance(features, list | tuple):
        if not features:
            raise ValueError("`features` is empty; expected at least one map")
        if levels is None:
            raise ValueError(
                "`levels` is None; expected (N, B) for `features` that is a sequence"
            )
        scales = _one_each("spatial_scale", spatial_scale, features)
        if map_sizes is not None:
            map_sizes = _one_each("map_sizes", map_sizes, features)
        names = [f"features[{level}]" for level in range(len(features))]
        size_names = [f"map_sizes[{level}]" for level in range(len(features))]
    else:
        if levels is not None:
            raise ValueError("`levels` is for `features` that is a sequence of maps")
        features, scales, names = [features], [spatial_scale], ["features"]
        map_sizes, size_names = (
            None if map_sizes is None else [map_sizes],
            ["map_sizes"],
        )

    maps = [check_array(name, x) for name, x in zip(names, features, strict=True)]
    for name, x in zip(names, maps, strict=True):
        _check_map(name, x, names[0], maps[0])
    scales = [check_number("spatial_scale", scale, maps[0]) for scale in scales]
    if min(scales) <= 0:
        raise ValueError(f"`spatial_scale` is {spatial_scale}; expected more than 0")
    if map_sizes is None:
        sizes = [jnp.broadcast_to(whole_size(x), (x.shape[0], 2)) for x in maps]
    else:
        sizes = [
            check_map_sizes(name, size, x)
            for name, size, x in zip(size_names, map_sizes, maps, strict=True)
        ]
    return maps, scales, jnp.stack(sizes, axis=1)


def _check_map(name, x, first_name, first):
    """Checks the map of a level beside the first one, which is [N, H, W, C] too."""
    check_rank(name, x, "N, H, W, C")
    expected = (first.shape[0], None, None, first.shape[3])
    check_shape(name, x, expected, "N, H, W, C", f" as `{first_name}` has")
    if x.dtype != first.dtype:
        raise TypeError(
            f"`{name}` has dtype {x.dtype.name}; expected {first.dtype.name} as "
            f"`{first_name}` has"
        )
    if 0 in x.shape[1:3]:
        raise ValueError(
            f"`{name}` has shape {x.shape}; expected H and W of at least 1"
        )
    # Symbolic sizes of jax.export are checked by the kernels.
    if any(isinstance(n, int) and n > _MAX_SIDE for n in x.shape[1:3]):
        raise ValueError(
            f"`{name}` has shape {x.shape}; expected H and W of at most {_MAX_SIDE}"
        )


def _one_each(name, values, features):
    if not isinstance(values, list | tuple):
        array = isinstance(values, jax.Array | np.ndarray)
        raise TypeError(
            f"`{name}` is {'an array' if array else type(values).__name__}; expected a "
            f"sequence, one for each of the {len(features)} maps of `features`"
        )
    if len(values) != len(features):
        raise ValueError(
            f"`{name}` has {len(values)} entries; expected {len(features)}, one for "
            "each map of `features`"
        )
    return values


def check_number(name: str, value: Any, x: Any) -> float:
    """A number that the type of coordinates beside `x` holds, as float."""
    if isinstance(value, jax.Array | np.ndarray):
        # Under jit an array has no value; outside it is refused in the same words.
        raise TypeError(f"`{name}` is an array; expected a number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` is {value!r}; expected a number")
    dtype = coordinate_dtype(x.dtype)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"`{name}` is too large; expected a number that {dtype.name} holds"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"`{name}` is {value!r}; expected a finite number")
    limits = np.finfo(dtype)
    if number != 0 and not float(limits.tiny) <= abs(number) <= float(limits.max):
        raise ValueError(
            f"`{name}` is {value!r}; expected a number that {dtype.name} holds"
        )
    return number


def check_output_size(
    value: Any, samples: int, rois: jax.Array, maps: list[jax.Array]
) -> tuple[int, int]:
    """Returns the bins (h, w) of each of `rois` [N, B, 4].

    A bin has so many samples along each axis, 0 where that depends on the RoI.

    Raises:
      TypeError: `value` is neither an integer nor a pair of them.
      ValueError: It is less than 1, or there would be more samples than XLA counts.
    """
    bins = check_pair("output_size", value)
    # Axes of length 0 count as others, as XLA multiplies them.
    sizes = [n for n in (*rois.shape[:2], maps[0].shape[3]) if isinstance(n, int) and n]
    count = math.prod((*sizes, *bins)) * max(samples, 1) ** 2
    if count >= _MAX_SAMPLED:
        raise ValueError(
            f"`output_size` is {value!r}, which makes {count} samples for `rois` "
            f"{rois.shape} and `features` {maps[0].shape}; expected less than "
            f"{_MAX_SAMPLED}"
        )
    return bins


def check_samples(name: str, value: Any, minimum: int) -> int:
    """A number of samples along an axis of a bin, from `minimum` on."""
    samples = check_integer(name, value, minimum)
    if samples > _MAX_SAMPLES:
        raise ValueError(f"`{name}` is {samples}; expected at most {_MAX_SAMPLES}")
    return samples


def check_levels(levels, rois, num_levels):
    """The level that each RoI reads, [N, B] int32; `num_levels` stands for none."""
    shape = rois.shape[:2]
    if levels is None:
        return jnp.zeros_like(rois, jnp.int32, shape=shape)
    levels = check_array("levels", levels, INTEGERS, saturate=True)
    check_shape("levels", levels, shape, "N, B", f" for `rois` {rois.shape}")
    if levels.dtype.itemsize < 4:
        # A narrow type may not hold the number of maps.
        levels = levels.astype(jnp.int32)
    known = (levels >= 0) & (levels < num_levels)
    return jnp.where(known, levels, num_levels).astype(jnp.int32)


def scales_of_rois(rois, levels, scales):
    """Map pixels per image pixel for each RoI, [N, B, 1]; 0 where it has no level."""
    scale = jnp.zeros_like(rois[..., :1])
    for level, factor in enumerate(scales):
        factor = jnp.asarray(factor, rois.dtype)
        scale = jnp.where((levels == level)[..., None], factor, scale)
    return scale


def boxes_of_corners(corners, minimum=None):
    """x1 y1 x2 y2 as (y, x, height, width), no side below `minimum`, [N, B, 4].

    A box with a corner that is not finite is not finite.
    """
    x1, y1, x2, y2 = jnp.split(corners, 4, axis=-1)
    size = jnp.concatenate([y2 - y1, x2 - x1], axis=-1)
    if minimum is not None:
        size = jnp.maximum(size, minimum)
    finite = jnp.isfinite(corners).all(-1, keepdims=True)
    size = jnp.where(finite, size, jnp.nan)
    return jnp.concatenate([y1, x1, size], axis=-1)


def check_rois(rois, levels, maps):
    """RoIs [N, B, 4], through which no gradient flows, and `check_levels` of them."""
    rois = check_beside("rois", rois, maps[0])
    expected = (maps[0].shape[0], None, 4)
    beside = f" for `features` {maps[0].shape}"
    check_shape("rois", rois, expected, "N, B, 4", beside)
    return jax.lax.stop_gradient(rois), check_levels(levels, rois, len(maps))


def shift_of_offset(offset, boxes, offset_scale):
    """Offsets in units of the RoI's size, [N, B, ..., 2], in pixels of the map."""
    # A RoI of infinite size passes no gradient, which infinity * 0 would spoil.
    size = jnp.where(jnp.isfinite(boxes), boxes, 0)[..., 2:]
    size = jnp.expand_dims(size, tuple(range(2, offset.ndim - 1)))
    return jnp.asarray(offset_scale, offset.dtype) * size * offset
