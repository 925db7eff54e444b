"""VOC's average precision, against a loop that is written from its definition."""

import json
from fractions import Fraction

import numpy as np
import pytest

from dcn_jax.detection.records import Detections
from dcn_jax.images.geometry import Geometry
from train.evaluation.voc import (
    RULES,
    VocAveragePrecision,
    match,
    voc_average_precision,
)

CATEGORIES = [
    {"id": 3, "name": "cat"},
    {"id": 8, "name": "dog"},
    {"id": 9, "name": "x"},
]


def scene(seed):
    """Objects and detections; many detections lie near an object, and scores repeat."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image_id in range(1, 7):
        for _ in range(rng.integers(0, 5)):
            x, y, width, height = rng.integers([0, 0, 4, 4], [60, 60, 40, 40]).tolist()
            category = int(rng.choice([3, 8]))
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = rng.integers(-4, 5, 4)
                box = np.maximum(np.array([x, y, width, height]) + moved, 1)
                detections.append(_detection(rng, image_id, category, box))
        for _ in range(rng.integers(0, 3)):
            box = rng.integers([0, 0, 4, 4], [60, 60, 40, 40])
            detections.append(_detection(rng, image_id, int(rng.choice([3, 8])), box))
    order = rng.permutation(len(detections))
    truth = {"images": [], "annotations": annotations, "categories": CATEGORIES}
    return truth, [detections[i] for i in order]


def _detection(rng, image_id, category, box):
    # Of ten values, so that some are equal.
    score = int(rng.integers(1, 10)) / 10
    bbox = [int(v) for v in box]
    return {
        "image_id": image_id, "category_id": category, "bbox": bbox, "score": score
    }  # fmt: skip


def iou_in_pixels(one, other):
    """IoU of boxes whose corners are their first and last pixels, counted from 1."""
    left, top, right, bottom = (
        max(one[0], other[0]), max(one[1], other[1]),
        min(one[2], other[2]), min(one[3], other[3]),
    )  # fmt: skip
    if right < left or bottom < top:
        return Fraction(0)
    shared = (right - left + 1) * (bottom - top + 1)
    areas = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (one, other))
    return Fraction(shared, areas - shared)


def pixels(bbox):
    x, y, width, height = bbox
    return x + 1, y + 1, x + width, y + height


def brute_force(truth, detections, threshold, rule, category):
    """The definition, object by object, in fractions."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    count = sum(not o["iscrowd"] for o in objects)
    if not count:
        return None
    mine = [d for d in detections if d["category_id"] == category]
    mine.sort(key=lambda d: (-d["score"], d["image_id"]))
    found, curve = set(), []
    hits = misses = 0
    for detection in mine:
        best, which = Fraction(-1), None
        for number, target in enumerate(objects):
            if target["image_id"] == detection["image_id"]:
                iou = iou_in_pixels(pixels(detection["bbox"]), pixels(target["bbox"]))
                if iou > best:
                    best, which = iou, number
        if which is not None and best > threshold:
            if objects[which]["iscrowd"]:
                continue
            if which not in found:
                found.add(which)
                hits += 1
            else:
                misses += 1
        else:
            misses += 1
        curve.append((Fraction(hits, count), Fraction(hits, hits + misses)))
    if rule == "11point":
        best = [
            max([p for r, p in curve if r >= Fraction(k, 10)], default=Fraction(0))
            for k in range(11)
        ]
        return float(sum(best) / 11)
    area, before = Fraction(0), Fraction(0)
    for place, (recall, _) in enumerate(curve):
        best = max(p for _, p in curve[place:])
        area += (recall - before) * best
        before = recall
    return float(area)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [Fraction(1, 2), Fraction(7, 10)])
def test_it_is_the_definition(rule, threshold):
    seen = set()
    for seed in range(60):
        truth, detections = scene(seed)
        found = {
            name: voc_average_precision(matches, float(threshold), rule)
            for name, matches in match(truth, detections).items()
        }
        assert found.keys() == {"cat", "dog", "x"}
        for category in CATEGORIES:
            expected = brute_force(truth, detections, threshold, rule, category["id"])
            value = found[category["name"]]
            if expected is None:
                assert value is None
            else:
                assert value == pytest.approx(expected, abs=1e-14)
                seen.add(round(expected, 6))
    assert len(seen) > 40


def one_object(bbox=(10, 10, 20, 20), crowd=0):
    return {"image_id": 1, "category_id": 3, "bbox": list(bbox), "iscrowd": crowd}


def found(bbox=(10, 10, 20, 20), score=0.9, image_id=1):
    return {
        "image_id": image_id, "category_id": 3, "bbox": list(bbox), "score": score
    }  # fmt: skip


def judged(annotations, detections, threshold=0.5, rule="area"):
    truth = {"annotations": annotations, "categories": CATEGORIES[:1]}
    return voc_average_precision(match(truth, detections)["cat"], threshold, rule)


class Source:
    """A split with what a scene has."""

    categories = CATEGORIES

    def __init__(self, truth):
        self._truth = truth
        for number, annotation in enumerate(truth["annotations"], start=1):
            area = annotation["bbox"][2] * annotation["bbox"][3]
            annotation.update(id=number, area=area)
        sizes = {"height": 100, "width": 100}
        truth["images"] = [{"id": i, **sizes} for i in range(1, 7)]

    def ground_truth(self):
        return self._truth


def test_processes_judge_their_images_together():
    """Scores are equal across images, and order does not depend on who saw which."""
    truth, detections = scene(5)
    labels = {c["id"]: label for label, c in enumerate(CATEGORIES, start=1)}
    metrics = [VocAveragePrecision(Source(truth), "area") for _ in range(3)]
    whole, *parts = metrics
    for image_id in range(1, 7):
        mine = [d for d in detections if d["image_id"] == image_id]
        boxes = np.float32([d["bbox"] for d in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        prediction = Detections(
            boxes,
            np.float32([d["score"] for d in mine]),
            np.int32([labels[d["category_id"]] for d in mine]),
            np.ones(len(mine), bool),
        )
        geometry = Geometry((100, 100), (100, 100), (128, 128))
        for metric in (whole, parts[image_id % 2]):
            metric.update(prediction, image_id, geometry)
    states = [json.loads(json.dumps(part.state())) for part in parts]
    expected = whole.compute()
    assert 0 < expected["voc/mAP50_area"] < 1
    for order in (states, states[::-1]):
        parts[0].merge(order)
        assert parts[0].compute() == expected
    for threshold, name in ((Fraction(1, 2), "50"), (Fraction(7, 10), "70")):
        for rule in RULES:
            aps = [
                brute_force(truth, detections, threshold, rule, c["id"])
                for c in CATEGORIES
            ]
            mean = np.mean([ap for ap in aps if ap is not None])
            assert expected[f"voc/mAP{name}_{rule}"] == pytest.approx(mean, abs=1e-12)


def test_an_iou_of_the_threshold_is_no_hit():
    half = found((10, 10, 20, 10))
    assert judged([one_object()], [half]) == 0
    assert judged([one_object()], [half], threshold=0.499) == 1


@pytest.mark.parametrize("rule", RULES)
def test_the_second_hit_of_an_object_is_a_miss(rule):
    two = [one_object(), one_object((50, 50, 20, 20))]
    twice = [found(score=0.9), found(score=0.8), found((50, 50, 20, 20), score=0.7)]
    expected = {"area": 0.5 + 0.5 * 2 / 3, "11point": (6 + 5 * 2 / 3) / 11}[rule]
    assert judged(two, twice, rule=rule) == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_difficult_moves_nothing(rule):
    easy, hard = one_object(), one_object((50, 50, 20, 20), crowd=1)
    hits = [found(score=0.5), found((0, 0, 5, 5), score=0.7)]
    of_hard = [found((50, 50, 20, 20), score=s) for s in (0.9, 0.6, 0.1)]
    without = judged([easy], hits, rule=rule)
    assert judged([easy, hard], hits, rule=rule) == without
    assert judged([easy, hard], hits + of_hard, rule=rule) == without
    assert judged([hard], of_hard, rule=rule) is None
    # It lies over an easy one: what overlaps it more counts as its own.
    over = one_object((10, 10, 20, 19), crowd=1)
    assert judged([easy, over], [found((10, 10, 20, 19))], rule=rule) == 0


@pytest.mark.parametrize("rule", RULES)
def test_all_and_nothing(rule):
    for count in (1, 3, 7, 10, 11, 49):
        objects = [one_object((30 * k, 0, 20, 20)) for k in range(count)]
        hits = [found((30 * k, 0, 20, 20), score=k / 50) for k in range(count)]
        assert judged(objects, hits, rule=rule) == 1.0
        assert judged(objects, [], rule=rule) == 0.0
        others = [found((30 * k, 0, 20, 20), image_id=2) for k in range(count)]
        assert judged(objects, others, rule=rule) == 0.0
    assert judged([], [found()], rule=rule) is None


def test_a_recall_of_three_tenths_is_reached():
    """As floats, 3 / 10 is less than 3 times 0.1."""
    objects = [one_object((30 * k, 0, 20, 20)) for k in range(10)]
    hits = [found((30 * k, 0, 20, 20)) for k in range(3)]
    assert judged(objects, hits, rule="11point") == pytest.approx(4 / 11)


def test_boxes_without_area_hit_nothing():
    assert judged([one_object((5, 5, 0, 0))], [found((5, 5, 0, 0))]) == 0
