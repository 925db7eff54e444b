"""Operators of deformable networks for JAX, as XLA custom calls."""

from xla_ops._call import backends
from xla_ops.deform_conv import deform_conv2d

__all__ = ["backends", "deform_conv2d"]
