"""A detector that is asked about pictures: sizes, files, what it refuses."""

import sys
import types

import cv2
import numpy as np
import pytest

from dcn_jax.categories import Category, as_categories
from dcn_jax.detection.records import Detections
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference import Detector
from dcn_jax.inference.detections import ImageDetections

CATEGORIES = (Category(7, "cat"), Category(9, "dog"), Category(12, "eel"))
SMALL = Preprocessing(canvases=((64, 64), (64, 96)), short_side=48, max_side=96)


class WholeImage:
    """Finds the valid part of the canvas, its left half, and nothing."""

    def predict(self, images, sizes):
        assert images.shape[0] == 1 and images.dtype == np.uint8
        (height, width) = np.asarray(sizes[0], np.float32)
        boxes = [[0, 0, width, height], [0, 0, width / 2, height], [0, 0, 1, 1]]
        mask = np.ones((1, 3, 4, 4), np.float32)
        mask[:, :, :, 2:] = 0
        return Detections(
            boxes=np.float32(boxes)[None],
            scores=np.float32([[0.9, 0.4, 0]]),
            labels=np.int32([[2, 3, 0]]),
            valid=np.array([[True, True, False]]),
            masks=mask,
        )


@pytest.fixture
def detector():
    return Detector(WholeImage(), CATEGORIES, SMALL)


def test_boxes_and_masks_are_in_pixels_of_the_image(detector):
    for size in ((30, 50), (480, 640), (64, 64), (7, 200), (1, 1)):
        found = detector.detect(np.zeros((*size, 3), np.uint8))
        height, width = size
        expected = [[0, 0, width, height], [0, 0, width / 2, height]]
        np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)
        assert found.names == ["dog", "eel"] and found.category_ids == [9, 12]
        assert found.scores.tolist() == [np.float32(0.9), np.float32(0.4)]
        assert found.masks.shape == (2, *size) and found.size == size
        if size == (480, 640):
            # The left half of the box, to a half where the mask ends.
            assert found.masks[0].mean() == pytest.approx(0.5, abs=0.03)
            assert found.masks[1].mean() == pytest.approx(0.25, abs=0.02)


def test_scores_choose(detector):
    image = np.zeros((40, 40, 3), np.uint8)
    assert len(detector.detect(image, score=0.5)) == 1
    assert len(detector.detect(image, score=1.0)) == 0
    assert len(detector.detect(image).at_least(0.5)) == 1
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"`score` is"):
            detector.detect(image, score=wrong)


def _write(path, pixels, *options):
    assert cv2.imwrite(str(path), pixels, options)
    return path


def test_files_of_all_kinds(detector, tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (20, 30, 4)).astype(np.uint8)
    deep = rng.integers(0, 65535, (20, 30, 3)).astype(np.uint16)
    files = [
        _write(tmp_path / "grey.png", colour[..., 0]),
        _write(tmp_path / "rgba.png", colour),
        _write(tmp_path / "deep.png", deep),
        _write(tmp_path / "photo.jpg", colour[..., :3]),
    ]
    data = (tmp_path / "photo.jpg").read_bytes()
    # A TIFF directory with one entry: orientation (0x0112) = 6, a quarter turn.
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    tag = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "turned.jpg").write_bytes(data[:2] + tag + data[2:])
    found = detector.detect([*files, tmp_path / "turned.jpg", colour[..., :3]])
    assert [f.size for f in found] == [(20, 30)] * 4 + [(30, 20), (20, 30)]
    assert detector.detect([]) == []
    assert detector.detect(str(files[0])).size == (20, 30)


def test_what_is_no_image_is_refused(detector, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        detector.detect(tmp_path / "none.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"broken\.jpg is not a JPEG or PNG"):
        detector.detect([tmp_path / "broken.jpg"])
    image = np.zeros((20, 30, 3), np.uint8)
    for wrong in (image[..., 0], image[None], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match="an image "):
            detector.detect(wrong)
    for wrong in (3, None, [image.tolist()], {"a": image}):
        with pytest.raises(TypeError, match="expected a path, or a NumPy array"):
            detector.detect(wrong)
    large = Detector(WholeImage(), CATEGORIES, Preprocessing(max_pixels=599))
    with pytest.raises(ValueError, match=r"20 x 30 pixels; .*`max_pixels`"):
        large.detect(image)


def test_it_draws(detector):
    image = np.full((60, 80, 3), 50, np.uint8)
    picture = detector.draw(image)
    found = detector.detect(image)
    np.testing.assert_array_equal(picture, found.draw(image))
    assert picture.shape == (512, 683, 3) and (image == 50).all()
    assert (picture[:, :300] != 50).any() and (picture[300:490, 400:660] == 50).all()
    nothing = found.draw(image, score=0.95)
    assert (nothing == 50).all()
    with pytest.raises(ValueError, match=r"shape \(60, 80, 3\), the image that"):
        found.draw(image[:-1])


def test_the_best_are_drawn_where_none_reaches_the_score(detector):
    image = np.full((60, 80, 3), 50, np.uint8)
    found = detector.detect(image)
    low = float(found.scores.mean())
    np.testing.assert_array_equal(
        found.draw(image, low, best=2), found.draw(image, low)
    )
    one, both = (found.draw(image, 0.95, best=best) for best in (1, 2))
    # The best of them, with a note in the lower left corner.
    assert (one[-1, 0] == 0).all() and (both[-1, 0] == 0).all()
    assert 0 < (one != 50).sum() < (both != 50).sum()
    nothing = found.at_least(0.95)
    assert len(nothing) == 0
    picture = nothing.draw(image, 0.95, best=2)
    assert (picture[:480] == 50).all() and (picture[-1, 0] == 0).all()


def test_without_masks():
    found = ImageDetections(
        np.zeros((1, 4), np.float32), np.ones(1), np.ones(1, int), (5, 5), CATEGORIES
    )
    assert found.masks is None
    with pytest.raises(ValueError, match="there are no masks"):
        found.mask(0)


def test_supervision_takes_them(detector, monkeypatch):
    """By its own names; what it does with them is its affair."""
    stub = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found = detector.detect(np.zeros((40, 60, 3), np.uint8))
    taken = found.to_supervision()
    np.testing.assert_array_equal(taken.xyxy, found.boxes)
    np.testing.assert_array_equal(taken.mask, found.masks)
    np.testing.assert_array_equal(taken.confidence, found.scores)
    assert taken.class_id.tolist() == [9, 12]
    assert taken.data["class_name"].tolist() == ["dog", "eel"]


class Odd(WholeImage):
    """Its first box is no number, or its second label of no category."""

    def __init__(self, label):
        self._label = label

    def predict(self, images, sizes):
        found = super().predict(images, sizes)
        found.boxes[0, 0, 1] = np.nan
        found.labels[0, 1] = self._label
        return found


def test_what_a_network_may_say():
    image = np.zeros((40, 60, 3), np.uint8)
    found = Detector(Odd(1), ["a", "b"], SMALL).detect(image)
    assert found.names == ["a"] and found.category_ids == [1]
    found.draw(image, score=0.0)
    for label in (0, 3):
        with pytest.raises(ValueError, match=r"labels from .*; expected from 1 to 2"):
            Detector(Odd(label), ["a", "b"], SMALL).detect(image)
    with pytest.raises(TypeError, match=r"`categories` has 3; expected `Category`"):
        as_categories(["a", 3], start=1)
