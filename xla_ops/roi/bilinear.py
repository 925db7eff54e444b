"""RoI pooling by bilinear samples: `roi_align` and `deform_roi_pool`.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xla_ops._jax import resolve_implementation
from xla_ops.arguments import check_beside, check_shape
from xla_ops.roi.arguments import (
    boxes_of_corners,
    check_maps,
    check_number,
    check_output_size,
    check_rois,
    check_samples,
    scales_of_rois,
    shift_of_offset,
)
from xla_ops.roi.operands import RoIOperands
from xla_ops.roi.pooling import RoIPooling
from xla_ops.roi.reference.bilinear import pool_bilinear

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num


def roi_align(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    *,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    sampling_ratio: int = 2,
    aligned: bool = True,
    implementation: str | None = None,
) -> Float[Array, "N B h w C"]:
    """RoIAlign: the mean of bilinear samples in each of a RoI's h x w bins.

    A sample up to one pixel outside the map reads the map's border, one further away
    counts as 0. A RoI that is not finite, or too large for the type of `rois`, gives
    NaN and passes no gradient. A bin that reads a pixel that is NaN or infinite is NaN
    or infinite. No gradient flows to `rois`.

    Derivatives of any order are available, by forward and reverse mode in any nesting,
    also under `jax.vmap`. The backward pass keeps nothing but the arguments, and its
    bits do not depend on the number of threads. The batch may be split over devices by
    an Auto or Explicit mesh or `jax.shard_map`.

    Args:
      features: Map [N, H, W, C], float32, bfloat16, float16 or float64; or a sequence
        of maps of one C, the levels of a pyramid.
      rois: [N, B, 4] as x1 y1 x2 y2, in pixels of the input image.
      output_size: Bins (h, w), or one number for both.
      spatial_scale: Map pixels per image pixel; for a pyramid, one for each level.
      levels: [N, B], only for a pyramid: the level that each RoI reads. RoIs with any
        other number than 0 to L - 1 are not pooled: zeros.
      map_sizes: [N, 2] as (height, width) in pixels of the map: the part of each
        image's map that is no padding. Samples see a map of that size. For a pyramid,
        one for each level. None: whole maps.
      sampling_ratio: Samples of a bin along each axis, at most 65,536. 0:
        ceil(RoI size / bins), as many as the RoI has pixels; only those on the map cost
        time, so that a RoI may be of any size.
      aligned: True puts pixel centres at half-integer image coordinates. False is the
        older convention: no half-pixel shift, and RoIs of at least one map pixel.
      implementation: None takes the kernel where the platform has one, else the plain
        jnp form with a warning; "ffi" asks for the kernel, "reference" for the plain
        form. The environment variable DCN_JAX_IMPLEMENTATION replaces None. With
        sampling_ratio 0 the plain form needs maps that are finite everywhere.

    Returns:
      [N, B, h, w, C] in the dtype of `features`; sums and coordinates are float32 for
      half precision.

    Raises:
      TypeError: An argument is not an array, or has a dtype that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.
      NotImplementedError: "ffi", and the platform has no kernel.
      RuntimeError: The CPU kernels are not built.

    Source: He et al. 2017 (arXiv:1703.06870) section 3; `torchvision.ops.roi_align`.
    """
    if not isinstance(aligned, bool):
        raise TypeError(f"`aligned` is {aligned!r}; expected True or False")
    return _pool(
        features,
        rois,
        None,
        None,
        output_size=output_size,
        spatial_scale=spatial_scale,
        levels=levels,
        map_sizes=map_sizes,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        offset_scale=0.0,
        implementation=implementation,
    )


def deform_roi_pool(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    offset: Float[Array, "N B h w 2"] | None = None,
    mask: Float[Array, "N B h w"] | None = None,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    sampling_ratio: int = 2,
    offset_scale: float = 0.1,
    implementation: str | None = None,
) -> Float[Array, "N B h w C"]:
    """Deformable RoI pooling: DCNv1, or DCNv2 where there is a mask.

    `roi_align` (aligned) whose bin (i, j) of a RoI is moved by offset_scale *
    (RoI height, RoI width) * offset[i, j] and multiplied by mask[i, j]. Without offset
    and mask it is `roi_align`, and what is said there on derivatives, partitioning and
    numbers that are not finite holds here.

    The derivative with respect to offset is that of the result everywhere: 0 where a
    sample outside the map reads its border, right-hand at integer positions. A NaN
    offset gives NaN in its bin, and passes no gradient; an infinite one gives 0.

    Args:
      features: Map [N, H, W, C], float32, bfloat16, float16 or float64; or a sequence
        of maps of one C, the levels of a pyramid.
      rois: [N, B, 4] as x1 y1 x2 y2, in pixels of the input image.
      offset: [N, B, h, w, 2] as (dy, dx), in units of the RoI's size. May be float32
        beside half-precision `features`. None: no bin is moved.
      mask: [N, B, h, w], a factor for each bin; None is DCNv1. May be float32 like
        `offset`.
      output_size: Bins (h, w), or one number for both.
      spatial_scale: Map pixels per image pixel; for a pyramid, one for each level.
      levels: [N, B], only for a pyramid: the level that each RoI reads. RoIs with any
        other number than 0 to L - 1 are not pooled: zeros.
      map_sizes: [N, 2] as (height, width) in pixels of the map: the part of each
        image's map that is no padding. Samples see a map of that size. For a pyramid,
        one for each level. None: whole maps.
      sampling_ratio: Samples of a bin along each axis, at most 65,536. 0:
        ceil(RoI size / bins), of which only those on the map cost time.
      offset_scale: gamma of the papers.
      implementation: As in `roi_align`.

    Returns:
      [N, B, h, w, C] in the dtype of `features`; sums and coordinates are float32 for
      half precision.

    Raises:
      TypeError, ValueError, NotImplementedError, RuntimeError: As in `roi_align`.

    Source: Dai et al. 2017 (arXiv:1703.06211) eq. 5 and 6; Zhu et al. 2019
    (arXiv:1811.11168) eq. 2; samples as in mmcv's `DeformRoIPool`, which holds offsets
    as (dx, dy), and whose gradient of offset is wrong at the border of the map.
    """
    return _pool(
        features,
        rois,
        offset,
        mask,
        output_size=output_size,
        spatial_scale=spatial_scale,
        levels=levels,
        map_sizes=map_sizes,
        sampling_ratio=sampling_ratio,
        aligned=True,
        offset_scale=offset_scale,
        implementation=implementation,
    )


def _pool(
    features,
    rois,
    offset,
    mask,
    *,
    output_size,
    spatial_scale,
    levels,
    map_sizes,
    sampling_ratio,
    aligned,
    offset_scale,
    implementation,
) -> Any:
    implementation = resolve_implementation(implementation)
    maps, scales, sizes = check_maps(features, spatial_scale, levels, map_sizes)
    offset_scale = check_number("offset_scale", offset_scale, maps[0])
    rois, levels = check_rois(rois, levels, maps)
    corners = rois * scales_of_rois(rois, levels, scales) - (0.5 if aligned else 0)
    boxes = boxes_of_corners(corners, minimum=None if aligned else 1)

    sampling_ratio = check_samples("sampling_ratio", sampling_ratio, minimum=0)
    output_size = check_output_size(output_size, sampling_ratio, rois, maps)
    bins = (*levels.shape, *output_size)
    shift = None
    if offset is not None:
        offset = check_beside("offset", offset, maps[0])
        check_shape("offset", offset, (*bins, 2), "N, B, h, w, 2")
        shift = shift_of_offset(offset, boxes, offset_scale)
    if mask is not None:
        mask = check_beside("mask", mask, maps[0])
        check_shape("mask", mask, bins, "N, B, h, w")

    operands = RoIOperands(maps, boxes, levels, sizes, shift, mask)
    return _pool_bins(
        operands.aligned(),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        implementation=implementation,
    )


_pool_bins = RoIPooling(
    "dcn_jax.roi_pool",
    reference=pool_bilinear,
    attributes=lambda *, sampling_ratio: {"sampling_ratio": np.int64(sampling_ratio)},
)
