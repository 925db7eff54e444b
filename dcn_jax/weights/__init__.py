"""Weights of other frameworks, read without them and without running their pickles."""

from dcn_jax.weights.detector import build_detector as build_detector
from dcn_jax.weights.detector import import_detector as import_detector
from dcn_jax.weights.detector_file import DetectorFile as DetectorFile
from dcn_jax.weights.detector_file import read_detector as read_detector
from dcn_jax.weights.export import export_weights as export_weights
from dcn_jax.weights.init import InitReport as InitReport
from dcn_jax.weights.init import init_from as init_from
from dcn_jax.weights.state_dict import read_state_dict as read_state_dict
