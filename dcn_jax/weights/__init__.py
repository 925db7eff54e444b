"""Weights of other frameworks, read without them and without running their pickles."""

from dcn_jax.weights.state_dict import read_state_dict
from dcn_jax.weights.torchvision import InitReport, init_from

__all__ = ["InitReport", "init_from", "read_state_dict"]
