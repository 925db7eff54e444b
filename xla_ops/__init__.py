"""Operators of deformable networks for JAX, as XLA custom calls."""

from xla_ops._call import backends

__all__ = ["backends"]
