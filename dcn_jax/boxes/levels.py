"""Which level of a pyramid a RoI reads.

Shape letters: N images, B RoIs of an image.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

# A RoI of the canonical side reads the level of this stride (FPN: 224 pixels, P4).
_STRIDE = 16
# A side that is a whole octave reads the coarser level, whatever rounding makes of its
# logarithm, as in torchvision.
_EPSILON = 1e-6


def levels_of_rois(
    rois: Float[Array, "N B 4"], strides: Sequence[int], canonical_size: float = 224.0
) -> Int32[Array, "N B"]:
    """The level that each RoI reads: one for each octave of its side.

    Args:
      rois: x1 y1 x2 y2 in pixels of the image.
      strides: Of the levels, each twice the one before; a RoI whose level is not among
        them reads the nearest.
      canonical_size: Square root of the area, in pixels, from which on a RoI reads the
        level of stride 16.

    Raises:
      ValueError: A stride is not twice the one before.

    Source: Lin et al. 2017 (arXiv:1612.03144) eq. 1, rounded as in torchvision's
    LevelMapper.
    """
    side = jnp.sqrt((rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1]))
    return _levels(jnp, side, strides, canonical_size).astype(jnp.int32)


def level_of_square(
    side: float | int, strides: Sequence[int], canonical_size: float = 224.0
) -> int:
    """The level that RoIs of this side read, known before anything is computed.

    Args:
      side: In pixels of the image.
      strides: As in `levels_of_rois`.
      canonical_size: Likewise.

    Raises:
      ValueError: A stride is not twice the one before.
    """
    return int(_levels(np, np.float32(side), strides, canonical_size))


def _levels(
    numpy: Any, side: Any, strides: Sequence[int], canonical_size: float
) -> Any:
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(
            f"`strides` is {tuple(strides)}; expected each to be twice the one before"
        )
    # A RoI of no area has no logarithm: it is small.
    octaves = numpy.log2(numpy.where(side > 0, side, 1e-9) / canonical_size)
    octave = numpy.floor(math.log2(_STRIDE) + octaves + _EPSILON)
    return numpy.clip(octave - math.log2(strides[0]), 0, len(strides) - 1)
