import cv2
import numpy as np
import pytest

from train import draw


def test_grid_holds_every_picture():
    pictures = [np.full((10 + i, 20, 3), i, np.uint8) for i in range(5)]
    sheet = draw.grid(pictures)
    assert sheet.shape == (2 * 18, 3 * 24, 3)
    for i in range(5):
        assert (sheet == i).all(-1).sum() == (10 + i) * 20


def test_pictures_beside_one_another_have_names():
    left, right = np.full((100, 30, 3), 7, np.uint8), np.full((90, 50, 3), 8, np.uint8)
    picture = draw.beside({"ground truth": left, "prediction": right})
    assert picture.shape == (118, 84, 3)
    assert (picture[18:, :30] == 7).all() and (picture[18:108, 34:] == 8).all()
    assert (picture[108:, 34:] == 255).all() and (picture[:, 30:34] == 255).all()
    assert (picture[:18, :30] < 100).any() and (picture[:18, 34:] < 100).any()


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
