"""COCO's average precision of detections, by pycocotools."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_jax.categories import categories_of
from dcn_jax.detection.records import Detections
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.detections import ImageDetections
from train.evaluation.coco_results import coco_results

# What is compared: boxes or masks.
Kind = Literal["bbox", "segm"]
# Names of COCOeval's twelve summary numbers, in its order.
SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class AveragePrecision:
    """AP over a split: "bbox/AP", ... as in `SUMMARY`, "bbox_per_class/NAME".

    And "segm/AP", ... of the masks, where masks are predicted.

    Args:
      source: The split, with `categories` and `ground_truth`.
    """

    def __init__(self, source: Any):
        self._source = source
        self._categories = categories_of(source.categories)
        # COCO results of the images so far.
        self._results: list[dict[str, Any]] = []
        # Whether what was predicted had masks, even of images where nothing was found.
        self._masks = False

    def update(self, prediction: Detections, image_id: int, geometry: Geometry) -> None:
        """Takes note of the detections of an image."""
        found = ImageDetections.of(prediction, geometry, self._categories)
        results = coco_results(found)
        self._results += ({"image_id": image_id, **result} for result in results)
        self._masks |= prediction.masks is not None

    def state(self) -> dict[str, Any]:
        """Returns the results so far, and whether they are of masks too."""
        return {"results": self._results, "masks": self._masks}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Takes the results of all processes for its own."""
        self._results = [result for state in states for result in state["results"]]
        self._masks = any(state["masks"] for state in states)

    def compute(self) -> dict[str, float | None]:
        """Returns the summary, and the AP of each category."""
        return self._scores(self._source.ground_truth())

    def _scores(self, truth: Mapping[str, Any]) -> dict[str, float | None]:
        kinds: tuple[Kind, ...] = ("bbox", "segm") if self._masks else ("bbox",)
        scores: dict[str, float | None] = {}
        for kind in kinds:
            summary, per_class = average_precision(truth, self._results, kind)
            scores |= {f"{kind}/{name}": value for name, value in summary.items()}
            scores |= {f"{kind}_per_class/{n}": value for n, value in per_class.items()}
        return scores

    def files(self) -> dict[str, Any]:
        """Returns the results, for detections.json."""
        return {"detections.json": self._results}


def average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kind: Kind = "bbox",
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Returns pycocotools' AP, whole and by category.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories. Images
        without detections count as missed.
      detections: COCO results, of the images' pixels.
      kind: What is compared. An object without a mask is neither found nor missed by
        masks: it is told as a crowd that fills its box.

    Returns:
      The summary (names as in SUMMARY) and {category name: AP}; None where there is
      nothing to find.
    """
    # createIndex and COCOeval write into the annotations.
    truth = json.loads(json.dumps(ground_truth))
    if kind == "segm":
        _fill_in_masks(truth)
    # To COCOeval the id 0 says that nothing matched.
    for i, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = i
    area = {"bbox": _box_area, "segm": _mask_area}[kind]
    found = [
        {**detection, "id": i, "area": area(detection), "iscrowd": 0}
        for i, detection in enumerate(detections, start=1)
    ]
    judge = _judged(truth, {**truth, "annotations": found}, kind)
    summary: dict[str, float | None] = {
        name: _number(value) for name, value in zip(SUMMARY, judge.stats, strict=True)
    }
    # [IoU threshold, recall, category, area range, detection limit]
    precision = judge.eval["precision"][:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    per_class = {}
    for k, category in enumerate(judge.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        per_class[names[category]] = _number(known.mean() if known.size else -1.0)
    return summary, per_class


def _judged(truth: dict[str, Any], found: dict[str, Any], kind: Kind) -> COCOeval:
    """Returns COCOeval after it has compared two data sets."""
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_indexed(truth), _indexed(found), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def _indexed(content: Any) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _fill_in_masks(truth: dict[str, Any]) -> None:
    """Makes a crowd of each object without a mask, which pycocotools cannot read."""
    sizes = {
        image["id"]: (image["width"], image["height"]) for image in truth["images"]
    }
    for annotation in truth["annotations"]:
        if not annotation.get("segmentation"):
            x, y, width, height = annotation["bbox"]
            corners = np.array([[x, y], [x + width, y + height]])
            (x1, y1), (x2, y2) = np.clip(corners, 0, sizes[annotation["image_id"]])
            polygon = [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]
            annotation.update(segmentation=[polygon], iscrowd=1)


def _box_area(detection: Mapping[str, Any]) -> float:
    return detection["bbox"][2] * detection["bbox"][3]


def _mask_area(detection: Mapping[str, Any]) -> float:
    return float(coco_mask.area(detection["segmentation"]))


def _number(value: float) -> float | None:
    # pycocotools says -1 where there is no ground truth.
    return None if value < 0 else float(value)
