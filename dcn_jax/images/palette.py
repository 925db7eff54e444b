"""Colours of labels where nobody has chosen others."""

import numpy as np
from jaxtyping import UInt8


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
