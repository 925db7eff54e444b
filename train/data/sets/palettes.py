"""Colours of the categories of a data set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dcn_jax.images.palette import voc_palette
from train.data.sets.cityscapes_labels import CLASSES


def colours_of(names: Sequence[str]) -> UInt8[np.ndarray, "k 3"]:
    """Colours of categories: Cityscapes' own, or else VOC's, in order.

    Args:
      names: Of k categories.
    """
    own = {row.name: row.colour for row in CLASSES}
    if set(names) <= own.keys():
        return np.array([own[name] for name in names], np.uint8).reshape(-1, 3)
    return voc_palette()[: len(names)]
