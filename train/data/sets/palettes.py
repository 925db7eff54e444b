"""Colours of labels: those that VOC's files have, and those of Cityscapes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from train.data.sets.cityscapes_labels import CLASSES


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """VOC's colours of the labels 0 to 255, RGB.

    The bits of a label are dealt to red, green and blue in turn, lowest first, and fill
    each from its highest bit down.

    Source: the development kit's VOClabelcolormap.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = labels >> (3 * place + channel) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return palette


def colours_of(names: Sequence[str]) -> UInt8[np.ndarray, "k 3"]:
    """Colours of categories: Cityscapes' own, or else VOC's, in order.

    Args:
      names: Of k categories.
    """
    own = {row.name: row.colour for row in CLASSES}
    if set(names) <= own.keys():
        return np.array([own[name] for name in names], np.uint8).reshape(-1, 3)
    return voc_palette()[: len(names)]
