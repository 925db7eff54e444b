"""Average precision of boxes as the VOC challenges judged them.

Counts are integers, and what is compared with them is too; so a result is the nearest
number to what the definition says, and exactly 1 where all is found.

Shape letters: D detections and T objects of a category, R recalls.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from train.evaluation.coco import AveragePrecision, Judged
from train.evaluation.precision_recall import RECALLS, PrecisionRecall

IOU_THRESHOLDS = (0.5, 0.7)
# Precision at eleven recalls until 2009, the area under the curve from 2010 on.
RULES = ("11point", "area")


class VocAveragePrecision(AveragePrecision):
    """VOC's mAP over a split, beside COCO's AP.

    "voc/mAP50_11point", "voc/mAP70_area", ... at IoUs above 0.5 and 0.7 by both rules,
    and "voc_mAP50_per_class/NAME", ... by the official one, which comes first.

    Args:
      source: The split, with `categories` and `ground_truth`; what is marked as a
        crowd there is neither hit nor miss.
      rule: The official one, of `RULES`.
    """

    def __init__(self, source: Any, rule: str):
        super().__init__(source)
        self._rule = rule

    def _judged_by(self, truth: Mapping[str, Any]) -> Judged:
        matched = match(truth, self._results)
        precision = {}
        means: dict[str, float | None] = {}
        per_class: dict[str, float | None] = {}
        for rule in sorted(RULES, key=lambda rule: rule != self._rule):
            for threshold in IOU_THRESHOLDS:
                precision[f"IoU above {threshold}"] = np.array(
                    [voc_curve(matches, threshold) for matches in matched.values()]
                )
                kind = f"mAP{round(100 * threshold)}"
                found = {
                    name: voc_average_precision(matches, threshold, rule)
                    for name, matches in matched.items()
                }
                means[f"voc/{kind}_{rule}"] = _mean(found)
                if rule == self._rule:
                    group = f"voc_{kind}_per_class"
                    per_class |= {f"{group}/{name}": ap for name, ap in found.items()}
        coco = super()._judged_by(truth)
        curves = {"voc": PrecisionRecall(list(matched), precision), **coco.curves}
        scores = means | coco.scores | per_class
        return coco._replace(scores=scores, curves=curves)


class Matches(NamedTuple):
    """Detections of a category, the best first, beside its objects.

    A detection is judged by the object of its image that it overlaps most, whether that
    is found by a better one or not.
    """

    nearest: np.ndarray  # [D] int64, that object
    overlap: np.ndarray  # [D] float64, its IoU; -1 where the image has none
    left_out: np.ndarray  # [T] bool, objects that are neither hit nor miss


def match(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> dict[str, Matches]:
    """Finds for each detection the object that it may have hit.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories. What is
        marked as a crowd is neither hit nor miss.
      detections: COCO results, of the images' pixels. Of equal scores that of the
        lower image id is taken for the better, and in an image the first.

    Returns:
      By the category's name.

    Source: VOCevaldet of the development kit. It counts a box's sides in pixels, both
    ends included; in our coordinates, where x2 is the far edge of the last pixel, those
    are the differences.
    """
    objects = _by_category(ground_truth["annotations"])
    found = _by_category(detections)
    return {
        category["name"]: _matches(objects[category["id"]], found[category["id"]])
        for category in ground_truth["categories"]
    }


def voc_average_precision(
    matches: Matches, threshold: float, rule: str
) -> float | None:
    """Returns the AP of a category; None where there is nothing to find.

    Args:
      matches: From `match`.
      threshold: What the IoU of a hit exceeds.
      rule: Of `RULES`.
    """
    right, objects = _judged(matches, threshold)
    area = {"11point": _eleven_points, "area": _area}[rule]
    return area(right, objects) if objects else None


def voc_curve(matches: Matches, threshold: float) -> Float[np.ndarray, " R"]:
    """Returns the best precision at each of `RECALLS` or a higher one, or else NaN.

    Args:
      matches: From `match`.
      threshold: As of `voc_average_precision`.
    """
    right, objects = _judged(matches, threshold)
    if not objects:
        return np.full(len(RECALLS), np.nan)
    return _at_recalls(right, objects, len(RECALLS) - 1)


def _judged(matches: Matches, threshold: float) -> tuple[Bool[np.ndarray, " D"], int]:
    """Whether detections that count are right, the best first; how many objects do."""
    nearest, hit = matches.nearest, matches.overlap > threshold
    counted = ~hit
    counted[hit] = ~matches.left_out[nearest[hit]]
    nearest, hit = nearest[counted], hit[counted]
    # Of the hits of an object the best is right, and the others are wrong.
    right = np.zeros(len(hit), bool)
    hitting = np.flatnonzero(hit)
    _, first = np.unique(nearest[hitting], return_index=True)
    right[hitting[first]] = True
    return right, int((~matches.left_out).sum())


def _by_category(
    entries: Sequence[Mapping[str, Any]],
) -> defaultdict[int, list[Mapping[str, Any]]]:
    by_category = defaultdict(list)
    for entry in entries:
        by_category[entry["category_id"]].append(entry)
    return by_category


def _matches(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]
) -> Matches:
    nearest, overlap = _nearest(objects, detections)
    scores = np.array([d["score"] for d in detections], np.float64)
    images = np.array([d["image_id"] for d in detections], np.int64)
    # Ties do not depend on which process saw an image.
    order = np.lexsort((images, -scores))
    left_out = np.array([bool(o["iscrowd"]) for o in objects], bool)
    return Matches(nearest[order], overlap[order], left_out)


def _nearest(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Which object of its image each detection overlaps most, and its IoU.

    Returns:
      [D] int64, of the objects; [D] float64, -1 where the image has none.
    """
    nearest = np.zeros(len(detections), np.int64)
    overlap = np.full(len(detections), -1.0)
    there: dict[int, list[int]] = defaultdict(list)
    for place, entry in enumerate(objects):
        there[entry["image_id"]].append(place)
    found: dict[int, list[int]] = defaultdict(list)
    for place, entry in enumerate(detections):
        found[entry["image_id"]].append(place)
    for image_id, rows in found.items():
        if image_id not in there:
            continue
        columns = np.array(there[image_id])
        overlaps = _iou(
            _boxes([detections[i] for i in rows]), _boxes([objects[i] for i in columns])
        )
        best = overlaps.argmax(1)
        nearest[rows] = columns[best]
        overlap[rows] = overlaps[np.arange(len(rows)), best]
    return nearest, overlap


def _boxes(entries: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "n 4"]:
    x, y, width, height = np.array([e["bbox"] for e in entries], np.float64).T
    return np.stack([x, y, x + width, y + height], 1)


def _iou(
    one: Float[np.ndarray, "D 4"], other: Float[np.ndarray, "T 4"]
) -> Float[np.ndarray, "D T"]:
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    # Two boxes without area share nothing.
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _eleven_points(right: Bool[np.ndarray, " D"], objects: int) -> float:
    """Mean of the best precision at recalls of 0, 0.1, ... 1 and more."""
    return float(_at_recalls(right, objects, 10).sum() / 11)


def _at_recalls(
    right: Bool[np.ndarray, " D"], objects: int, steps: int
) -> Float[np.ndarray, " R"]:
    """The best precision at recalls of 0, 1 / steps, ... 1 and more."""
    found = np.cumsum(right)
    # The first place at which the recall is k / steps or more, in integers.
    recalls = np.arange(steps + 1) * objects
    places = np.searchsorted(steps * found, recalls, side="left")
    return np.append(_best_from_here(found), 0.0)[places]


def _area(right: Bool[np.ndarray, " D"], objects: int) -> float:
    """Area under the best precision over the recall, which each hit raises alike."""
    return float(_best_from_here(np.cumsum(right))[right].sum() / objects)


def _best_from_here(found: Int[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """The best precision at each place or behind it; `found` is right up to there."""
    precision = found / np.arange(1, len(found) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None
