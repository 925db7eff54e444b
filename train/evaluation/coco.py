"""COCO's average precision of detections, by pycocotools."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_jax.categories import categories_of
from dcn_jax.detection.records import Detections
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.detections import ImageDetections
from train.evaluation.coco_results import coco_results
from train.evaluation.confusion import BACKGROUND, IOU, SCORE, detection_confusion
from train.evaluation.precision_recall import RECALLS, PrecisionRecall

# What is compared: boxes or masks.
Kind = Literal["bbox", "segm"]
# Names of COCOeval's twelve summary numbers, in its order.
SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class Judged(NamedTuple):
    """What detections are worth."""

    # As `train.task.Metric.compute` returns them.
    scores: dict[str, float | None]
    # By what is compared.
    curves: dict[str, PrecisionRecall]
    # From `detection_confusion`.
    confusion: Int[np.ndarray, "C+1 C+1"]


class AveragePrecision:
    """AP over a split: "bbox/AP", ... as in `SUMMARY`, by class and as curves.

    By class it is "bbox_per_class/NAME", and at an IoU of 0.5 "bbox_AP50_per_class".
    And so "segm/AP", ... of the masks, where masks are predicted. precision_recall.json
    and .png have what AP is the mean of, and confusion.json and .png what objects are
    taken for, see `detection_confusion`.

    Args:
      source: The split, with `categories` and `ground_truth`.
    """

    def __init__(self, source: Any):
        self._source = source
        self._categories = categories_of(source.categories)
        self._names = [*(c.name for c in self._categories), BACKGROUND]
        # COCO results of the images so far.
        self._results: list[dict[str, Any]] = []
        # Whether what was predicted had masks, even of images where nothing was found.
        self._masks = False
        self._judged: Judged | None = None

    def update(self, prediction: Detections, image_id: int, geometry: Geometry) -> None:
        """Takes note of the detections of an image."""
        found = ImageDetections.of(prediction, geometry, self._categories)
        results = coco_results(found)
        self._results += ({"image_id": image_id, **result} for result in results)
        self._masks |= prediction.masks is not None
        self._judged = None

    def state(self) -> dict[str, Any]:
        """Returns the results so far, and whether they are of masks too."""
        return {"results": self._results, "masks": self._masks}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Takes the results of all processes for its own."""
        self._results = [result for state in states for result in state["results"]]
        self._masks = any(state["masks"] for state in states)
        self._judged = None

    def compute(self) -> dict[str, float | None]:
        """Returns the summary, and the AP of each category."""
        return self._judge().scores

    def _judge(self) -> Judged:
        """Judges what was taken note of, once."""
        if self._judged is None:
            self._judged = self._judged_by(self._source.ground_truth())
        return self._judged

    def _judged_by(self, truth: Mapping[str, Any]) -> Judged:
        kinds: tuple[Kind, ...] = ("bbox", "segm") if self._masks else ("bbox",)
        judged = Judged({}, {}, detection_confusion(truth, self._results))
        for kind in kinds:
            found = average_precision(truth, self._results, kind)
            judged.curves[kind] = found.curves
            for group, scores in (
                (kind, found.summary),
                (f"{kind}_per_class", found.per_class),
                (f"{kind}_AP50_per_class", found.per_class_50),
            ):
                judged.scores.update({f"{group}/{n}": v for n, v in scores.items()})
        return judged

    def files(self) -> dict[str, Any]:
        """Returns the results, and the numbers of the figures."""
        judged = self._judge()
        return {
            "detections.json": self._results,
            "precision_recall.json": {
                "recall": RECALLS.tolist(),
                **{kind: curves.as_json() for kind, curves in judged.curves.items()},
            },
            "confusion.json": {
                "names": self._names,
                "score": SCORE,
                "iou": IOU,
                "counts": judged.confusion.tolist(),
            },
        }

    def figures(self) -> dict[str, Any]:
        """Returns the curves and the confusion matrix."""
        from train.evaluation.figures import confusion_figure, precision_recall_figure

        judged = self._judge()
        title = f"boxes with scores from {SCORE}, matched at IoUs from {IOU}"
        return {
            "precision_recall.png": precision_recall_figure(judged.curves),
            "confusion.png": confusion_figure(self._names, judged.confusion, title),
        }


class ByCategory(NamedTuple):
    """AP, whole and by category; None where there is nothing to find."""

    summary: dict[str, float | None]  # names as in SUMMARY
    per_class: dict[str, float | None]  # by the category's name
    per_class_50: dict[str, float | None]  # at an IoU of 0.5
    curves: PrecisionRecall


def average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kind: Kind = "bbox",
) -> ByCategory:
    """Returns pycocotools' AP, whole and by category.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories. Images
        without detections count as missed.
      detections: COCO results, of the images' pixels.
      kind: What is compared. An object without a mask is neither found nor missed by
        masks: it is told as a crowd that fills its box.
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
    by_id = {c["id"]: c["name"] for c in truth["categories"]}
    names = [by_id[category] for category in judge.params.catIds]
    of_class = np.ascontiguousarray(np.moveaxis(precision, 2, 0))
    curves = np.where(of_class < 0, np.nan, of_class)
    by_rule = {"IoU 0.50": curves[:, 0], "mean of IoU 0.50 to 0.95": curves.mean(1)}
    return ByCategory(
        summary,
        {name: _number(c.mean()) for name, c in zip(names, of_class, strict=True)},
        {name: _number(c[0].mean()) for name, c in zip(names, of_class, strict=True)},
        PrecisionRecall(names, by_rule),
    )


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
