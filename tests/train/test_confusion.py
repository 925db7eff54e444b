"""What detections are taken for: by hand, by another computation, over processes."""

import json

import numpy as np
import pytest

from dcn_jax.detection.records import Detections
from dcn_jax.images.geometry import Geometry
from train.evaluation.coco import AveragePrecision
from train.evaluation.confusion import detection_confusion
from train.evaluation.figures import confusion_figure

CATEGORIES = [
    {"id": 7, "name": "cat"},
    {"id": 3, "name": "dog"},
    {"id": 5, "name": "eel"},
]
CAT, DOG, EEL = (c["id"] for c in CATEGORIES)


def truth(*objects):
    """Of (image, category, box, whether it is a crowd)."""
    annotations = [
        {"image_id": i, "category_id": c, "bbox": list(box), "iscrowd": int(crowd)}
        for i, c, box, crowd in objects
    ]
    for number, annotation in enumerate(annotations):
        width, height = annotation["bbox"][2:]
        annotation |= {"id": number, "area": width * height}
    images = [{"id": i, "height": 400, "width": 400} for i in range(5)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def found(*detections):
    """Of (image, category, box, score)."""
    return [
        {"image_id": i, "category_id": c, "bbox": list(box), "score": score}
        for i, c, box, score in detections
    ]


BOX, AWAY, HALF = (10, 10, 40, 20), (200, 100, 30, 30), (10, 10, 20, 20)


def test_perfect_detections_are_on_the_diagonal():
    objects = [(0, CAT, BOX, 0), (0, EEL, AWAY, 0), (1, CAT, AWAY, 0), (2, DOG, BOX, 0)]
    counts = detection_confusion(
        truth(*objects), found(*((*entry[:3], 0.9) for entry in objects))
    )
    np.testing.assert_array_equal(counts, np.diag([2, 1, 1, 0]))


def test_an_example_by_hand():
    ground_truth = truth(
        (0, CAT, BOX, 0),
        (0, DOG, AWAY, 0),
        (1, CAT, BOX, 0),
        (1, EEL, (10, 10, 40, 22), 0),
        (2, EEL, BOX, 0),
        (3, DOG, BOX, 1),
    )
    detections = found(
        (0, DOG, BOX, 0.9),  # of equal overlap, the better score
        (0, CAT, BOX, 0.8),  # its object is taken
        (0, DOG, AWAY, 0.29),  # too low
        (1, EEL, (10, 10, 40, 21), 0.4),  # 21 / 22 of the eel, 20 / 21 of the cat
        (1, CAT, (10, 10, 40, 22), 0.3),  # all of the eel: it goes first
        (2, CAT, HALF, 0.9),  # an IoU of exactly a half
        (3, DOG, HALF, 0.9),  # in a crowd of dogs
        (3, CAT, HALF, 0.9),  # not in one of cats
        (4, EEL, BOX, 0.9),  # in an image without objects
    )
    expected = [
        # cat dog eel none
        [0, 1, 1, 0],
        [0, 0, 0, 1],
        [2, 0, 0, 0],
        [2, 0, 1, 0],
    ]
    np.testing.assert_array_equal(
        detection_confusion(ground_truth, detections), expected
    )


def test_a_class_that_is_never_predicted():
    objects = [(0, CAT, BOX, 0), (1, DOG, BOX, 0), (2, DOG, AWAY, 0)]
    counts = detection_confusion(truth(*objects), found((0, CAT, BOX, 0.5)))
    np.testing.assert_array_equal(counts[:, 1], 0)
    np.testing.assert_array_equal(counts[1], [0, 0, 0, 2])


def test_nothing_is_there():
    counts = detection_confusion(truth(), found((0, DOG, BOX, 0.5), (0, EEL, BOX, 1)))
    np.testing.assert_array_equal(counts, [[0] * 4] * 3 + [[0, 1, 1, 0]])
    counts = detection_confusion(truth((0, DOG, BOX, 0)), [])
    np.testing.assert_array_equal(counts.sum(), counts[1, 3])
    assert not detection_confusion(truth(), []).any()


def iou(one, other):
    """By pixels of a grid: the boxes have whole corners."""
    grids = []
    for x, y, width, height in (one, other):
        grid = np.zeros((32, 32), bool)
        grid[y : y + height, x : x + width] = True
        grids.append(grid)
    return (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()


def by_repeated_search(ground_truth, detections):
    """Takes the best of all pairs that are left, again and again."""
    rows = {CAT: 0, DOG: 1, EEL: 2}
    counts = np.zeros((4, 4), int)
    for image in range(5):
        objects = [a for a in ground_truth["annotations"] if a["image_id"] == image]
        boxes = [d for d in detections if d["image_id"] == image and d["score"] >= 0.3]
        while True:
            pairs = [
                (iou(o["bbox"], d["bbox"]), d["score"], i, j)
                for i, o in enumerate(objects)
                for j, d in enumerate(boxes)
            ]
            best = max(pairs, default=(0,))
            if best[0] < 0.5:
                break
            true, taken = objects.pop(best[2]), boxes.pop(best[3])
            counts[rows[true["category_id"]], rows[taken["category_id"]]] += 1
        for entry in objects:
            counts[rows[entry["category_id"]], 3] += 1
        for entry in boxes:
            counts[3, rows[entry["category_id"]]] += 1
    return counts


@pytest.mark.parametrize("seed", range(10))
def test_it_is_another_computation_on_generated_boxes(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner, size = rng.integers(0, 12, (count, 2)), rng.integers(4, 16, (count, 2))
        return np.concatenate([corner, size], 1).tolist()

    def drawn(count):
        return zip(
            rng.integers(0, 5, count).tolist(),
            rng.choice([CAT, DOG, EEL], count).tolist(),
            boxes(count),
            strict=True,
        )

    ground_truth = truth(*((*entry, 0) for entry in drawn(40)))
    detections = found(*((*entry, rng.random()) for entry in drawn(90)))
    counts = detection_confusion(ground_truth, detections)
    np.testing.assert_array_equal(counts, by_repeated_search(ground_truth, detections))
    assert counts[:3, :3].sum() > 10 and counts[:3].sum() == 40


class Source:
    categories = CATEGORIES

    def ground_truth(self):
        return truth((0, CAT, BOX, 0), (1, DOG, BOX, 0), (2, DOG, AWAY, 0))


def test_processes_judge_their_images_together():
    whole = AveragePrecision(Source())
    shares = [AveragePrecision(Source()) for _ in range(2)]
    geometry = Geometry((400, 400), (200, 200), (256, 256))
    for image, label in ((0, 1), (1, 1), (2, 2)):
        x, y, width, height = AWAY if image == 2 else BOX
        prediction = Detections(
            np.float32([[x, y, x + width, y + height]]) / 2,
            np.float32([0.9]),
            np.int32([label]),
            np.array([True]),
        )
        for metric in (whole, shares[image % 2]):
            metric.update(prediction, image, geometry)
        # What was judged before is forgotten.
        shares[image % 2].files()
    shares[1].merge([json.loads(json.dumps(share.state())) for share in shares])
    assert shares[1].files()["confusion.json"] == whole.files()["confusion.json"]
    assert whole.files()["confusion.json"] == {
        "names": ["cat", "dog", "eel", "background"],
        "score": 0.3,
        "iou": 0.5,
        "counts": [[1, 0, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4],
    }


def test_a_picture_stays_of_a_size_with_any_number_of_categories():
    names = [f"category {k}" for k in range(1500)]
    figure = confusion_figure(names, np.eye(1500, dtype=np.int64), "pixels")
    assert (figure.get_size_inches() < 30).all()
    assert not figure.axes[0].get_xticklabels()[0].get_text().startswith("category")
