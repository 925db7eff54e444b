"""Detections as COCO writes results down: in pixels of the original image.

Shape letters: D detections of an image.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

from dcn_jax.detection.paste import paste_mask
from dcn_jax.detection.records import Detections
from train.data.geometry import Geometry


def original_boxes(
    boxes: Float[np.ndarray, "D 4"], geometry: Geometry
) -> Float[np.ndarray, "D 4"]:
    """Returns boxes in pixels of the original image.

    Args:
      boxes: x1 y1 x2 y2 in canvas pixels of an image that is not mirrored.
      geometry: Of the image.
    """
    y, x = geometry.scale
    return boxes / np.asarray([x, y, x, y], boxes.dtype)


def coco_results(
    detections: Detections, geometry: Geometry, category_id: Callable[[int], int]
) -> list[dict[str, Any]]:
    """Returns the valid detections of one image as COCO results.

    Args:
      detections: Of one image, without the axis of the batch.
      geometry: Of that image.
      category_id: From a label, which is 1 or more.

    Returns:
      {"category_id", "bbox" (x y w h), "score"} each, and "segmentation" (run-length
      encoded) where there are masks.
    """
    boxes = original_boxes(np.asarray(detections.boxes), geometry)
    results = []
    for i in np.flatnonzero(detections.valid):
        x1, y1, x2, y2 = boxes[i]
        result: dict[str, Any] = {
            "category_id": category_id(int(detections.labels[i])),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(detections.scores[i]),
        }
        if detections.masks is not None:
            # One after the other: each is as large as the image until it is encoded.
            mask = np.asarray(detections.masks[i])
            pasted = paste_mask(mask, boxes[i], geometry.original)
            result["segmentation"] = run_lengths(pasted)
        results.append(result)
    return results


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Encodes a mask as JSON can hold it: {"size": [H, W], "counts": text}."""
    encoded = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    counts = cast(bytes, encoded["counts"]).decode("ascii")
    return {"size": list(mask.shape), "counts": counts}
