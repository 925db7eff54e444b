"""A Cityscapes folder: label ids become the train ids of the 19 classes."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support import cityscapes_folder
from train.data import make_source
from train.data.sets.cityscapes_labels import CLASSES, train_ids
from train.data.source import Source


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cityscapes") / "cityscapes"
    return cityscapes_folder.write_cityscapes_folder(folder)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "cityscapes")


def _open(folder: Path, split: str = "train", **options) -> Source:
    data_dir = folder.parent / "data"
    return make_source("cityscapes", split, data_dir, folder=str(folder), **options)


def test_train_ids():
    """As the paper's 19 classes stand in the published table."""
    table = train_ids()
    assert table.dtype == np.uint8 and table.shape == (256,)
    judged = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert table[judged].tolist() == list(range(19))
    others = np.setdiff1d(np.arange(256), judged)
    assert (table[others] == 255).all()
    assert len({row.colour for row in CLASSES}) == 19


def test_labels(written):
    source = _open(written)
    assert len(source) == 3
    assert len(source.categories) == 19
    assert source.categories[13] == {"id": 26, "name": "car"}
    places = [("aachen", 0), ("aachen", 1), ("bochum", 0)]
    for row, (city, number) in enumerate(places):
        label_ids = cityscapes_folder.labels_of("train", city, number)
        example = source[row]
        expected = np.full(label_ids.shape, 255)
        for train_id, label in enumerate(CLASSES):
            expected[label_ids == label.label_id] = train_id
        np.testing.assert_array_equal(example.label_map, expected)
        np.testing.assert_array_equal(source.label_map(example.image_id), expected)
        # Road is painted in its colour, to the pixel.
        assert (example.image[expected == 0] == CLASSES[0].colour).all()
        assert source.labelled[row] == (expected != 255).sum()
    assert (source.num_boxes == 0).all()
    files = [image["file_name"] for image in source.ground_truth()["images"]]
    assert files[2] == "leftImg8bit/train/bochum/bochum_000000_000000_leftImg8bit.png"
    assert len(_open(written, "val")) == 2


def test_images_are_read_where_they_lie(folder):
    source = _open(folder)
    name = source.ground_truth()["images"][0]["file_name"]
    cv2.imwrite(str(folder / name), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=r"8bit\.png has .* \(30, 40\), and had"):
        source[0]


def test_a_new_image_is_noticed(folder):
    assert len(_open(folder)) == 3
    for kind, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        old = folder / kind / "train/bochum" / f"bochum_000000_000000_{name}.png"
        shutil.copy(old, old.with_name(f"bochum_000000_000001_{name}.png"))
    assert len(_open(folder)) == 4
    shutil.rmtree(folder / "leftImg8bit/train/aachen")
    assert len(_open(folder)) == 2


def test_mistakes_get_one_line(folder):
    with pytest.raises(ValueError, match=r"`split` is '\.\./val'; expected letters"):
        _open(folder, "../val")
    with pytest.raises(FileNotFoundError, match="leftImg8bit/test: no such folder"):
        _open(folder, "test")
    labels = folder / "gtFine/train/aachen"
    first = labels / "aachen_000000_000000_gtFine_labelIds.png"
    second = labels / "aachen_000000_000001_gtFine_labelIds.png"
    label_ids = cv2.imread(str(first), cv2.IMREAD_UNCHANGED)
    label_ids[0, 0] = 34
    cv2.imwrite(str(first), label_ids)
    second.unlink()
    with pytest.raises(ValueError) as error:
        _open(folder)
    text = str(error.value)
    assert text.startswith(
        f"{folder}: 2 mistakes: gtFine/train/aachen/aachen_000000_00"
    )
    assert "has pixels of the label 34, which Cityscapes does not have; " in text
    assert text.endswith("000001_gtFine_labelIds.png: no such label file")
    (folder / "leftImg8bit/test/berlin").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"test: no images CITY/\*_leftImg8bit"):
        _open(folder, "test")
