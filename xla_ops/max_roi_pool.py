"""Quantised max pooling of RoIs: `roi_pool`, on one map or a pyramid.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import _geometry
from xla_ops._call import align, make_primitive, resolve_implementation
from xla_ops._roi_arguments import check_beside, check_levels, check_maps
from xla_ops.cuda import roi_pool as cuda
from xla_ops.reference import max_roi_pool as reference

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num


def roi_pool(
    features: Float[Array, "N H W C"] | Sequence[Float[Array, "N H W C"]],
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
    first = maps[0]
    rois = check_beside("rois", rois, first)
    beside = f" for `features` {first.shape}"
    _geometry.check_shape("rois", rois, (first.shape[0], None, 4), "N, B, 4", beside)
    levels = check_levels(levels, rois, len(maps))
    boxes = _boxes_on_map(jax.lax.stop_gradient(rois), levels, scales)
    output_size = _geometry.check_pair("output_size", output_size)

    *maps, boxes, levels, sizes = align(*maps, boxes, levels, sizes)
    arguments = (tuple(maps), boxes, levels, sizes)
    if implementation == "reference":
        # Without jax.custom_vjp, so that jax.jvp works.
        y, _ = _roi_pool_fwd(*arguments, implementation, output_size)
        return y
    return _roi_pool(*arguments, implementation, output_size)


def _boxes_on_map(rois, levels, scales):
    """RoIs as (first row, first column, rows, columns), whole pixels of their maps."""
    scale = jnp.zeros_like(rois[..., :1])
    for level, factor in enumerate(scales):
        factor = jnp.asarray(factor, rois.dtype)
        scale = jnp.where((levels == level)[..., None], factor, scale)
    corners = jax.lax.round(rois * scale, jax.lax.RoundingMethod.AWAY_FROM_ZERO)
    # An infinite corner must not look like a RoI of one pixel.
    finite = jnp.isfinite(corners).all(-1, keepdims=True)
    x1, y1, x2, y2 = jnp.split(jnp.where(finite, corners, jnp.nan), 4, axis=-1)
    height, width = (jnp.maximum(size + 1, 1) for size in (y2 - y1, x2 - x1))
    return jnp.concatenate([y1, x1, height, width], axis=-1)


def _reference_forward(*operands, num_levels, output_size):
    y = reference.max_roi_pool(
        operands[:num_levels], *operands[num_levels:], output_size=output_size
    )
    return (y,)


def _reference_backward(*operands, num_levels, output_size):
    maps, discrete = operands[:num_levels], operands[num_levels:-1]

    def pool(*maps):
        return reference.max_roi_pool(maps, *discrete, output_size=output_size)

    _, pull_back = jax.vjp(pool, *maps)
    return pull_back(operands[-1])


def _forward_results(*operands, num_levels, output_size):
    x, boxes = operands[0], operands[num_levels]
    return [((*boxes.shape[:2], *output_size, x.shape[-1]), x.dtype)]


def _backward_results(*operands, num_levels, output_size):
    del output_size
    return [(x.shape, x.dtype) for x in operands[:num_levels]]


def _attributes(*, num_levels, output_size):
    del output_size  # The shape of the result says it.
    return {"num_levels": np.int64(num_levels)}


_forward = make_primitive(
    "dcn_jax.max_roi_pool.fwd",
    results=_forward_results,
    reference=_reference_forward,
    attributes=_attributes,
)
_backward = make_primitive(
    "dcn_jax.max_roi_pool.bwd",
    results=_backward_results,
    reference=_reference_backward,
    attributes=_attributes,
    cuda=cuda.with_scratch(
        "dcn_jax.max_roi_pool.bwd",
        scratch=cuda.reach_and_places,
        results=_backward_results,
        attributes=_attributes,
    ),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _roi_pool(features, boxes, levels, map_sizes, implementation, output_size):
    y, _ = _roi_pool_fwd(
        features, boxes, levels, map_sizes, implementation, output_size
    )
    return y


def _roi_pool_fwd(features, boxes, levels, map_sizes, implementation, output_size):
    (y,) = _forward(
        *features,
        boxes,
        levels,
        map_sizes,
        implementation=implementation,
        num_levels=len(features),
        output_size=output_size,
    )
    return y, (features, boxes, levels, map_sizes)


def _roi_pool_bwd(implementation, output_size, saved, gradient):
    # The maxima are found again: their places would be as large as the result, and
    # finding them costs less than writing and reading them.
    features, *discrete = saved
    gradients = _backward(
        *features,
        *discrete,
        gradient,
        implementation=implementation,
        num_levels=len(features),
        output_size=output_size,
    )
    return tuple(gradients), None, None, None


_roi_pool.defvjp(_roi_pool_fwd, _roi_pool_bwd)
