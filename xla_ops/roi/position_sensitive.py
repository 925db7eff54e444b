"""Position-sensitive RoI pooling: `ps_roi_align`, `ps_roi_pool`, `deform_ps_roi_pool`.

Each bin of a RoI reads a group of channels of its own, and the result has as many
channels as a group.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image, h w bins of
a RoI, G channel groups, D = C / G channels of the result, p q parts of a RoI that have
offsets of their own, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._jax import reshape_images, resolve_implementation
from xla_ops.arguments import check_beside, check_integer, check_pair, check_shape
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
from xla_ops.roi.reference.position_sensitive import pool_groups

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

# Bins along an axis that may share offsets; a program grows with them.
_MAX_PARTED = 1024


def ps_roi_align(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    *,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    sampling_ratio: int = 2,
    implementation: str | None = None,
) -> Float[Array, "N B h w D"]:
    """Position-sensitive RoIAlign: `roi_align` (aligned), each bin in its own channels.

    Channel d of bin (i, j) is read from channel (d * h + i) * w + j of the map, so that
    D = C / (h * w). All that `roi_align` says on samples, derivatives, partitioning and
    numbers that are not finite holds here. The maps are copied into another order of
    channels, which is kept for the backward pass.

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
        ceil(RoI size / bins); a RoI without size then has none and gives 0, where
        torchvision gives NaN.
      implementation: As in `roi_align`.

    Returns:
      [N, B, h, w, D] in the dtype of `features`; sums and coordinates are float32 for
      half precision.

    Raises:
      TypeError: An argument is not an array, or has a dtype that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.
      NotImplementedError: "ffi", and the platform has no kernel.
      RuntimeError: The CPU kernels are not built.

    Source: `torchvision.ops.ps_roi_align`; Li et al. 2018 (arXiv:1711.07264).
    """
    implementation = resolve_implementation(implementation)
    maps, scales, sizes = check_maps(features, spatial_scale, levels, map_sizes)
    rois, levels = check_rois(rois, levels, maps)
    samples = check_samples("sampling_ratio", sampling_ratio, minimum=0)
    output_size = check_output_size(output_size, samples, rois, maps)
    corners = rois * scales_of_rois(rois, levels, scales) - 0.5
    return _pool(
        RoIOperands(maps, boxes_of_corners(corners), levels, sizes),
        output_size=output_size,
        group_size=output_size,
        group_name="output_size",
        sampling="grid",
        samples=samples,
        implementation=implementation,
    )


def ps_roi_pool(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    *,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    group_size: int | None = None,
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    implementation: str | None = None,
) -> Float[Array, "N B h w D"]:
    """Position-sensitive RoI pooling of R-FCN: the mean of whole pixels in each bin.

    The RoI spans round(x1) to round(x2) + 1 in image pixels (halves are rounded away
    from zero), and at least 0.1 pixels of the map. A bin reads every pixel that it
    touches: channel d of bin (i, j) is the mean over channel
    (d * group_h + i * group_h // h) * group_w + j * group_w // w of the map, with
    D = C / (group_h * group_w). A bin without pixels is 0.

    This is the operator of R-FCN's authors. torchvision's of the same name rounds on
    the map in place of the image, and never reads the last row and column.

    What `roi_align` says on derivatives, partitioning and numbers that are not finite
    holds here. The maps are copied into another order of channels, which is kept for
    the backward pass.

    Args:
      features: Map [N, H, W, C], float32, bfloat16, float16 or float64; or a sequence
        of maps of one C, the levels of a pyramid.
      rois: [N, B, 4] as x1 y1 x2 y2, in pixels of the input image.
      output_size: Bins (h, w), or one number for both.
      spatial_scale: Map pixels per image pixel; for a pyramid, one for each level.
      group_size: Channel groups along each axis. None: (group_h, group_w) is the output
        size.
      levels: [N, B], only for a pyramid: the level that each RoI reads. RoIs with any
        other number than 0 to L - 1 are not pooled: zeros.
      map_sizes: [N, 2] as (height, width) in pixels of the map: the part of each
        image's map that is no padding. For a pyramid, one for each level. None: whole
        maps.
      implementation: As in `roi_align`. The plain form needs maps that are finite
        everywhere.

    Returns:
      [N, B, h, w, D] in the dtype of `features`; sums and coordinates are float32 for
      half precision.

    Raises:
      TypeError, ValueError, NotImplementedError, RuntimeError: As in `ps_roi_align`.

    Source: Dai et al. 2016 (arXiv:1605.06409) eq. 1; MSRA's `PSROIPooling`.
    """
    implementation = resolve_implementation(implementation)
    maps, scales, sizes = check_maps(features, spatial_scale, levels, map_sizes)
    rois, levels = check_rois(rois, levels, maps)
    output_size = check_output_size(output_size, 1, rois, maps)
    groups, name = output_size, "output_size"
    if group_size is not None:
        groups = (check_integer("group_size", group_size),) * 2
        name = "group_size"
    corners = _of_whole_pixels(rois) * scales_of_rois(rois, levels, scales)
    return _pool(
        RoIOperands(maps, boxes_of_corners(corners, minimum=0.1), levels, sizes),
        output_size=output_size,
        group_size=groups,
        group_name=name,
        sampling="pixels",
        samples=0,
        implementation=implementation,
    )


def deform_ps_roi_pool(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
    rois: Float[Array, "N B 4"],
    offset: Float[Array, "N B p q K 2"] | None = None,
    mask: Float[Array, "N B h w"] | None = None,
    *,
    output_size: int | Sequence[int],
    group_size: int,
    spatial_scale: float | Sequence[float],
    levels: Int[Array, "N B"] | None = None,
    map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
    samples_per_part: int = 4,
    part_size: int | Sequence[int] | None = None,
    offset_scale: float = 0.1,
    implementation: str | None = None,
) -> Float[Array, "N B h w D"]:
    """Deformable position-sensitive RoI pooling: DCNv1, or DCNv2 with a mask.

    The RoI spans round(x1) to round(x2) + 1 in image pixels, and at least 0.1 pixels of
    the map. Bin (i, j) is the mean of samples_per_part^2 bilinear samples that begin at
    the bin's corner; those more than half a pixel outside the map are left out of the
    mean, and a bin without samples is 0. Channel d of the bin is read from channel
    (d * group_size + i * group_size // h) * group_size + j * group_size // w, so that
    D = C / group_size^2, is moved by offset_scale * (RoI height, RoI width) *
    offset[i * p // h, j * q // w, d // (D / K)], and multiplied by mask[i, j].

    The derivative with respect to offset is that of the result; it is 0 where a sample
    outside the map reads its border, and at integer positions, as in MSRA's code. A NaN
    offset gives NaN in its bins and passes no gradient; an infinite one gives 0. What
    `roi_align` says on derivatives, partitioning and numbers that are not finite holds
    here. The maps are copied into another order of channels, which is kept for the
    backward pass.

    Args:
      features: Map [N, H, W, C], float32, bfloat16, float16 or float64; or a sequence
        of maps of one C, the levels of a pyramid.
      rois: [N, B, 4] as x1 y1 x2 y2, in pixels of the input image.
      offset: [N, B, p, q, K, 2] as (dy, dx), in units of the RoI's size, for p x q
        parts of a RoI and K classes of D / K channels. May be float32 beside
        half-precision `features`. None: no bin is moved.
      mask: [N, B, h, w], a factor for each bin; None is DCNv1. May be float32 like
        `offset`.
      output_size: Bins (h, w), or one number for both.
      group_size: Channel groups along each axis; 1 is not position-sensitive.
      spatial_scale: Map pixels per image pixel; for a pyramid, one for each level.
      levels: [N, B], only for a pyramid: the level that each RoI reads. RoIs with any
        other number than 0 to L - 1 are not pooled: zeros.
      map_sizes: [N, 2] as (height, width) in pixels of the map: the part of each
        image's map that is no padding. Samples see a map of that size. For a pyramid,
        one for each level. None: whole maps.
      samples_per_part: Samples of a bin along each axis, at most 65,536.
      part_size: (p, q), or one number for both. None: the output size, which may else
        be at most 1,024 along an axis.
      offset_scale: gamma of the papers.
      implementation: As in `roi_align`.

    Returns:
      [N, B, h, w, D] in the dtype of `features`; sums and coordinates are float32 for
      half precision.

    Raises:
      TypeError, ValueError, NotImplementedError, RuntimeError: As in `ps_roi_align`.

    Source: Dai et al. 2017 (arXiv:1703.06211) section 2.2; Zhu et al. 2019
    (arXiv:1811.11168) eq. 2; samples as in MSRA's `DeformablePSROIPooling`, which holds
    offsets as (dx, dy).
    """
    implementation = resolve_implementation(implementation)
    maps, scales, sizes = check_maps(features, spatial_scale, levels, map_sizes)
    rois, levels = check_rois(rois, levels, maps)
    samples = check_samples("samples_per_part", samples_per_part, minimum=1)
    output_size = check_output_size(output_size, samples, rois, maps)
    group_size = check_integer("group_size", group_size)
    depth = _group_channels(maps, (group_size, group_size), "group_size")
    offset_scale = check_number("offset_scale", offset_scale, maps[0])
    parts = output_size
    if part_size is not None:
        parts = check_pair("part_size", part_size)
    if parts != output_size and max(output_size) > _MAX_PARTED:
        raise ValueError(
            f"`output_size` is {output_size}; expected at most {_MAX_PARTED} bins "
            f"along an axis with `part_size` {part_size!r}"
        )

    corners = _of_whole_pixels(rois) * scales_of_rois(rois, levels, scales)
    boxes = boxes_of_corners(corners - 0.5, minimum=0.1)
    shift = None
    if offset is not None:
        offset = check_beside("offset", offset, maps[0])
        expected = (*levels.shape, *parts, None, 2)
        check_shape("offset", offset, expected, "N, B, p, q, K, 2")
        classes = offset.shape[4]
        if classes == 0 or depth % classes:
            raise ValueError(
                f"`offset` has {classes} classes; expected a divisor of the {depth} "
                "channels of the result"
            )
        offset = _of_bins(offset, output_size)
        shift = shift_of_offset(offset, boxes, offset_scale)
    if mask is not None:
        mask = check_beside("mask", mask, maps[0])
        check_shape("mask", mask, (*levels.shape, *output_size), "N, B, h, w")
    return _pool(
        RoIOperands(maps, boxes, levels, sizes, shift, mask),
        output_size=output_size,
        group_size=(group_size, group_size),
        group_name="group_size",
        sampling="parts",
        samples=samples,
        implementation=implementation,
    )


def _pool(
    operands,
    *,
    output_size,
    group_size,
    group_name,
    sampling,
    samples,
    implementation,
):
    """Pools maps [N, H, W, C], regrouped to [N, G, H, W, D]."""
    depth = _group_channels(operands.maps, group_size, group_name)
    operands = operands.aligned()
    grouped = []
    for x in operands.maps:
        # A group's channels side by side, for vectors; groups apart, for threads.
        groups = group_size[0] * group_size[1]
        x = reshape_images(x, (*x.shape[1:3], depth, groups))
        grouped.append(x.transpose(0, 4, 1, 2, 3))
    return _pool_groups(
        operands._replace(maps=tuple(grouped)),
        output_size=output_size,
        group_size=group_size,
        sampling=sampling,
        samples=samples,
        implementation=implementation,
    )


def _group_channels(maps, group_size, name):
    """Channels of one group."""
    channels, groups = maps[0].shape[-1], group_size[0] * group_size[1]
    if channels % groups:
        raise ValueError(
            f"`features` has {channels} channels; expected a multiple of {groups} = "
            f"{group_size[0]} * {group_size[1]} for `{name}`"
        )
    return channels // groups


def _of_whole_pixels(rois):
    """RoIs [N, B, 4] from the first of their pixels to the end of the last one.

    Corners are rounded half away from zero, as C does.
    """
    last = jnp.asarray([0, 0, 1, 1], rois.dtype)[None, None]
    return jax.lax.round(rois, jax.lax.RoundingMethod.AWAY_FROM_ZERO) + last


def _of_bins(offset, output_size):
    """The offset of each bin's part, [N, B, h, w, K, 2]."""
    for axis, bins in zip((2, 3), output_size, strict=True):
        parts = offset.shape[axis]
        if parts != bins:
            # A slice for each bin, so that gradients are added in the order of bins.
            part = [
                jax.lax.index_in_dim(offset, i * parts // bins, axis, keepdims=True)
                for i in range(bins)
            ]
            offset = jnp.concatenate(part, axis=axis)
    return offset


def _attributes(*, group_size, sampling, samples):
    return {
        "sampling": sampling,
        "samples": np.int64(samples),
        "group_h": np.int64(group_size[0]),
        "group_w": np.int64(group_size[1]),
    }


_pool_groups = RoIPooling(
    "dcn_jax.ps_roi_pool", reference=pool_groups, attributes=_attributes
)
