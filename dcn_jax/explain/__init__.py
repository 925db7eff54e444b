"""What a network sees: reads what layers record, and is imported by none."""

from dcn_jax.explain.effective_dilation import GROUPS as GROUPS
from dcn_jax.explain.effective_dilation import SIZE_BOUNDS as SIZE_BOUNDS
from dcn_jax.explain.effective_dilation import effective_dilation as effective_dilation
from dcn_jax.explain.health import offset_health as offset_health
from dcn_jax.explain.moments import Moments as Moments
from dcn_jax.explain.moments import merge as merge
from dcn_jax.explain.multiply_adds import multiply_adds as multiply_adds
