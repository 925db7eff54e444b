"""A COCO folder is stored faithfully, and every flaw of it gets one clear line."""

import copy
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_jax.images.files import read_image
from tests.support import coco_folder
from train.data import eval_loader, examples, make_source
from train.data.sets import coco_annotations
from train.data.source import Source

SPLIT = "train2017"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("coco")
    coco_folder.write_coco_folder(path, SPLIT)
    return path


@pytest.fixture(scope="module")
def content(folder) -> dict:
    return json.loads((folder / f"annotations/instances_{SPLIT}.json").read_text())


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory) -> Source:
    data_dir = tmp_path_factory.mktemp("prepared")
    return make_source("coco_instances", SPLIT, data_dir, folder=str(folder))


def test_annotations_are_kept(source, content):
    truth = source.ground_truth()
    assert truth["annotations"] == content["annotations"]
    kept = [
        {k: i[k] for k in ("id", "height", "width", "file_name")}
        for i in content["images"]
    ]
    assert truth["images"] == kept
    assert [c["id"] for c in truth["categories"]] == [1, 18, 90]


def test_images_are_read_where_they_lie(source, folder, content):
    for i, image in enumerate(content["images"]):
        path = folder / SPLIT / image["file_name"]
        np.testing.assert_array_equal(source[i].image, read_image(path))


def test_images_are_not_copied(tmp_path):
    content = coco_folder.write_coco_folder(tmp_path, "val")
    _prepare(tmp_path)
    pieces = [
        (tmp_path / "val" / image["file_name"]).read_bytes()[300:400]
        for image in content["images"]
    ]
    for path in (tmp_path / "data").rglob("*"):
        stored = path.read_bytes() if path.is_file() else b""
        assert not any(piece in stored for piece in pieces), path


def test_images_are_found_from_another_folder(tmp_path, monkeypatch):
    coco_folder.write_coco_folder(tmp_path / "coco", "val")
    monkeypatch.chdir(tmp_path)
    source = make_source("coco_instances", "val", "data", folder="coco")
    monkeypatch.chdir("/")
    assert source[0].image.shape == (96, 128, 3)


def _replace(path: Path, how: str) -> None:
    """Changes an image file of a data set that is prepared."""
    data = path.read_bytes()
    path.unlink()
    if how == "other size":
        path.write_bytes(cv2.imencode(".jpg", np.zeros((30, 40, 3), np.uint8))[1])
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "large":
        path.write_bytes(cv2.imencode(".jpg", np.zeros((900, 900, 3), np.uint8))[1])
    elif how == "a pipe":
        os.mkfifo(path)


# What is said of an image file that changed since the data set was prepared.
CHANGED = {
    "gone": "000139.jpg: no such image file",
    "other size": r"000139.jpg has \(height, width\) \(30, 40\), and had \(96, 128\) "
    "when the data set was prepared. It is prepared again when the run is started",
    "cut": "000139.jpg is broken: it cannot be decoded",
    "large": "000139.jpg has 900 x 900 pixels; at most 500000 are allowed",
    "a pipe": "000139.jpg' is a pipe",
}


@pytest.mark.parametrize("how", CHANGED)
def test_an_image_that_changed_since_is_named(tmp_path, how):
    coco_folder.write_coco_folder(tmp_path, "val")
    source = _prepare(tmp_path, max_pixels=500_000)
    _replace(tmp_path / "val" / "000000000139.jpg", how)
    assert source[1].image.shape == (128, 96, 3)
    with pytest.raises((ValueError, OSError), match=CHANGED[how]) as error:
        source[0]
    assert str(tmp_path) in str(error.value) and str(error.value).isprintable()


def test_a_worker_names_an_image_that_is_gone(tmp_path):
    coco_folder.write_coco_folder(tmp_path, "val")
    source = _prepare(tmp_path)
    _replace(tmp_path / "val" / "000000000139.jpg", "gone")
    batches = eval_loader(
        source,
        batch_size=8,
        canvases=[(64, 96), (96, 64), (80, 80)],
        short_side=64,
        max_side=96,
        workers=1,
    )
    with pytest.raises(OSError, match=r"000139.jpg: no such image file"):
        list(batches)
    batches.close()


def test_labels_and_usable_boxes(source, content):
    assert len(source.categories) == 3
    assert [c["id"] for c in source.categories] == [1, 18, 90]
    # The sixth image shows a crowd and an empty box, the seventh nothing.
    assert source.num_boxes.tolist() == [3, 3, 3, 3, 3, 0, 0, 3]
    for i, image in enumerate(content["images"]):
        example = source[i]
        assert example.image.shape == (image["height"], image["width"], 3)
        assert example.image_id == image["id"]
        assert example.boxes.shape == (source.num_boxes[i], 4)
    truth = content["annotations"][0]
    x, y, width, height = truth["bbox"]
    np.testing.assert_allclose(source[0].boxes[0], [x, y, x + width, y + height])
    assert source[0].labels.tolist() == [1, 2, 3]
    kept = [a["segmentation"] for a in content["annotations"][:3]]
    assert source[0].segmentations == kept


def test_usable_boxes_are_clipped():
    def annotation(bbox, area=1.0, crowd=0):
        found = {"bbox": bbox, "area": area, "iscrowd": crowd, "category_id": 5}
        return found | {"segmentation": [bbox]}

    boxes, ids, segmentations = examples.usable_objects(
        [
            annotation([-5, -5, 10, 10]),
            annotation([90, 40, 20, 20]),
            annotation([100, 0, 5, 5]),  # beyond the right border
            annotation([0, 0, 5, 5], area=0),
            annotation([0, 0, 5, 5], crowd=1),
            annotation([3, 3, 0, 5]),
        ],
        height=50,
        width=100,
    )
    np.testing.assert_array_equal(boxes, [[0, 0, 5, 5], [90, 40, 100, 50]])
    assert ids.tolist() == [5, 5]
    assert segmentations == [[[-5, -5, 10, 10]], [[90, 40, 20, 20]]]
    assert examples.usable_objects([], 5, 5).boxes.shape == (0, 4)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_detections_have_ap_1(tmp_path, kind):
    coco_folder.write_coco_folder(tmp_path, "val", empty_box=False)
    source = _prepare(tmp_path)
    truth = COCO()
    truth.dataset = source.ground_truth()
    truth.createIndex()
    detections = []
    for annotation in source.ground_truth()["annotations"]:
        if not annotation["iscrowd"]:
            keys = ("image_id", "category_id")
            detection = {key: annotation[key] for key in keys}
            if kind == "bbox":
                detection["bbox"] = annotation["bbox"]
            else:
                detection["segmentation"] = truth.annToRLE(annotation)
            detections.append({**detection, "score": 0.9})
    evaluation = COCOeval(truth, truth.loadRes(detections), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_eval_sees_every_image_once(source, content):
    batches = list(
        eval_loader(
            source,
            batch_size=3,
            canvases=[(64, 96), (96, 64), (80, 80)],
            short_side=64,
            max_side=96,
        )
    )
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert sorted(ids[ids >= 0]) == sorted(i["id"] for i in content["images"])
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    for batch in batches:
        assert batch["images"].shape[0] == 3
        for row, image_id in enumerate(batch["image_id"]):
            if image_id >= 0:
                assert tuple(batch["original_sizes"][row]) == sizes[image_id]


def test_other_layouts(tmp_path, folder, content):
    (tmp_path / "valid").symlink_to(folder / SPLIT)
    (tmp_path / "valid.json").write_text(json.dumps(content))
    source = make_source(
        "coco_instances",
        "valid",
        tmp_path / "data",
        folder=str(tmp_path),
        images="{split}",
        annotations="{split}.json",
    )
    assert len(source) == len(content["images"])


def test_missing_fields_are_filled_in(tmp_path, content):
    changed = copy.deepcopy(content)
    for annotation in changed["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    changed["annotations"][0].pop("segmentation")
    (tmp_path / "instances.json").write_text(json.dumps(changed))
    read = coco_annotations.read_instances(tmp_path / "instances.json")
    first, *rest = [a for image in read.annotations.values() for a in image]
    assert first["area"] == first["bbox"][2] * first["bbox"][3]
    assert first["segmentation"] == [] and first["iscrowd"] == 0
    for found, truth in zip(rest, content["annotations"][1:], strict=True):
        assert found["area"] == truth["area"]


# What the error says: (list, position in it, field, wrong value).
MISTAKES = {
    "annotation 1007: unknown image id 42": ("annotations", 0, "image_id", 42),
    "annotation 1007: unknown image id '139'": ("annotations", 0, "image_id", "139"),
    "annotation 2007: unknown category id 2": ("annotations", 1, "category_id", 2),
    "2007: unknown category id None": ("annotations", 1, "category_id", None),
    "two of `images` have the id 139": ("images", 1, "id", 139),
    "two of `annotations` have the id 1007": ("annotations", 4, "id", 1007),
    "two of `categories` have the id 1": ("categories", 2, "id", 1),
    "two of `categories` have the name 'disc'": ("categories", 1, "name", "disc"),
    "an image has the id -1; expected 0": ("images", 0, "id", -1),
    "`bbox` is [1, 2, <integer of": ("annotations", 0, "bbox", [1, 2, 10**400, 4]),
    "1007: `area` is <integer of about": ("annotations", 0, "area", 10**4000),
    "`images[0]` has no integer `id`": ("images", 0, "id", "a"),
    "`annotations` is missing or not a list": ("annotations", None, None, {}),
    "`images` is empty": ("images", None, None, []),
    "`categories` is empty": ("categories", None, None, []),
    "image 139: `height` is 0; expected pixels": ("images", 0, "height", 0),
    "image 139: `file_name` is None; expected": ("images", 0, "file_name", None),
    "`file_name` '../139.jpg' leads out": ("images", 0, "file_name", "../139.jpg"),
    "`file_name` '/etc/passwd' leads out": ("images", 0, "file_name", "/etc/passwd"),
    "annotation 1007: `bbox` is [1, 2, 3]": ("annotations", 0, "bbox", [1, 2, 3]),
    "`bbox` is [1, 2, -3, 4]": ("annotations", 0, "bbox", [1, 2, -3, 4]),
    "`bbox` is [1, 2, nan, 4]": ("annotations", 0, "bbox", [1, 2, float("nan"), 4]),
    "annotation 1007: `area` is 'big'": ("annotations", 0, "area", "big"),
    "annotation 1007: `iscrowd` is 7": ("annotations", 0, "iscrowd", 7),
    "annotation 1007: `ignore` is 2; expected": ("annotations", 0, "ignore", 2),
    "`bbox` is [0, 0, 0, 0, 0, 0, 0, 0, ...]": ("annotations", 0, "bbox", [0] * 10**5),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_in_the_json_get_one_line(tmp_path, content, message):
    key, position, field, value = MISTAKES[message]
    changed = copy.deepcopy(content)
    if position is None:
        changed[key] = value
    else:
        changed[key][position][field] = value
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError) as error:
        coco_annotations.read_instances(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_are_said_at_once(tmp_path, content):
    changed = copy.deepcopy(content)
    changed["images"][0]["height"] = "\x1b[31m"
    for annotation in changed["annotations"]:
        annotation["bbox"] = annotation["bbox"][:3]
    path = coco_folder.write_instances(tmp_path, "val", changed)
    with pytest.raises(ValueError) as error:
        coco_annotations.read_instances(path)
    count = 1 + len(changed["annotations"])
    text = str(error.value)
    assert text.startswith(f"{path}: {count} mistakes: image 139: `height` is '")
    assert "; annotation 1007: `bbox` is" in text and text.isprintable()
    assert text.endswith(f"; and {count - 10} more") and text.count("`bbox`") == 9


@pytest.mark.parametrize("digits", [4000, 5000])
def test_long_numbers_get_a_short_line(tmp_path, content, digits):
    text = json.dumps(content).replace('"image_id": 139', f'"image_id": {"9" * digits}')
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"image id <integer of|not valid JSON"
    ) as error:
        coco_annotations.read_instances(path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_malformed_json(tmp_path, text):
    path = tmp_path / "instances.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"instances\.json is not valid JSON"):
        coco_annotations.read_instances(path)


def _prepare(where: Path, **options) -> Source:
    options = {"folder": str(where), **options}
    return make_source("coco_instances", "val", where / "data", **options)


def test_mistakes_in_the_folder_get_one_line(tmp_path):
    content = coco_folder.write_coco_folder(tmp_path, "val")
    name = content["images"][2]["file_name"]
    path = tmp_path / "val" / name
    good = path.read_bytes()

    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=f"{name} is broken: it cannot be decoded"):
        _prepare(tmp_path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=f"{name} is not a JPEG or PNG image"):
        _prepare(tmp_path)
    path.write_bytes(cv2.imencode(".jpg", np.zeros((30, 40, 3), np.uint8))[1])
    with pytest.raises(ValueError, match=rf"{name} has .* \(30, 40\); .* says \(112,"):
        _prepare(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such image file"):
        _prepare(tmp_path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{name}' is a pipe .*; expected a regular"):
        _prepare(tmp_path)
    path.unlink()
    path.touch()
    os.truncate(path, 10 * 10**9)
    with pytest.raises(ValueError, match=f"{name}' has 10000000000 bytes; expected"):
        _prepare(tmp_path)
    path.write_bytes(good)
    with pytest.raises(
        ValueError, match=r"139\.jpg has 96 x 128 pixels; at most 11699"
    ):
        _prepare(tmp_path, max_pixels=11699)
    assert len(_prepare(tmp_path)) == len(content["images"])
    with pytest.raises(ValueError, match="at most 11699 are allowed"):
        _prepare(tmp_path, max_pixels=11699)


def test_all_broken_images_are_said_at_once(tmp_path):
    content = coco_folder.write_coco_folder(tmp_path, "val")
    pixels = (tmp_path / "val" / content["images"][0]["file_name"]).read_bytes()
    for number in range(20):
        image = {**content["images"][0], "id": 5000 + number}
        image["file_name"] = f"{number}.jpg"
        (tmp_path / "val" / image["file_name"]).write_bytes(pixels[: 30 * number])
        content["images"].append(image)
    (tmp_path / "val" / "3.jpg").unlink()
    coco_folder.write_instances(tmp_path, "val", content)
    with pytest.raises(ValueError) as error:
        _prepare(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/val: 20 broken images: 0.jpg is not a JPEG")
    assert text.endswith("; and 10 more") and text.isprintable()
    assert "; 3.jpg: no such image file; " in text and len(text) < 1500


@pytest.mark.parametrize("kind", ["pipe", "device", "holes", "zeros"])
def test_annotations_are_a_regular_file(tmp_path, kind):
    path = tmp_path / "instances.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 10 * 10**9 if kind == "holes" else 6 * 10**9)
    with pytest.raises(ValueError, match=r"instances\.json") as error:
        coco_annotations.read_instances(path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "/no/such/place"}, "`folder` '/no/such/place': no such folder"),
        ({"folder": ""}, "`folder` '': no such folder"),
        ({"images": "test"}, "test: no such folder of images"),
        ({"annotations": "a.json"}, "a.json: no such annotation file$"),
        (
            {"annotations": "annotations/train.json"},
            "train.json: no such annotation file; its folder has instances_val.json$",
        ),
    ],
)
def test_missing_places(tmp_path, options, message):
    coco_folder.write_coco_folder(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=message):
        _prepare(tmp_path, **options)


def test_split_must_be_a_word(tmp_path):
    with pytest.raises(ValueError, match=r"`split` is '\.\./val'; expected letters"):
        make_source("coco_instances", "../val", tmp_path, folder=str(tmp_path))
