"""A VOCdevkit folder is read faithfully, and every flaw of it gets one clear line."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dcn_jax.detection.records import Detections
from dcn_jax.images.files import read_image
from dcn_jax.images.geometry import Geometry
from tests.support import voc_folder
from train.data import make_source
from train.data.sets import voc_annotations
from train.data.sets.voc_folder import CLASSES, parts_of
from train.data.source import DataSet, Source
from train.tasks.detection import Detection


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return voc_folder.write_voc_folder(tmp_path_factory.mktemp("voc") / "VOCdevkit")


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A folder of one's own."""
    return shutil.copytree(written, tmp_path / "VOCdevkit")


def _open(folder: Path, split: str = "2007_trainval", **options) -> Source:
    data_dir = folder.parent / "data"
    return make_source("voc", split, data_dir, folder=str(folder), **options)


@pytest.fixture(scope="module")
def joined(written) -> Source:
    return _open(written, "2007_trainval+2012_trainval")


def test_boxes_become_ours(joined):
    names = [(year, name) for year in (2007, 2012) for name in _trainval(year)]
    assert len(joined) == len(names) == 6
    for i, (year, name) in enumerate(names):
        size, shapes = voc_folder.IMAGES[year][name]
        example = joined[i]
        assert example.image.shape == (*size, 3) and example.label_map is None
        easy = [shape for shape in shapes if not shape.difficult]
        expected = [(x1 - 1, y1 - 1, x2, y2) for _, (x1, y1, x2, y2), _ in easy]
        np.testing.assert_array_equal(
            example.boxes, np.array(expected, np.float32).reshape(-1, 4)
        )
        labels = [CLASSES.index(shape.name) + 1 for shape in easy]
        assert example.labels.tolist() == labels
        assert example.image_id == i + 1
    # A box holds what was painted, to the last row and column; JPEG blurs its edges.
    x1, y1, x2, y2 = joined[0].boxes[1].astype(int)
    assert (y2, x2) == (60, 90)
    colour = joined[0].image[y1 + 4 : y2, x1 + 4 : x2].astype(int)
    assert np.abs(colour - colour[5, 5]).max() < 20


def test_images_are_read_where_they_lie(folder):
    source = _open(folder)
    path = folder / "VOC2007/JPEGImages/000005.jpg"
    np.testing.assert_array_equal(source[0].image, read_image(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000005\.jpg: no such image file"):
        source[0]


def _trainval(year: int) -> list[str]:
    return voc_folder.LISTS[year]["trainval"]


def test_what_is_difficult_is_kept_and_not_trained_on(joined):
    assert joined.num_boxes.tolist() == [2, 0, 1, 1, 1, 1]
    assert joined.left_out == {"marked `difficult`": 2}
    assert joined.without_mask == 6
    truth = joined.ground_truth()
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1, 0, 1, 0, 0, 0]
    assert truth["images"][0]["file_name"] == "VOC2007/JPEGImages/000005.jpg"
    assert [c["name"] for c in truth["categories"]] == list(CLASSES)
    assert truth["categories"][0]["id"] == 1
    line = Detection().summary(joined, "2007_trainval+2012_trainval", _data_section())
    assert "6 of 8 objects are used in training" in line
    assert "not trained on: marked `difficult` (2)" in line


def _data_section():
    from train.configs import _detection

    data = _detection.get_config("faster_rcnn_fpn").data
    data.train_split = "2007_trainval+2012_trainval"
    return data


@pytest.mark.parametrize(
    ("split", "count", "rule"),
    [
        ("2007_test", 2, "voc_11point"),
        ("2012_train", 1, "voc_area"),
        ("2007_trainval+2007_test", 4, "voc_11point"),
        ("2012_train+2012_trainval", 3, "voc_area"),
        ("2012_val+2007_test", 3, "voc_area"),
    ],
)
def test_splits(written, split, count, rule):
    source = _open(written, split)
    assert len(source) == count
    assert source.judged_by == rule


def test_no_split_is_confused_with_another(written):
    for _ in range(2):
        assert len(_open(written, "2007_trainval")) == 3
        assert len(_open(written, "2007_trainval+2012_train")) == 4


@pytest.mark.parametrize("split", ["trainval", "2007", "2007_a+", "07_a", "2007_../a"])
def test_other_splits_are_refused(written, split):
    with pytest.raises(ValueError, match="expected YEAR_LIST, such as 2007_trainval"):
        parts_of(split)
    with pytest.raises(ValueError, match="`split` is '"):
        _open(written, split)


def _changed(old: str, new: str, count: int = 1):
    return lambda text: text.replace(old, new, count)


_XMIN, _XMAX = "<xmin>1</xmin>", "<xmax>40</xmax>"
# What is said: how the XML of 000005 (of 60 x 90 pixels) is changed.
MISTAKES = {
    "000005.xml: object 2: the class 'unicorn' is none of VOC's": _changed(
        "<name>dog", "<name>unicorn"
    ),
    "object 1: the class '' is none of": _changed("<name>cat</name>", ""),
    "object 1: it has no `bndbox`": lambda text: text.replace("bndbox", "box"),
    "object 1: `xmin` is ''; expected a number": _changed(_XMIN, ""),
    "`xmin` is 'left'; expected a number": _changed(_XMIN, "<xmin>left</xmin>"),
    "`xmin` is 'nan'; expected a number": _changed(_XMIN, "<xmin>nan</xmin>"),
    "`xmax` is '1e300'; expected a number": _changed(_XMAX, "<xmax>1e300</xmax>"),
    "`bndbox` is (1, 1, 0, 30); expected xmin <=": _changed(_XMAX, "<xmax>0</xmax>"),
    "`bndbox` is (-1, 1, 40, 30), out of the": _changed(_XMIN, "<xmin>-1</xmin>"),
    "(1, 1, 92, 30), out of the image of 90 x 60; expected x from 1 to 90,": _changed(
        _XMAX, "<xmax>92</xmax>"
    ),
    "object 2: `difficult` is 'yes'; expected 0 or 1": lambda text: _second(
        text, "<difficult>0", "<difficult>yes"
    ),
    "its outermost element is 'html'; expected annotation": lambda text: "<html/>",
    "is not valid XML: mismatched tag": _changed("</size>", ""),
    "is not valid XML: no element found": lambda text: "",
    "it has a document type (DTD)": lambda text: f"<!DOCTYPE annotation>{text}",
}  # fmt: skip


def _second(text: str, old: str, new: str) -> str:
    first, second, rest = text.split(old, 2)
    return first + old + second + new + rest


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_get_one_line(written, message):
    path = written / "VOC2007/Annotations/000005.xml"
    text = MISTAKES[message](path.read_text())
    with pytest.raises(ValueError) as error:
        voc_annotations.read_objects(text.encode(), path, (60, 90))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "corners",
    [("0", "0", "90", "60"), ("1", "1", "91", "61"), ("0.5", "1.5", "9", "9")],
)
def test_a_pixel_beyond_the_border_is_clipped(folder, corners):
    path = folder / "VOC2007/Annotations/000005.xml"
    text = path.read_text()
    for tag, old, new in zip(
        ("xmin", "ymin", "xmax", "ymax"), (1, 1, 40, 30), corners, strict=True
    ):
        text = text.replace(f"<{tag}>{old}<", f"<{tag}>{new}<", 1)
    path.write_text(text)
    x1, y1, x2, y2 = _open(folder)[0].boxes[0]
    assert 0 <= x1 < x2 <= 90 and 0 <= y1 < y2 <= 60
    assert (x2, y2) == (min(float(corners[2]), 90), min(float(corners[3]), 60))


HOSTILE = {
    "entities": '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]>'
    "<annotation>&z;</annotation>",
    "file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation>&x;</annotation>",
    "deep": "<annotation>" + "<a>" * 50_000,
    "encoding": '<?xml version="1.0" encoding="martian"?><annotation/>',
    "control": "<annotation>\x1b[31m</annotation>",
    "undefined": "<annotation>&y;</annotation>",
    "binary": "\x89PNG\r\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_xml_is_refused(kind):
    with pytest.raises(ValueError, match="is not valid XML: ") as error:
        voc_annotations.read_objects(HOSTILE[kind].encode(), Path("a.xml"), None)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_all_mistakes_are_said_at_once(folder):
    annotations, images = folder / "VOC2007/Annotations", folder / "VOC2007/JPEGImages"
    path = annotations / "000005.xml"
    path.write_text(path.read_text().replace("bndbox", "box"))
    (annotations / "000007.xml").unlink()
    (images / "000009.jpg").write_bytes(b"GIF89a")
    path = annotations / "000009.xml"
    path.write_text(path.read_text().replace("<name>car", "<name>\x9b"))
    with pytest.raises(ValueError) as error:
        _open(folder)
    text = str(error.value)
    assert text.startswith(f"{folder}: 5 mistakes: VOC2007/Annotations/000005.xml: obj")
    for said in (
        "000005.xml: object 2: it has no `bndbox`",
        "VOC2007/Annotations/000007.xml: no such file of annotations",
        "VOC2007/JPEGImages/000009.jpg is not a JPEG or PNG image",
        r"000009.xml: object 1: the class '\x9b' is none of VOC's",
    ):
        assert said in text
    assert text.isprintable()
    assert not list((folder.parent / "data/voc_detection").glob("*"))


def test_missing_places(folder, tmp_path):
    for name, message in (
        ("", "`folder` '': no such folder"),
        ("/no/such/place", "`folder` '/no/such/place': no such folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            make_source("voc", "2007_test", tmp_path / "data", folder=name)
    with pytest.raises(FileNotFoundError, match="VOC2009: no such folder of the year"):
        _open(folder, "2009_trainval")
    with pytest.raises(FileNotFoundError, match=r"vol\.txt: no such list of images"):
        _open(folder, "2007_vol")
    (folder / "VOC2007/JPEGImages/000005.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000005\.jpg: no such image file"):
        _open(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder", "holes"])
def test_annotations_are_regular_files_of_a_sane_size(folder, kind):
    path = folder / "VOC2007/Annotations/000005.xml"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 10**10)
    with pytest.raises(ValueError, match=r"000005\.xml' (is a|has 10000000000 bytes)"):
        _open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../000005\n", r"line 1 is '\.\./000005'; expected the name of one image"),
        ("000005\n\n000007  -1\n", "line 3 is '000007 -1'; expected the name of one"),
        ("\x1b[31m\n.x\n/etc/passwd", "3 mistakes: line 1 is .*; line 2 is '.x'"),
        ("\n", r"trainval\.txt names no image"),
    ],
)
def test_lists_of_images(folder, text, message):
    (folder / "VOC2007/ImageSets/Main/trainval.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        _open(folder)
    assert str(error.value).isprintable()


def test_what_changes_is_prepared_anew(folder):
    assert _open(folder).num_boxes.tolist() == [2, 0, 1]
    (copy,) = (folder.parent / "data/voc_detection").iterdir()
    assert _open(folder).num_boxes.tolist() == [2, 0, 1]
    assert list((folder.parent / "data/voc_detection").iterdir()) == [copy]
    path = folder / "VOC2007/Annotations/000007.xml"
    path.write_text(path.read_text().replace("<difficult>1", "<difficult>0"))
    assert _open(folder).num_boxes.tolist() == [2, 1, 1]
    (folder / "VOC2007/ImageSets/Main/trainval.txt").write_text("000005\n")
    assert _open(folder).num_boxes.tolist() == [2]
    path.unlink()
    assert _open(folder).num_boxes.tolist() == [2]


def test_categories_are_known_before_an_image_is_read(folder):
    shutil.rmtree(folder / "VOC2007/JPEGImages")
    data_set = DataSet("voc", "2007_test", folder / "data", folder=str(folder))
    assert [c["name"] for c in data_set.categories] == list(CLASSES)


def perfect(source: Source, *, left_out: bool) -> list[Detections]:
    """The objects of each image, in a canvas of twice its size.

    Args:
      source: The split.
      left_out: Whether those are found too that do not count.
    """
    truth = source.ground_truth()
    predictions = []
    for image in truth["images"]:
        found = [
            a
            for a in truth["annotations"]
            if a["image_id"] == image["id"] and (left_out or not a["iscrowd"])
        ]
        boxes = np.zeros((9, 4), np.float32)
        for row, annotation in enumerate(found):
            x, y, width, height = annotation["bbox"]
            boxes[row] = 2 * np.array([x, y, x + width, y + height])
        labels = np.ones(9, np.int32)
        labels[: len(found)] = [a["category_id"] for a in found]
        valid = np.arange(9) < len(found)
        scores = np.linspace(0.9, 0.1, 9, dtype=np.float32)
        predictions.append(Detections(boxes, scores, labels, valid))
    return predictions


@pytest.mark.parametrize("split", ["2007_trainval+2007_test", "2012_trainval"])
@pytest.mark.parametrize("left_out", [False, True])
def test_perfect_detections_have_map_1(written, split, left_out):
    source = _open(written, split)
    metric = Detection().metric(source)
    for row, prediction in enumerate(perfect(source, left_out=left_out)):
        height, width = source.sizes[row].tolist()
        size = 2 * height, 2 * width
        geometry = Geometry((height, width), size, (200, 200))
        metric.update(prediction, row + 1, geometry)
    scores = metric.compute()
    for name in ("mAP50_11point", "mAP70_11point", "mAP50_area", "mAP70_area"):
        assert scores[f"voc/{name}"] == 1.0
    first = next(iter(scores))
    assert first == f"voc/mAP50_{'area' if '2012' in split else '11point'}"
    per_class = {k: v for k, v in scores.items() if k.startswith("voc_mAP50_per_class")}
    known = {k.rpartition("/")[2] for k, v in per_class.items() if v == 1.0}
    objects = source.ground_truth()["annotations"]
    counted = {CLASSES[o["category_id"] - 1] for o in objects if not o["iscrowd"]}
    assert known == counted and len(per_class) == 20
    assert all(
        v is None for k, v in per_class.items() if k.split("/")[1] not in counted
    )
    # COCO's are offered too.
    assert scores["bbox/AP50"] == pytest.approx(1.0)
    files = metric.files()
    assert files.keys() == {
        "detections.json",
        "precision_recall.json",
        "confusion.json",
    }
    assert files["precision_recall.json"].keys() == {"recall", "voc", "bbox"}
