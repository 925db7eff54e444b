import cv2
import numpy as np
import pytest

from train import draw


def test_boxes_and_labels_are_drawn_on_a_copy():
    image = np.zeros((512, 768, 3), np.uint8)
    boxes = np.float32([[102, 154, 614, 461], [-26, -26, 2048, 1536]])
    picture = draw.draw_boxes(
        image, boxes, np.float32([0.9, 0.6]), [1, 12], [f"class {i}" for i in range(12)]
    )
    assert picture.shape == image.shape
    assert not image.any()
    # The left edge of the first box, in the first colour.
    assert tuple(picture[300, 102]) == (31, 119, 180)


@pytest.mark.parametrize(
    ("shape", "larger"),
    [
        *[((1, 10000), (1, 10000)), ((10, 1000), (20, 2048)), ((64, 64), (512, 512))],
        *[((100, 150), (512, 768)), ((600, 700), (600, 700))],
    ],
)
def test_enlargement_is_bounded(shape, larger):
    image = np.zeros((*shape, 3), np.uint8)
    picture = draw.enlarged(image)
    assert picture.shape == (*larger, 3)
    box = np.float32([[0, 0, larger[1], larger[0]]])
    drawn = draw.draw_boxes(picture, box, np.float32([0.9]), [1], ["a"])
    assert drawn.shape == picture.shape


def test_no_detections_leave_the_image():
    image = np.full((600, 700, 3), 7, np.uint8)
    none = np.zeros((0, 4), np.float32)
    picture = draw.draw_boxes(image, none, np.zeros(0, np.float32), [], ["a"])
    np.testing.assert_array_equal(picture, image)


def test_a_mask_is_tinted_and_outlined_on_a_copy():
    image = np.full((200, 300, 3), 100, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[50:150, 100:220] = True
    mask[90:110, 140:160] = False
    picture = draw.draw_mask(image, mask, 2)
    assert (image == 100).all()
    # The second colour on gray, its outline, also of a hole, and what lies outside.
    assert picture[70, 120].tolist() == pytest.approx([162, 111, 66], abs=1)
    assert picture[100, 100].tolist() == picture[89, 150].tolist() == [255, 127, 14]
    assert (picture[:40] == 100).all() and (picture[100, 150] == 100).all()
    # Column by column, as masks are pasted.
    again = draw.draw_mask(image, np.asfortranarray(mask), 2)
    np.testing.assert_array_equal(again, picture)
    nothing = draw.draw_mask(image, np.zeros_like(mask), 2)
    np.testing.assert_array_equal(nothing, image)


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
