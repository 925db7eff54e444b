"""Operators of deformable networks for JAX, as XLA custom calls."""

from xla_ops._call import backends
from xla_ops.deform_conv import deform_conv2d
from xla_ops.nms import nms
from xla_ops.roi_pool import deform_roi_pool, roi_align

__all__ = ["backends", "deform_conv2d", "deform_roi_pool", "nms", "roi_align"]
