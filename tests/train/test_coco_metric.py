"""COCO's average precision as a metric."""

import json

import numpy as np
import pytest

from dcn_jax.detection.records import Detections
from train.data.geometry import Geometry
from train.evaluation.coco import (
    SUMMARY,
    AveragePrecision,
    average_precision,
    coco_results,
)

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]


def truth():
    """Three images; small, medium and large objects; a crowd; one image with none."""
    boxes = [
        (1, 7, [10.25, 20, 20, 30], 0),
        (1, 9, [50, 60, 50.5, 50], 0),
        (2, 7, [5, 5, 200, 120], 0),
        (2, 9, [0, 0, 300, 300], 1),
    ]
    annotations = [
        {
            "id": i + 1, "image_id": image, "category_id": category, "bbox": box,
            "area": box[2] * box[3], "iscrowd": crowd,
        }
        for i, (image, category, box, crowd) in enumerate(boxes)
    ]  # fmt: skip
    images = [{"id": i, "width": 400, "height": 400} for i in (1, 2, 3)]
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


def perfect(ground_truth):
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.9,
        }
        for a in ground_truth["annotations"]
        if not a["iscrowd"]
    ]


def test_perfect_detections_have_ap_1():
    summary, per_class = average_precision(truth(), perfect(truth()))
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"):
        assert summary[name] == pytest.approx(1.0), name
    assert per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert tuple(summary) == SUMMARY


def test_annotation_ids_may_start_at_0():
    ground_truth = truth()
    for i, annotation in enumerate(ground_truth["annotations"]):
        annotation["id"] = i
    summary, _ = average_precision(ground_truth, perfect(ground_truth))
    assert summary["AP"] == pytest.approx(1.0)


def test_no_detections_have_ap_0():
    summary, per_class = average_precision(truth(), [])
    assert summary["AP"] == summary["AR100"] == 0.0
    assert per_class == {"cat": 0.0, "dog": 0.0}


def test_nothing_to_find_is_none():
    ground_truth = truth()
    ground_truth["annotations"] = [
        a for a in ground_truth["annotations"] if a["category_id"] == 7
    ]
    summary, per_class = average_precision(ground_truth, perfect(ground_truth))
    assert per_class["dog"] is None
    assert summary["AP_medium"] is None
    json.dumps(summary)


def test_the_ground_truth_is_left_as_it_was():
    ground_truth = truth()
    average_precision(ground_truth, perfect(ground_truth))
    assert ground_truth == truth()


class Source:
    def ground_truth(self):
        return truth()

    def category_id(self, label):
        return CATEGORIES[label - 1]["id"]


def test_results_are_in_original_pixels_without_padding_rows():
    detections = Detections(
        boxes=np.float32([[10, 20, 30, 60], [0, 0, 5, 5]]),
        scores=np.float32([0.75, 0.5]),
        labels=np.int32([2, 1]),
        valid=np.array([True, False]),
    )
    geometry = Geometry(original=(50, 200), size=(100, 100), canvas=(128, 128))
    results = coco_results(detections, geometry, 3, Source())
    assert results == [
        {"image_id": 3, "category_id": 9, "bbox": [20, 10, 40, 20], "score": 0.75}
    ]


def test_processes_judge_their_images_together():
    geometry = Geometry(original=(400, 400), size=(200, 200), canvas=(256, 256))
    together, shares = AveragePrecision(Source()), []
    for image, label, (x, y, w, h) in (
        (1, 1, [10.25, 20, 20, 30]),
        (1, 2, [50, 60, 50.5, 50]),
        (2, 1, [5, 5, 200, 120]),
    ):
        corners = np.float32([[x, y, x + w, y + h]]) / 2
        found = Detections(
            corners, np.float32([0.9]), np.int32([label]), np.array([True])
        )
        share = AveragePrecision(Source())
        for metric in (together, share):
            metric.update(found, image, geometry)
        # As it travels.
        shares.append(json.loads(json.dumps(share.state())))
    whole = AveragePrecision(Source())
    whole.merge(shares)
    assert whole.compute() == together.compute()
    assert whole.files() == together.files() == {"detections.json": whole.state()}
    assert whole.compute()["bbox/AP50"] == pytest.approx(1.0)
    assert whole.compute()["bbox_per_class/dog"] == pytest.approx(1.0)
