"""Detections of an image, as a page shows them.

Shape letters: D detections, h w bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dcn_jax.explain import BinLocations


class Detected(NamedTuple):
    """What was found on an image."""

    boxes: Float[np.ndarray, "D 4"]  # x1 y1 x2 y2 in pixels
    scores: Float[np.ndarray, " D"]
    names: Sequence[str]  # of each one's category
    bins: BinLocations | None = None  # of the boxes as RoIs; None where none are known


NOTHING = Detected(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())


def check_detected(detected: Detected) -> None:
    """Compares the lengths.

    Raises:
      ValueError: They are not of the same detections.
    """
    count = len(detected.names)
    got = [np.shape(detected.boxes), np.shape(detected.scores)]
    expected = [(count, 4), (count,)]
    if detected.bins is not None:
        got += [detected.bins.mask.shape[:1]]
        expected += [(count,)]
    if got != expected:
        raise ValueError(
            f"`detected` has {count} names beside boxes, scores and bins of shapes "
            f"{got}; expected {expected}"
        )
