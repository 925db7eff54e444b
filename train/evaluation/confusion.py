"""Which category objects are taken for.

Shape letters: C categories, D detections and T objects of an image.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask

# The lowest score of a detection that counts, and the lowest IoU of a pair: those that
# `supervision.ConfusionMatrix` has by default.
SCORE, IOU = 0.3, 0.5
# Stands behind the categories: no object, or no detection.
BACKGROUND = "background"


def detection_confusion(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> Int[np.ndarray, "C+1 C+1"]:
    """Counts objects by their category (the row) and what they were taken for.

    In an image, objects and detections of any categories whose boxes overlap with an
    IoU of at least `IOU` are taken for pairs, the largest IoU first (of equal ones that
    of the better score), and each belongs to one pair at most. An object without a pair
    counts in the last column, a detection without one in the last row. Detections
    with a score below `SCORE` are left out, and those without a pair that lie by half
    in a crowd of their category.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories.
      detections: COCO results, of the images' pixels.

    Source: `ConfusionMatrix` of Ultralytics and of supervision, transposed as
    scikit-learn has it; crowds as COCO's AP has them.
    """
    rows = {c["id"]: row for row, c in enumerate(ground_truth["categories"])}
    none = len(rows)
    counts = np.zeros((none + 1, none + 1), np.int64)
    objects, found = _by_image(ground_truth["annotations"]), _by_image(detections)
    for image_id in objects.keys() | found.keys():
        crowds = [o for o in objects[image_id] if o["iscrowd"]]
        plain = [o for o in objects[image_id] if not o["iscrowd"]]
        judged = [d for d in found[image_id] if d["score"] >= SCORE]
        scores = np.array([d["score"] for d in judged], np.float64)
        pairs = _pairs(_overlaps(judged, plain, crowd=False), scores)
        for detection, entry in pairs.items():
            true, taken = plain[entry], judged[detection]
            counts[rows[true["category_id"]], rows[taken["category_id"]]] += 1
        for entry in set(range(len(plain))) - set(pairs.values()):
            counts[rows[plain[entry]["category_id"]], none] += 1
        within = _overlaps(judged, crowds, crowd=True) >= IOU
        for detection in set(range(len(judged))) - pairs.keys():
            category = judged[detection]["category_id"]
            same = np.array([c["category_id"] == category for c in crowds], bool)
            if not (within[detection] & same).any():
                counts[none, rows[category]] += 1
    return counts


def _by_image(
    entries: Sequence[Mapping[str, Any]],
) -> defaultdict[int, list[Mapping[str, Any]]]:
    by_image = defaultdict(list)
    for entry in entries:
        by_image[entry["image_id"]].append(entry)
    return by_image


def _overlaps(
    detections: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    *,
    crowd: bool,
) -> Float[np.ndarray, "D T"]:
    """IoUs, or of crowds the share of the detection that is inside."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    # pycocotools takes arrays of boxes too, which its types do not say.
    one, other = (
        cast(Any, np.array([e["bbox"] for e in entries], np.float64))
        for entries in (detections, objects)
    )
    return np.asarray(coco_mask.iou(one, other, [int(crowd)] * len(objects)))


def _pairs(
    overlaps: Float[np.ndarray, "D T"], scores: Float[np.ndarray, " D"]
) -> dict[int, int]:
    """Returns the detections that have an object -> that object."""
    detection, entry = np.nonzero(overlaps >= IOU)
    order = np.lexsort((-scores[detection], -overlaps[detection, entry]))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for d, t in zip(detection[order].tolist(), entry[order].tolist(), strict=True):
        if d not in pairs and t not in taken:
            pairs[d] = t
            taken.add(t)
    return pairs
