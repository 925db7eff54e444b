"""COCO's average precision of detections, by pycocotools."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_jax.detection.records import Detections
from train.data.geometry import Geometry

# Names of COCOeval's twelve summary numbers, in its order.
SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class AveragePrecision:
    """Box AP over a split: "bbox/AP", ... as in `SUMMARY`, "bbox_per_class/NAME".

    Its state is a list of COCO results: image_id, category_id, bbox (x y w h, original
    pixels), score.

    Args:
      source: The split, with `category_id` and `ground_truth`.
    """

    def __init__(self, source: Any):
        self._source = source
        self._results: list[dict[str, Any]] = []

    def update(self, prediction: Detections, image_id: int, geometry: Geometry) -> None:
        """Takes note of the detections of an image."""
        self._results += coco_results(prediction, geometry, image_id, self._source)

    def state(self) -> list[dict[str, Any]]:
        """Returns the results so far."""
        return self._results

    def merge(self, states: Sequence[list[dict[str, Any]]]) -> None:
        """Takes the results of all processes for its own."""
        self._results = [result for state in states for result in state]

    def compute(self) -> dict[str, float | None]:
        """Returns the summary, and the AP of each category."""
        summary, per_class = average_precision(
            self._source.ground_truth(), self._results
        )
        return {
            **{f"bbox/{name}": value for name, value in summary.items()},
            **{f"bbox_per_class/{name}": value for name, value in per_class.items()},
        }

    def files(self) -> dict[str, Any]:
        """Returns the results, for detections.json."""
        return {"detections.json": self._results}


def average_precision(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Returns pycocotools' box AP, whole and by category.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories. Images
        without detections count as missed.
      detections: COCO results, see `AveragePrecision`.

    Returns:
      The summary (names as in SUMMARY) and {category name: AP}; None where there is
      nothing to find.
    """
    boxes = []
    for i, detection in enumerate(detections):
        area = detection["bbox"][2] * detection["bbox"][3]
        boxes.append({**detection, "id": i + 1, "area": area, "iscrowd": 0})
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        # createIndex and COCOeval write into the annotations.
        truth.dataset = json.loads(json.dumps(ground_truth))
        # To COCOeval the id 0 says that nothing matched.
        for i, annotation in enumerate(truth.dataset["annotations"]):
            annotation["id"] = i + 1
        found.dataset = {**truth.dataset, "annotations": boxes}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    summary: dict[str, float | None] = {
        name: _number(value) for name, value in zip(SUMMARY, judge.stats, strict=True)
    }
    # [IoU threshold, recall, category, area range, detection limit]
    precision = judge.eval["precision"][:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    per_class = {}
    for k, category in enumerate(judge.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        per_class[names[category]] = _number(known.mean() if known.size else -1.0)
    return summary, per_class


def _number(value: float) -> float | None:
    # pycocotools says -1 where there is no ground truth.
    return None if value < 0 else float(value)


def original_boxes(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns boxes [D, 4] in pixels of the original image.

    Args:
      boxes: x1 y1 x2 y2 in canvas pixels of an image that is not mirrored.
      geometry: Of the image.
    """
    y, x = geometry.scale
    return boxes / np.asarray([x, y, x, y], boxes.dtype)


def coco_results(
    detections: Detections, geometry: Geometry, image_id: int, source: Any
) -> list[dict[str, Any]]:
    """Returns the valid detections of one image as COCO results."""
    boxes = original_boxes(np.asarray(detections.boxes), geometry)
    return [
        {
            "image_id": image_id,
            "category_id": source.category_id(int(detections.labels[i])),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(detections.scores[i]),
        }
        for i, (x1, y1, x2, y2) in enumerate(boxes)
        if detections.valid[i]
    ]
