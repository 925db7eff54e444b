"""Ground-truth masks of a fixed size, each in a window around its object.

A mask is drawn from polygons or runs straight into S x S cells of its window: a cell is
1 where its centre is inside of the object. So neither the size of the image nor that of
the object decides what a mask costs.

Shape letters: M objects of an image, S side of a mask in cells.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dcn_jax.images.geometry import Geometry
from train.data.sets import coco_masks

# COCO's polygons, [[x1, y1, x2, y2, ...], ...], or a run-length encoded mask; checked
# by `train.data.sets.coco_masks.flaw`. No polygon at all is no mask.
Segmentation = Sequence[Sequence[float]] | dict[str, Any]
# An outline that passes more rows of cells draws nothing that anyone could see.
_MAX_CROSSINGS = coco_masks.MAX_OUTLINE


def windows_around(
    boxes: Float[np.ndarray, "M 4"], side: int
) -> Float[np.ndarray, "M 4"]:
    """Grows boxes by a cell on each side; S - 2 of their S cells then span the box.

    Args:
      boxes: x1 y1 x2 y2.
      side: S.
    """
    cell = (boxes[:, 2:] - boxes[:, :2]) / np.float32(side - 2)
    return np.concatenate([boxes[:, :2] - cell, boxes[:, 2:] + cell], axis=1)


def draw_mask(
    segmentation: Segmentation,
    window: Float[np.ndarray, " 4"],
    geometry: Geometry,
    side: int,
) -> UInt8[np.ndarray, "S S"] | None:
    """Draws an object into its window.

    Args:
      segmentation: In pixels of the original image.
      window: x1 y1 x2 y2 in canvas pixels, from `windows_around`.
      geometry: How the image came onto its canvas.
      side: S.

    Returns:
      1 inside of the object and 0 outside; 0 in the outermost cells, which are outside
      of its box. None if no cell is inside.
    """
    x1, y1, x2, y2 = (float(place) for place in window)
    top, left = geometry.corner
    x1, y1, x2, y2 = x1 + left, y1 + top, x2 + left, y2 + top
    if geometry.flip:
        x1, x2 = geometry.size[1] - x2, geometry.size[1] - x1
    y_scale, x_scale = geometry.scale
    origin = np.array([x1 / x_scale, y1 / y_scale])
    cell = np.array([x2 / x_scale, y2 / y_scale]) - origin
    cell /= side
    if isinstance(segmentation, dict):
        inside = _inside_of_runs(segmentation, origin, cell, side)
    else:
        inside = _inside_of_polygons(segmentation, origin, cell, side)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    if not inside.any():
        return None
    return (inside[:, ::-1] if geometry.flip else inside).astype(np.uint8)


def _inside_of_runs(
    mask: dict[str, Any], origin: np.ndarray, cell: np.ndarray, side: int
) -> Bool[np.ndarray, "S S"]:
    """Looks up the pixels in which the centres of the cells lie.

    Args:
      mask: COCO's: `size` (height, width) and `counts`.
      origin: (x, y) of the window's corner in pixels of the image.
      cell: (width, height) of a cell.
      side: S.
    """
    height, width = mask["size"]
    centres = origin + (np.arange(side)[:, None] + 0.5) * cell
    column, row = np.floor(centres).T
    seen = ((column >= 0) & (column < width))[:, None] & (row >= 0) & (row < height)
    ends = np.cumsum(cast(np.ndarray, coco_masks.run_lengths(mask["counts"])))
    # Runs go down the columns. The first is of zeros, which every other one is.
    run = np.searchsorted(ends, column[:, None] * height + row, side="right")
    return (seen & (run % 2 == 1)).T


def _inside_of_polygons(
    polygons: Sequence[Sequence[float]],
    origin: np.ndarray,
    cell: np.ndarray,
    side: int,
) -> Bool[np.ndarray, "S S"]:
    """Fills the spans of each row between the edges that cross it.

    A polygon is inside where an odd number of its edges lies to the left, as for
    pycocotools, and the object where one of its polygons is. Arguments as of
    `_inside_of_runs`.
    """
    counts = np.array([len(polygon) // 2 for polygon in polygons], np.int64)
    if not len(counts):
        return np.zeros((side, side), bool)
    points = np.array(list(chain.from_iterable(polygons)), np.float64).reshape(-1, 2)
    # Centres of cells have whole coordinates.
    x, y = ((points - origin) / cell - 0.5).T
    last = np.cumsum(counts) - 1
    following = np.arange(1, len(x) + 1)
    following[last] = last - counts + 1
    # An edge crosses the rows from that of its upper end to before that of its lower.
    bound = np.clip(np.ceil(y), 0, side).astype(np.int64)
    first = np.minimum(bound, bound[following])
    crossed = np.abs(bound - bound[following])
    total = int(crossed.sum())
    if total > _MAX_CROSSINGS:
        return np.zeros((side, side), bool)
    start = np.repeat(np.arange(len(x)), crossed)
    end = following[start]
    row = np.arange(total) - np.repeat(np.cumsum(crossed) - crossed - first, crossed)
    share = (row - y[start]) / (y[end] - y[start])
    column = x[start] + share * (x[end] - x[start])
    column = np.clip(np.ceil(column), 0, side).astype(np.int64)
    polygon = np.repeat(np.arange(len(counts)), counts)[start]
    # Of a row and a polygon, the crossings are begin and end of a span in turn.
    order = np.lexsort((column, polygon, row))
    place = (row * (side + 1) + column)[order]
    cells = side * (side + 1)
    steps = np.bincount(place[::2], minlength=cells)
    steps -= np.bincount(place[1::2], minlength=cells)
    return steps.reshape(side, side + 1).cumsum(axis=1)[:, :side] > 0
