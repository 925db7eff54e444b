"""COCO's average precision of boxes and masks as a metric."""

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dcn_jax.categories import categories_of
from dcn_jax.detection.records import Detections
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.detections import ImageDetections
from train.evaluation.coco import SUMMARY, AveragePrecision, average_precision
from train.evaluation.coco_results import coco_results, run_lengths

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
    summary, per_class, *_ = average_precision(truth(), perfect(truth()))
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"):
        assert summary[name] == pytest.approx(1.0), name
    assert per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert tuple(summary) == SUMMARY


def test_annotation_ids_may_start_at_0():
    ground_truth = truth()
    for i, annotation in enumerate(ground_truth["annotations"]):
        annotation["id"] = i
    summary, *_ = average_precision(ground_truth, perfect(ground_truth))
    assert summary["AP"] == pytest.approx(1.0)


def test_no_detections_have_ap_0():
    summary, per_class, *_ = average_precision(truth(), [])
    assert summary["AP"] == summary["AR100"] == 0.0
    assert per_class == {"cat": 0.0, "dog": 0.0}


def test_nothing_to_find_is_none():
    ground_truth = truth()
    ground_truth["annotations"] = [
        a for a in ground_truth["annotations"] if a["category_id"] == 7
    ]
    summary, per_class, *_ = average_precision(ground_truth, perfect(ground_truth))
    assert per_class["dog"] is None
    assert summary["AP_medium"] is None
    json.dumps(summary)


def test_the_ground_truth_is_left_as_it_was():
    ground_truth = truth()
    average_precision(ground_truth, perfect(ground_truth))
    assert ground_truth == truth()


class Source:
    categories = CATEGORIES

    def ground_truth(self):
        return truth()


def results_of(detections, geometry):
    categories = categories_of(CATEGORIES)
    return coco_results(ImageDetections.of(detections, geometry, categories))


def test_results_are_in_original_pixels_without_padding_rows():
    detections = Detections(
        boxes=np.float32([[10, 20, 30, 60], [0, 0, 5, 5]]),
        scores=np.float32([0.75, 0.5]),
        labels=np.int32([2, 1]),
        valid=np.array([True, False]),
    )
    geometry = Geometry(original=(50, 200), size=(100, 100), canvas=(128, 128))
    results = results_of(detections, geometry)
    assert results == [{"category_id": 9, "bbox": [20, 10, 40, 20], "score": 0.75}]


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
    results = whole.state()["results"]
    assert whole.files() == together.files()
    assert whole.files()["detections.json"] == results
    assert not any(name.startswith("segm") for name in whole.compute())
    assert whole.compute()["bbox/AP50"] == pytest.approx(1.0)
    assert whole.compute()["bbox_per_class/dog"] == pytest.approx(1.0)


def disc(box):
    """The ellipse in a box, as pixels of an image of 400 x 400."""
    x, y, width, height = box
    rows, columns = np.mgrid[:400, :400] + 0.5
    across = (columns - x - width / 2) / (width / 2)
    down = (rows - y - height / 2) / (height / 2)
    return across**2 + down**2 <= 1


def masked_truth():
    """The objects of `truth` are discs, and one of them has no mask."""
    ground_truth = truth()
    for annotation in ground_truth["annotations"]:
        pixels = disc(annotation["bbox"])
        annotation |= {"segmentation": run_lengths(pixels), "area": int(pixels.sum())}
    unknown = {"image_id": 3, "category_id": 7, "bbox": [300, 300, 150, 80]}
    unknown |= {"id": 5, "area": 4000, "iscrowd": 0, "segmentation": []}
    ground_truth["annotations"].append(unknown)
    return ground_truth


def found_masks(ground_truth, *, full=False):
    """Detections of every object, with a disc or all of its box for a mask."""
    results = perfect(ground_truth)
    for result in results:
        pixels = disc(result["bbox"])
        if full:
            pixels = np.outer(pixels.any(1), pixels.any(0))
        result["segmentation"] = run_lengths(pixels)
    return results


def test_perfect_masks_have_ap_1():
    ground_truth = masked_truth()
    summary, per_class, *_ = average_precision(
        ground_truth, found_masks(ground_truth), "segm"
    )
    for name in ("AP", "AP_small", "AP_medium", "AP_large", "AR100"):
        assert summary[name] == pytest.approx(1.0), name
    assert per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}


def test_masks_are_judged_by_their_shape():
    """A disc covers 0.785 of its box."""
    ground_truth = masked_truth()
    found = found_masks(ground_truth, full=True)
    summary, *_ = average_precision(ground_truth, found, "segm")
    assert summary["AP75"] == pytest.approx(1.0)
    assert summary["AP"] == pytest.approx(0.6)
    summary, *_ = average_precision(ground_truth, found, "bbox")
    assert summary["AP"] == pytest.approx(1.0)


def test_the_size_of_a_mask_counts_not_that_of_its_box():
    """What matches nothing counts as wrong in the range of its own size."""
    ground_truth = masked_truth()
    best = {"image_id": 1, "category_id": 7, "bbox": [200, 200, 40, 40], "score": 1.0}
    pixels = np.zeros((400, 400), bool)
    pixels[200:240, 200:204] = True
    found = [best | {"segmentation": run_lengths(pixels)}, *found_masks(ground_truth)]
    by_kind = {kind: average_precision(ground_truth, found, kind)[0] for kind in SIZED}
    assert by_kind["segm"]["AP_small"] < 0.8 and by_kind["bbox"]["AP_small"] > 0.9


SIZED = ("bbox", "segm")


def test_an_object_without_a_mask_is_neither_found_nor_missed():
    ground_truth = masked_truth()
    found = found_masks(ground_truth)
    without = [result for result in found if result["image_id"] != 3]
    assert len(without) == len(found) - 1
    for results in (found, without):
        summary, *_ = average_precision(ground_truth, results, "segm")
        assert summary["AP"] == pytest.approx(1.0)
    summary, *_ = average_precision(ground_truth, without, "bbox")
    assert summary["AP"] < 1


class MaskSource(Source):
    def ground_truth(self):
        return masked_truth()


def detections(*boxes, probability=1.0):
    """One detection of a cat for each box, with a mask that fills it."""
    count = len(boxes)
    return Detections(
        boxes=np.float32(boxes).reshape(-1, 4),
        scores=np.full(count, 0.5, np.float32),
        labels=np.ones(count, np.int32),
        valid=np.ones(count, bool),
        masks=np.full((count, 28, 28), probability, np.float32),
    )


def test_masks_are_pasted_in_original_pixels():
    geometry = Geometry(original=(50, 200), size=(100, 100), canvas=(128, 128))
    found = detections([10, 20, 30, 60])
    (result,) = results_of(found, geometry)
    runs: Any = result["segmentation"]
    json.dumps(runs)
    pixels = coco_mask.decode(runs)
    expected = np.zeros((50, 200), np.uint8)
    expected[10:30, 20:60] = 1
    np.testing.assert_array_equal(pixels, expected)
    (result,) = results_of(detections([10, 20, 30, 60], probability=0.4), geometry)
    assert coco_mask.area(result["segmentation"]) == 0


def test_masks_of_all_processes_are_judged_together():
    geometry = Geometry(original=(400, 400), size=(200, 200), canvas=(256, 256))
    together, shares = AveragePrecision(MaskSource()), []
    # The second process finds nothing, the third has no image.
    images = [{1: [[5.125, 10, 15.125, 25]], 2: [[2.5, 2.5, 102.5, 62.5]]}, {3: []}, {}]
    for boxes in images:
        share = AveragePrecision(MaskSource())
        for image, corners in boxes.items():
            for metric in (together, share):
                metric.update(detections(*corners), image, geometry)
        shares.append(json.loads(json.dumps(share.state())))
    whole = AveragePrecision(MaskSource())
    whole.merge(shares)
    scores = whole.compute()
    assert scores == together.compute()
    assert whole.files() == together.files()
    assert all("counts" in r["segmentation"] for r in whole.state()["results"])
    # A rectangle for a disc, and right boxes.
    assert scores["segm_per_class/cat"] == pytest.approx(0.6)
    assert scores["bbox_per_class/cat"] == pytest.approx(2 / 3, abs=0.02)
    assert scores["segm_per_class/dog"] == 0
    assert [name for name in scores if name.startswith("segm/")] == [
        f"segm/{name}" for name in SUMMARY
    ]


def test_masks_that_find_nothing_have_ap_0():
    metric = AveragePrecision(MaskSource())
    geometry = Geometry(original=(400, 400), size=(200, 200), canvas=(256, 256))
    metric.update(detections(), 1, geometry)
    assert metric.compute()["segm/AP"] == 0
