"""Layers: for use inside any Flax model."""

from dcn_jax.modules.deform_conv import DeformConv as DeformConv
from dcn_jax.modules.psroi_pool import PSRoIPool as PSRoIPool
from dcn_jax.modules.roi_pool import DeformRoIPool as DeformRoIPool
from dcn_jax.modules.roi_pool import RoIAlign as RoIAlign
from dcn_jax.modules.roi_pool import RoIPool as RoIPool
from dcn_jax.modules.roi_pool_by_level import (
    DeformRoIPoolByLevel as DeformRoIPoolByLevel,
)
