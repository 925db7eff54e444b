"""Boxes of a picture, by the detector that a run on a COCO folder left.

    python coco_folder.py WORKDIR PICTURE

The run is README's: `python -m train.main --workdir=WORKDIR ...`.
"""

import sys

from dcn_jax import Detector

detector = Detector.load(sys.argv[1])
found = detector.detect(sys.argv[2])
for box, score, name in zip(found.boxes, found.scores, found.names, strict=True):
    print(name, score, box)
