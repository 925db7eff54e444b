"""What of a data set is used, and the one line that says so."""

import copy
import functools
import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support import coco_folder
from train import inputs
from train.configs import coco_faster_rcnn
from train.data import examples, make_source, report, train_loader
from train.data.source import OrientationWarning
from train.tasks.detection import Detection, padded_boxes

SETTINGS = {
    "batch_size": 2,
    "canvases": ((80, 80),),
    "short_sides": (48,),
    "max_side": 64,
    "flip": True,
    "seed": 0,
}


@pytest.fixture
def content(tmp_path) -> dict:
    return coco_folder.write_coco_folder(tmp_path / "coco", "val")


def _open(where: Path, content: dict, **options):
    coco_folder.write_instances(where / "coco", "val", content)
    folder = str(where / "coco")
    return make_source(
        "coco_instances", "val", where / "data", folder=folder, **options
    )


def training_line(source, **options) -> str:
    defaults = {"max_boxes": 100, "skip_empty": True, "masks": False}
    return report.training_line(source, "val", **(defaults | options))


def _change(content: dict, changes: list[dict]) -> dict:
    """Changes the first annotations."""
    changed = copy.deepcopy(content)
    for annotation, change in zip(changed["annotations"], changes, strict=False):
        annotation.update(change)
    return changed


def test_what_is_left_out_is_counted_by_the_reason(tmp_path, content):
    changes = [
        {"ignore": 1},
        {"ignore": True},
        {"ignore": 0},
        {"area": 0},
        {"area": -4.0},
        {"bbox": [10, 10, 0, 5]},
        {"bbox": [10, 10, 5, 1e-9]},
        {"bbox": [500, 10, 5, 5]},
        {"bbox": [10, 10, 5, 5], "segmentation": [[1, 2, 3, 4]]},
    ]
    source = _open(tmp_path, _change(content, changes))
    assert source.left_out == {
        "marked `ignore`": 2,
        "`area` of 0 or less": 2,
        # With the empty box that the folder has.
        "boxes without width or height": 3,
        "boxes outside of the image": 1,
        "crowds": 1,
    }
    assert source.num_boxes.tolist() == [1, 0, 1, 3, 3, 0, 0, 3]
    assert [len(source[i].boxes) for i in range(8)] == source.num_boxes.tolist()
    assert sum(source.bad_masks.values()) == 1
    line = training_line(source, max_boxes=2)
    assert line == (
        "val: 5 of 8 images (3 have no usable object: `skip_empty`);"
        " 8 of 20 objects are used in training;"
        " objects over `max_boxes` (2), which count as background: 3 (in 3 images);"
        " not trained on: marked `ignore` (2), `area` of 0 or less (2),"
        " boxes without width or height (3), boxes outside of the image (1),"
        " crowds (1);"
        " masks that are not kept: a polygon is not [x1, y1, x2, y2, x3, ...] (1)"
    )
    line = report.evaluation_line(source, "val", masks=False)
    assert line.startswith("val: 8 images, 20 objects in evaluation; not trained on: ")


def test_objects_without_a_mask_are_counted_where_masks_are_learned(tmp_path, content):
    """Crowds, and what is not used otherwise, count neither way."""
    changes = [
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": []},
        {"segmentation": [], "area": 0},
        {"segmentation": [], "iscrowd": 1},
    ]
    source = _open(tmp_path, _change(content, changes))
    assert source.without_mask == 2
    assert [not s for s in source[0].segmentations] == [True, True]
    line = training_line(source, masks=True)
    assert "; 14 of 16 usable objects have a mask (the others, which" in line
    assert "which train boxes alone: 2); not trained on: " in line
    line = report.evaluation_line(source, "val", masks=True)
    assert "the others, which mask AP leaves out: 2); " in line
    for masks in (False, True):
        every = _open(tmp_path, content)
        line = training_line(every, masks=masks)
        assert "18 of 18 usable objects have a mask; " in line or not masks
        assert ("mask" in line) == masks


def test_ignored_objects_count_in_no_evaluation(tmp_path, content):
    source = _open(tmp_path, _change(content, [{"ignore": 1}]))
    first, second = source.ground_truth()["annotations"][:2]
    assert first["iscrowd"] == 1 and second["iscrowd"] == 0
    assert first == {**content["annotations"][0], "iscrowd": 1}


@pytest.mark.parametrize("side", [0, 1e-30, 1e-9, 1e-4, 5e-3])
def test_boxes_of_no_width_are_not_used(side):
    common = {"area": 9, "iscrowd": 0, "category_id": 1, "segmentation": []}
    for bbox in ([600, 10, side, 5], [10, 600, 5, side], [640 - side, 0, 40, 40]):
        found = examples.usable_objects([{"bbox": bbox, **common}], 640, 640)
        assert len(found.boxes) == 0
    annotation = {"bbox": [0, 0, 640, 0.5], **common}
    found = examples.usable_objects([annotation], 640, 640)
    assert found.boxes.tolist() == [[0, 0, 640, 0.5]]


def test_boxes_that_vanish_when_scaled_do_not_reach_training(tmp_path, content):
    image = {**content["images"][0], "id": 5, "file_name": "wide.png"}
    image |= {"height": 20, "width": 20_000}
    pixels = np.zeros((20, 20_000, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "coco" / "val" / "wide.png"), pixels)
    boxes = [[19_000 + k, 2, 0.02, 9] for k in range(20)] + [[5, 2, 900, 9]]
    content["images"] = [image]
    content["annotations"] = [
        {"id": i, "image_id": 5, "category_id": 1, "bbox": box, "area": 9}
        for i, box in enumerate(boxes, start=1)
    ]
    source = _open(tmp_path, content)
    targets = functools.partial(padded_boxes, max_boxes=40)
    loader = train_loader(source, targets, index=np.arange(1), **SETTINGS)
    for _ in range(4):
        batch = next(loader)
        boxes = batch["boxes"][batch["valid"]]
        assert len(boxes) >= 2
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (batch["labels"][batch["valid"]] == 1).all()
        assert (batch["boxes"][~batch["valid"]] == 0).all()


def test_images_without_objects(tmp_path, content):
    source = _open(tmp_path, content)
    line = training_line(source, skip_empty=False)
    assert line.startswith("val: 8 of 8 images (2 of them without objects); 18 of 20")
    targets = functools.partial(padded_boxes, max_boxes=4)
    batches = train_loader(
        source, targets, index=np.arange(8), **SETTINGS, num_epochs=1
    )
    assert sum((~batch["valid"].any(1)).sum() for batch in batches) == 2


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_orientation_tags_are_told_and_applied_where_asked(
    tmp_path, content, orientation
):
    path = tmp_path / "coco" / "val" / content["images"][0]["file_name"]
    stored = _open(tmp_path, content)[0].image
    coco_folder.tag(path, orientation)
    with pytest.warns(OrientationWarning, match=r"^val: .*: 1 in .*/val\. If"):
        source = _open(tmp_path, content)
    np.testing.assert_array_equal(source[0].image, stored)
    line = report.evaluation_line(source, "val", masks=False)
    assert line.endswith("images whose orientation tag is not applied (`upright`): 1")
    if orientation == 6:
        with pytest.raises(ValueError, match=r"orientation tag \(6\) was applied"):
            _open(tmp_path, content, upright=True)
        height, width = content["images"][0]["height"], content["images"][0]["width"]
        content["images"][0].update(height=width, width=height)
        with pytest.raises(ValueError, match=r"orientation tag \(6\) was not applied"):
            _open(tmp_path, content)
    source = _open(tmp_path, content, upright=True)
    turned = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 6: np.rot90(stored, -1)}
    np.testing.assert_array_equal(source[0].image, turned[orientation])
    assert source.sizes[0].tolist() == list(source[0].image.shape[:2])
    line = report.evaluation_line(source, "val", masks=False)
    assert line.endswith("is applied (`upright`): 1")


def test_a_run_says_it_once(tmp_path, content):
    path = tmp_path / "coco" / "val" / content["images"][0]["file_name"]
    coco_folder.tag(path, 3)
    config = coco_faster_rcnn.get_config()
    config.data.update(
        {"train_split": "val", "data_dir": str(tmp_path / "data"), "max_boxes": 2}
    )
    config.data.options.folder = str(tmp_path / "coco")
    config.update({"steps": 0, "epochs": 2.0, "batch_size": 2})
    task = Detection()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("train")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        source = inputs.open_source(config, task, "val")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    *preparation, line = stream.getvalue().splitlines()
    assert [text.split()[0] for text in preparation] == ["preparing", "prepared"]
    assert "over `max_boxes` (2), which count as background: 6 (in 6 images)" in line
    assert "orientation tag is not applied (`upright`): 1" in line
    assert inputs.count_steps(config, task, source) == 6
    config.data.skip_empty = False
    assert inputs.count_steps(config, task, source) == 8
