"""A COCO folder is stored faithfully, and every flaw of it gets one clear line."""

import copy
import json
from pathlib import Path

import coco_folder
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from train.data import coco_annotations, eval_loader, examples, make_source
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


def test_files_are_stored_untouched(source, folder, content):
    for i, image in enumerate(content["images"]):
        data = (folder / SPLIT / image["file_name"]).read_bytes()
        assert source._records[i]["image"] == data


def test_labels_and_usable_boxes(source, content):
    assert len(source.categories) == 3
    assert [source.category_id(label) for label in (1, 2, 3)] == [1, 18, 90]
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


def test_usable_boxes_are_clipped():
    def annotation(bbox, area=1.0, crowd=0):
        return {"bbox": bbox, "area": area, "iscrowd": crowd, "category_id": 5}

    boxes, ids = examples.usable_boxes(
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
    assert examples.usable_boxes([], 5, 5)[0].shape == (0, 4)


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
                np.testing.assert_allclose(
                    batch["scale"][row] * sizes[image_id], batch["sizes"][row], 1e-6
                )


def test_prepares_again_only_when_the_json_changes(tmp_path):
    content = coco_folder.write_coco_folder(tmp_path / "coco", "val")
    arguments = ("coco_instances", "val", tmp_path / "data")
    first = make_source(*arguments, folder=str(tmp_path / "coco"))
    # Nothing is read again: the images may be gone.
    moved = tmp_path / "coco" / "val" / content["images"][0]["file_name"]
    data = moved.read_bytes()
    moved.write_bytes(b"")
    assert len(make_source(*arguments, folder=str(tmp_path / "coco"))) == len(first)
    moved.write_bytes(data)
    content["images"].pop()
    content["annotations"] = []
    coco_folder.write_instances(tmp_path / "coco", "val", content)
    again = make_source(*arguments, folder=str(tmp_path / "coco"))
    assert len(again) == len(first) - 1
    assert again.ground_truth()["annotations"] == []


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


def test_compressed_runs_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.3, 0.99, 1.0):
        mask = (rng.random((63, 70)) < density).astype(np.uint8, order="F")
        counts = coco_mask.encode(mask)["counts"].decode()
        runs = coco_annotations.decode_counts(counts)
        assert runs.tolist() == coco_folder.plain_runs(mask)


FAR = [[1, 2, 3, 4, 5, 1e9]]
OTHER_SIZE = {"size": [5, 5], "counts": [25]}
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
    "`bbox` is [1, 2, 1000": ("annotations", 0, "bbox", [1, 2, 10**400, 4]),
    "annotation 1007: `area` is 1000": ("annotations", 0, "area", 10**400),
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
    "is neither polygons nor": ("annotations", 0, "segmentation", "abc"),
    "a polygon of `segmentation` is": ("annotations", 0, "segmentation", [[1, 2, 3]]),
    "a polygon lies far outside": ("annotations", 0, "segmentation", FAR),
    "has the size [5, 5]; the image": ("annotations", 0, "segmentation", OTHER_SIZE),
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


@pytest.mark.parametrize(
    "counts",
    [
        [12289],
        [-1, 12289],
        ["a"],
        [12288.0],
        None,
        "",
        "zzz",
        "o",
        "\u20ac",
        "\x01",
        "~",
    ],
)
def test_crafted_masks_do_not_reach_pycocotools(tmp_path, content, counts):
    changed = copy.deepcopy(content)
    changed["annotations"][0]["segmentation"] = {"size": [96, 128], "counts": counts}
    path = coco_folder.write_instances(tmp_path, "val", changed)
    with pytest.raises(ValueError, match="do not add up to 96 x 128 pixels"):
        coco_annotations.read_instances(path)


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
    path.write_bytes(good)
    with pytest.raises(
        ValueError, match=r"139\.jpg has 96 x 128 pixels; at most 11699"
    ):
        _prepare(tmp_path, max_pixels=11699)
    assert len(_prepare(tmp_path)) == len(content["images"])
    with pytest.raises(ValueError, match="at most 11699 are allowed"):
        _prepare(tmp_path, max_pixels=11699)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "/no/such/place"}, "`folder` '/no/such/place': no such folder"),
        ({"folder": ""}, "`folder` '': no such folder"),
        ({"images": "test"}, "test: no such folder of images"),
        ({"annotations": "a.json"}, "a.json: no such annotation file"),
    ],
)
def test_missing_places(tmp_path, options, message):
    coco_folder.write_coco_folder(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=message):
        _prepare(tmp_path, **options)


def test_split_must_be_a_word(tmp_path):
    with pytest.raises(ValueError, match=r"`split` is '\.\./val'; expected letters"):
        make_source("coco_instances", "../val", tmp_path, folder=str(tmp_path))
