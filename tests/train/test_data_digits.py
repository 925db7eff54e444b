"""The deformed digits data set: fixed by its seed, balanced, rightly annotated."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from train.data import make_source
from train.data.sets import deformed_digits, digit_scenes
from train.data.sets.deformed_digits import make_example, plan_split, source_indices

COUNT = 12


@pytest.fixture(scope="module")
def examples() -> list[dict]:
    plan = plan_split("train", COUNT, seed=0)
    return [make_example("train", i, digits, 0) for i, digits in enumerate(plan)]


def test_a_seed_fixes_every_byte(examples):
    plan = plan_split("train", COUNT, seed=0)
    # Backwards: an image does not depend on those drawn before it.
    for i in reversed(range(4)):
        assert make_example("train", i, plan[i], 0) == examples[i]
    other = make_example("train", 0, plan[0], 1)
    assert other["image"] != examples[0]["image"]


@pytest.mark.parametrize("count", [8, 60, 601])
def test_sizes_and_labels_are_balanced(count):
    plan = plan_split("test", count, seed=3)
    digits = [digit for image in plan for digit in image]
    sizes = Counter(size for size, _, _ in digits)
    assert sizes == dict.fromkeys(digit_scenes.SIZES, count)
    for size in digit_scenes.SIZES:
        labels = Counter(label for s, label, _ in digits if s == size)
        assert max(labels.values()) - min(labels.get(k, 0) for k in range(10)) <= 1
    assert {len(image) for image in plan} <= {2, 3, 4}


def test_planned_digits_carry_their_labels():
    _, labels = digit_scenes.digit_fields()
    for image in plan_split("train", 60, seed=0):
        assert all(labels[source] == label for _, label, source in image)


def test_held_out_digits_are_never_trained_on():
    train = np.concatenate(source_indices("train", 0))
    test = np.concatenate(source_indices("test", 0))
    assert len(np.intersect1d(train, test)) == 0
    assert len(train) + len(test) == 1797
    shown = {s for image in plan_split("test", 600, 0) for _, _, s in image}
    assert shown <= set(test.tolist())


def test_boxes_and_areas_match_the_masks(examples):
    borders = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e9)}
    plan = plan_split("train", COUNT, seed=0)
    for example, digits in zip(examples, plan, strict=True):
        annotations = json.loads(example["annotations"])
        together = np.zeros((256, 256), int)
        for annotation, (size, label, _) in zip(annotations, digits, strict=True):
            mask = coco_mask.decode(annotation["segmentation"])
            assert mask.shape == (256, 256)
            together += mask
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = annotation["bbox"]
            assert (x, x + width) == (columns[0], columns[-1] + 1)
            assert (y, y + height) == (rows[0], rows[-1] + 1)
            assert annotation["area"] == mask.sum()
            low, high = borders[size]
            assert low < annotation["area"] < high
            assert annotation["category_id"] == label + 1
            assert annotation["image_id"] == example["image_id"]
        assert together.max() == 1


def test_digits_stand_out_from_the_ground(examples):
    for example in examples:
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), 0)
        for annotation in json.loads(example["annotations"]):
            mask = coco_mask.decode(annotation["segmentation"])
            ring = cv2.dilate(mask, np.ones((7, 7))) - cv2.dilate(mask, np.ones((3, 3)))
            inside, outside = image[mask > 0], image[ring > 0]
            assert abs(inside.mean() - outside.mean()) > 30


def test_builder_stores_what_was_drawn(tmp_path, examples):
    options: Any = {"train_images": COUNT, "test_images": 2}
    source = make_source("deformed_digits", "train", tmp_path, **options)
    assert len(source) == COUNT
    assert len(source.categories) == 10
    assert [source.categories[label - 1]["id"] for label in (1, 10)] == [1, 10]
    assert source.categories[7] == {"id": 8, "name": "7"}
    truth = source.ground_truth()
    assert truth["annotations"] == [
        annotation for e in examples for annotation in json.loads(e["annotations"])
    ]
    ids = [annotation["id"] for annotation in truth["annotations"]]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    for i in (0, COUNT - 1):
        pixels = cv2.imdecode(
            np.frombuffer(examples[i]["image"], np.uint8), cv2.IMREAD_COLOR_RGB
        )
        np.testing.assert_array_equal(source[i].image, pixels)
        assert source[i].image_id == i + 1
        assert source.num_boxes[i] == len(source[i].boxes)
    assert len(make_source("deformed_digits", "test", tmp_path, **options)) == 2


def test_one_prepares_and_the_others_wait(tmp_path):
    def make(_):
        return make_source(
            "deformed_digits", "train", tmp_path, train_images=5, test_images=1
        )

    with ThreadPoolExecutor(3) as pool:
        assert [len(source) for source in pool.map(make, range(3))] == [5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits"}, "`name` is 'digits'; expected one of deformed_digits,"),
        ({"split": "val"}, "`split` is 'val'; deformed_digits has test, train"),
        ({"train_images": 0}, "`train_images` is 0; expected >= 1"),
        ({"trian_images": 5}, "options of deformed_digits: .*trian_images"),
        ({"max_pixels": 1000}, "256 x 256 pixels; at most 1000 are allowed"),
    ],
)
def test_wrong_arguments_get_one_line(tmp_path_factory, arguments, message):
    data_dir = tmp_path_factory.getbasetemp() / "digits"
    defaults = {"name": "deformed_digits", "split": "train"}
    options = {"train_images": 1, "test_images": 1}
    with pytest.raises(ValueError, match=message) as error:
        make_source(data_dir=data_dir, **{**defaults, **options, **arguments})
    assert "\n" not in str(error.value)


def test_default_size(tmp_path):
    builder = deformed_digits.DeformedDigits(data_dir=str(tmp_path))
    assert builder.info.full_name == "deformed_digits/2400_600_seed0/1.0.0"
    config = deformed_digits.DeformedDigitsConfig()
    same = deformed_digits.DeformedDigits(data_dir=str(tmp_path), config=config)
    assert same.info.full_name == builder.info.full_name
