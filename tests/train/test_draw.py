import cv2
import numpy as np
import pytest

from train import draw


def test_boxes_and_labels_are_drawn_on_an_enlarged_copy():
    image = np.zeros((100, 150, 3), np.uint8)
    boxes = np.float32([[20, 30, 120, 90], [-5, -5, 400, 300]])
    picture = draw.draw_detections(
        image, boxes, np.float32([0.9, 0.6]), [1, 12], [f"class {i}" for i in range(12)]
    )
    assert picture.shape == (512, 768, 3)
    assert not image.any()
    # The left edge of the first box, in the first colour.
    assert tuple(picture[300, round(20 * 5.12)]) == (31, 119, 180)


@pytest.mark.parametrize(
    ("shape", "enlarged"),
    [((1, 10000), (1, 10000)), ((10, 1000), (20, 2048)), ((64, 64), (512, 512))],
)
def test_enlargement_is_bounded(shape, enlarged):
    image = np.zeros((*shape, 3), np.uint8)
    box = np.float32([[0, 0, shape[1], shape[0]]])
    picture = draw.draw_detections(image, box, np.float32([0.9]), [1], ["a"])
    assert picture.shape == (*enlarged, 3)


def test_no_detections_leave_the_image():
    image = np.full((600, 700, 3), 7, np.uint8)
    none = np.zeros((0, 4), np.float32)
    picture = draw.draw_detections(image, none, np.zeros(0, np.float32), [], ["a"])
    np.testing.assert_array_equal(picture, image)


def test_grid_holds_every_picture():
    pictures = [np.full((10 + i, 20, 3), i, np.uint8) for i in range(5)]
    sheet = draw.grid(pictures)
    assert sheet.shape == (2 * 18, 3 * 24, 3)
    for i in range(5):
        assert (sheet == i).all(-1).sum() == (10 + i) * 20


def test_pictures_are_saved_as_rgb(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 255
    draw.save_picture(tmp_path / "new" / "red.png", picture)
    assert cv2.imread(str(tmp_path / "new" / "red.png"))[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(OSError, match=r"blocked\.png"):
        (tmp_path / "blocked.png").mkdir()
        draw.save_picture(tmp_path / "blocked.png", picture)


def test_curves_bear_gaps_and_missing_terms(tmp_path):
    records = [
        {"step": 1, "loss": 3.0, "loss/box": 1.0},
        {"step": 2, "loss": None, "offset/outside": 0.1},
        {"step": 2, "eval/bbox/AP": 0.5, "eval/bbox/AP50": 0.7},
        {"step": 3, "loss": 1.0, "loss/box": 0.2},
    ]
    draw.save_curves(tmp_path / "curves.png", records)
    assert cv2.imread(str(tmp_path / "curves.png")).shape[0] > 300
