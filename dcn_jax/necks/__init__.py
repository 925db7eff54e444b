"""Necks: maps of a backbone in, the levels that proposals and RoIs read out."""

from dcn_jax.necks.dilated_conv5 import DilatedConv5 as DilatedConv5
from dcn_jax.necks.fpn import FPN as FPN
from dcn_jax.necks.levels import Levels as Levels
from dcn_jax.necks.levels import Neck as Neck
