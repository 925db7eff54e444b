"""Exports a run's detector: programs and weights in one file.

python export_detector.py WORKDIR PICTURE

leaves detector.export, and what it finds in the picture in boxes.npy.
"""

import sys

import numpy as np

from dcn_jax import Detector

detector = Detector.load(sys.argv[1])
detector.export("detector.export")
np.save("boxes.npy", detector.detect(sys.argv[2]).boxes)
