"""Superpixels: patches of an image that are kept or masked as one.

Shape letters: H W image.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from dcn_jax.modules.arguments import check_integer


def grid_superpixels(height: int, width: int, side: int) -> Int[np.ndarray, "H W"]:
    """Squares in rows, numbered from 0; those at the right and bottom may be smaller.

    Patches that follow the image's edges, such as those of scikit-image's
    `skimage.segmentation.slic(image, n_segments)`, show an object's outline better.

    Args:
      height: H.
      width: W.
      side: Of a square, in pixels.

    Returns:
      The number of the patch that each pixel is in.
    """
    side = check_integer("side", side)
    height, width = check_integer("height", height), check_integer("width", width)
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return rows[:, None] * (columns[-1] + 1) + columns[None]


def check_superpixels(superpixels: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns patches, numbered from 0 without gaps, in the order of their numbers.

    Args:
      superpixels: Number of the patch that each pixel is in.
      size: (H, W).

    Raises:
      TypeError: They are not integers.
      ValueError: They are not those of the image.
    """
    superpixels = np.asarray(superpixels)
    if superpixels.shape != size:
        raise ValueError(
            f"`superpixels` has shape {superpixels.shape}; expected {size}, that of "
            "the image"
        )
    if not np.issubdtype(superpixels.dtype, np.integer):
        raise TypeError(
            f"`superpixels` has dtype {superpixels.dtype}; expected integers"
        )
    return np.unique(superpixels, return_inverse=True)[1].reshape(size)
