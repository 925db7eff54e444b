"""Operators of deformable networks for JAX, as XLA custom calls."""

from xla_ops._jax import backends, custom_call_targets
from xla_ops.deform_conv.convolution import deform_conv2d
from xla_ops.deform_conv.positions import sampling_positions
from xla_ops.non_max_suppression.greedy import nms
from xla_ops.roi.bilinear import deform_roi_pool, roi_align
from xla_ops.roi.position_sensitive import deform_ps_roi_pool, ps_roi_align, ps_roi_pool
from xla_ops.roi.quantised import roi_pool

__all__ = [
    "backends",
    "custom_call_targets",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "sampling_positions",
]
