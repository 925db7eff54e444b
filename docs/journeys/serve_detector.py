"""Serves detector.export in a process that has the library and no network.

python serve_detector.py PICTURE
"""

import sys

import numpy as np

from dcn_jax import Detector

found = Detector.from_export("detector.export").detect(sys.argv[1])
np.testing.assert_array_equal(found.boxes, np.load("boxes.npy"))
print(f"{len(found)} boxes, as before the export")
