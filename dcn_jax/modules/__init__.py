"""Layers that deform: for use inside any Flax model."""

from dcn_jax.modules.deform_conv import DeformConv
from dcn_jax.modules.offset_health import OffsetStatistics, offset_health
from dcn_jax.modules.roi_pool import DeformRoIPool

__all__ = ["DeformConv", "DeformRoIPool", "OffsetStatistics", "offset_health"]
