"""From image files or arrays to what a network finds in them."""

from dcn_jax.inference.detector import Detector as Detector
from dcn_jax.inference.segmenter import Segmenter as Segmenter
