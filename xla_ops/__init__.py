"""Operators of deformable networks for JAX, as XLA custom calls."""

from xla_ops._call import backends
from xla_ops.deform_conv import deform_conv2d
from xla_ops.nms import nms
from xla_ops.ps_roi_pool import deform_ps_roi_pool, ps_roi_align, ps_roi_pool
from xla_ops.roi_pool import deform_roi_pool, roi_align

# isort: split
# Last: the first import of the submodule `roi_pool` binds that name here, and the
# function has to come after it, which the alphabet does not say.
from xla_ops.max_roi_pool import roi_pool

__all__ = [
    "backends",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
]
