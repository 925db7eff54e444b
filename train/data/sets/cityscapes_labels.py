"""Cityscapes' classes: which of its labels are trained on, and their colours."""

from typing import NamedTuple

import numpy as np

from train.data.label_maps import IGNORE


class CityscapesClass(NamedTuple):
    """A class that is trained on and judged."""

    name: str
    label_id: int  # its value in the files *_labelIds.png
    colour: tuple[int, int, int]  # RGB


# By train id, from 0.
CLASSES = (
    CityscapesClass("road", 7, (128, 64, 128)),
    CityscapesClass("sidewalk", 8, (244, 35, 232)),
    CityscapesClass("building", 11, (70, 70, 70)),
    CityscapesClass("wall", 12, (102, 102, 156)),
    CityscapesClass("fence", 13, (190, 153, 153)),
    CityscapesClass("pole", 17, (153, 153, 153)),
    CityscapesClass("traffic light", 19, (250, 170, 30)),
    CityscapesClass("traffic sign", 20, (220, 220, 0)),
    CityscapesClass("vegetation", 21, (107, 142, 35)),
    CityscapesClass("terrain", 22, (152, 251, 152)),
    CityscapesClass("sky", 23, (70, 130, 180)),
    CityscapesClass("person", 24, (220, 20, 60)),
    CityscapesClass("rider", 25, (255, 0, 0)),
    CityscapesClass("car", 26, (0, 0, 142)),
    CityscapesClass("truck", 27, (0, 0, 70)),
    CityscapesClass("bus", 28, (0, 60, 100)),
    CityscapesClass("train", 31, (0, 80, 100)),
    CityscapesClass("motorcycle", 32, (0, 0, 230)),
    CityscapesClass("bicycle", 33, (119, 11, 32)),
)
# Values that the files may have; a licence plate, -1, is not drawn in them.
LABEL_IDS = range(34)


def train_ids() -> np.ndarray:
    """Label id -> train id, [256] uint8; `IGNORE` for the ids of no class."""
    table = np.full(256, IGNORE, np.uint8)
    for train_id, row in enumerate(CLASSES):
        table[row.label_id] = train_id
    return table
