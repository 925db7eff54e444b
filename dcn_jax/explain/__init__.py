"""What a network sees: reads what layers record, and is imported by none."""

from dcn_jax.explain.health import offset_health as offset_health
from dcn_jax.explain.multiply_adds import multiply_adds as multiply_adds
