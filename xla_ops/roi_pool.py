"""RoI pooling: `roi_align` and `deform_roi_pool`, on one map or a pyramid.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import _geometry
from xla_ops._call import align, make_primitive, resolve_implementation
from xla_ops._roi_arguments import (
    check_beside,
    check_levels,
    check_maps,
    check_number,
)
from xla_ops.reference import roi_pool as reference

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num


def roi_align(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N H W C"]],
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
    counts as 0. A RoI that is not finite gives NaN and passes no gradient. No gradient
    flows to `rois`.

    Reverse-mode derivatives of any order are available, also under `jax.vmap` and
    forward mode over them; `jax.jvp` of the operator itself needs
    implementation="reference". The backward pass keeps nothing but the arguments, and
    its bits do not depend on the number of threads. The batch may be split over devices
    by an Auto or Explicit mesh or `jax.shard_map`.

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
      sampling_ratio: Samples of a bin along each axis. 0: ceil(RoI size / bins), as
        many as the RoI has pixels; only those on the map cost time, so that a RoI may
        be of any size.
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
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N H W C"]],
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
    RoIs that are not finite holds here.

    The derivative with respect to offset is that of the result everywhere: 0 where a
    sample outside the map reads its border, right-hand at integer positions. A NaN
    offset gives NaN in its bin, and passes no gradient; an infinite one gives 0.

    Args:
      features: As in `roi_align`, like rois.
      rois: See there.
      offset: [N, B, h, w, 2] as (dy, dx), in units of the RoI's size. May be float32
        beside half-precision `features`. None: no bin is moved.
      mask: [N, B, h, w], a factor for each bin; None is DCNv1. May be float32 like
        `offset`.
      output_size: As in `roi_align`, like all arguments to sampling_ratio.
      spatial_scale: See there.
      levels: See there.
      map_sizes: See there.
      sampling_ratio: See there.
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
        offset_scale=check_number("offset_scale", offset_scale),
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
    first = maps[0]
    real = _geometry.coordinate_dtype(first.dtype)
    images = first.shape[0]
    beside = f" for `features` {first.shape}"

    rois = check_beside("rois", rois, first)
    _geometry.check_shape("rois", rois, (images, None, 4), "N, B, 4", beside)
    num_boxes = rois.shape[1]
    levels = check_levels(levels, rois, len(maps))
    boxes = _boxes_on_map(jax.lax.stop_gradient(rois), levels, scales, aligned)

    height, width = output_size = _geometry.check_pair("output_size", output_size)
    bins = (images, num_boxes, height, width)
    shift = None
    if offset is not None:
        offset = check_beside("offset", offset, first)
        _geometry.check_shape("offset", offset, (*bins, 2), "N, B, h, w, 2")
        # A RoI of infinite size passes no gradient, which infinity * 0 would spoil.
        extent = jnp.where(jnp.isfinite(boxes), boxes, 0)[:, :, None, None, 2:]
        shift = jnp.asarray(offset_scale, real) * extent * offset
    if mask is not None:
        mask = check_beside("mask", mask, first)
        _geometry.check_shape("mask", mask, bins, "N, B, h, w")

    settings = _Settings(
        num_levels=len(maps),
        output_size=output_size,
        sampling_ratio=_geometry.check_integer(
            "sampling_ratio", sampling_ratio, minimum=0
        ),
        has_shift=shift is not None,
        has_mask=mask is not None,
    )
    *maps, boxes, levels, sizes, shift, mask = align(
        *maps, boxes, levels, sizes, shift, mask
    )
    arguments = (tuple(maps), boxes, levels, sizes, shift, mask)
    if implementation == "reference":
        # Without jax.custom_vjp, so that jax.jvp works.
        y, _ = _roi_pool_fwd(*arguments, implementation, settings)
        return y
    return _roi_pool(*arguments, implementation, settings)


def _boxes_on_map(rois, levels, scales, aligned):
    """RoIs as (y, x, height, width) in pixels of their maps, centres at integers."""
    scale = jnp.zeros_like(rois[..., :1])
    for level, factor in enumerate(scales):
        factor = jnp.asarray(factor, rois.dtype)
        scale = jnp.where((levels == level)[..., None], factor, scale)
    corners = rois * scale - (0.5 if aligned else 0)
    x1, y1, x2, y2 = jnp.split(corners, 4, axis=-1)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = jnp.maximum(height, 1), jnp.maximum(width, 1)
    return jnp.concatenate([y1, x1, height, width], axis=-1)


class _Settings(NamedTuple):
    """What the primitives need besides arrays."""

    num_levels: int
    output_size: tuple[int, int]
    sampling_ratio: int
    has_shift: bool
    has_mask: bool


def _flat(features, boxes, levels, map_sizes, shift, mask):
    optional = [x for x in (shift, mask) if x is not None]
    return (*features, boxes, levels, map_sizes, *optional)


def _reference_forward(
    *operands, num_levels, output_size, sampling_ratio, has_shift, has_mask
):
    features = operands[:num_levels]
    boxes, levels, map_sizes, *optional = operands[num_levels:]
    y = reference.roi_pool(
        features,
        boxes,
        levels,
        map_sizes,
        optional[0] if has_shift else None,
        optional[-1] if has_mask else None,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
    )
    return (y,)


def _reference_backward(*operands, **settings):
    *operands, gradient = operands
    num_levels = settings["num_levels"]
    discrete = operands[num_levels : num_levels + 3]

    def pool(*moving):
        operands = (*moving[:num_levels], *discrete, *moving[num_levels:])
        return _reference_forward(*operands, **settings)[0]

    moving = (*operands[:num_levels], *operands[num_levels + 3 :])
    _, pull_back = jax.vjp(pool, *moving)
    return pull_back(gradient)


def _forward_results(*operands, num_levels, output_size, **settings):
    x, boxes = operands[0], operands[num_levels]
    return [((*boxes.shape[:2], *output_size, x.shape[-1]), x.dtype)]


def _backward_results(*operands, num_levels, **settings):
    moving = (*operands[:num_levels], *operands[num_levels + 3 : -1])
    return [(x.shape, x.dtype) for x in moving]


def _attributes(*, num_levels, output_size, sampling_ratio, has_shift, has_mask):
    del output_size  # The shape of the result says it.
    return {
        "num_levels": np.int64(num_levels),
        "sampling_ratio": np.int64(sampling_ratio),
        "has_shift": np.int64(has_shift),
        "has_mask": np.int64(has_mask),
    }


_forward = make_primitive(
    "dcn_jax.roi_pool.fwd",
    results=_forward_results,
    reference=_reference_forward,
    attributes=_attributes,
)
_backward = make_primitive(
    "dcn_jax.roi_pool.bwd",
    results=_backward_results,
    reference=_reference_backward,
    attributes=_attributes,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _roi_pool(
    features, boxes, levels, map_sizes, shift, mask, implementation, settings
):
    y, _ = _roi_pool_fwd(
        features, boxes, levels, map_sizes, shift, mask, implementation, settings
    )
    return y


def _roi_pool_fwd(
    features, boxes, levels, map_sizes, shift, mask, implementation, settings
):
    saved = (features, boxes, levels, map_sizes, shift, mask)
    (y,) = _forward(*_flat(*saved), implementation=implementation, **settings._asdict())
    return y, saved


def _roi_pool_bwd(implementation, settings, saved, gradient):
    gradients = _backward(
        *_flat(*saved), gradient, implementation=implementation, **settings._asdict()
    )
    features, optional = (
        gradients[: settings.num_levels],
        gradients[settings.num_levels :],
    )
    dshift = optional[0] if settings.has_shift else None
    dmask = optional[-1] if settings.has_mask else None
    return tuple(features), None, None, None, dshift, dmask


_roi_pool.defvjp(_roi_pool_fwd, _roi_pool_bwd)
