"""Checks the masks of an instances JSON, and counts their pixels.

Nothing of the file reaches pycocotools' C code unchecked: a crafted mask makes that
write outside its buffers, and it allocates by the length of an outline.
"""

import math
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask

# pycocotools takes about 50 bytes for each pixel of length.
MAX_OUTLINE = 2**20
# Runs are merged so many at once: one after the other takes time by their square.
_MERGED = 32


def flaw(segmentation: Any, height: int, width: int) -> str | None:
    """Says what is wrong with polygons or a run-length encoded mask, if anything.

    Args:
      segmentation: As the JSON has it.
      height: Of the image, in pixels.
      width: Of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        return _flaw_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        return "it is neither polygons nor an RLE mask"
    bound = 0.0
    for polygon in segmentation:
        if not _is_polygon(polygon):
            return "a polygon is not [x1, y1, x2, y2, x3, ...]"
        spans = []
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            low, high = min(values), max(values)
            if low < -side or high > 2 * side:
                return "a polygon lies far outside of its image"
            spans.append(high - low)
        # Which bounds the length; the length itself is rarely needed.
        bound += len(polygon) / 2 * (max(spans) + 1)
    if bound > MAX_OUTLINE and sum(map(outline_length, segmentation)) > MAX_OUTLINE:
        return f"its outline is longer than {MAX_OUTLINE} pixels"
    return None


def outline_length(polygon: list[float]) -> float:
    """Pixels that drawing a polygon [x1, y1, x2, ...] passes, as pycocotools counts."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(1)
    return float(steps.sum() + len(points))


def mask_area(segmentation: list | dict, height: int, width: int) -> float:
    """Area in pixels of a mask in which `flaw` found nothing."""
    if isinstance(segmentation, dict):
        runs = cast(np.ndarray, run_lengths(segmentation["counts"]))
        return float(runs[1::2].sum())
    return float(coco_mask.area(_joined(segmentation, height, width)))


def pixels(
    segmentation: list | dict, height: int, width: int
) -> UInt8[np.ndarray, "H W"]:
    """Which pixels a mask in which `flaw` found nothing covers, as 0 and 1."""
    if not segmentation:
        return np.zeros((height, width), np.uint8)
    if isinstance(segmentation, dict):
        runs = cast(np.ndarray, run_lengths(segmentation["counts"])).astype(np.int64)
        inside = (np.arange(len(runs)) % 2).astype(np.uint8)
        return np.repeat(inside, runs).reshape(width, height).T
    return coco_mask.decode(_joined(segmentation, height, width))


def _joined(polygons: list, height: int, width: int) -> Any:
    """What some of the polygons cover, run-length encoded."""
    masks = coco_mask.frPyObjects(polygons, height, width)
    while len(masks) > 1:
        masks = [
            coco_mask.merge(masks[start : start + _MERGED])
            for start in range(0, len(masks), _MERGED)
        ]
    return masks[0]


def _flaw_of_runs(mask: dict[str, Any], height: int, width: int) -> str | None:
    if mask.get("size") != [height, width]:
        return "its size is not that of its image"
    runs = run_lengths(mask.get("counts"))
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        return "its runs do not add up to the pixels of its image"
    return None


def run_lengths(counts: Any) -> np.ndarray | None:
    """Lengths [n] float64 of the runs of 0 and 1, column by column.

    Args:
      counts: A list of them, or the text that pycocotools makes of it. It may be
        anything; if it is neither of these the result is None.
    """
    if isinstance(counts, str):
        return decode_counts(counts)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        return None
    try:
        return np.array(counts, np.float64)
    except OverflowError:
        return None


def decode_counts(counts: str) -> np.ndarray | None:
    """Runs of a compressed RLE mask.

    Each number is written in groups of 5 bits, lowest first, one character (48 + value)
    a group; bit 5 says that more follow, bit 4 of the last group is the sign. From the
    fourth number on, each stands for the difference to the last but one.

    Returns:
      [n] float64, or None if `counts` is not such a string.

    Source: pycocotools `rleFrString`.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:  # 2^34 and more: no image has so many pixels
        return None
    place = np.arange(len(codes)) - np.repeat(first, length)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, 1 << (5 * length), 0)
    runs = values.astype(np.float64)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    if not set(map(type, polygon)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(polygon))
    except OverflowError:
        return False
