"""RoI pooling by the maximum of whole pixels: `roi_pool`.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from xla_ops._jax import resolve_implementation
from xla_ops.roi.arguments import (
    boxes_of_corners,
    check_maps,
    check_output_size,
    check_rois,
    scales_of_rois,
)
from xla_ops.roi.cuda import reach_and_places
from xla_ops.roi.operands import RoIOperands
from xla_ops.roi.pooling import RoIPooling
from xla_ops.roi.reference.quantised import pool_maxima

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num


def roi_pool(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    *,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    implementation: str | None = None,
) -> Float[Array, "N B h w C"]:
    """RoI pooling of Fast R-CNN: the maximum over each of a RoI's h x w bins.

    The corners of a RoI are multiplied by `spatial_scale` and rounded to pixels, halves
    away from zero; both corner pixels belong to it, and it has at least one. A bin
    begins and ends at whole pixels, which it may share with its neighbours. Pixels
    outside the map do not count; a bin without pixels is 0. A NaN pixel makes the bins
    that hold it NaN. A RoI that is not finite, or too large for the type of `rois`,
    gives NaN and passes no gradient. No gradient flows to `rois`.

    The gradient goes to the first pixel, row by row, of those that are greatest. For
    derivatives of other kinds, partitioning and threads holds what is said at
    `roi_align`; second derivatives are 0.

    Args:
      features: Map [N, H, W, C], float32, bfloat16, float16 or float64; or a sequence
        of maps of one C, the levels of a pyramid.
      rois: [N, B, 4] as x1 y1 x2 y2, in pixels of the input image.
      output_size: Bins (h, w), or one number for both.
      spatial_scale: Map pixels per image pixel; for a pyramid, one for each level.
      levels: [N, B], only for a pyramid: the level that each RoI reads. RoIs with any
        other number than 0 to L - 1 are not pooled: zeros.
      map_sizes: [N, 2] as (height, width) in pixels of the map: the part of each
        image's map that is no padding. For a pyramid, one for each level. None: whole
        maps.
      implementation: As in `roi_align`.

    Returns:
      [N, B, h, w, C] in the dtype of `features`; coordinates, and sums of gradients,
      are float32 for half precision.

    Raises:
      TypeError: An argument is not an array, or has a dtype that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.
      NotImplementedError: "ffi", and the platform has no kernel.
      RuntimeError: The CPU kernels are not built.

    Source: Girshick 2015 (arXiv:1504.08083) section 2.1; `torchvision.ops.roi_pool`.
    """
    implementation = resolve_implementation(implementation)
    maps, scales, sizes = check_maps(features, spatial_scale, levels, map_sizes)
    rois, levels = check_rois(rois, levels, maps)
    corners = rois * scales_of_rois(rois, levels, scales)
    corners = jax.lax.round(corners, jax.lax.RoundingMethod.AWAY_FROM_ZERO)
    # Whole pixels: first row and column, rows, columns. Both corners' pixels count.
    boxes = boxes_of_corners(corners, minimum=0)
    boxes += jnp.asarray([[[0, 0, 1, 1]]], boxes.dtype)

    output_size = check_output_size(output_size, 1, rois, maps)
    operands = RoIOperands(maps, boxes, levels, sizes)
    return _pool_maxima(
        operands.aligned(), output_size=output_size, implementation=implementation
    )


# The backward pass finds the maxima again: their places would be as large as the
# result, and finding them costs less than writing and reading them.
_pool_maxima = RoIPooling(
    "dcn_jax.max_roi_pool",
    reference=pool_maxima,
    attributes=dict,
    movable=False,
    linear=False,
    scratch=reach_and_places,
)
