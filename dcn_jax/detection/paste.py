"""Puts a detection's mask, which is small and covers its box, into its image.

NumPy alone, on the host. Shape letters: m side of the mask, H W image.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

# Pixels that are interpolated at once, so that a large image takes little beside the
# result.
_AT_ONCE = 1 << 20


def paste_mask(
    mask: Float[np.ndarray, "m m"], box: Float[np.ndarray, " 4"], size: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Returns which pixels of an image are inside of a detected object.

    The mask is sampled bilinearly at the centres of pixels, its own pixels being equal
    cells of the box, and what lies outside of it counting as 0. A pixel is inside where
    that is at least 0.5. As probabilities do not exceed 1, no pixel with its centre
    outside of the box is, and no other is computed.

    Args:
      mask: Probabilities.
      box: x1 y1 x2 y2 in pixels of the image; it may lie outside of it. A box without
        area, or that is not finite, holds nothing.
      size: (H, W).

    Returns:
      The pixels, column by column in memory, as run-length encoding reads them.

    Raises:
      ValueError: The mask or the box has another shape.

    Source: detectron2 `paste_masks_in_image`, mmdetection `_do_paste_mask`.
    """
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not mask.size:
        raise ValueError(f"`mask` has shape {mask.shape}; expected (m, m)")
    if box.shape != (4,):
        raise ValueError(f"`box` has shape {box.shape}; expected (4,): x1 y1 x2 y2")
    height, width = size
    pasted = np.zeros((width, height), bool)
    x1, y1, x2, y2 = (float(side) for side in box)
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 <= x1 or y2 <= y1:
        return pasted.T
    cells = np.pad(np.asarray(mask, np.float32), 1)
    rows, row_cells, row_shares = _samples(y1, y2, len(mask), height)
    columns, column_cells, column_shares = _samples(x1, x2, len(mask), width)
    by_row = _between(cells, row_cells, row_shares[:, None])
    by_row = np.ascontiguousarray(by_row.T)
    step = max(1, _AT_ONCE // max(1, len(row_cells)))
    for start in range(0, len(column_cells), step):
        part = slice(start, start + step)
        values = _between(by_row, column_cells[part], column_shares[part, None])
        pasted[columns, rows][part] = values >= 0.5
    return pasted.T


def _samples(
    low: float, high: float, count: int, side: int
) -> tuple[slice, np.ndarray, np.ndarray]:
    """Where the pixels along one side of an image read the mask.

    Args:
      low: Where the box begins.
      high: Where it ends.
      count: Cells of the mask.
      side: Pixels of the image.

    Returns:
      The n pixels with centres in the box; [n] the padded cell before each; [n]
      float32, the share of the cell behind that one.
    """
    first = math.ceil(min(max(low - 0.5, 0), side))
    end = math.floor(min(max(high + 0.5, first), side))
    centres = np.arange(first, end) + 0.5
    # Cell k of the mask, k + 1 when it is padded, has its centre at k.
    places = (centres - low) / (high - low) * count - 0.5
    before = np.clip(np.floor(places), -1, count - 1)
    shares = np.clip(places - before, 0, 1).astype(np.float32)
    return slice(first, end), before.astype(np.int64) + 1, shares


def _between(cells: np.ndarray, before: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Interpolates rows [n, ...] between `before` and the ones behind them."""
    return cells[before] * (1 - shares) + cells[before + 1] * shares
