"""Detections as COCO writes results down: in pixels of the original image."""

from typing import Any, cast

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from dcn_jax.inference.detections import ImageDetections


def coco_results(found: ImageDetections) -> list[dict[str, Any]]:
    """Returns the detections of one image as COCO results.

    Returns:
      {"category_id", "bbox" (x y w h), "score"} each, and "segmentation" (run-length
      encoded) where there are masks.
    """
    results = []
    for i, category_id in enumerate(found.category_ids):
        x1, y1, x2, y2 = found.boxes[i]
        result: dict[str, Any] = {
            "category_id": category_id,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(found.scores[i]),
        }
        if found.box_masks is not None:
            # One after the other: each is as large as the image until it is encoded.
            result["segmentation"] = run_lengths(found.mask(i))
        results.append(result)
    return results


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Encodes a mask as JSON can hold it: {"size": [H, W], "counts": text}."""
    encoded = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    counts = cast(bytes, encoded["counts"]).decode("ascii")
    return {"size": list(mask.shape), "counts": counts}
