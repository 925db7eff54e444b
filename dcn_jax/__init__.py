"""Deformable ConvNets for Flax: layers, detectors and their parts."""

from dcn_jax.torch_layout import from_torch_kernel as from_torch_kernel
from dcn_jax.torch_layout import from_torch_mask as from_torch_mask
from dcn_jax.torch_layout import from_torch_offset as from_torch_offset
from dcn_jax.torch_layout import to_torch_kernel as to_torch_kernel
from dcn_jax.torch_layout import to_torch_mask as to_torch_mask
from dcn_jax.torch_layout import to_torch_offset as to_torch_offset
